"""Sharded weights inside `jax.shard_map`: each device along a mesh's "fsdp" axis has one shard.

A product either gathers its weight and lets it go, or sends its rows to the shards and takes back what they give. Many
rows (a gradient, a prompt) are cheaper left where they are; few rows (a token of each sample) are cheaper sent, and no
device then reads more of the model than it holds. The vocabulary, wider than a layer, is never gathered.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "fsdp"
VOCABULARY = ("embed_tokens", "lm_head")
PIECE = 1024  # tokens of a device that are looked up at a time
_features: ContextVar[tuple[str, ...]] = ContextVar("features", default=())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sharded:
    """A weight or a factor in a tree of parameters, of which a device has one shard."""

    array: Any  # this device's shard; outside of shard_map the whole, split over devices
    axis: int = dataclasses.field(metadata={"static": True})  # that is split, from the end: -2 outputs, -1 inputs
    sends: bool = dataclasses.field(default=False, metadata={"static": True})  # rows; False: the weight is gathered

    @property
    def dtype(self) -> jnp.dtype:
        """Of the numbers."""
        return self.array.dtype

    def whole(self) -> Array:
        """All of it."""
        return jax.lax.all_gather(self.array, AXIS, axis=self.array.ndim + self.axis, tiled=True)

    def __getitem__(self, key: Any) -> Array:
        return self.whole()[key]

    def product(self, x: Array, contract: Callable[..., Array], dtype: jnp.dtype | None = None) -> Array:
        """`contract(x [..., in], weight [out, in], dtype)` -> [..., out]; sums over shards are taken in float32."""
        if not self.sends:
            return contract(x, self.whole(), dtype)
        rows = rearrange(x, "... width -> (...) width")  # [M, in], on F devices
        if self.axis == -2:
            y = contract(jax.lax.all_gather(rows, AXIS, tiled=True), self.array, dtype)  # [F M, out / F]
            y = jax.lax.all_to_all(y, AXIS, split_axis=0, concat_axis=1, tiled=True)
        else:
            rows = jax.lax.all_to_all(rows, AXIS, split_axis=1, concat_axis=0, tiled=True)  # [F M, in / F]
            y = jax.lax.dot_general(rows, self.array, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
            y = jax.lax.psum_scatter(y, AXIS, scatter_dimension=0, tiled=True).astype(dtype or x.dtype)
        return y.reshape(*x.shape[:-1], -1)

    def rows(self, tokens: Array) -> Array:
        """Rows of the weight [V, D] for tokens [...] -> [..., D]."""
        if not self.sends:
            return self.whole()[tokens]
        if tokens.size > PIECE:  # all devices' rows stand on each before they are summed
            padded = jnp.pad(tokens.reshape(-1), (0, -tokens.size % PIECE))
            found = jax.lax.map(self.rows, rearrange(padded, "(pieces length) -> pieces length", length=PIECE))
            found = rearrange(found, "pieces length width -> (pieces length) width")[: tokens.size]
            return found.reshape(*tokens.shape, -1)
        every = jax.lax.all_gather(tokens.reshape(-1), AXIS, tiled=True)  # [F M]
        if self.axis == -1:
            found = jax.lax.all_to_all(self.array[every], AXIS, split_axis=0, concat_axis=1, tiled=True)
        else:  # one device has the row, the others add nothing
            place = every - jax.lax.axis_index(AXIS) * len(self.array)
            here = (place >= 0) & (place < len(self.array))
            found = jnp.where(here[:, None], self.array[jnp.where(here, place, 0)], 0)
            found = jax.lax.psum_scatter(found, AXIS, scatter_dimension=0, tiled=True)
        return found.reshape(*tokens.shape, -1)


def shard(tree: Any, where: Any) -> Any:
    """The tree with a `Sharded` in the place of each array that its sharding in `where` splits along "fsdp"."""

    def of(path: Any, leaf: Any, sharding: Any) -> Any:
        spec = sharding.spec if isinstance(sharding, NamedSharding) else ()  # a traced array has none
        axes = [axis for axis, names in enumerate(spec) if AXIS in (names if isinstance(names, tuple) else (names,))]
        if not axes or sharding.mesh.shape[AXIS] == 1:
            return leaf
        *_, module, kind = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        return Sharded(leaf, axes[0] - leaf.ndim, kind == "weight" and module in VOCABULARY)

    return jax.tree_util.tree_map_with_path(of, tree, where)


def as_placed(tree: Any) -> Any:
    """The tree with `Sharded` leaves where the shardings of its arrays say so."""
    return tree if has_shards(tree) else shard(tree, jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), tree))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh of several devices on which a tree's arrays lie, whole or sharded; None where there is none."""
    placed = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree))
    meshes = (sharding.mesh for sharding in placed if isinstance(sharding, NamedSharding))
    return next((mesh for mesh in meshes if isinstance(mesh, Mesh) and mesh.size > 1), None)


def specs(tree: Any) -> Any:
    """Of a tree with `Sharded` leaves: the `PartitionSpec` by which `jax.shard_map` hands each device its own."""

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, Sharded):
            return PartitionSpec()
        names: list[str | None] = [None] * leaf.array.ndim
        names[leaf.axis] = AXIS
        return dataclasses.replace(leaf, array=PartitionSpec(*names))

    return jax.tree.map(of, tree, is_leaf=is_sharded)


def is_sharded(node: Any) -> bool:
    """True for a `Sharded`."""
    return isinstance(node, Sharded)


def has_shards(tree: Any) -> bool:
    """True where any leaf is a `Sharded`."""
    return any(map(is_sharded, jax.tree.leaves(tree, is_leaf=is_sharded)))


def sending(params: dict) -> dict:
    """The parameters with rows sent to every matrix: for products of few rows."""

    def of(leaf: Any) -> Any:
        return dataclasses.replace(leaf, sends=True) if is_sharded(leaf) and leaf.array.ndim == 2 else leaf

    return jax.tree.map(of, params, is_leaf=is_sharded)


def gathered(tree: Any) -> Any:
    """The tree with everything whole: for small ones, such as deltas."""
    return jax.tree.map(lambda leaf: leaf.whole() if is_sharded(leaf) else leaf, tree, is_leaf=is_sharded)


@contextlib.contextmanager
def images_over(axes: tuple[str, ...]) -> Iterator[None]:
    """Inside, the images of a batch are numbered through over the devices along these axes, each with as many."""
    token = _features.set(axes)
    try:
        yield
    finally:
        _features.reset(token)


def features_of_all(features: Array) -> Array:
    """The features [I, P, D] of all images that a batch's `vision_index` counts."""
    axes = _features.get()
    return jax.lax.all_gather(features, axes, tiled=True) if axes else features
