"""Intervals and paired tests for accuracies; samples of one item are one observation."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, stdtrit

LEVEL = 0.95  # of every interval
RESAMPLES = 10_000  # of every bootstrap and test, drawn from one seed


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one value per item (a mean over its samples, a difference)."""
    return stratified_bootstrap([values])


def stratified_bootstrap(strata: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of the strata's means, items drawn within each stratum."""
    rng = np.random.default_rng(0)
    means = [_resampled_means(np.asarray(values, np.float64), rng) for values in strata if len(values)]
    if not means:
        return 0.0, 0.0
    low, high = np.quantile(np.mean(means, 0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled_means(items: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means [RESAMPLES] of items drawn with replacement; equal values are drawn together, by their counts."""
    values, counts = np.unique(items, return_counts=True)
    size = max(1, 10_000_000 // len(values))  # bounds the memory of a chunk
    chunks = [
        rng.multinomial(len(items), counts / len(items), min(size, RESAMPLES - start)) @ values
        for start in range(0, RESAMPLES, size)
    ]
    return np.concatenate(chunks) / len(items)


def pass_at_k(right: int, total: int, k: int) -> float:
    """Chance that one of k samples, drawn without replacement from `total`, is right (equation 1 of Chen et al.)."""
    return 1.0 - math.comb(total - right, k) / math.comb(total, k)


def majority(votes: Sequence[tuple[str | None, bool]]) -> float:
    """1 where the answer with most votes is right; the mean over those that share the first place, 0 without votes.

    Args:
        votes: (what a sample answered, whether that is right); None abstains.
    """
    counts = Counter(said for said, _ in votes if said is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    first = [said for said, count in counts.items() if count == most]
    return sum(dict(votes)[said] for said in first) / len(first)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def student(values: Sequence[float]) -> tuple[float, float] | None:
    """Interval of the mean by Student's t, such as over seeds; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = stdtrit(len(values) - 1, (1 + LEVEL) / 2) * np.std(values, ddof=1) / math.sqrt(len(values))
    centre = float(np.mean(values))
    return centre - float(half), centre + float(half)


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p-value of a paired randomisation test (Fisher 1935): how often differences with random signs have a
    mean as far from 0 as theirs; the observed signs count as one of the draws. 1 if no pair differs."""
    values = np.asarray(differences, np.float64)
    values = values[values != 0]
    if not len(values):
        return 1.0
    rng = np.random.default_rng(0)
    least = abs(values.sum()) * (1 - 1e-12)  # a draw of the same sum may round below it
    size = max(1, 10_000_000 // len(values))  # bounds the memory of a chunk
    extreme = 0
    for start in range(0, RESAMPLES, size):
        signs = rng.integers(0, 2, (min(size, RESAMPLES - start), len(values)), np.int8) * 2 - 1
        extreme += int(np.sum(np.abs(signs @ values) >= least))
    return (extreme + 1) / (RESAMPLES + 1)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p-value of McNemar's test on paired outcomes; 1 if no pair differs."""
    before, after = np.asarray(first, bool), np.asarray(second, bool)
    gained, lost = int(np.sum(after & ~before)), int(np.sum(before & ~after))
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))  # both tails of a fair coin


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two models on the same items."""

    difference: float  # mean accuracy of the second less that of the first
    low: float  # lower end of the 95 % bootstrap interval over items; -1 to 1 of one item, which shows no spread
    high: float  # its upper end
    p_value: float | None  # McNemar's exact p-value; None unless every item has one outcome, right or wrong
    items: int  # number of items


def compare(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Comparison:
    """Compares outcomes [items][samples or seeds], item by item in the same order; all of an item stay together."""
    if len(first) != len(second):
        raise ValueError(f"paired comparison of {len(first)} and {len(second)} items")
    differences = [float(np.mean(b) - np.mean(a)) for a, b in zip(first, second, strict=True)]
    single = all(len(outcomes) == 1 and outcomes[0] in (0, 1) for outcomes in (*first, *second))
    p_value = mcnemar([a[0] == 1 for a in first], [b[0] == 1 for b in second]) if single else None
    low, high = bootstrap(differences) if len(differences) > 1 else (-1.0, 1.0)
    return Comparison(float(np.mean(differences)), low, high, p_value, len(differences))
