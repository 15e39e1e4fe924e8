"""The decisions of a unit as a whole, before its entries are merged: bounds of trims, norms, coefficients.

A unit is one tensor, one module or the whole model. All of its numbers are sums over entries, so that those of blocks,
shards and devices add up.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mmedexpert_jax.merging.arrays import Array, Rows, namespace, product, tally
from mmedexpert_jax.merging.lowrank import factors_of, merged_factors
from mmedexpert_jax.merging.methods import (
    Fitted,
    breadcrumb_ranks,
    combine,
    elected,
    importance,
    inner_products,
    keep,
    line_coefficients,
    norms,
    variance,
)
from mmedexpert_jax.merging.settings import Setting
from mmedexpert_jax.merging.spherical import SPANS, gram_matrix
from mmedexpert_jax.merging.threshold import Bound, largest

# (base, K vectors) -> one array, entry by entry (or row by row).
Derived = Callable[[Array, Rows], Array]


class Unit(Protocol):
    """K task vectors that are fitted together: one tensor, one module or the whole model."""

    @property
    def size(self) -> int:
        """Entries of each vector."""

    @property
    def matrix(self) -> bool:
        """True where it is one tensor of two dimensions or more."""

    def factors(self, rank: int) -> list[tuple[Array, Array]]:
        """b [out, r] and a [r, in] of each vector, cut to a rank (0: not); none where it is no linear layer."""

    def total(self, measure: Callable[[Array, Rows, int], Any]) -> Any:
        """Sum over blocks of measure(base [m], K vectors [m], index of the first entry in the unit)."""

    def gram(self, whole: bool) -> Array:
        """Inner products [K, K] of the vectors; `whole`: of base + vectors."""

    def largest(self, kept: list[int], equal_magnitudes: str, of: Derived | None = None) -> Bound:
        """Bound of the kept[k] largest magnitudes of vector k; `of`: of one vector that is derived from all of them."""


def fit(unit: Unit, how: Setting) -> Fitted:
    """The numbers that `combine` needs of the whole unit."""
    if how.in_factors and (pairs := unit.factors(how.compress)):
        return Fitted(factors=merged_factors(pairs, how, merge_stack))
    if how.kind.join == "factors":
        return Fitted()
    if how.kind.join == "span":
        return Fitted(coefficients=_coefficients(unit, how))
    if how.method.endswith("slerp_columns") and unit.matrix:
        products = unit.total(lambda base, vectors, _: inner_products(base, vectors, how, 0))
        return Fitted(coefficients=line_coefficients(products, how))
    if how.method == "ramplus":
        return Fitted(rescale=_amplification(unit, how))
    fitted = Fitted(_bounds(unit, how))
    if how.kind.join == "masses":
        return replace(fitted, masses=_masses(unit, fitted, how))
    if how.rule.rescale in ("l1", "l2"):
        fitted = replace(fitted, rescale=_norm_ratio(unit, fitted, how))
    if how.kind.join == "elect" and how.rule.cancellation == "majority":
        fitted = replace(fitted, majority=_majority(unit, fitted, how))
    return fitted


def merge_stack(vectors: Array, how: Setting, base: Array | None = None, fisher: Array | None = None) -> Array:
    """Merged task vector [...] of K whole ones [K, ...], numpy or JAX, times `how.scale`.

    Args:
        vectors: float32; one tensor is one unit.
        how: method, switches and numbers.
        base: [...] float32, which only weight_slerp needs.
        fisher: [K, ...] float32, which only the methods by Fisher information need.
    """
    xp = namespace(vectors)
    shape = vectors.shape[1:]
    vectors = xp.asarray(vectors, xp.float32).reshape(len(vectors), *block_shape(shape, how))
    base = xp.zeros(vectors.shape[1:], xp.float32) if base is None else base.reshape(vectors.shape[1:])
    if not vectors.size:
        return xp.zeros(shape, xp.float32)
    known = None if fisher is None else list(xp.asarray(fisher, xp.float32).reshape(vectors.shape))
    _, merged = combine(base, vectors, 0, fit(Stack(base, vectors, len(shape) > 1), how), how, known)
    return merged.reshape(shape)


def block_shape(shape: tuple[int, ...], how: Setting) -> tuple[int, ...]:
    """The shape in which `combine` takes a tensor: [rows, columns] where its method reads whole rows, else flat."""
    if not how.whole_rows:
        return (-1,)
    return (shape[0] if len(shape) > 1 else 1, -1)


@dataclass(frozen=True)
class Stack:
    """A Unit that lies in one array: base [m], vectors [K, m]."""

    base: Array
    vectors: Array
    matrix: bool = False

    @property
    def size(self) -> int:
        """Entries of one vector."""
        return int(np.prod(self.vectors.shape[1:]))

    def factors(self, rank: int) -> list[tuple[Array, Array]]:
        """By decomposing each."""
        return [factors_of(np.asarray(row), rank) for row in self.vectors] if self.matrix else []

    def total(self, measure: Callable[[Array, Rows, int], Any]) -> Any:
        """measure of the whole."""
        return measure(self.base, self.vectors, 0)

    def gram(self, whole: bool) -> Array:
        """Inner products of the whole."""
        return gram_matrix(self.base + self.vectors if whole else self.vectors)

    def largest(self, kept: list[int], equal_magnitudes: str, of: Derived | None = None) -> Bound:
        """As `threshold.largest`."""
        if of is None:
            return largest(self.vectors, kept, equal_magnitudes)
        return largest(of(self.base, self.vectors).reshape(1, -1), kept, equal_magnitudes)


def _bounds(unit: Unit, how: Setting) -> tuple[Bound, ...]:
    rule = how.rule
    if how.kind.keep == "largest":
        return (unit.largest([rule.kept(unit.size, density) for density in how.density], rule.equal_magnitudes),)
    if how.kind.keep == "middle":
        ranks = [breadcrumb_ranks(unit.size, d, g) for d, g in zip(how.density, how.gamma, strict=True)]
        outer = unit.largest([dropped for dropped, _ in ranks], rule.equal_magnitudes)
        return outer, unit.largest([dropped + kept for dropped, kept in ranks], rule.equal_magnitudes)
    if how.kind.keep == "varied" and how.density[0] < 1:
        counted = unit.total(lambda _, vectors, __: namespace(vectors).count_nonzero(variance(vectors)))
        xp = namespace(counted)
        kept = (xp.asarray(counted, xp.float32) * xp.float32(how.density[0])).astype(int)  # mergekit's is float32 too
        return (unit.largest([kept], rule.equal_magnitudes, lambda _, vectors: variance(vectors)),)
    if how.kind.keep == "important":
        return (_fence(unit),)
    return ()


def _fence(unit: Unit) -> Bound:
    """Arcee Fusion's bound: the median of the importances and 1.5 times their quartiles' distance.

    A quantile is exactly the entry of rank int(fraction * (n - 1)); mergekit samples a million of larger tensors.
    """

    def important(base: Array, vectors: Rows) -> Array:
        return importance(base, vectors[0])

    places = [int(np.float32(fraction) * np.float32(unit.size - 1)) for fraction in (0.25, 0.5, 0.75)]
    if unit.size < 5:  # the first quartile is the smallest entry, below which no bound lies
        whole = unit.total(lambda base, vectors, _: important(base, vectors).reshape(-1))
        found = namespace(whole).sort(whole)[np.array(places)]
    else:
        found = unit.largest([unit.size - place for place in places], "keep_all", important).value
    first, median, third = found
    bound = median + np.float32(1.5) * (third - first)
    return Bound(namespace(found).stack([bound]), np.zeros(1, np.int64))


def _masses(unit: Unit, fitted: Fitted, how: Setting) -> Array:
    """SCE: [K] mean squares of what is selected, as shares of their sum; equal ones below 1e-6 (mergekit)."""

    def squares(base: Array, vectors: Rows, start: int) -> Array:
        return norms(keep(base, vectors, start, fitted, how), 2)

    found = unit.total(squares) / unit.size
    xp = namespace(found)
    whole = xp.sum(found)
    return xp.where(whole < 1e-6, 1 / len(found), found / xp.where(whole < 1e-6, 1, whole)).astype(np.float32)


def _norm_ratio(unit: Unit, fitted: Fitted, how: Setting) -> Array:
    """[K] 1-norms (or 2-norms) before over after; 1 where one of them is below 1e-7 (mergekit)."""
    order = int(how.rule.rescale[1])

    def both(base: Array, vectors: Rows, start: int) -> Array:
        kept = keep(base, vectors, start, fitted, how)
        return namespace(vectors).stack([norms(vectors, order), norms(kept, order)])

    before, after = unit.total(both) ** (1 / order)
    xp = namespace(before)
    tiny = (before < 1e-7) | (after < 1e-7)
    return xp.where(tiny, 1, before / xp.where(tiny, 1, after)).astype(np.float32)


def _majority(unit: Unit, fitted: Fitted, how: Setting) -> Array:
    def signs(base: Array, vectors: Rows, start: int) -> Array:
        kept = keep(base, vectors, start, fitted, how)
        if how.rule.weigh == "before" and how.unequal_weights is not None:
            kept = [product(row, weight) for row, weight in zip(kept, how.unequal_weights, strict=True)]
        return elected(kept, how.rule)

    return unit.total(signs)


def _coefficients(unit: Unit, how: Setting) -> Array:
    """[K + 1]: of the vectors, and of the base (nonzero only where whole weights are interpolated)."""
    whole = how.kind.whole
    gram = unit.gram(whole)
    xp = namespace(gram)
    name, divides, more = how.method.removeprefix("weight_"), how.rule.denominator != "none", dict[str, Any]()
    match name:
        case "karcher":
            more = {"max_iter": how.max_iter, "tol": how.tol}
        case "multislerp":
            more = {"normalize": divides}
        case "slerp" if whole:
            more = {"line_to_zero": False}  # as mergekit's `slerp`, of which this is one
        case "sum" if divides:
            name = "average"
    found = SPANS[name](gram, xp.asarray(how.weights, gram.dtype), **more)
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
    ratio = shared / xp.maximum(own, how.threshold)
    return (1 + how.slope * xp.clip(ratio, 0, how.bound)).astype(np.float32)
