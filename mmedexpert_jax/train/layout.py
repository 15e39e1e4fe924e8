"""The layout of a run's arrays on its mesh: weights, optimizer state and rows of a batch."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmedexpert_jax.models import sharded
from mmedexpert_jax.runtime import processes
from mmedexpert_jax.runtime.mesh import ROWS, by_device, row_shards, shard_batch, shardings


class Layout:
    """The mesh of a run, data x fsdp x tensor, and what is split along it.

    "tensor" always splits weights. "fsdp" splits what `shard` names: nothing ("none": the axis then only splits rows),
    the optimizer state ("optimizer", ZeRO-2), or weights, gradients and deltas too ("full", ZeRO-3). What is split
    stays split inside a step: the compiler gathers a weight where it is used, and sums a gradient into its shards.

    Attributes:
        mesh: the devices.
        shards: into which the rows of a batch are split, one for each place along data x fsdp.
    """

    def __init__(self, mesh: Mesh, shard: str = "none"):
        self.mesh, self._shard = mesh, shard
        self.shards = row_shards(mesh)

    def weights(self, tree: Any) -> Any:
        """The tree of weights, deltas or gradients in its place, traced or not."""
        return self._placed(tree, self._shard == "full")

    def optimizer(self, tree: Any) -> Any:
        """The tree of an optimizer's moments, or gradients on their way to it, in its place, traced or not."""
        return self._placed(tree, self._shard != "none")

    def whole(self, tree: Any) -> Any:
        """The tree on every device."""
        return self._put(tree, jax.tree.map(lambda _: NamedSharding(self.mesh, PartitionSpec()), tree))

    def rows(self, tree: Any) -> Any:
        """Arrays of the host, each device's shard of their rows sent to it."""
        return tree if self.mesh.size == 1 else shard_batch(tree, self.mesh)

    def by_shard(self, function: Callable, whole: Any, rows: Any) -> Any:
        """`function(whole, rows)` of each shard of the rows, which it sees as if there were no others.

        Packing indices are those inside a shard; images are numbered through, a shard's computed where they lie, and
        only their features pass between devices, besides sharded weights, which `function` gets as such
        (models/sharded.py). What it returns is stacked along a first axis of shards, which lies on their devices.
        """

        def of_shard(whole: Any, rows: Any) -> Any:
            with sharded.images_over(ROWS[0] if self.shards > 1 else ()):
                return jax.tree.map(lambda leaf: leaf[None], function(whole, rows))

        if self.shards == 1:  # not mapped: a program of one device stays the plain one
            return of_shard(whole, rows)
        if self._shard == "full":
            whole = sharded.shard(whole, shardings(whole, self.mesh))
        return by_device(of_shard, self.mesh, (sharded.specs(whole), ROWS), ROWS)(whole, rows)

    def _placed(self, tree: Any, split: bool) -> Any:
        where = shardings(tree, self.mesh)
        return self._put(tree, where if split else jax.tree.map(_without_fsdp, where))

    def _put(self, tree: Any, where: Any) -> Any:
        if self.mesh.size == 1:
            return tree
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
            return jax.lax.with_sharding_constraint(tree, where)
        return jax.tree.map(processes.put, tree, where)


def read_on(mesh: Mesh, shard: str) -> Mesh | None:
    """The mesh whose devices read their shards of a model's files; None where each holds all of it."""
    return mesh if mesh.size > 1 and (shard == "full" or mesh.shape["tensor"] > 1) else None


def _without_fsdp(sharding: NamedSharding) -> NamedSharding:
    names = {"fsdp": None, ("fsdp", "tensor"): "tensor"}
    return NamedSharding(sharding.mesh, PartitionSpec(*(names.get(axis, axis) for axis in sharding.spec)))
