"""TIES over one block of a tensor as programs of XLA, for tensors that fill blocks.

numpy sends the result of every step through memory; a program is one loop over the entries. What is compiled are the
functions that numpy runs, and the entries come out the same bit for bit.
"""

from collections.abc import Sequence
from functools import partial, reduce
from operator import and_
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmedexpert_jax.merging.arrays import on_host, one_core, product, rounded, total
from mmedexpert_jax.merging.interference import entries
from mmedexpert_jax.merging.methods import Fitted, Setting, Switches, disjoint_mean
from mmedexpert_jax.merging.threshold import Bound
from mmedexpert_jax.merging.vectors import Parts, assembled, widened

DTYPES = ("bfloat16", "float16", "float32")  # of weights
_LANES = 64  # sums that a loop adds to at a time
_FOLD, _BITS, _FIELDS = 16, 6, 5  # flags that are counted in a field of an integer, its bits, fields of an integer
# Of `interference.entries`, in the order of the programs' outputs: sums and counts, those of each expert apart.
_BY_EXPERT, _SUMS = ("mass", "kept_mass", "along"), ("net", "squared", "lost")
_FLAGS, _FLAGS_BY_EXPERT = ("wanted", "shared", "conflict", "changed", "vanished"), ("held", "contested", "outvoted")


def merge(
    base: np.ndarray,
    parts: Sequence[Parts],
    start: int,
    fitted: Fitted,
    how: Setting,
    dtype: np.dtype | None,
    measured: str,
    size: int,
    stretch: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Merged entries of one block, and what `interference.measure` finds in it.

    Args:
        base: [m] as stored, m <= size.
        parts: of the experts.
        start: index of the first entry in the unit.
        fitted: of the unit.
        how: of the tensor; its method is TIES.
        dtype: of the output; None: what the merge adds, in float32, as if the output were.
        measured: in the first quarter of `size`: "" nothing, "votes" all but the inner products, "all".
        size: that the program is compiled for.
        stretch: [K] factors of the task vectors; None: 1.
    """
    scale = None if how.scale == 1 else np.float32(how.scale)
    numbers = fitted.bounds[0].within(start, len(base)), how.unequal_weights, scale, fitted.majority
    with on_host():
        merged, *found = _merge(*_padded(base, parts, size), stretch, *numbers, how.rule, dtype, measured)
    merged = np.asarray(merged)[: len(base)]
    if not measured:
        return merged, {}
    sums = np.asarray(np.sum(np.asarray(found[0]), axis=1, dtype=np.float64))
    return merged, _named(len(parts), sums, np.asarray(found[1]), found[2:])


def _named(experts: int, sums: np.ndarray, counts: np.ndarray, products: Sequence[jax.Array]) -> dict[str, np.ndarray]:
    """The programs' outputs by the names of `interference.measure`."""
    found: dict[str, Any] = dict(zip(_BY_EXPERT, sums[: 3 * experts].reshape(3, experts), strict=True))
    found |= zip(_SUMS, sums[3 * experts :], strict=True)
    found |= zip(_FLAGS, counts[: len(_FLAGS)], strict=True)
    found |= zip(_FLAGS_BY_EXPERT, counts[len(_FLAGS) :].reshape(3, experts), strict=True)
    if products:
        found["gram"] = np.zeros((experts, experts))
        lower = np.tril_indices(experts)
        found["gram"][lower] = found["gram"].T[lower] = np.asarray(products[0])
    return found


def _padded(base: np.ndarray, parts: Sequence[Parts], size: int) -> tuple[np.ndarray, list[Parts]]:
    """With zeros after the last block of a tensor, which change nothing that is summed."""

    def whole(array: np.ndarray) -> np.ndarray:
        return array if len(array) == size else np.concatenate([array, np.zeros(size - len(array), array.dtype)])

    if len(base) == size:
        return base, list(parts)
    return whole(base), [(None if own is None else whole(own), [whole(d) for d in deltas]) for own, deltas in parts]


def _vectors(base: jax.Array, parts: Sequence[Parts], stretch: jax.Array | None) -> tuple[jax.Array, list[jax.Array]]:
    parts = [widened(part, base) for part in parts]
    base = base.astype(jnp.float32)
    found = [assembled(base, *part) for part in parts]
    vectors = [jnp.zeros_like(base) if vector is None else vector for vector in found]
    if stretch is not None:
        vectors = [product(vector, factor) for vector, factor in zip(vectors, stretch, strict=True)]
    return base, vectors


@partial(one_core, static_argnums=(7, 8, 9))
def _merge(
    base: jax.Array,
    parts: list[Parts],
    stretch: jax.Array | None,
    bound: Bound,
    weights: jax.Array | None,
    scale: jax.Array | None,
    majority: jax.Array | None,
    rule: Switches,
    dtype: Any,
    measured: str,
) -> list[jax.Array]:
    """Merged entries [m]; partial sums of the float `entries` [2 K + 3, n]; those that count [5]; gram [pairs]."""
    base, vectors = _vectors(base, parts, stretch)
    kept = bound.keep(vectors)
    update = disjoint_mean(kept, weights, rule, majority)
    update = update if scale is None else product(update, scale)
    sound = reduce(and_, [jnp.isfinite(vector) for vector in vectors])
    update = jnp.where(sound, update, jnp.nan)  # an election drops NaN, which would pass for a result
    merged = base + update if dtype is None else rounded(base + update, dtype)
    result = update if dtype is None else merged
    if not measured:
        return [result]
    # Written once and read by every sum, instead of being computed anew in the loop of each.
    some = jax.tree.map(lambda row: row[: len(row) // 4], (base, vectors, kept, update, merged))
    base, vectors, kept, update, merged = jax.lax.optimization_barrier(some)
    found = entries(base, vectors, kept, update, merged)
    floats = [*(row for name in _BY_EXPERT for row in found[name]), *(found[name] for name in _SUMS)]
    flags = [*(found[name] for name in _FLAGS), *(row for name in _FLAGS_BY_EXPERT for row in found[name])]
    few = [flags[start : start + _FIELDS] for start in range(0, len(flags), _FIELDS)]
    sums = [jnp.stack([_partial_sums(x) for x in floats]), jnp.concatenate([_counts(some) for some in few])]
    if measured == "all":
        pairs = zip(*np.tril_indices(len(vectors)), strict=True)
        sums.append(jnp.stack([jnp.dot(vectors[i], vectors[j], precision="highest") for i, j in pairs]))
    return [result, *sums]


def _partial_sums(x: jax.Array) -> jax.Array:
    """[m] -> [n], which add up to the sum, in a loop that is vectorised."""
    return jnp.sum(x.reshape(-1, min(_LANES, x.size)), axis=0)


def _counts(flags: list[jax.Array]) -> jax.Array:
    """The number of true ones of each: counted together, in fields of one integer."""
    packed = total([jnp.where(flag, 1 << _BITS * place, 0) for place, flag in enumerate(flags)])
    few = jax.lax.optimization_barrier(total(list(packed.reshape(_FOLD, -1))))
    return jnp.stack([jnp.sum(few >> _BITS * place & (1 << _BITS) - 1) for place in range(len(flags))])
