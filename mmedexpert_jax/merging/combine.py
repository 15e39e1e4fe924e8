"""From task vectors to one, entry by entry: what a method keeps of each, and how the kept parts join."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mmedexpert_jax.merging.arrays import Array, Rows, count, namespace, product, total
from mmedexpert_jax.merging.methods import Setting
from mmedexpert_jax.merging.select import Bound
from mmedexpert_jax.merging.sparsify import bernoulli, between, by_rank
from mmedexpert_jax.merging.ties import disjoint_mean


@dataclass(frozen=True)
class Fitted:
    """What a unit as a whole decides: all of it small.

    Attributes:
        bounds: of the trim by magnitude: what is kept, and for breadcrumbs the outliers before it.
        rescale: [K] factors of what is kept.
        majority: sum of the unit's elected signs, for cancellation="majority".
        coefficients: [K] of the vectors, and last that of the base.
    """

    bounds: tuple[Bound, ...] = ()
    rescale: Array = None
    majority: Array = None
    coefficients: Array = None


jax.tree_util.register_dataclass(Fitted, data_fields=["bounds", "rescale", "majority", "coefficients"], meta_fields=[])


def keep(vectors: Rows, start: int, fitted: Fitted, how: Setting) -> Rows:
    """What the method keeps of a block of K task vectors [m] (DELLA: [rows, columns]), rescaled; zeros elsewhere.

    Args:
        vectors: the block.
        start: index of its first entry, in the unit for a trim by magnitude, in the tensor for a random choice.
        fitted: of the unit.
        how: of the tensor.
    """
    inverse = how.rule.rescale == "density"
    match how.kind.keep:
        case "largest":
            kept = fitted.bounds[0].keep(vectors, start)
        case "middle":
            outer, inner = fitted.bounds
            kept = between(vectors, outer, inner, start)
        case "random":
            kept = bernoulli(vectors, how.density, how.keys, start, inverse)
        case "ranked":
            kept = by_rank(vectors, how.density, how.epsilon, how.keys, start, inverse)
        case _:
            return vectors
    return kept if fitted.rescale is None else _scaled(kept, fitted.rescale)


def combine(base: Array, vectors: Rows, start: int, fitted: Fitted, how: Setting) -> tuple[Rows, Array]:
    """A block of K task vectors [m] -> what is kept of them, K [m], and the merged vector [m] before `scale`.

    Args:
        base: the base's weights [m] float32, which only a merge of whole weights looks at.
        vectors: float32.
        start: as in `keep`.
        fitted: of the unit.
        how: of the tensor.
    """
    kept = keep(vectors, start, fitted, how)
    match how.kind.join:
        case "elect":
            return kept, disjoint_mean(kept, how.unequal_weights, how.rule, fitted.majority)
        case "sum":
            return kept, _weighted_sum(kept, how)
        case "span":
            *own, of_base = fitted.coefficients
            merged = _linear(kept, own)
            return kept, merged + of_base * base if how.whole_weights else merged
        case _:
            return kept, _overlap(kept, fitted, how)


def _weighted_sum(kept: Rows, how: Setting) -> Array:
    summed = _linear(kept, how.weights)
    if how.rule.denominator == "none":
        return summed
    divisor = sum(how.weights) if how.rule.denominator == "weights" else len(how.weights)
    return summed / np.float32(divisor if abs(divisor) > 1e-8 else 1)


def _linear(vectors: Rows, factors: Any) -> Array:
    """sum_k factors[k] * vectors[k], in their order."""
    float32 = namespace(vectors).float32
    return total([row * float32(factor) for row, factor in zip(vectors, factors, strict=True)])


def _overlap(vectors: Rows, fitted: Fitted, how: Setting) -> Array:
    """RAM: an entry that one expert changed is kept, one that several changed is averaged over them."""
    xp = namespace(vectors)
    changed = [xp.abs(row) > how.threshold for row in vectors]
    users = count(changed)
    effective = [xp.where(mask, row, 0) for mask, row in zip(changed, vectors, strict=True)]
    own = effective if fitted.rescale is None else _scaled(effective, fitted.rescale)
    shared = xp.maximum(users, 1)
    return total([xp.where(users == 1, one, both / shared) for one, both in zip(own, effective, strict=True)])


def _scaled(rows: Rows, factors: Array) -> list[Array]:
    return [product(row, factor) for row, factor in zip(rows, factors, strict=True)]
