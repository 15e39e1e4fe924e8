"""Refusals of a mesh that cannot hold or divide a model, from shapes alone, before anything long is done."""

import functools
import math
from collections.abc import Iterator
from itertools import chain, islice

from ml_collections import ConfigDict

from mmedexpert_jax.errors import ConfigError, DataError, RemoteError, ResourceError
from mmedexpert_jax.gba.split import micro_batch
from mmedexpert_jax.plan import hardware
from mmedexpert_jax.plan.architecture import architecture
from mmedexpert_jax.plan.hardware import Devices
from mmedexpert_jax.plan.needs import abstract_params, size
from mmedexpert_jax.rounding import round_up
from mmedexpert_jax.runtime.mesh import AXES, nearest, row_shards, shardings


class _Model:
    """The shapes of a model, and the meshes that they allow."""

    def __init__(self, config: ConfigDict, devices: Devices):
        """Raises DataError, RemoteError where the model is not there yet, or its shape is not known without the hub."""
        self.shape, stored = architecture(config.model.path)
        self.weights = abstract_params(
            self.shape, config.model.dtype or ("float32" if devices.kind == "cpu" else stored)
        )
        self.undivided = functools.cache(self._undivided)

    def _undivided(self, axis: str, parts: int) -> str:
        """The heads or the tensor that so many parts along an axis do not divide; "" where they divide all."""
        heads = self.shape.text.num_heads
        if axis == "tensor" and heads % parts:  # a head is not computed in two places
            return f"the {heads} heads of the model"
        mesh = Devices("", parts, 0).mesh(**{"data": 1, axis: parts})
        try:
            shardings(self.weights, mesh)  # type: ignore[arg-type]  # it reads the axes' names and sizes alone
        except ConfigError as error:
            return str(error).partition(" does not divide ")[2].partition(";")[0]
        return ""


def check(config: ConfigDict, prefix: str) -> None:
    """Refuses a mesh that the devices do not make, that does not divide the prompts of a step of GBA or the heads or
    tensors of a model, or whose devices cannot hold its weights. A model that is not known yet is not looked at.

    Args:
        config: of dsa or gba.
        prefix: of its fields' names, such as "gba." in a pipeline.

    Raises:
        ConfigError, ResourceError: the line names the sizes of a field, nearest first, each of which is enough, or the
            split or the number of devices that holds the weights.
    """
    devices = hardware.find(config.plan_mesh)
    try:
        model = _Model(config, devices)
    except (DataError, RemoteError):
        model = None
    try:
        _check_sizes(config, prefix, devices, model)
    except (ConfigError, ResourceError) as error:
        reason, _, own = str(error).partition("; ")
        fix = _enough(config, prefix, devices, model) or own
        raise type(error)(f"{reason}; {fix}" if fix else reason) from None
    if model and devices.memory and not config.plan:  # a plan counts all of what is needed, and says what would fix it
        _check_memory(config, prefix, devices, model.weights)


def _check_sizes(config: ConfigDict, prefix: str, devices: Devices, model: _Model | None) -> None:
    mesh = devices.mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    for axis in ("tensor", "fsdp"):
        if model and (reason := model.undivided(axis, config.mesh[axis])):
            raise ConfigError(f"config.{prefix}mesh.{axis}={config.mesh[axis]} does not divide {reason}")
    if config.job == "gba":
        micro_batch(config, row_shards(mesh), prefix)


def _enough(config: ConfigDict, prefix: str, devices: Devices, model: _Model | None) -> str:
    """At most two fields with the nearest sizes of each, any of which alone makes the mesh, or else sizes of several
    fields together; "" where none do."""
    tried = config.copy_and_resolve_references()  # once: copies would take seconds for thousands of devices
    batch = ("prompts_per_step", "micro_batch") if config.job == "gba" else ()
    before = {f"mesh.{axis}": config.mesh[axis] for axis in AXES} | {name: config[name] for name in batch}

    def accepted(fields: dict[str, int]) -> bool:
        tried.update_from_flattened_dict(before | fields)
        try:
            _check_sizes(tried, prefix, devices, model)
        except (ConfigError, ResourceError):
            return False
        return True

    def alone() -> Iterator[str]:
        for field, (given, most) in _changeable(config, devices.count).items():
            if found := nearest(field, given, most, lambda size, field=field: accepted({field: size})):  # type: ignore[misc]
                yield f"--config.{prefix}{found}"

    if found := list(islice(alone(), 2)):
        return f"set {' or '.join(found)}"
    meshes = _meshes(config, devices.count)
    for fields in chain(meshes, (fields | _batch(config, fields) for fields in meshes)):
        if accepted(fields):
            return "set " + " ".join(f"--config.{prefix}{field}={value}" for field, value in fields.items())
    return ""


def _changeable(config: ConfigDict, devices: int) -> dict[str, tuple[int, int]]:
    """(size, the most that is tried) of the fields that may make a mesh, the one that costs least first."""
    found = {}
    if config.job == "gba":
        micro, batch = config.micro_batch, config.prompts_per_step
        if micro > 1:
            found["micro_batch"] = micro, micro - 1
        found["prompts_per_step"] = batch, batch + devices * config.minibatches * max(1, micro)  # the next that divides
    for axis in ("tensor", "fsdp"):
        size = config.mesh[axis]
        if size != 1:
            found[f"mesh.{axis}"] = size, min(devices, 2 * max(1, size))  # 1 is nearer than more
    rest = devices // max(1, config.mesh.fsdp * config.mesh.tensor)
    found["mesh.data"] = rest if config.mesh.data == -1 else config.mesh.data, devices
    return found


def _meshes(config: ConfigDict, devices: int) -> list[dict[str, int]]:
    """The smaller meshes of so many devices, as the fields that change: those of fewest changes, then most devices,
    then the nearest."""
    most = {axis: max(1, min(devices, config.mesh[axis])) for axis in ("tensor", "fsdp")}
    found = []
    for tensor in range(1, most["tensor"] + 1):
        for fsdp in range(1, min(most["fsdp"], devices // tensor) + 1):
            for data in range(1, devices // (tensor * fsdp) + 1):
                along = {"tensor": tensor, "fsdp": fsdp, "data": data}
                changed = {f"mesh.{axis}": size for axis, size in along.items() if size != config.mesh[axis]}
                apart = sum(abs(size - config.mesh[axis]) for axis, size in along.items() if axis in most)
                found.append((len(changed), -math.prod(along.values()), apart, changed))
    return [changed for *_, changed in sorted(found, key=lambda entry: entry[:3])]


def _batch(config: ConfigDict, fields: dict[str, int]) -> dict[str, int]:
    """The least batch of GBA from the config's that a mesh of other sizes, and all else that splits it, divide."""
    if config.job != "gba":
        return {}
    parts = config.minibatches * max(1, config.micro_batch) * config.paradigms_per_query
    parts *= math.prod(fields.get(f"mesh.{axis}", config.mesh[axis]) for axis in ("data", "fsdp"))
    return {"prompts_per_step": round_up(config.prompts_per_step, parts)}


def _check_memory(config: ConfigDict, prefix: str, devices: Devices, weights: dict) -> None:
    tensor = config.mesh.tensor
    needed = size(weights, devices.mesh(config.mesh.data, config.mesh.fsdp if config.shard == "full" else 1, tensor))
    if needed <= devices.memory:
        return
    held = f"{config.model.path}: {needed / 1e9:.0f} GB of weights a device"
    there = f"{devices.memory / 1e9:.0f} GB are there ({devices.count} x {devices.kind})"
    raise ResourceError(f"{held}, {there}; {_split_that_holds(config, prefix, weights, devices)}")


def _split_that_holds(config: ConfigDict, prefix: str, weights: dict, devices: Devices) -> str:
    """The fields under which the weights fit, or the number of devices that hold them."""
    tensor = config.mesh.tensor
    along = devices.count // tensor
    for fsdp in (n for n in range(1, along + 1) if along % n == 0):
        try:
            part = size(weights, devices.mesh(-1, fsdp, tensor))
        except ConfigError:  # it does not divide a tensor
            continue
        if part <= devices.memory:
            data = "" if config.mesh.data == -1 else f"--config.{prefix}mesh.data=-1 "
            return f"set {data}--config.{prefix}mesh.fsdp={fsdp} --config.{prefix}shard=full"
    enough = 1 << math.ceil(math.log2(size(weights) / devices.memory))
    return f"no split of so many holds them: at least {enough} such devices do, or a smaller model"
