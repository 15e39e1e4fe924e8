"""Agreement between reviewers: raw, Cohen's kappa and Gwet's AC1, with 95 % intervals.

For two raters these are the textbook statistics. For more, and where not all rate every trace, the pairwise
generalisations of Gwet (Handbook of Inter-Rater Reliability, 2014): raw agreement is the share of agreeing pairs of a
trace, averaged over traces; kappa is Conger's (1980), whose chance agreement is the mean of Cohen's over all pairs of
raters; AC1 takes mean shares of the categories. Only traces with two ratings or more count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from einops import einsum

from mmedexpert_jax.intervals import wilson

_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A statistic and the ends of its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Agreement:
    """Agreement on one set of traces."""

    traces: int  # rated by two reviewers or more
    raters: int  # reviewers who rated them
    raw: Estimate  # share of agreeing pairs; Wilson's interval (1927)
    kappa: Estimate  # Cohen's, for more than two raters Conger's; percentile bootstrap over traces
    ac1: Estimate  # Gwet's; likewise. Where no pair differs, the bootstrap interval is [1, 1]: read that of `raw`.


def agreement(ratings: Sequence[Mapping[str, str]], categories: Sequence[str], seed: int = 0) -> Agreement:
    """Agreement of several people on the same traces.

    Args:
        ratings: per trace, name -> category.
        categories: all that could be chosen; AC1 depends on their number.
        seed: of the bootstrap.
    """
    shared = [rated for rated in ratings if len(rated) > 1]
    names = sorted({name for rated in shared for name in rated})
    if not shared:
        nothing = Estimate(None, None, None)
        return Agreement(0, 0, nothing, nothing, nothing)
    marks = np.zeros((len(shared), len(names), len(categories)))  # [traces, raters, categories]
    for i, rated in enumerate(shared):
        for name, category in rated.items():
            marks[i, names.index(name), categories.index(category)] = 1
    raw, kappa, ac1 = (float(values[0]) for values in _statistics(marks, np.ones((1, len(shared)))))
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(shared), np.full(len(shared), 1 / len(shared)), _RESAMPLES)
    _, kappas, ac1s = _statistics(marks, weights)
    interval = wilson(raw * len(shared), len(shared))
    return Agreement(len(shared), len(names), Estimate(raw, *interval), _estimate(kappa, kappas), _estimate(ac1, ac1s))


def _statistics(marks: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw agreement, kappa and AC1, [B] each, of traces counted `weights` [B, traces] times."""
    total, categories = weights.sum(1), marks.shape[2]
    counts = marks.sum(1)  # [traces, categories]
    rated = counts.sum(1)
    pairs = (counts * (counts - 1)).sum(1) / (rated * (rated - 1))
    raw = weights @ pairs / total
    given = einsum(weights, marks, "draw trace, trace rater category -> draw rater category")
    number = given.sum(2, keepdims=True)
    shares = np.divide(given, number, out=np.zeros_like(given), where=number > 0)  # of each rater
    present = (number[..., 0] > 0).sum(1)
    between = ((shares.sum(1) ** 2) - (shares**2).sum(1)).sum(1) / np.maximum(present * (present - 1), 1)
    mean = weights @ (counts / rated[:, None]) / total[:, None]
    spread = (mean * (1 - mean)).sum(1) / (categories - 1)
    kappa = np.where(present > 1, _beyond(raw, between), np.nan)
    return raw, kappa, _beyond(raw, spread)


def _beyond(raw: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Agreement beyond chance; NaN where chance alone agrees always."""
    possible = 1 - chance
    return np.divide(raw - chance, possible, out=np.full_like(raw, np.nan), where=possible > 1e-12)


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    defined = resampled[~np.isnan(resampled)]
    if np.isnan(value) or not len(defined):
        return Estimate(None, None, None)
    low, high = np.quantile(defined, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))
