"""TIES-Merging (Yadav et al. 2023, algorithm 1) on one stack of task vectors: trim, elect, disjoint mean.

The operator of the paper's equation 7. Every point on which published implementations differ is a field of `Switches`.
"""

from collections.abc import Sequence

import numpy as np

from mmedexpert_jax.merging.arrays import Array, columns, count, namespace, product
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
    weights = np.ones(len(vectors), np.float32) if weights is None else weights
    return disjoint_mean(trim(vectors, density, rule), weights, rule)


def trim(vectors: Array, density: float | Sequence[float], rule: Switches) -> Array:
    """Zeroes all but the largest magnitudes of each vector: [K, ...] -> [K, ...] float32."""
    size = int(np.prod(vectors.shape[1:]))
    densities = np.broadcast_to(density, len(vectors))
    kept = [rule.kept(size, float(share)) for share in densities]
    if min(kept) == size:
        return vectors
    flat = vectors.reshape(len(vectors), -1)
    chosen = largest(flat, kept, rule.equal_magnitudes).keeps(flat)
    return namespace(vectors).where(chosen, flat, 0).reshape(vectors.shape)


def disjoint_mean(trimmed: Array, weights: Array, rule: Switches, majority: Array | None = None) -> Array:
    """Elects a sign per entry and averages the values that have it: [K, ...], [K] -> [...] float32.

    Args:
        trimmed: task vectors with zeros where nothing is kept.
        weights: one per expert.
        rule: the switches.
        majority: sum of the elected signs of the whole unit, for cancellation="majority"; None: `trimmed` is the unit.
    """
    xp = namespace(trimmed)
    factors = columns(weights, trimmed)
    weighted = trimmed if _all_ones(weights) else product(trimmed, factors)
    agree = agreement(weighted if rule.weigh == "before" else trimmed, rule, majority)
    total = xp.sum(xp.where(agree, weighted, 0), axis=0)
    if rule.denominator == "none":
        return total
    if rule.denominator == "count" or _all_ones(weights):
        share = count(agree)
    else:
        share = xp.sum(xp.where(agree, factors, 0), axis=0)
    return total / xp.where(share == 0, 1, share)


def agreement(voters: Array, rule: Switches, majority: Array | None = None) -> Array:
    """Which values join the mean: those with the elected sign, [K, ...] -> [K, ...] bool."""
    xp = namespace(voters)
    votes = xp.sum(xp.sign(voters) if rule.elect == "count" else voters, axis=0)
    if rule.cancellation == "plus":
        up, down = votes >= 0, votes < 0
    else:
        up, down = votes > 0, votes < 0
        if rule.cancellation == "majority":
            signs = xp.sum(up, dtype=xp.int32) - xp.sum(down, dtype=xp.int32) if majority is None else majority
            up, down = up | (~down & (signs > 0)), down | (~up & (signs <= 0))
    return ((voters > 0) & up) | ((voters < 0) & down)


def elected(voters: Array, rule: Switches) -> Array:
    """Sum of the elected signs over the entries, cancellations apart: [K, ...] -> [] int."""
    xp = namespace(voters)
    votes = xp.sum(xp.sign(voters) if rule.elect == "count" else voters, axis=0)
    return xp.sum(votes > 0) - xp.sum(votes < 0)


def _all_ones(weights: Array) -> bool:
    return isinstance(weights, (np.ndarray, tuple, list)) and bool(np.all(np.asarray(weights) == 1))
