"""Exact selection of the largest magnitudes by counting, without sorting.

The k-th largest magnitude is bracketed by a sample, then found by exact counts inside the bracket. Counts add up over
blocks, shards and devices, so that a vector in pieces gives the same bound as a whole one. The bits of a non-negative
float32 order as its value; bounds are sought among these integers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mmedexpert_jax.merging.arrays import Array, Rows, namespace

SAMPLE, _SHARE = 1 << 15, 512  # entries at least; one of so many of a large tensor, whose bracket then holds few
# Half width of the bracket, in standard deviations of a rank in the sample: one in 370 costs a second pass, and a wider
# one more entries to collect in every pass.
_SIGMAS = 3.0
TOP = 0x7F800001  # above every finite float's bits
# By row: bits [low, high), and those of a value inside that many entries may have (differences of bf16 weights lie on
# coarse grids), which are counted and not collected; -1: none. Zeros lie below every bracket.
Brackets = dict[int, tuple[int, int, int]]
# By row: how many entries lie above the bracket, how many have the frequent value, and the bits of the others inside.
Counts = dict[int, tuple[int, int, np.ndarray]]


@partial(jax.tree_util.register_dataclass, data_fields=["value", "cut"], meta_fields=["from_end"])
@dataclass(frozen=True)
class Bound:
    """A bound on the entries of K vectors: kept are those above `value`, and of equal ones those before `cut`."""

    value: Array  # [K] float32, magnitudes
    # [K] integers, flat indices; with `from_end`, the entries equal to `value` from `cut` on are kept instead
    cut: Array
    from_end: bool = False  # see above

    def keeps(self, vectors: Rows, start: int = 0) -> list[Array]:
        """K masks of K arrays [n] float32 (or any shape of n), the first of flat index `start`: true where kept."""
        return [self._keeps(row, vector, start) for row, vector in enumerate(vectors)]

    def keep(self, vectors: Rows, start: int = 0) -> list[Array]:
        """The entries, and zeros elsewhere."""
        xp = namespace(vectors)
        return [xp.where(mask, row, 0) for mask, row in zip(self.keeps(vectors, start), vectors, strict=True)]

    def within(self, start: int, size: int) -> "Bound":
        """The same for `size` entries from `start` on, with indices that count from there."""
        return Bound(self.value, np.clip(self.cut - start, 0, size).astype(np.int32), self.from_end)

    def _keeps(self, row: int, vector: Array, start: int) -> Array:
        value, cut, size = self.value[row], self.cut[row], vector.size
        if namespace(vector) is jnp:  # as integers, for which "equal and early" is one comparison
            early = ((start + jnp.arange(size) < cut) != self.from_end).reshape(vector.shape)
            bits, bound = (jax.lax.bitcast_convert_type(x, jnp.int32) for x in (jnp.abs(vector), value))
            return bits > bound - early.astype(jnp.int32)
        magnitude = np.abs(vector)
        whole, none = (cut <= start, cut >= start + size) if self.from_end else (cut >= start + size, cut <= start)
        if whole or none:
            return magnitude >= value if whole else magnitude > value
        early = (np.arange(start, start + size) < cut).reshape(vector.shape)
        return (magnitude > value) | ((magnitude == value) & (early != self.from_end))


def largest(vectors: Array, kept: Sequence[int], equal_magnitudes: str = "lower_index") -> Bound:
    """Bound of the kept[i] largest magnitudes of row i of [K, n] float32, numpy or JAX (sharded or not)."""
    vectors = rearrange(vectors, "experts ... -> experts (...)")
    if namespace(vectors) is jnp:
        return _on_device(vectors, jnp.asarray(kept), equal_magnitudes)
    many, size = vectors.shape
    whole = Blocks(many, size, [0], lambda start, rows: vectors[rows], lambda index: vectors[:, index], map)
    return by_counting(whole, kept, equal_magnitudes)


@dataclass(frozen=True)
class Blocks:
    """K vectors of n entries that are read block by block."""

    many: int  # K
    size: int  # n
    starts: Sequence[int]  # flat index of each block's first entry, rising; entries between the blocks are 0
    # first index, some of K -> their block, arrays [m] float32
    read: Callable[[int, slice], Iterable[np.ndarray]]
    # rising flat indices [s] -> [K, s] float32; may differ from what `read` gives in the last bits. None: there is
    # none, and all entries are collected.
    sample: Callable[[np.ndarray], np.ndarray] | None
    map: Callable[[Callable, Any], Iterable]  # applies a function to many blocks, as `map` does
    # first index, brackets -> the counts of a block; None: they are taken of what `read` gives
    split: Callable[[int, Brackets], Counts | None] | None = None
    # a block's first index, one of K -> (first index, vector) of parts of the block; None: `read` gives all of it
    pieces: Callable[[int, int], Iterable[tuple[int, np.ndarray]]] | None = None

    def in_pieces(self, start: int, row: int) -> Iterable[tuple[int, np.ndarray]]:
        """A vector's entries of one block."""
        whole = ((start, vector) for vector in self.read(start, slice(row, row + 1)))
        return whole if self.pieces is None else self.pieces(start, row)


def by_counting(blocks: Blocks, kept: Sequence[int], equal_magnitudes: str = "lower_index") -> Bound:
    """`largest` of vectors that are read block by block, each entry once (twice where a sample misleads).

    `kept` may be longer than K: the bounds of several densities come from the same pass, kept[i] of vector i % K.
    """
    size = blocks.size
    value = np.where(np.asarray(kept) <= 0, np.inf, 0).astype(np.float32)
    cut = np.full(len(kept), size, np.int64)
    ranks = {row: k for row, k in enumerate(kept) if 0 < k < size}
    brackets = _brackets(blocks, ranks)
    while brackets:
        found = list(blocks.map(partial(_counted, blocks, brackets), blocks.starts))
        retry = {}
        for row, (low, high, frequent) in brackets.items():
            above, at, inside = zip(*(block[row] for block in found), strict=True)
            missing, values = ranks[row] - sum(above), np.concatenate(inside)
            if missing <= 0 and high < TOP:
                retry[row] = (high, TOP, -1)
            elif missing <= 0:  # what is not finite counts as larger than all, and is refused where it is measured
                value[row] = np.inf
            elif missing <= len(values) + sum(at):
                bits, missing = _kth(values, frequent, sum(at), missing)
                value[row] = np.int32(bits).view(np.float32)
                if equal_magnitudes != "keep_all":
                    equal = at if bits == frequent else [np.count_nonzero(part == bits) for part in inside]
                    cut[row] = _cut(blocks, row % blocks.many, value[row], np.array(equal), missing, equal_magnitudes)
            elif low > 1:  # below the bracket; else among the zeros, which are not counted
                retry[row] = (1, low, -1)
        brackets = retry
    from_end = equal_magnitudes == "higher_index"
    cut[[row not in ranks for row in range(len(kept))]] = 0 if from_end else size
    return Bound(value, cut, from_end)


def _brackets(blocks: Blocks, ranks: dict[int, int]) -> Brackets:
    """Brackets in which the k-th largest lie, nearly for sure."""
    if blocks.sample is None or not ranks:
        return dict.fromkeys(ranks, (1, TOP, -1))
    count = min(max(SAMPLE, blocks.size // _SHARE), blocks.size)
    strata = np.arange(count) * blocks.size // count
    widths = np.diff(strata, append=blocks.size)
    jitter = (np.random.default_rng(0).random(count) * widths).astype(np.int64)  # never on one phase of the rows
    bits = np.abs(blocks.sample(strata + jitter)).view(np.int32)  # [K, count]
    brackets = {}
    for row, k in ranks.items():
        fraction = k / blocks.size
        margin = _SIGMAS * np.sqrt(fraction * (1 - fraction) * count) + 2 if count < blocks.size else 1
        upper, lower = int(fraction * count - margin), int(fraction * count + margin) + 1
        # One place at a time: with two, NumPy leaves its vectorised selection, which is nine times faster.
        first, last = max(0, count - lower), min(count - 1, count - max(upper, 1))
        ordered = np.partition(bits[row % blocks.many], first)
        high = int(np.partition(ordered[first:], last - first)[last - first]) + 64 if upper >= 1 else TOP
        low = max(1, int(ordered[first]) - 64) if lower <= count else 1
        low, high = min(low, TOP - 1), min(high, TOP)
        some, times = np.unique(ordered[(ordered >= low) & (ordered < high)], return_counts=True)
        brackets[row] = low, high, int(some[np.argmax(times)]) if len(some) and np.max(times) > 1 else -1
    return brackets


def _counted(blocks: Blocks, brackets: Brackets, start: int) -> Counts:
    """The counts of one block."""
    if blocks.split and (split := blocks.split(start, brackets)) is not None:
        return split
    found = {}
    for expert, vector in enumerate(blocks.read(start, slice(None))):
        bits = np.abs(vector).view(np.int32)
        for row in (row for row in brackets if row % blocks.many == expert):
            low, high, frequent = brackets[row]
            above = bits >= high
            inside = bits[np.flatnonzero((bits >= low) ^ above)]
            others = inside[inside != frequent]
            found[row] = int(np.count_nonzero(above)), len(inside) - len(others), others
    return found


def _kth(values: np.ndarray, frequent: int, times: int, k: int) -> tuple[int, int]:
    """The k-th largest of values and `times` times a frequent one, and how many of those equal to it are among k."""
    larger = int(np.count_nonzero(values > frequent))
    if larger < k <= larger + times:
        return frequent, k - larger
    own = k if k <= larger else k - times
    found = int(np.partition(values, len(values) - own)[len(values) - own])
    return found, own - int(np.count_nonzero(values > found))


def _cut(blocks: Blocks, row: int, value: np.float32, equal: np.ndarray, missing: int, equal_magnitudes: str) -> int:
    """Flat index that splits the entries equal to `value`, of which each block has `equal`, so that some are kept."""
    total = int(equal.sum())
    before = total - missing if equal_magnitudes == "higher_index" else missing
    if before == total:
        return blocks.size
    if before == 0:
        return 0
    ends = np.cumsum(equal)
    block = int(np.searchsorted(ends, before))
    rank = before - int(ends[block] - equal[block])
    for first, vector in blocks.in_pieces(blocks.starts[block], row):
        here = np.flatnonzero(np.abs(vector) == value)
        if rank <= len(here):
            return first + int(here[rank - 1]) + 1
        rank -= len(here)
    raise AssertionError("a block that holds fewer equal entries than were counted in it")


@partial(jax.jit, static_argnames="equal_magnitudes")
def _on_device(vectors: jax.Array, kept: jax.Array, equal_magnitudes: str) -> Bound:
    """Bisection by exact counts: over bits inside a sampled bracket, then over indices among equals."""
    size = vectors.shape[1]
    bits = jnp.abs(vectors).view(jnp.int32)

    def above(bound: jax.Array) -> jax.Array:
        return jnp.sum(bits >= bound[:, None], axis=1)

    sample = jnp.sort(bits[:, :: max(1, size // 4096)], axis=1) if size else jnp.zeros((len(vectors), 1), jnp.int32)
    low, high = _around(sample, kept, size)
    low = jnp.where(above(low) >= kept, low, 0)
    high = jnp.where(above(high) < kept, high, TOP)
    bound = _bisect(low, high, lambda trial: above(trial) >= kept)
    value = jnp.where(kept > 0, jax.lax.bitcast_convert_type(bound, jnp.float32), jnp.inf)
    everything = jnp.full_like(kept, size)
    if equal_magnitudes == "keep_all":
        return Bound(value, everything, False)
    from_end = equal_magnitudes == "higher_index"
    equal = bits == bound[:, None]
    missing = kept - jnp.sum(bits > bound[:, None], axis=1)
    before = jnp.sum(equal, axis=1) - missing if from_end else missing
    index = jnp.arange(size)
    cut = _bisect(
        jnp.zeros_like(kept),
        everything + 1,
        lambda trial: jnp.sum(equal & (index < trial[:, None]), axis=1) <= before,
    )
    return Bound(value, cut, from_end)


def _around(sample: jax.Array, kept: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Values [K] between which the kept[i]-th largest of `size` lies, nearly for sure, from a sorted sample [K, s]."""
    count = sample.shape[1]
    rank = count - (kept / max(size, 1) * count).astype(jnp.int32)  # the product of integers leaves int32
    ranks = jnp.clip(rank[:, None] + jnp.array([-(count // 32), count // 32]), 0, count - 1)
    low, high = jnp.take_along_axis(sample, ranks, 1).T
    return low, high


def _bisect(low: Any, high: Any, holds: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The greatest integer in [low, high) for which a falling predicate holds, element by element; it holds at low."""

    def step(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        right = holds(middle)
        return jnp.where(right, middle, low), jnp.where(right, high, middle)

    return jax.lax.while_loop(lambda bounds: jnp.any(bounds[1] - bounds[0] > 1), step, (low, high))[0]
