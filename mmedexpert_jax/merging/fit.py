"""What a unit as a whole decides before its entries are merged: bounds of trims, norms, coefficients.

A unit is one tensor, one module or the whole model. All of its numbers are sums over entries, so that those of blocks,
shards and devices add up.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mmedexpert_jax.merging.arrays import Array, Rows, namespace, product, tally
from mmedexpert_jax.merging.combine import Fitted, combine, keep
from mmedexpert_jax.merging.methods import Setting
from mmedexpert_jax.merging.select import Bound, largest
from mmedexpert_jax.merging.span import SPANS, gram_matrix
from mmedexpert_jax.merging.sparsify import breadcrumb_ranks, one_norms
from mmedexpert_jax.merging.ties import elected


class Unit(Protocol):
    """K task vectors that are fitted together: one tensor, one module or the whole model."""

    @property
    def size(self) -> int:
        """Entries of each vector."""

    def total(self, measure: Callable[[Array, Rows, int], Any]) -> Any:
        """Sum over blocks of measure(base [m], K vectors [m], index of the first entry in the unit)."""

    def gram(self, whole: bool) -> Array:
        """Inner products [K, K] of the vectors; `whole`: of base + vectors."""

    def largest(self, kept: list[int], equal_magnitudes: str) -> Bound:
        """Bound of the kept[k] largest magnitudes of vector k."""


def fit(unit: Unit, how: Setting) -> Fitted:
    """The numbers that `combine` needs of the whole unit."""
    if how.kind.join == "span":
        return Fitted(coefficients=_coefficients(unit, how))
    if how.method == "ramplus":
        return Fitted(rescale=_amplification(unit, how))
    fitted = Fitted(_bounds(unit, how))
    if how.rule.rescale == "l1":
        fitted = replace(fitted, rescale=_norm_ratio(unit, fitted, how))
    if how.kind.join == "elect" and how.rule.cancellation == "majority":
        fitted = replace(fitted, majority=_majority(unit, fitted, how))
    return fitted


def merge_stack(vectors: Array, how: Setting, base: Array | None = None) -> Array:
    """Merged task vector [...] of K whole ones [K, ...], numpy or JAX, times `how.scale`.

    Args:
        vectors: float32; one tensor is one unit.
        how: method, switches and numbers.
        base: [...] float32, which only weight_slerp needs.
    """
    xp = namespace(vectors)
    shape = vectors.shape[1:]
    rows = (shape[0], -1) if how.whole_rows and len(shape) > 1 else (1, -1) if how.whole_rows else (-1,)
    vectors = xp.asarray(vectors, xp.float32).reshape(len(vectors), *rows)
    base = xp.zeros(vectors.shape[1:], xp.float32) if base is None else base.reshape(vectors.shape[1:])
    if not vectors.size:
        return xp.zeros(shape, xp.float32)
    _, merged = combine(base, vectors, 0, fit(Stack(base, vectors), how), how)
    return (merged if how.scale == 1 else merged * xp.float32(how.scale)).reshape(shape)


@dataclass(frozen=True)
class Stack:
    """A Unit that lies in one array: base [m], vectors [K, m]."""

    base: Array
    vectors: Array

    @property
    def size(self) -> int:
        """Entries of one vector."""
        return int(np.prod(self.vectors.shape[1:]))

    def total(self, measure: Callable[[Array, Rows, int], Any]) -> Any:
        """measure of the whole."""
        return measure(self.base, self.vectors, 0)

    def gram(self, whole: bool) -> Array:
        """Inner products of the whole."""
        return gram_matrix(self.base + self.vectors if whole else self.vectors)

    def largest(self, kept: list[int], equal_magnitudes: str) -> Bound:
        """As `select.largest`."""
        return largest(self.vectors, kept, equal_magnitudes)


def _bounds(unit: Unit, how: Setting) -> tuple[Bound, ...]:
    rule = how.rule
    if how.kind.keep == "largest":
        return (unit.largest([rule.kept(unit.size, share) for share in how.density], rule.equal_magnitudes),)
    if how.kind.keep == "middle":
        ranks = [breadcrumb_ranks(unit.size, d, g) for d, g in zip(how.density, how.gamma, strict=True)]
        outer = unit.largest([dropped for dropped, _ in ranks], rule.equal_magnitudes)
        return outer, unit.largest([dropped + kept for dropped, kept in ranks], rule.equal_magnitudes)
    return ()


def _norm_ratio(unit: Unit, fitted: Fitted, how: Setting) -> Array:
    """[K] 1-norms before over after; 1 where one of them is below 1e-7 (mergekit)."""

    def norms(_: Array, vectors: Rows, start: int) -> Array:
        kept = keep(vectors, start, fitted, how)
        return namespace(vectors).stack([one_norms(vectors), one_norms(kept)])

    before, after = unit.total(norms)
    xp = namespace(before)
    tiny = (before < 1e-7) | (after < 1e-7)
    return xp.where(tiny, 1, before / xp.where(tiny, 1, after)).astype(np.float32)


def _majority(unit: Unit, fitted: Fitted, how: Setting) -> Array:
    def signs(_: Array, vectors: Rows, start: int) -> Array:
        kept = keep(vectors, start, fitted, how)
        if how.rule.weigh == "before" and how.unequal_weights is not None:
            kept = [product(row, weight) for row, weight in zip(kept, how.unequal_weights, strict=True)]
        return elected(kept, how.rule)

    return unit.total(signs)


def _coefficients(unit: Unit, how: Setting) -> Array:
    """[K + 1]: of the vectors, and of the base (nonzero only where whole weights are interpolated)."""
    whole = how.whole_weights
    gram = unit.gram(whole)
    xp = namespace(gram)
    found = SPANS[how.method](gram, xp.asarray(how.weights, gram.dtype))
    of_base = xp.sum(found) - 1 if whole else xp.zeros((), gram.dtype)
    return xp.append(found, of_base).astype(np.float32)


def _amplification(unit: Unit, how: Setting) -> Array:
    """RAM+: [K] factors of what one expert alone changed, 1 + r * min(shared / own, alpha) (arXiv 2601.13572)."""

    def users(_: Array, vectors: Rows, __: int) -> Array:
        xp = namespace(vectors)
        changed = [xp.abs(row) > how.threshold for row in vectors]
        many = tally(changed)
        return xp.stack([xp.stack([xp.sum(row & rest) for row in changed]) for rest in (many > 1, many == 1)])

    shared, own = unit.total(users)
    xp = namespace(shared)
    slope, most = how.amplify
    return (1 + slope * xp.clip(shared / xp.maximum(own, how.threshold), 0, most)).astype(np.float32)
