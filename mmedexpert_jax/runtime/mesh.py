"""The device mesh, and which axis of which array lies along which of its axes.

A mesh has three axes: "data" and "fsdp" split the rows of a batch, "fsdp" and "tensor" split the weights. All are
AxisType.Auto: `jax.make_mesh` defaults to Explicit, where a product over two sharded axes is an error.

A rule is chosen by the path of a leaf, from its end: the same rules serve parameters, LoRA factors, and the optimizer
state of either, whose paths end alike. "tensor" splits a pair of layers as Megatron-LM does (Shoeybi et al. 2019): the
outputs of the first, the inputs of the second, so that one sum over devices joins them. "fsdp" splits the other side,
but of the vocabulary, where a device then has all of some tokens' logits, and need not sum.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mmedexpert_jax.errors import ConfigError, ResourceError
from mmedexpert_jax.runtime import processes
from mmedexpert_jax.runtime.devices import keep_no_programs

AXES = ("data", "fsdp", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))

_VOCABULARY = ("fsdp", "tensor")
# layers -> axes of their weight [out, in, ...]
_RULES = (
    (
        r"q_proj|k_proj|v_proj|gate_proj|up_proj|(?:linear_)?fc1|linear_1|merger\.mlp\.0",
        ("tensor", "fsdp"),
    ),
    (r"embed_tokens|lm_head", (_VOCABULARY, None)),
    # qkv is three layers in one: to split its outputs would split queries from keys, so its inputs are split
    (r"o_proj|out_proj|down_proj|(?:linear_)?fc2|linear_2|merger\.mlp\.2|attn\.qkv|attn\.proj", ("fsdp", "tensor")),
    (r"patch_embed\.proj|patch_embedding", ("fsdp", None)),
    (r"mm_input_projection", ("fsdp", None)),  # [in, out]; its name ends in _weight
    (r"pos_embed|position_embedding", (None, "fsdp")),  # its rows are looked up, so its columns are split
)
_LEAVES = tuple((re.compile(rf"(?:^|\.)(?:{layers})[._](weight|bias|a|b)$"), axes) for layers, axes in _RULES)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of data x fsdp x tensor devices, the first ones that JAX lists; data=-1 takes all that there are.

    JAX lists the devices of a GPU's host one after the other, so that "data", the first axis, is the one that goes from
    host to host: weights are gathered inside a host, and only gradients pass between them.

    Raises as `sizes` does, and ConfigError where a process of the job is left without a device, or where "fsdp" and
    "tensor" fill some hosts and a part of another.
    """
    devices = processes.devices()
    shape = sizes(len(devices), devices[0].platform, data, fsdp, tensor)
    count = math.prod(shape)
    if processes.count() > 1 and count < len(devices):
        raise ConfigError(
            f"mesh of {count} devices: the job's {processes.count()} processes have {len(devices)}, and each must take "
            "part; set config.mesh.data=-1, or start fewer processes"
        )
    if processes.count() > 1:
        check_hosts(len(devices) // processes.count(), fsdp, tensor, processes.count())
    if count > 1 and devices[0].platform == "cpu":
        # XLA runs the collectives of a program one after the other. In one that it reads from a file (jaxlib 0.10.2)
        # those of a loop or call no longer wait for those around it: thunk_proto_serdes.cc makes a resource for each
        # sequence. Under shard_map all have one number, so that two at once, such as a gathered weight and a piece of
        # the vocabulary (models/sharded.py), are taken for one, which hangs, aborts or spoils memory.
        keep_no_programs()
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:count])


def check_hosts(local: int, fsdp: int, tensor: int, hosts: int = 1) -> None:
    """Raises ConfigError where fsdp x tensor devices neither divide the `local` ones of a host nor fill whole hosts."""

    def lies(fsdp: int, tensor: int) -> bool:
        together = fsdp * tensor
        return not (local % together and together % local)

    if not lies(fsdp, tensor):
        most = local * hosts
        found = nearest("fsdp", fsdp, most // tensor, lambda size: lies(size, tensor))
        found = found or nearest("tensor", tensor, most // fsdp, lambda size: lies(fsdp, size))
        raise ConfigError(
            f"mesh fsdp={fsdp}, tensor={tensor}: {fsdp * tensor} devices do not lie inside a host of {local}; "
            f"set config.mesh.{found or 'fsdp=1 and config.mesh.tensor=1'}"
        )


def nearest(name: str, given: int, most: int, holds: Callable[[int], bool]) -> str:
    """The sizes from 1 to `most` that hold, nearest to the one given first, four at most: "tensor=2 (or 4, 1)"; ""."""
    by_distance = sorted(range(1, most + 1), key=lambda size: (abs(size - given), size))
    first, *others = [*itertools.islice(filter(holds, by_distance), 4)] or [0]
    if not first:
        return ""
    return f"{name}={first}" + (f" (or {', '.join(map(str, others))})" if others else "")


def sizes(devices: int, kind: str, data: int = -1, fsdp: int = 1, tensor: int = 1) -> tuple[int, int, int]:
    """Devices along each of AXES in a mesh of so many devices of a kind; data=-1 takes all that there are.

    Raises ResourceError where there are fewer, ConfigError for numbers that are none or do not divide the devices.
    """
    along = {"data": data, "fsdp": fsdp, "tensor": tensor}
    for name, size in along.items():
        if size < 1 and not (name == "data" and size == -1):
            more = ", or -1 for all" if name == "data" else ""
            raise ConfigError(f"mesh {name}={size}: give a number of devices from 1{more}")
    if data == -1:
        if devices % (fsdp * tensor):
            axis, size, other = ("tensor", tensor, 1) if devices % tensor else ("fsdp", fsdp, tensor)
            fits = nearest(axis, size, devices // other, lambda n: devices % (n * other) == 0)
            given = f"mesh fsdp={fsdp}, tensor={tensor}"
            raise ConfigError(f"{given} does not divide the {devices} devices; set config.mesh.{fits}")
        along["data"] = devices // (fsdp * tensor)
    count = math.prod(along.values())
    if count > devices:
        wanted = ", ".join(f"{name}={size}" for name, size in along.items() if size > 1)
        raise ResourceError(
            f"mesh {wanted} needs {count} devices and there are {devices} ({kind}); lower it to at most {devices}, or "
            "data to -1 for all"
        )
    return along["data"], fsdp, tensor


def partition(path: str, ndim: int) -> PartitionSpec:
    """The split of the leaf at `path`, e.g. "mu.model.layers.0.self_attn.q_proj.weight"; norms and the rest: whole.

    Of stacked layers, "model.layers.*.self_attn.q_proj.weight", the first axis is never split: a program takes one
    layer after the other, and gathers no more than it.
    """
    first = (None,) if ".*." in f".{path}" else ()
    for pattern, (outputs, inputs) in _LEAVES:
        if found := pattern.search(path):
            specs = {"weight": (outputs, inputs), "bias": (outputs,), "a": (None, inputs), "b": (outputs, None)}
            return PartitionSpec(*first, *specs[found[1]][: ndim - len(first)])
    return PartitionSpec()


def sharding(path: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of the leaf at `path`.

    Raises ConfigError that names the leaf and the mesh axis that does not divide it.
    """
    spec = partition(path, len(shape))
    if _VOCABULARY in spec and shape[0] % (mesh.shape["fsdp"] * mesh.shape["tensor"]):  # resized to an odd number
        spec = PartitionSpec("tensor", "fsdp")
    for size, axis in zip(shape, spec, strict=False):
        if isinstance(axis, str) and size % mesh.shape[axis]:
            raise ConfigError(
                f"mesh {axis}={mesh.shape[axis]} does not divide the {size} of {path} {tuple(shape)}; "
                f"choose {axis} among the divisors of {size}"
            )
    return NamedSharding(mesh, PartitionSpec(*spec[: len(shape)]))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """`sharding` of every leaf (arrays or their shapes) of parameters, LoRA deltas or an optimizer state."""

    def of(path: Any, leaf: Any) -> NamedSharding:
        return sharding(_name(path), getattr(leaf, "shape", ()), mesh)

    return jax.tree_util.tree_map_with_path(of, tree)


def shard(tree: Any, mesh: Mesh) -> Any:
    """The tree on the mesh by its rules."""
    return jax.tree.map(processes.put, tree, shardings(tree, mesh))


def row_shards(mesh: Mesh | AbstractMesh | None) -> int:
    """The number of shards into which a mesh splits rows; 1 without one."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """The tree on the mesh, its arrays split along their first axis; scalars stand on every device.

    Raises ConfigError that names an array whose first axis the devices do not divide.
    """
    shards = row_shards(mesh)
    split, whole = NamedSharding(mesh, ROWS), NamedSharding(mesh, PartitionSpec())

    def of(path: Any, leaf: Any) -> NamedSharding:
        shape = getattr(leaf, "shape", ())
        if shape and shape[0] % shards:
            raise ConfigError(
                f"{_name(path) or 'the batch'} has {shape[0]} rows, which {shards} devices do not divide; "
                f"choose a batch that is a multiple of {shards}, or fewer devices"
            )
        return split if shape else whole

    return jax.tree.map(processes.put, tree, jax.tree_util.tree_map_with_path(of, tree))


def by_device(function: Callable, mesh: Mesh | None, specs: Any, out_specs: Any) -> Callable:
    """`function` of each device's rows; "tensor", if it splits anything, stays with the compiler. None: unchanged."""
    if mesh is None:
        return function
    names = set(ROWS[0]) if mesh.shape["tensor"] > 1 else set(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs, axis_names=names, check_vma=False)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
