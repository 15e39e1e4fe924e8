"""The methods: what each keeps of the task vectors, and how it makes one of what is kept.

Every method is `fit` (whole-unit numbers: bounds, norms, coefficients; sums over entries, so that blocks, shards and
devices add up) and `combine` (entry by entry, given those numbers).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import numpy as np

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging import span
from mmedexpert_jax.merging.arrays import Array, columns, count, namespace, product
from mmedexpert_jax.merging.select import Bound, largest
from mmedexpert_jax.merging.sparsify import (
    bernoulli,
    between,
    breadcrumb_ranks,
    by_rank,
    check_densities,
    key_of,
    one_norms,
)
from mmedexpert_jax.merging.switches import Switches, switches
from mmedexpert_jax.merging.ties import disjoint_mean, elected


@dataclass(frozen=True)
class Method:
    """`keep`: "all", "largest", "middle", "random" or "ranked"; `join`: "elect", "sum", "span" or "overlap"."""

    keep: str
    join: str


METHODS = {
    "ties": Method("largest", "elect"),
    "task_arithmetic": Method("all", "sum"),
    "magnitude_prune": Method("largest", "sum"),
    "dare_linear": Method("random", "sum"),
    "dare_ties": Method("random", "elect"),
    "della": Method("ranked", "elect"),
    "della_linear": Method("ranked", "sum"),
    "breadcrumbs": Method("middle", "sum"),
    "breadcrumbs_ties": Method("middle", "elect"),
    "ram": Method("all", "overlap"),
    "ramplus": Method("all", "overlap"),
    **dict.fromkeys(span.SPANS, Method("all", "span")),
}


@dataclass(frozen=True)
class Setting:
    """How one tensor's K task vectors become one.

    Attributes:
        method: name in METHODS.
        rule: the switches.
        weights: K.
        density: K fractions kept.
        gamma: K fractions dropped as outliers (breadcrumbs); mergekit's default.
        epsilon: K half widths of the probabilities (DELLA); mergekit's default.
        scale: factor of the merged vector.
        keys: K keys of random choices.
        threshold: RAM: entries up to it count as unchanged; mergekit's default.
        amplify: RAM+: r, slope of the amplification of an expert's own entries, and its bound alpha.
    """

    method: str
    rule: Switches
    weights: tuple[float, ...]
    density: tuple[float, ...]
    gamma: tuple[float, ...] = ()
    epsilon: tuple[float, ...] = ()
    scale: float = 1.0
    keys: tuple[int, ...] = ()
    threshold: float = 1e-5
    amplify: tuple[float, float] = (0.1, 0.2)

    @property
    def kind(self) -> Method:
        """What the method keeps and how it joins."""
        return METHODS[self.method]

    @property
    def trims(self) -> bool:
        """Whether entries are chosen by magnitude over a unit, which the scope then matters for."""
        return self.kind.keep in ("largest", "middle")

    @property
    def whole_weights(self) -> bool:
        """Whether the method interpolates base + task vectors, not the task vectors."""
        return self.method.startswith("weight_")

    @property
    def whole_rows(self) -> bool:
        """Whether the method has to see whole rows of a matrix."""
        return self.kind.keep == "ranked"


def setting(
    method: str,
    count: int,
    preset: str | Switches = "paper",
    density: float | tuple[float, ...] = 1.0,
    weights: tuple[float, ...] | None = None,
    gamma: float | tuple[float, ...] = 0.01,
    epsilon: float | tuple[float, ...] = 0.15,
    scale: float = 1.0,
    keys: tuple[int, ...] | None = None,
    **more: Any,
) -> Setting:
    """A checked Setting for `count` experts; numbers are the same for all of them. Raises ConfigError."""
    if method not in METHODS:
        raise ConfigError(f"no merging method {method!r}: choose one of {', '.join(METHODS)}")
    many = {"density": density, "gamma": gamma, "epsilon": epsilon, "weights": 1.0 if weights is None else weights}
    numbers: dict[str, Any] = {k: tuple(np.broadcast_to(v, count).astype(float).tolist()) for k, v in many.items()}
    if not np.isfinite(numbers["weights"]).all():
        raise ConfigError(f"weights must be finite; got {list(numbers['weights'])}")
    if METHODS[method].join == "span" and method != "model_stock" and sum(numbers["weights"]) <= 0:
        raise ConfigError(f"weights must have a positive sum for {method}; got {list(numbers['weights'])}")
    if method == "model_stock" and count < 2:
        raise ConfigError("model_stock needs two experts or more: it takes the angle between them")
    check_densities(method, numbers["density"], numbers["epsilon"])
    keys = tuple(key_of(0, "", str(k)) for k in range(count)) if keys is None else keys
    return Setting(method, switches(preset, method), scale=scale, keys=keys, **numbers, **more)


class Unit(Protocol):
    """K task vectors that are fitted together: one tensor, one module or the whole model."""

    @property
    def size(self) -> int:
        """Entries of each vector."""

    def total(self, measure: Callable[[Array, Array, int], Any]) -> Any:
        """Sum over blocks of measure(base [m], vectors [K, m], index of the first entry in its tensor)."""

    def gram(self, whole: bool) -> Array:
        """Inner products [K, K] of the vectors; `whole`: of base + vectors."""

    def largest(self, kept: list[int], equal_magnitudes: str) -> Bound:
        """Bound of the kept[k] largest magnitudes of vector k."""


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


def keep(vectors: Array, start: int, fitted: Fitted, how: Setting) -> Array:
    """What the method keeps of a block of task vectors [K, m] (DELLA: [K, rows, columns]), rescaled; zeros elsewhere.

    Args:
        vectors: the block.
        start: index of its first entry, in the unit for a trim by magnitude, in the tensor for a random choice.
        fitted: of the unit.
        how: of the tensor.
    """
    xp = namespace(vectors)
    inverse = how.rule.rescale == "density"
    match how.kind.keep:
        case "largest":
            kept = xp.where(fitted.bounds[0].keeps(vectors, start), vectors, 0)
        case "middle":
            outer, inner = fitted.bounds
            kept = between(vectors, outer, inner, start)
        case "random":
            kept = bernoulli(vectors, how.density, how.keys, start, inverse)
        case "ranked":
            kept = by_rank(vectors, how.density, how.epsilon, how.keys, start, inverse)
        case _:
            return vectors
    return kept if fitted.rescale is None else product(kept, columns(fitted.rescale, kept))


def combine(base: Array, vectors: Array, start: int, fitted: Fitted, how: Setting) -> tuple[Array, Array]:
    """A block of task vectors [K, m] -> what is kept of it [K, m], and the merged vector [m] before `scale`.

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
            return kept, disjoint_mean(kept, np.asarray(how.weights, np.float32), how.rule, fitted.majority)
        case "sum":
            return kept, _weighted_sum(kept, how)
        case "span":
            *own, of_base = fitted.coefficients
            merged = _linear(kept, own)
            return kept, merged + of_base * base if how.whole_weights else merged
        case _:
            return kept, _overlap(kept, fitted, how)


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

    def total(self, measure: Callable[[Array, Array, int], Any]) -> Any:
        """measure of the whole."""
        return measure(self.base, self.vectors, 0)

    def gram(self, whole: bool) -> Array:
        """Inner products of the whole."""
        return gram_matrix(self.base + self.vectors if whole else self.vectors)

    def largest(self, kept: list[int], equal_magnitudes: str) -> Bound:
        """As `select.largest`."""
        return largest(self.vectors, kept, equal_magnitudes)


def gram_matrix(vectors: Array) -> Array:
    """Inner products of K vectors [K, ...] -> [K, K]; on the host float64, from pairwise sums of a block.

    Not BLAS there: its threads would fight with those that read the blocks.
    """
    flat = vectors.reshape(len(vectors), -1)
    if namespace(vectors) is np:
        gram = np.empty((len(flat), len(flat)))
        for row in range(len(flat)):
            for column in range(row + 1):
                gram[row, column] = gram[column, row] = np.sum(flat[row] * flat[column])
        return gram
    return jax.numpy.matmul(flat, flat.T, precision="highest")


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

    def norms(_: Array, vectors: Array, start: int) -> Array:
        kept = keep(vectors, start, fitted, how)
        return namespace(vectors).stack([one_norms(vectors), one_norms(kept)])

    before, after = unit.total(norms)
    xp = namespace(before)
    tiny = (before < 1e-7) | (after < 1e-7)
    return xp.where(tiny, 1, before / xp.where(tiny, 1, after)).astype(np.float32)


def _majority(unit: Unit, fitted: Fitted, how: Setting) -> Array:
    def signs(_: Array, vectors: Array, start: int) -> Array:
        kept = keep(vectors, start, fitted, how)
        before = how.rule.weigh == "before"
        return elected(product(kept, columns(how.weights, kept)) if before else kept, how.rule)

    return unit.total(signs)


def _coefficients(unit: Unit, how: Setting) -> Array:
    """[K + 1]: of the vectors, and of the base (nonzero only where whole weights are interpolated)."""
    whole = how.whole_weights
    gram = unit.gram(whole)
    xp = namespace(gram)
    found = span.SPANS[how.method](gram, xp.asarray(how.weights, gram.dtype))
    of_base = xp.sum(found) - 1 if whole else xp.zeros((), gram.dtype)
    return xp.append(found, of_base).astype(np.float32)


def _weighted_sum(kept: Array, how: Setting) -> Array:
    total = _linear(kept, how.weights)
    if how.rule.denominator == "none":
        return total
    divisor = sum(how.weights) if how.rule.denominator == "weights" else len(how.weights)
    return total / namespace(kept).float32(divisor if abs(divisor) > 1e-8 else 1)


def _linear(vectors: Array, factors: Any) -> Array:
    """sum_k factors[k] * vectors[k], in their order."""
    total = 0
    for vector, factor in zip(vectors, factors, strict=True):
        total = total + vector * namespace(vectors).float32(factor)
    return total


def _amplification(unit: Unit, how: Setting) -> Array:
    """RAM+: [K] factors of what one expert alone changed, 1 + r * min(shared / own, alpha) (arXiv 2601.13572)."""

    def tally(_: Array, vectors: Array, __: int) -> Array:
        xp = namespace(vectors)
        changed = (xp.abs(vectors) > how.threshold).reshape(len(vectors), -1)
        users = count(changed)
        return xp.stack([xp.sum(changed & (users > 1), axis=1), xp.sum(changed & (users == 1), axis=1)])

    shared, own = unit.total(tally)
    xp = namespace(shared)
    slope, most = how.amplify
    return (1 + slope * xp.clip(shared / xp.maximum(own, how.threshold), 0, most)).astype(np.float32)


def _overlap(vectors: Array, fitted: Fitted, how: Setting) -> Array:
    """RAM: an entry that one expert changed is kept, one that several changed is averaged over them."""
    xp = namespace(vectors)
    changed = xp.abs(vectors) > how.threshold
    users = count(changed)
    effective = xp.where(changed, vectors, 0)
    own = effective if fitted.rescale is None else product(effective, columns(fitted.rescale, vectors))
    return xp.sum(xp.where(users == 1, own, effective / xp.maximum(users, 1)), axis=0)
