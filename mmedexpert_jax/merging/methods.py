"""The merging methods side by side: what each keeps of the task vectors, and how the kept parts join, entry by entry.

    task vectors --keep--> kept --join--> merged vector * scale, which is added to the base

Equation 6 of the paper, tau_k = theta_k - theta_base, stands in `vectors.assembled`; equation 7, the trim, the elected
signs and the mean of those that agree, in `trim` and `disjoint_mean` below; lambda is `Setting.scale`.

1. `METHODS`: a method is a rule of what is kept and a rule of how that joins.
2. `combine`: both rules for a block of entries, given the few numbers that a whole tensor decides (`fit.fit`).
3. What is kept, a `case` of `keep` each: trims by magnitude, breadcrumbs, DARE, DELLA, SCE, Arcee Fusion.
4. How it joins, a `case` of `join` each: sign election (TIES), sums, SCE, NearSwap, Fisher information, spans, RAM.

The formulas of `spherical` (SLERP and its kin) and `lowrank` (TSV-M, Iso-C, WUDI, OptMerge) take whole vectors and
matrices, and stand there.

The same functions take numpy arrays, JAX arrays and tracers: hosts, XLA programs and devices run one formula.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from einops import rearrange

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging.arrays import Array, Rows, count, namespace, product, random_bits, total
from mmedexpert_jax.merging.settings import CHOICES, PRESETS, Method, Setting, Switches
from mmedexpert_jax.merging.spherical import pair_coefficients, stock_coefficients
from mmedexpert_jax.merging.threshold import Bound, largest

METHODS = {
    # Of each task vector some entries are kept, and elect a sign (TIES) or are added up.
    "ties": Method("largest", "elect"),
    "task_arithmetic": Method("all", "sum"),
    "magnitude_prune": Method("largest", "sum"),
    "dots": Method("largest", "sum"),  # rescaled to the norm before the trim
    "dare_linear": Method("random", "sum"),
    "dare_ties": Method("random", "elect"),
    "della": Method("ranked", "elect"),
    "della_linear": Method("ranked", "sum"),
    "breadcrumbs": Method("middle", "sum"),
    "breadcrumbs_ties": Method("middle", "elect"),
    # By the experts' Fisher information.
    "fisher": Method("all", "weigh"),
    "sar": Method("largest", "arbitrate"),  # rescaled to the norm before the trim
    # By what the experts change together, or one of them alone.
    "sce": Method("varied", "masses", has_weights=False),
    "ram": Method("all", "overlap", has_weights=False),
    "ramplus": Method("all", "overlap", has_weights=False),
    "nearswap": Method("all", "near", experts=1, has_weights=False),
    "arcee_fusion": Method("important", "sum", experts=1),
    # With coefficients of whole vectors, rows or columns: `spherical`.
    "average": Method("all", "span"),
    "slerp": Method("all", "span"),
    "slerp_rows": Method("all", "rows", experts=2),
    "slerp_columns": Method("all", "rows", experts=2),
    "nuslerp": Method("all", "span", experts=2),
    "multislerp": Method("all", "span"),
    "karcher": Method("all", "span"),
    "model_stock": Method("all", "span", has_weights=False),
    "model_stock_rows": Method("all", "rows", has_weights=False),
    # Matrices from their factors: `lowrank`.
    "tsv_m": Method("all", "factors"),
    "iso_c": Method("all", "factors"),
    "wudi": Method("all", "factors"),
    "optmerge": Method("all", "factors"),
    # Of whole weights, as mergekit's methods that know no task vectors.
    "weight_sum": Method("all", "span", whole=True),
    "weight_slerp": Method("all", "span", whole=True),
    "weight_slerp_rows": Method("all", "rows", whole=True, experts=2),
    "weight_slerp_columns": Method("all", "rows", whole=True, experts=2),
    "weight_nuslerp": Method("all", "span", whole=True, experts=2),
    "weight_multislerp": Method("all", "span", whole=True),
    "weight_karcher": Method("all", "span", whole=True),
}


def method_of(name: str) -> Method:
    """A method by its name in METHODS. Raises ConfigError for another."""
    if name not in METHODS:
        raise ConfigError(f"no merging method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


def switches(preset: str | Switches, method: str = "ties") -> Switches:
    """The switches of a preset for one method; switches pass through.

    Sums of task vectors are divided by nothing; what is drawn at random is rescaled by its probability, in mergekit
    by 1-norms. mergekit divides neither DARE-TIES nor breadcrumbs-TIES, and drops, of equal outliers, the last ones.

    Raises:
        ConfigError: an unknown preset, or a switch with an unknown value.
    """
    if isinstance(preset, Switches):
        for name, choices in CHOICES.items():
            if getattr(preset, name) not in choices:
                raise ConfigError(f"switch {name}={getattr(preset, name)!r}: choose one of {', '.join(choices)}")
        return preset
    if preset not in PRESETS:
        raise ConfigError(f"no TIES preset {preset!r}: choose one of {', '.join(PRESETS)}")
    rule, kind = PRESETS[preset], method_of(method)
    if kind.join == "sum" and kind.experts != 1:
        rule = replace(rule, denominator="none")
    if kind.keep in ("random", "ranked"):
        rule = replace(rule, rescale="l1" if preset == "mergekit" else "density")
    if method in ("dots", "sar"):
        rule = replace(rule, rescale="l2")
    if preset == "mergekit" and method in ("dare_ties", "breadcrumbs_ties"):
        rule = replace(rule, denominator="none")
    if preset == "mergekit" and method.startswith("breadcrumbs"):
        rule = replace(rule, equal_magnitudes="higher_index")
    return rule


@dataclass(frozen=True)
class Fitted:
    """The decisions of a unit as a whole: all of them small."""

    # of the trim by magnitude: what is kept, and for breadcrumbs the outliers before it
    bounds: tuple[Bound, ...] = ()
    rescale: Array = None  # [K] factors of what is kept
    majority: Array = None  # sum of the unit's elected signs, for cancellation="majority"
    coefficients: Array = None  # [K] of the vectors, and last that of the base; by column [K + 1, columns]
    masses: Array = None  # [K] SCE's weights
    factors: tuple[Array, Array] | None = None  # b [out, r] and a [r, in] of the merged matrix


_FIELDS = ["bounds", "rescale", "majority", "coefficients", "masses", "factors"]
jax.tree_util.register_dataclass(Fitted, data_fields=_FIELDS, meta_fields=[])


def combine(
    base: Array, vectors: Rows, start: int, fitted: Fitted, how: Setting, fisher: Rows | None = None
) -> tuple[Rows, Array]:
    """A block of K task vectors [m] -> what is kept of them, K [m], and the merged vector [m], times `how.scale`.

    Args:
        base: the base's weights [m] float32.
        vectors: float32.
        start: as in `keep`.
        fitted: of the unit.
        how: of the tensor.
        fisher: diagonals of the experts' Fisher information, K [m]; None where the method asks for none.
    """
    if fitted.factors is not None:
        b, a = fitted.factors
        first = start // a.shape[1]
        kept, merged = vectors, namespace(vectors).matmul(b[first : first + vectors[0].shape[0]], a)
    elif how.kind.join == "factors":  # what is no matrix is averaged, as the authors do
        kept, merged = vectors, _linear(vectors, np.asarray(how.weights) / len(how.weights))
    else:
        kept = keep(base, vectors, start, fitted, how)
        merged = join(base, kept, fitted, how, fisher or ())
    return kept, merged if how.scale == 1 else merged * namespace(merged).float32(how.scale)


def keep(base: Array, vectors: Rows, start: int, fitted: Fitted, how: Setting) -> Rows:
    """The kept part of a block of K task vectors [m] (or [rows, columns]), rescaled; zeros elsewhere.

    Args:
        base: the base's weights [m] float32, which only an importance looks at.
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
        case "varied":
            kept = varied(vectors, fitted.bounds[0], start) if fitted.bounds else vectors
        case "important":
            xp = namespace(vectors)
            kept = [xp.where(importance(base, row) >= fitted.bounds[0].value[0], row, 0) for row in vectors]
        case _:
            return vectors
    return kept if fitted.rescale is None else _scaled(kept, fitted.rescale)


def join(base: Array, kept: Rows, fitted: Fitted, how: Setting, fisher: Rows) -> Array:
    """The merged vector [m] float32 of what is kept of a block, K [m]. Arguments as of `combine`."""
    match how.kind.join:
        case "elect":
            return disjoint_mean(kept, how.unequal_weights, how.rule, fitted.majority)
        case "sum":
            summed, divisor = _linear(kept, how.weights), how.divisor
            return summed if divisor == 1 else summed / np.float32(divisor)
        case "masses":
            return _by_mass(kept, fitted.masses)
        case "near":
            return _nearswap(kept[0], how.t)
        case "weigh":
            return weighed(kept, _scaled(fisher, how.weights))
        case "arbitrate":
            return arbitrated(_scaled(kept, how.weights), fisher)
        case "span" | "rows":
            found = fitted.coefficients
            if found is None:  # rows, which lie whole in the block and need no fit
                found = line_coefficients(inner_products(base, kept, how, -1), how)[..., None]
            *own, of_base = found
            merged = _linear(kept, own)
            return merged + of_base * base if how.kind.whole else merged
        case _:
            return _overlap(kept, fitted, how)


def trim(vectors: Array, density: float | Sequence[float], rule: Switches) -> Array:
    """Zeroes all but the largest magnitudes of each vector: [K, ...] -> [K, ...] float32."""
    size = int(np.prod(vectors.shape[1:]))
    densities = np.broadcast_to(density, len(vectors))
    kept = [rule.kept(size, float(one)) for one in densities]
    if min(kept) == size:
        return vectors
    flat = rearrange(vectors, "experts ... -> experts (...)")
    return namespace(vectors).stack(largest(flat, kept, rule.equal_magnitudes).keep(flat)).reshape(vectors.shape)


def between(vectors: Rows, outer: Bound, inner: Bound, start: int) -> list[Array]:
    """Model breadcrumbs (Davari and Belilovsky 2023, arXiv 2312.06795): keeps what is inside `inner`, not `outer`."""
    xp = namespace(vectors)
    masks = zip(inner.keeps(vectors, start), outer.keeps(vectors, start), vectors, strict=True)
    return [xp.where(small & ~large, row, 0) for small, large, row in masks]


def breadcrumb_ranks(size: int, density: float, gamma: float) -> tuple[int, int]:
    """The numbers of the largest of `size` entries that are dropped as outliers, and of those after them that are kept.

    int(gamma * size) and int(density * size); fewer outliers where both do not fit (mergekit 0.1.5).
    """
    if density >= 1:
        return 0, size
    target = int(density * size)
    return min(int(gamma * size), size - target), target


def bernoulli(vectors: Rows, densities: Sequence[float], keys: Sequence[int], start: int, inverse: bool) -> list[Array]:
    """DARE (Yu et al. 2024, arXiv 2311.03099): keeps each entry with probability density.

    Args:
        vectors: K arrays [n] float32.
        densities: K probabilities.
        keys: K keys of `key_of`.
        start: index of the first column in the tensor.
        inverse: divide what is kept by its probability (the paper).
    """
    xp = namespace(vectors)
    rows = []
    for vector, density, key in zip(vectors, densities, keys, strict=True):
        if density >= 1:
            rows.append(vector)
            continue
        kept = random_bits(key, start, vector.shape, xp) < xp.uint32(int(density * 2**32))
        rows.append(xp.where(kept, vector / xp.float32(density) if inverse and density > 0 else vector, 0))
    return rows


def by_rank(
    vectors: Rows,
    densities: Sequence[float],
    epsilons: Sequence[float],
    keys: Sequence[int],
    start: int,
    inverse: bool,
) -> list[Array]:
    """DELLA's MagPrune (Deep et al. 2024, arXiv 2406.11617) on whole rows, K arrays [rows, columns], of a matrix.

    In each row the entries are ranked by magnitude (the later of equals ranks higher); the probability to keep one
    rises linearly with its rank from density - epsilon to density + epsilon.
    """
    xp = namespace(vectors)
    columns = vectors[0].shape[-1]
    rows = []
    for vector, density, epsilon, key in zip(vectors, densities, epsilons, keys, strict=True):
        if density >= 1 or density <= 0:
            rows.append(vector if density >= 1 else xp.zeros_like(vector))
            continue
        order = xp.argsort(xp.abs(vector), axis=-1, stable=True)
        ranks = xp.argsort(order, axis=-1).astype(xp.float32)
        fraction = ranks / xp.float32(max(columns - 1, 1)) if columns > 1 else xp.full_like(ranks, 0.5)
        probability = xp.float32(density - epsilon) + fraction * xp.float32(2 * epsilon)
        uniform = random_bits(key, start, vector.shape, xp).astype(xp.float32) * xp.float32(2**-32)
        kept = uniform < probability
        rows.append(xp.where(kept, vector / probability if inverse else vector, 0))
    return rows


def key_of(seed: int, tensor: str, expert: str) -> int:
    """64-bit key of the random choices in one task vector."""
    text = f"{seed}/{tensor}/{expert}".encode()
    return zlib.crc32(text) << 32 | zlib.crc32(text[::-1], 0x9E3779B9)


def varied(vectors: Rows, bound: Bound, start: int) -> list[Array]:
    """SCE's selection (Wan et al. 2024, arXiv 2408.07990): the entries whose variance over the experts is largest."""
    mask = bound.keeps([variance(vectors)], start)[0]
    return [namespace(vectors).where(mask, row, 0) for row in vectors]


def variance(vectors: Rows) -> Array:
    """Population variance over K arrays [m], entry by entry."""
    inverse = namespace(vectors).float32(1 / len(vectors))
    mean = total(vectors) * inverse
    return total([(row - mean) * (row - mean) for row in vectors]) * inverse


def importance(base: Array, vector: Array) -> Array:
    """Arcee Fusion's importance of what changed, [rows, columns]: |change| x KL of a row's softmax after to before.

    Source: mergekit `arcee_fusion` (1e-8 is added to both distributions).
    """
    xp = namespace(vector)

    def softmax(x: Array) -> Array:
        powers = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
        return powers / xp.sum(powers, axis=-1, keepdims=True) + xp.float32(1e-8)

    after, before = softmax(base + vector), softmax(base)
    divergence = xp.sum(after * xp.log(after / before), axis=-1, keepdims=True)
    return xp.abs(vector) * divergence


def norms(vectors: Rows, order: int) -> Array:
    """Sums of the magnitudes (order 1) or squares (order 2) of K arrays -> [K]."""
    xp = namespace(vectors)
    wide = np.float64 if xp is np else xp.float32
    return xp.stack([xp.sum(xp.abs(row) if order == 1 else xp.square(row), dtype=wide) for row in vectors])


def ties(vectors: Array, density: float = 0.2, weights: Array | None = None, preset: str | Switches = "paper") -> Array:
    """Merged task vector [...] float32 of K stacked ones (equation 7).

    Args:
        vectors: [K, ...] float32, one task vector per expert, taken as one unit of the trim; numpy or JAX, sharded
            over devices or not: the result is the same bit for bit.
        density: fraction of entries that the trim keeps of each.
        weights: [K] float32; None weighs all alike.
        preset: name of a preset, or switches.
    """
    rule = switches(preset)
    xp = namespace(vectors)
    vectors = xp.asarray(vectors, xp.float32)
    return disjoint_mean(trim(vectors, density, rule), weights, rule)


def disjoint_mean(trimmed: Rows, weights: Rows | None, rule: Switches, majority: Array | None = None) -> Array:
    """Elects a sign per entry and averages the values that have it: K arrays [...], [K] -> [...] float32.

    Args:
        trimmed: task vectors with zeros where nothing is kept.
        weights: one per expert; None weighs all alike.
        rule: the switches.
        majority: sum of the elected signs of the whole unit, for cancellation="majority"; None: `trimmed` is the unit.
    """
    xp = namespace(trimmed)
    weighted = trimmed if weights is None else [product(row, w) for row, w in zip(trimmed, weights, strict=True)]
    agree = agreement(weighted if rule.weigh == "before" else trimmed, rule, majority)
    sums = total([xp.where(mask, row, 0) for mask, row in zip(agree, weighted, strict=True)])
    if rule.denominator == "none":
        return sums
    if rule.denominator == "count" or weights is None:
        divisor = count(agree)
    else:
        divisor = total([xp.where(mask, xp.float32(w), 0) for mask, w in zip(agree, weights, strict=True)])
    return sums / xp.where(divisor == 0, 1, divisor)


def agreement(voters: Rows, rule: Switches, majority: Array | None = None) -> list[Array]:
    """Masks of the values that join the mean, those with the elected sign: K arrays [...] -> K masks [...]."""
    xp = namespace(voters)
    votes = _votes(voters, rule)
    if rule.cancellation == "plus":
        up, down = votes >= 0, votes < 0
    else:
        up, down = votes > 0, votes < 0
        if rule.cancellation == "majority":
            signs = xp.sum(up, dtype=xp.int32) - xp.sum(down, dtype=xp.int32) if majority is None else majority
            up, down = up | (~down & (signs > 0)), down | (~up & (signs <= 0))
    side = xp.where(up, xp.float32(1), xp.where(down, xp.float32(-1), xp.float32(0)))
    return [row * side > 0 for row in voters]


def elected(voters: Rows, rule: Switches) -> Array:
    """Sum of the elected signs over the entries, cancellations apart: K arrays [...] -> [] int."""
    xp = namespace(voters)
    votes = _votes(voters, rule)
    return xp.sum(votes > 0) - xp.sum(votes < 0)


def _votes(voters: Rows, rule: Switches) -> Array:
    return total([namespace(voters).sign(row) for row in voters] if rule.elect == "count" else voters)


def _linear(vectors: Rows, factors: Any) -> Array:
    """sum_k factors[k] * vectors[k], in their order."""
    xp = namespace(vectors)
    return total([row * xp.asarray(factor, xp.float32) for row, factor in zip(vectors, factors, strict=True)])


def _by_mass(kept: Rows, masses: Array) -> Array:
    """SCE: experts with the elected sign, weighed by the mean squares of what was selected of them."""
    xp = namespace(kept)
    agree = agreement(kept, Switches(cancellation="plus"))
    summed = total([xp.where(mask, row * mass, 0) for mask, row, mass in zip(agree, kept, masses, strict=True)])
    return summed / xp.maximum(total([xp.where(m, mass, 0) for m, mass in zip(agree, masses, strict=True)]), 1e-6)


def _nearswap(vector: Array, t: float) -> Array:
    """The whole change of entries that changed by at most t, and t of larger changes (mergekit `nearswap`)."""
    xp = namespace(vector)
    return vector * xp.clip(xp.float32(t) / xp.maximum(xp.abs(vector), xp.float32(1e-6)), 0, 1)


def weighed(vectors: Rows, fisher: Rows) -> Array:
    """Fisher merging (Matena and Raffel 2022, arXiv 2111.09832): sum_k F_k tau_k / sum_k F_k; 0 where all F_k are 0.

    The authors' mean of the weights theta + tau_k is theta and this.
    """
    xp = namespace(vectors)
    whole = total(fisher)
    summed = total([row * own for row, own in zip(vectors, fisher, strict=True)])
    return xp.where(whole > 0, summed / xp.where(whole > 0, whole, 1), 0).astype(xp.float32)


def arbitrated(kept: Rows, fisher: Rows) -> Array:
    """An entry that several experts keep goes to the most sensitive of them, by F_k tau_k^2; to the first of equals.

    Half of F tau^2 is the rise of an expert's own loss, to second order, where its change of an entry is taken back.
    SAR-Merging (Wu et al. 2026, arXiv 2606.18521) gives overlaps of RL vectors to the higher Fisher information, then
    makes them sparse by magnitude and rescales; here the trim and the rescaling come first, as in DoTS.
    """
    xp = namespace(kept)
    best, chosen = kept[0] * kept[0] * fisher[0], kept[0]
    for row, own in zip(kept[1:], fisher[1:], strict=True):
        sensitivity = row * row * own
        better = (sensitivity > best) | (chosen == 0)
        best, chosen = xp.where(better, sensitivity, best), xp.where(better, row, chosen)
    return chosen


def inner_products(base: Array, vectors: Rows, how: Setting, axis: int) -> Array:
    """[K, K, n] of the n rows (axis -1) or columns (0) of a block [rows, columns]; of whole weights where asked for."""
    xp = namespace(vectors)
    rows = [base + row for row in vectors] if how.kind.whole else vectors
    return xp.stack([xp.stack([xp.sum(one * other, axis=axis) for other in rows]) for one in rows])


def line_coefficients(products: Array, how: Setting) -> Array:
    """[K + 1, n] of n rows or columns from their `inner_products`: of the vectors, and last that of the base."""
    xp = namespace(products)
    if how.method.startswith("model_stock"):
        found = stock_coefficients(products)
    else:
        whole = sum(how.weights)
        found = pair_coefficients(products, 0.5 if abs(whole) < 1e-6 else how.weights[1] / whole)  # as mergekit
    of_base = xp.sum(found, axis=0) - 1 if how.kind.whole else xp.zeros_like(found[0])
    return xp.concatenate([found, of_base[None]]).astype(xp.float32)


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
