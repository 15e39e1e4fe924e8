"""Refusals of a mesh that cannot hold or divide a model, from shapes alone, before anything long is done."""

import math
from collections.abc import Iterator

from ml_collections import ConfigDict

from mmedexpert_jax.errors import ConfigError, ResourceError
from mmedexpert_jax.gba.split import micro_batch
from mmedexpert_jax.models import ModelConfig
from mmedexpert_jax.plan import hardware
from mmedexpert_jax.plan.architecture import architecture
from mmedexpert_jax.plan.hardware import Devices
from mmedexpert_jax.plan.needs import abstract_params, shares, size
from mmedexpert_jax.runtime.mesh import shardings


def check_rows(config: ConfigDict, prefix: str) -> None:
    """Refuses a mesh that the devices do not make, or that does not divide the prompts of a step of GBA.

    Raises ConfigError, ResourceError; no model is looked at.
    """
    mesh = hardware.find(config.plan_mesh).mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    if config.job == "gba":
        micro_batch(config, shares(mesh), prefix)


def check_model(config: ConfigDict, prefix: str) -> None:
    """Refuses a mesh that does not divide a model's heads or tensors, or whose devices cannot hold its weights.

    Args:
        config: of dsa or gba.
        prefix: of its fields' names, such as "gba." in a pipeline.

    Raises:
        ConfigError: it names the axis, and the largest size of it below that divides them.
        ResourceError: it names the smallest split that holds them, or the number of devices that would.
        DataError, RemoteError: the model's shape is not known.
    """
    devices = hardware.find(config.plan_mesh)
    shape, stored = architecture(config.model.path)
    dtype = config.model.dtype or ("float32" if devices.kind == "cpu" else stored)
    weights = abstract_params(shape, dtype)
    for axis in ("tensor", "fsdp"):
        _check_axis(config, prefix, axis, shape, weights, devices)
    if not devices.memory or config.plan:  # a plan counts all of what is needed, and says what would fix it
        return
    sizes = config.mesh
    mesh = devices.mesh(sizes.data, sizes.fsdp if config.shard == "full" else 1, sizes.tensor)
    if size(weights, mesh) > devices.memory:
        held = f"{config.model.path}: {size(weights, mesh) / 1e9:.0f} GB of weights a device"
        there = f"{devices.memory / 1e9:.0f} GB are there ({devices.count} x {devices.kind})"
        raise ResourceError(f"{held}, {there}; {_split_that_holds(config, prefix, weights, devices)}")


def _check_axis(
    config: ConfigDict, prefix: str, axis: str, shape: ModelConfig, weights: dict, devices: Devices
) -> None:
    given = config.mesh[axis]
    reason = _undivided(axis, given, shape, weights)
    if reason:
        fits = next(n for n in range(given - 1, 0, -1) if given % n == 0 and not _undivided(axis, n, shape, weights))
        raise ConfigError(
            f"config.{prefix}mesh.{axis}={given} does not divide {reason}; set --config.{prefix}mesh.{axis}={fits}"
        )


def _undivided(axis: str, parts: int, shape: ModelConfig, weights: dict) -> str:
    """The heads or the tensor that so many parts along an axis do not divide; "" where they divide all."""
    if axis == "tensor" and shape.text.num_heads % parts:  # a head is not computed in two places
        return f"the {shape.text.num_heads} heads of the model"
    mesh = Devices("", parts, 0).mesh(**{"data": 1, axis: parts})
    try:
        shardings(weights, mesh)  # type: ignore[arg-type]  # it reads the axes' names and sizes alone
    except ConfigError as error:
        return str(error).partition(" does not divide ")[2].partition(";")[0]
    return ""


def _split_that_holds(config: ConfigDict, prefix: str, weights: dict, devices: Devices) -> str:
    """The fields under which the weights fit, or the number of devices that hold them."""
    tensor = config.mesh.tensor
    for fsdp in _divisors(devices.count // tensor):
        try:
            part = size(weights, devices.mesh(-1, fsdp, tensor))
        except ConfigError:  # it does not divide a tensor
            continue
        if part <= devices.memory:
            data = "" if config.mesh.data == -1 else f"--config.{prefix}mesh.data=-1 "
            return f"set {data}--config.{prefix}mesh.fsdp={fsdp} --config.{prefix}shard=full"
    enough = 1 << math.ceil(math.log2(size(weights) / devices.memory))
    return f"no split of so many holds them: at least {enough} such devices do, or a smaller model"


def _divisors(count: int) -> Iterator[int]:
    return (n for n in range(1, count + 1) if count % n == 0)
