"""TIES (equation 7) over one block of a tensor as programs of XLA, for tensors that fill blocks.

numpy sends the result of every step through memory; a program is one loop over the entries. What is compiled are the
functions that numpy runs, and the entries come out the same bit for bit.
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mmedexpert_jax.merging.arrays import on_host, one_core, product, rounded, total
from mmedexpert_jax.merging.methods import Fitted, disjoint_mean
from mmedexpert_jax.merging.settings import Setting, Switches
from mmedexpert_jax.merging.threshold import Bound
from mmedexpert_jax.merging.vectors import Parts, assembled, widened

DTYPES = ("bfloat16", "float16", "float32")  # of weights
TOGETHER = 5  # experts whose marks, three each, fit 16 bits
_FIELDS = np.uint16(1 << 10 | 1 << 5 | 1)  # of one expert's marks
_LINE, _SLACK = 64, 32  # bytes that XLA's arguments begin at multiples of; entries of two bytes in as many


def merge(
    base: np.ndarray,
    parts: Sequence[Parts],
    span: tuple[int, int],
    first: int,
    fitted: Fitted,
    how: Setting,
    dtype: np.dtype | None,
    size: int,
    stretch: np.ndarray | None = None,
) -> np.ndarray:
    """Merged entries [m] of one block.

    Args:
        base: [n], the tensor as stored.
        parts: of the experts: their whole tensors [n], and deltas of the block [m].
        span: start and stop of the block, m <= size.
        first: index of its first entry in the unit.
        how: of the tensor; its method is TIES.
        dtype: of the output; None: what the merge adds, in float32.
        size: that the program is compiled for.
        stretch: [K] factors of the task vectors; None: 1.
    """
    count = span[1] - span[0]
    scale = None if how.scale == 1 else np.float32(how.scale)
    numbers = fitted.bounds[0].within(first, count), how.unequal_weights, scale, fitted.majority
    with on_host():
        merged = np.asarray(_merge(*_windows(base, parts, span, size), stretch, *numbers, how.rule, dtype))
    return merged[:count]


def split(
    base: np.ndarray,
    parts: Sequence[Parts],
    span: tuple[int, int],
    limits: np.ndarray,
    size: int,
    stretch: np.ndarray | None = None,
) -> list[tuple[int, int, np.ndarray]]:
    """By expert: how many of the bits lie above a bracket, how many are its frequent value, where others inside are.

    Args: as of `merge`, of at most TOGETHER experts and of several blocks where none has deltas; `limits`: [3, K]
        int32, the brackets (`threshold.Brackets`).
    """
    counts = np.zeros((len(parts), 2), np.int64)
    places: list[list[np.ndarray]] = [[] for _ in parts]
    for low in range(*span, size):
        with on_host():
            marks = np.asarray(_marks(*_windows(base, parts, (low, min(low + size, span[1])), size), stretch, limits))
        at = np.flatnonzero((marks & np.uint16(31)) != 0)  # of bools, which numpy finds faster
        own, rows = marks[at], rearrange(marks, "(rows entries) -> rows entries", rows=16)
        for k, place in enumerate(places):
            place.append(at[(own & np.uint16(1 << k)) != 0] + (low - span[0]))
            # One mark of each kind, counted together: the sums of so many rows fit their fields.
            sums = np.add.reduce(rows >> k & _FIELDS, axis=0, dtype=np.uint16)
            counts[k] += [np.sum(sums >> shift & 31, dtype=np.int64) for shift in (10, 5)]
    return [(int(a), int(f), np.concatenate(place)) for (a, f), place in zip(counts, places, strict=True)]


def _windows(base: np.ndarray, parts: Sequence[Parts], span: tuple[int, int], size: int) -> tuple[list, np.ndarray]:
    """Base and parts as arrays [size + _SLACK] that XLA takes without a copy, and where the block begins in each."""
    begins = []

    def window(entries: np.ndarray, start: int, stop: int) -> np.ndarray:
        address = entries.__array_interface__["data"][0] + start * entries.itemsize
        begin = address % _LINE // entries.itemsize
        low, high = start - begin, start - begin + size + _SLACK
        if low >= 0 and high <= len(entries):
            begins.append(begin)
            return entries[low:high]
        whole = np.zeros(size + _SLACK, entries.dtype)  # at an end of the tensor; zeros change nothing
        whole[: stop - start] = entries[start:stop]
        begins.append(0)
        return whole

    found: list[Any] = [window(base, *span)]
    for own, deltas in parts:
        first = None if own is None else window(own, *span)
        found.append((first, [window(delta, 0, len(delta)) for delta in deltas]))
    return found, np.array(begins, np.int32)


def _vectors(windows: list, begins: jax.Array, stretch: jax.Array | None) -> tuple[jax.Array, list[jax.Array]]:
    arrays, tree = jax.tree.flatten(windows)
    size = len(arrays[0]) - _SLACK
    blocks = [jax.lax.dynamic_slice(array, (begins[i],), (size,)) for i, array in enumerate(arrays)]
    base, *parts = jax.tree.unflatten(tree, blocks)
    parts = [widened(part, base) for part in parts]
    base = base.astype(jnp.float32)
    found = [assembled(base, *part) for part in parts]
    vectors = [jnp.zeros_like(base) if vector is None else vector for vector in found]
    if stretch is not None:
        vectors = [product(vector, factor) for vector, factor in zip(vectors, stretch, strict=True)]
    return base, vectors


def _magnitudes(vectors: list[jax.Array]) -> list[jax.Array]:
    """Their bits, which order as they do."""
    return [jax.lax.bitcast_convert_type(jnp.abs(vector), jnp.int32) for vector in vectors]


@one_core
def _marks(windows: list, begins: jax.Array, stretch: jax.Array | None, limits: jax.Array) -> jax.Array:
    """[m] uint16: of expert k bit 10 + k above the bracket, 5 + k at its frequent value, k elsewhere inside."""
    marks = []
    for k, own in enumerate(_magnitudes(_vectors(windows, begins, stretch)[1])):
        inside = jnp.where(own >= limits[0, k], jnp.where(own == limits[2, k], 32 << k, 1 << k), 0)
        marks.append(jnp.where(own >= limits[1, k], 1024 << k, inside))
    return total(marks).astype(jnp.uint16)


@partial(one_core, static_argnums=(7, 8))
def _merge(
    windows: list,
    begins: jax.Array,
    stretch: jax.Array | None,
    bound: Bound,
    weights: jax.Array | None,
    scale: jax.Array | None,
    majority: jax.Array | None,
    rule: Switches,
    dtype: Any,
) -> jax.Array:
    base, vectors = _vectors(windows, begins, stretch)
    update = disjoint_mean(bound.keep(vectors), weights, rule, majority)
    update = update if scale is None else product(update, scale)
    # An election drops NaN, which would pass for a result.
    sound = reduce(jnp.maximum, _magnitudes(vectors)) < 0x7F800000
    update = jnp.where(sound, update, jnp.nan)
    return update if dtype is None else rounded(base + update, dtype)
