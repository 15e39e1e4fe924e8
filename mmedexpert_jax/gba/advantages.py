"""Equation 4: rewards relative to their group, and the field's other estimators."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.gba.own_functions import Files, find_function


def group_advantages(
    rewards: jax.Array | np.ndarray, eps: float = 1e-4, ddof: int = 1, scale: bool = True
) -> jax.Array:
    """Normalises each reward against its group: (r - mean) / (std + eps), paper equation 4.

    Args:
        rewards: [N, G], the G rewards of each of N groups.
        eps: added to the standard deviation; the paper gives none, 1e-4 is TRL's and the R1-V family's.
        ddof: 1 for the sample deviation (TRL, R1-V), 0 for the population's.
        scale: divide by the deviation; Dr. GRPO (Liu et al. 2025) does not, so that hard and easy groups weigh alike.

    Returns:
        Advantages [N, G] float32; exactly 0 where all rewards of a group are equal.

    Raises:
        ConfigError: fewer than two samples in a group, or, outside jit, a reward that is not finite.
    """
    chex.assert_rank(rewards, 2)
    _check_size(rewards.shape[1])
    if not isinstance(rewards, jax.core.Tracer):
        bad = np.argwhere(~np.isfinite(np.asarray(rewards)))
        if len(bad):
            group, sample = bad[0]
            value = float(rewards[group, sample])
            raise ConfigError(f"the reward of sample {sample} in group {group} is {value}; rewards must be finite")
    return _normalise(jnp.asarray(rewards, jnp.float32), eps, ddof, scale)


def _check_size(samples: int) -> None:
    if samples < 2:
        raise ConfigError(f"group advantages compare at least 2 samples, got groups of {samples}; raise num_samples")


@partial(jax.jit, static_argnames=("eps", "ddof", "scale"))
def _normalise(rewards: jax.Array, eps: float, ddof: int, scale: bool) -> jax.Array:
    shifted = rewards - rewards[:, :1]  # equal rewards become exact zeros, whatever their mean rounds to
    centred = shifted - shifted.mean(axis=1, keepdims=True)
    if not scale:
        return centred
    deviation = jnp.sqrt(jnp.square(centred).sum(axis=1, keepdims=True) / (rewards.shape[1] - ddof))
    return centred / (deviation + eps)


# -- estimators --------------------------------------------------------------------------------------------------------
# Each takes the rewards [N, G, F] of F functions, NaN where one abstained, and their weights [F]; one that has a
# parameter `lengths` also the tokens [N, G] of the completions. A sample about which all abstained is left out of its
# group's statistics and gets advantage 0, as in TRL. To add one: a function and a line in ESTIMATORS.

Estimator = Callable[..., np.ndarray]


def totals(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums [...] of the functions that did not abstain, of values [..., F]; NaN where all of weight did."""
    total = np.nansum(values * weights, axis=-1)
    weighty = values[..., np.asarray(weights) != 0]  # accuracy is among the functions even where it has no weight
    return np.where(np.isnan(weighty).all(axis=-1), np.nan, total)


def group(values: np.ndarray, weights: np.ndarray, eps: float, ddof: int) -> np.ndarray:
    """Equation 4 where functions may abstain; `group_advantages` is the traceable form."""
    rewards = totals(values, weights)
    if np.isfinite(rewards).all():
        return np.asarray(group_advantages(rewards, eps, ddof))
    return _centred(rewards) / (_deviation(rewards, ddof, axis=1) + eps)


def none(values: np.ndarray, weights: np.ndarray, eps: float, ddof: int) -> np.ndarray:
    """Rewards less their group's mean (Dr. GRPO, Liu et al. 2025)."""
    rewards = totals(values, weights)
    if np.isfinite(rewards).all():
        return np.asarray(group_advantages(rewards, eps, ddof, scale=False))
    return _centred(rewards)


def batch(values: np.ndarray, weights: np.ndarray, eps: float, ddof: int) -> np.ndarray:
    """Rewards less their group's mean, over the deviation of the whole step's rewards (Lite PPO, Liu et al. 2025,
    arXiv 2508.08221; TRL's scale_rewards="batch")."""
    rewards = totals(values, weights)
    return _centred(rewards) / (_deviation(rewards, ddof, axis=None) + eps)


def leave_one_out(values: np.ndarray, weights: np.ndarray, eps: float, ddof: int) -> np.ndarray:
    """Rewards less the mean of the others of their group (RLOO, Ahmadian et al. 2024, arXiv 2402.14740)."""
    rewards = totals(values, weights)
    others = (~np.isnan(rewards)).sum(axis=1, keepdims=True) - 1
    mean = (np.nansum(rewards, axis=1, keepdims=True) - rewards) / np.maximum(others, 1)
    return np.where(others > 0, rewards - mean, np.nan)


def global_batch(
    values: np.ndarray, weights: np.ndarray, eps: float, ddof: int, lengths: np.ndarray | None = None
) -> np.ndarray:
    """Rewards less their group's mean, normalised over the step's tokens, each of which has its completion's
    (REINFORCE++-baseline, Hu et al. 2025, arXiv 2501.03262, whose advantages are of tokens; verl's `masked_whiten`,
    whose 1e-8 beside the variance is the square of our eps). Without `lengths` all completions are of one."""
    centred = _centred(totals(values, weights)).astype(np.float64)
    tokens = np.where(np.isnan(centred), 0, 1 if lengths is None else lengths)
    count = max(tokens.sum(), 1)
    shifted = centred - np.nansum(tokens * centred) / count
    variance = np.nansum(tokens * shifted**2) / max(count - ddof, 1)
    return shifted / np.sqrt(variance + eps**2)


def decoupled(values: np.ndarray, weights: np.ndarray, eps: float, ddof: int) -> np.ndarray:
    """Every function normalised in its group before the weighted sum, which is normalised over the step (GDPO, Liu et
    al. 2026, arXiv 2601.05242; TRL's "normalize_then_sum"): no function drowns in another's variance."""
    normal = _centred(values) / (_deviation(values, ddof, axis=1) + eps)
    summed = totals(normal, weights)
    mean = 0.0 if np.isnan(summed).all() else np.nanmean(summed)  # all abstain: numpy would warn of a mean of none
    return (summed - mean) / (_deviation(summed, ddof, axis=None) + eps)


ESTIMATORS: dict[str, Estimator] = {
    "group": group,
    "none": none,
    "batch": batch,
    "leave_one_out": leave_one_out,
    "global": global_batch,
    "decoupled": decoupled,
}


def estimate(
    values: np.ndarray,
    weights: np.ndarray,
    name: str,
    eps: float = 1e-4,
    ddof: int = 1,
    function: Estimator | None = None,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Advantages [N, G] float32 of rewards by function [N, G, F] under one of ESTIMATORS, or one's own
    ("path.py:function"); 0 where all abstained.

    `function` is that of `name`, found before: one's own may remember what it was given in earlier steps. `lengths`
    [N, G], the completions' tokens, are for estimators with a parameter of that name; None: equal ones.

    Raises:
        ConfigError: fewer than two samples in a group; one's own that fails, or gives other than [N, G] finite numbers.
    """
    chex.assert_rank(values, 3)
    _check_size(values.shape[1])
    given = np.asarray(values, np.float32), np.asarray(weights, np.float32), eps, ddof
    known = with_lengths(function or estimator(name), np.ones(values.shape[:2], int) if lengths is None else lengths)
    with np.errstate(invalid="ignore", divide="ignore"):
        advantages = known(*given) if name in ESTIMATORS else _of_own(name, known, *given)
    return np.nan_to_num(advantages, nan=0.0).astype(np.float32)


def estimator(name: str, files: Files | None = None) -> Estimator:
    """One of ESTIMATORS, or one's own, of `files` where its file was run before. Raises ConfigError."""
    return find_function(name, ESTIMATORS, "config.advantage_scale", files)


def with_lengths(function: Estimator, lengths: np.ndarray) -> Estimator:
    """The estimator, with the completions' tokens [N, G] where it has a parameter for them."""
    return partial(function, lengths=lengths) if "lengths" in inspect.signature(function).parameters else function


def _of_own(name: str, own: Estimator, values: np.ndarray, *given: Any) -> np.ndarray:
    """A user's own estimate. Raises ConfigError where it fails or is none; NaN is that of a sample without reward."""
    try:
        advantages = np.asarray(own(values, *given), np.float32)
    except Exception as error:  # the function is the user's: anything may be raised in it
        problem = f"failed on {values.shape[0]} groups of {values.shape[1]}: {border.message_of(error, 200)}"
    else:
        if advantages.shape == values.shape[:2] and not np.isinf(advantages).any():
            return advantages
        problem = f"gives {advantages.shape} for {values.shape[:2]}, or numbers that are not finite"
    raise ConfigError(f"config.advantage_scale={border.shown(name)} {problem}; see docs/extend.md")


# -- weights by specialty and difficulty -------------------------------------------------------------------------------

LEVELS = 4  # of difficulty: quarters of the share of a group's samples that are right


def new_counts(specialties: int) -> np.ndarray:
    """[D, LEVELS, 2] float32, the groups met so far and the sum of their mean rewards, by specialty and difficulty."""
    return np.zeros((specialties, LEVELS, 2), np.float32)


def domain_weighted(
    advantages: np.ndarray,
    counts: np.ndarray,
    specialties: np.ndarray,
    rewards: np.ndarray,
    right: np.ndarray,
    kind: str,
    eps: float = 1e-6,
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages divided by how common and how well solved their specialty and difficulty are (DRPO, Dai et al. 2025,
    arXiv 2506.00711): by T = sqrt(n) mu of the specialty, n groups of it so far with mean reward mu, and, with `kind`
    "drpo", by that of the specialty's groups that are as difficult; then by their deviation over the step.

    DRPO finds the difficulties by k-means over the rewards of all questions so far; here they are the quarters of the
    share of right samples, which need a count each and no store of all questions. As there, mu of a specialty weighs
    its difficulties by the inverse of their sizes.

    Args:
        advantages: [N, G], of equation 4.
        counts: of `new_counts`, before this step.
        specialties: [N] int, of each group.
        rewards: [N, G], at least 0; NaN of a sample about which all abstained, as a group of these counts nowhere.
        right: [N, G], 1 where the answer is right.
        kind: "specialty" or "drpo".
        eps: below which no T and no deviation falls.

    Returns:
        The advantages [N, G] float32 and the counts after this step.
    """
    levels = np.minimum((right.mean(axis=1) * LEVELS).astype(int), LEVELS - 1)
    counts = counts.copy()
    scored = ~np.isnan(rewards).all(axis=1)
    met = np.nanmean(rewards[scored], axis=1)
    np.add.at(counts, (specialties[scored], levels[scored]), np.stack([np.ones(len(met)), met], axis=-1))
    groups, sums = counts[..., 0], counts[..., 1]
    means = sums / np.maximum(groups, 1)
    rarity = np.where(groups > 0, 1 / np.maximum(groups, 1), 0.0)
    mean = (rarity * means).sum(axis=1) / np.maximum(rarity.sum(axis=1), eps)
    divisor = np.maximum(np.sqrt(groups.sum(axis=1)) * mean, eps)[specialties]
    if kind == "drpo":
        divisor = divisor * np.maximum(np.sqrt(groups) * means, eps)[specialties, levels]
    scaled = advantages / divisor[:, None]
    return (scaled / (scaled.std(ddof=1) + eps)).astype(np.float32), counts


def _centred(rewards: np.ndarray) -> np.ndarray:
    """Rewards [N, G, ...] less their group's mean over those that are not NaN; exact zeros where all are equal."""
    first = np.take_along_axis(rewards, np.argmax(~np.isnan(rewards), axis=1, keepdims=True), axis=1)
    shifted = rewards - first
    count = np.maximum((~np.isnan(shifted)).sum(axis=1, keepdims=True), 1)
    return shifted - np.nansum(shifted, axis=1, keepdims=True) / count


def _deviation(rewards: np.ndarray, ddof: int, axis: int | None) -> np.ndarray:
    """Standard deviation along an axis over what is not NaN, kept as an axis; 0 for a single value."""
    count = (~np.isnan(rewards)).sum(axis=axis, keepdims=True)
    mean = np.nansum(rewards, axis=axis, keepdims=True) / np.maximum(count, 1)
    squares = np.nansum(np.square(rewards - mean), axis=axis, keepdims=True)
    return np.sqrt(squares / np.maximum(count - ddof, 1))
