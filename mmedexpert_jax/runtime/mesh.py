"""The device mesh: rows of a batch are split over "data", weights stand whole on every device.

Axes "fsdp" (shards of the weights) and "tensor" (shards within a layer) are named and of size 1. All axes are
AxisType.Auto: `jax.make_mesh` defaults to Explicit, where a product over two sharded axes is an error.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmedexpert_jax.errors import ConfigError, ResourceError

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = -1) -> Mesh:
    """A mesh of `data` devices, the first ones that JAX lists; -1 takes all.

    Raises ResourceError where there are fewer, ConfigError for a number that is none.
    """
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if count < 1:
        raise ConfigError(f"mesh data={data}: give a number of devices from 1, or -1 for all")
    if count > len(devices):
        raise ResourceError(
            f"mesh data={count} needs {count} devices and JAX sees {len(devices)} ({devices[0].platform}); "
            f"lower it to at most {len(devices)}, or -1 for all"
        )
    return jax.make_mesh((count, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:count])


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """The tree on the mesh, its arrays split along their first axis; scalars stand on every device.

    Raises ConfigError that names an array whose first axis the devices do not divide.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        shape = getattr(leaf, "shape", ())
        if shape and shape[0] % parts:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ConfigError(
                f"{name or 'the batch'} has {shape[0]} rows, which {parts} devices do not divide; "
                f"choose a batch that is a multiple of {parts}, or fewer devices"
            )
        return split if shape else whole

    return jax.device_put(tree, jax.tree_util.tree_map_with_path(sharding, tree))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree on the mesh, whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
