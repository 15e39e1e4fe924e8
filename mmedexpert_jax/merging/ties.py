"""TIES-Merging (Yadav et al. 2023, algorithm 1) on one stack of task vectors: trim, elect, disjoint mean.

The operator of the paper's equation 7. Every point on which published implementations differ is a field of `Switches`.
"""

from collections.abc import Sequence

import numpy as np

from mmedexpert_jax.merging.arrays import Array, Rows, count, namespace, product, total
from mmedexpert_jax.merging.select import largest
from mmedexpert_jax.merging.switches import PRESETS, Switches, switches

__all__ = ["PRESETS", "Switches", "agreement", "disjoint_mean", "elected", "switches", "ties", "trim"]


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


def trim(vectors: Array, density: float | Sequence[float], rule: Switches) -> Array:
    """Zeroes all but the largest magnitudes of each vector: [K, ...] -> [K, ...] float32."""
    size = int(np.prod(vectors.shape[1:]))
    densities = np.broadcast_to(density, len(vectors))
    kept = [rule.kept(size, float(share)) for share in densities]
    if min(kept) == size:
        return vectors
    flat = vectors.reshape(len(vectors), -1)
    return namespace(vectors).stack(largest(flat, kept, rule.equal_magnitudes).keep(flat)).reshape(vectors.shape)


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
        share = count(agree)
    else:
        share = total([xp.where(mask, xp.float32(w), 0) for mask, w in zip(agree, weights, strict=True)])
    return sums / xp.where(share == 0, 1, share)


def agreement(voters: Rows, rule: Switches, majority: Array | None = None) -> list[Array]:
    """Which values join the mean: those with the elected sign, K arrays [...] -> K masks [...]."""
    xp = namespace(voters)
    votes = _votes(voters, rule)
    if rule.cancellation == "plus":
        up, down = votes >= 0, votes < 0
    else:
        up, down = votes > 0, votes < 0
        if rule.cancellation == "majority":
            signs = xp.sum(up, dtype=xp.int32) - xp.sum(down, dtype=xp.int32) if majority is None else majority
            up, down = up | (~down & (signs > 0)), down | (~up & (signs <= 0))
    return [((row > 0) & up) | ((row < 0) & down) for row in voters]


def elected(voters: Rows, rule: Switches) -> Array:
    """Sum of the elected signs over the entries, cancellations apart: K arrays [...] -> [] int."""
    xp = namespace(voters)
    votes = _votes(voters, rule)
    return xp.sum(votes > 0) - xp.sum(votes < 0)


def _votes(voters: Rows, rule: Switches) -> Array:
    return total([namespace(voters).sign(row) for row in voters] if rule.elect == "count" else voters)
