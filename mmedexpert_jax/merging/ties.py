"""TIES-Merging (Yadav et al. 2023, algorithm 1) on one stack of task vectors: trim, elect, disjoint mean.

The operator of the paper's equation 7. Every point on which published implementations differ is a field of `Switches`.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmedexpert_jax.errors import ConfigError


@dataclass(frozen=True)
class Switches:
    """What TIES leaves open.

    Attributes:
        scope: unit of the trim, "tensor" or "global" (one vector of the whole model). The caller applies it.
        equal_magnitudes: "lower_index" keeps exactly k entries, "keep_all" keeps all that equal the k-th.
        at_least: entries kept of a unit that has any, even if int(density * n) is less.
        extra: entries kept beyond int(density * n).
        elect: "mass" (sign of the sum of values) or "count" (sign of the sum of signs).
        weigh: weights multiply the trimmed vectors "before" or "after" the election.
        cancellation: sign elected where that sum is exactly 0: "drop" (none: the entry is 0), "plus",
            or "majority" (the more frequent elected sign of the unit; minus if there is none).
        denominator: of the disjoint mean: "weights" (of those that agree), "count" (of those that agree) or "none".
    """

    scope: str = "tensor"
    equal_magnitudes: str = "lower_index"
    at_least: int = 1
    extra: int = 0
    elect: str = "mass"
    weigh: str = "after"
    cancellation: str = "drop"
    denominator: str = "weights"

    def kept(self, size: int, density: float) -> int:
        """How many of `size` entries the trim keeps, int(density * size) before the switches."""
        count = int(density * size) + (self.extra if density > 0 else 0)
        return min(size, max(self.at_least if density > 0 else 0, count))


PRESETS = {
    # Algorithm 1: sgn(0) agrees with zeros only, so an exact cancellation gives 0.
    "paper": Switches(),
    # The TIES authors' code: kthvalue keeps one entry more and every equal magnitude of one vector for the whole model.
    "official": Switches(
        "global", equal_magnitudes="keep_all", at_least=0, extra=1, cancellation="majority", denominator="count"
    ),
    # mergekit 0.1.5 with its default normalize=true.
    "mergekit": Switches(weigh="before", cancellation="plus"),
    # peft.utils.merge_utils.ties: no least number of entries, weights are not in the denominator.
    "peft": Switches(at_least=0, cancellation="plus", denominator="count"),
}


def switches(preset: str | Switches) -> Switches:
    """The switches of a preset name; switches pass through. Raises ConfigError on an unknown name."""
    if isinstance(preset, Switches):
        return preset
    if preset not in PRESETS:
        raise ConfigError(f"no TIES preset {preset!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def ties(vectors: Array, density: float = 0.2, weights: Array | None = None, preset: str | Switches = "paper") -> Array:
    """Merged task vector [...] float32 of K stacked ones (equation 7).

    Args:
        vectors: [K, ...] float32, one task vector per expert, taken as one unit of the trim.
        density: fraction of entries that the trim keeps of each.
        weights: [K] float32; None weighs all alike.
        preset: name of a preset, or switches.
    """
    rule = switches(preset)
    vectors = jnp.asarray(vectors, jnp.float32)
    weights = jnp.ones(len(vectors), jnp.float32) if weights is None else jnp.asarray(weights, jnp.float32)
    return disjoint_mean(trim(vectors, density, rule), weights, rule)


def trim(vectors: Array, density: float, rule: Switches) -> Array:
    """Zeroes all but the largest magnitudes of each vector: [K, ...] -> [K, ...] float32."""
    size = int(np.prod(vectors.shape[1:]))
    kept = rule.kept(size, density)
    if kept == size:
        return vectors
    return _trim(vectors, kept, rule.equal_magnitudes == "keep_all")


@partial(jax.jit, static_argnames="keep_all")
def _trim(vectors: Array, kept: Array, keep_all: bool) -> Array:
    flat = vectors.reshape(len(vectors), -1)
    magnitude = jnp.abs(flat).view(jnp.int32)  # the bits of a non-negative float order as its value
    bound = _kth_largest(magnitude, jnp.full(len(flat), kept))
    chosen = magnitude >= bound
    if not keep_all:
        equal = magnitude == bound
        missing = kept - jnp.sum(magnitude > bound, axis=1)
        last = _kth_largest(jnp.where(equal, flat.shape[1] - jnp.arange(flat.shape[1]), 0), missing)
        chosen = (magnitude > bound) | (equal & (flat.shape[1] - jnp.arange(flat.shape[1]) >= last))
    return jnp.where(chosen & (kept > 0), flat, 0).reshape(vectors.shape)


def _kth_largest(values: Array, k: Array) -> Array:
    """The k[i]-th largest of each row of non-negative int32, [K, n] -> [K, 1]: bisection over bits by exact counts."""

    def step(bit: Array, bound: Array) -> Array:
        trial = bound | (jnp.int32(1) << (30 - bit))
        enough = jnp.sum(values >= trial, axis=1, keepdims=True) >= k[:, None]
        return jnp.where(enough, trial, bound)

    return jax.lax.fori_loop(0, 31, step, jnp.zeros((len(values), 1), jnp.int32))


@partial(jax.jit, static_argnames="rule")
def disjoint_mean(trimmed: Array, weights: Array, rule: Switches) -> Array:
    """Elects a sign per entry and averages the values that have it: [K, ...], [K] -> [...] float32."""
    weights = weights.reshape(-1, *[1] * (trimmed.ndim - 1))
    weighted = trimmed * weights
    voters = weighted if rule.weigh == "before" else trimmed
    elected = elect(voters, rule)
    agree = (jnp.sign(voters) == elected) & (elected != 0)
    total = jnp.sum(jnp.where(agree, weighted, 0), axis=0)
    if rule.denominator == "none":
        return total
    share = jnp.sum(jnp.where(agree, weights if rule.denominator == "weights" else 1.0, 0), axis=0)
    return total / jnp.where(share == 0, 1, share)


def elect(voters: Array, rule: Switches) -> Array:
    """Elected sign of each entry, [K, ...] -> [...] in {-1, 0, 1}."""
    sign = jnp.sign(jnp.sum(jnp.sign(voters) if rule.elect == "count" else voters, axis=0))
    if rule.cancellation == "plus":
        return jnp.where(sign == 0, 1, sign)
    if rule.cancellation == "majority":
        return jnp.where(sign == 0, jnp.where(jnp.sum(sign) > 0, 1, -1), sign)
    return sign
