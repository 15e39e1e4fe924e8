"""Intervals and paired tests for accuracies; samples of one item are one observation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # 97.5th percentile of the normal distribution


def wilson(right: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927), 95 % by default; (0, 1) without observations."""
    if total == 0:
        return 0.0, 1.0
    share = right / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def bootstrap(
    values: Sequence[float], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one value per item (a mean over its samples, a difference)."""
    items = np.asarray(values, np.float64)
    if len(items) == 0:
        return 0.0, 0.0
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 500):  # chunks bound the memory: 500 x items indices at a time
        chosen = rng.integers(0, len(items), (min(500, resamples - start), len(items)))
        means[start : start + len(chosen)] = items[chosen].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p-value of McNemar's test on paired outcomes; 1 if no pair differs."""
    before, after = np.asarray(first, bool), np.asarray(second, bool)
    gained, lost = int(np.sum(after & ~before)), int(np.sum(before & ~after))
    pairs = gained + lost
    tail = sum(math.comb(pairs, i) for i in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**pairs)


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two models on the same items.

    Attributes:
        difference: mean accuracy of the second less that of the first.
        low: lower end of the 95 % bootstrap interval over items.
        high: its upper end.
        p_value: McNemar's exact p-value; None unless every item has one outcome.
        items: number of items.
    """

    difference: float
    low: float
    high: float
    p_value: float | None
    items: int


def compare(first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], seed: int = 0) -> Comparison:
    """Compares outcomes [items][samples or seeds], item by item in the same order; all of an item stay together."""
    if len(first) != len(second):
        raise ValueError(f"paired comparison of {len(first)} and {len(second)} items")
    differences = [float(np.mean(b) - np.mean(a)) for a, b in zip(first, second, strict=True)]
    single = all(len(outcomes) == 1 for outcomes in (*first, *second))
    p_value = mcnemar([a[0] for a in first], [b[0] for b in second]) if single else None
    low, high = bootstrap(differences, seed=seed)
    return Comparison(float(np.mean(differences)), low, high, p_value, len(differences))
