"""Deterministic data order: which cases a step sees depends on the seed and the step alone."""

import numpy as np


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of `range(count)` for one epoch, [count] int64; a pure function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def batch_indices(count: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Indices of the cases that `step` (from 0) sees, [batch] int64.

    Every epoch visits each case once, and batches run across the ends of epochs, so a run can resume at any step.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = {int(e): epoch_order(count, seed, int(e)) for e in np.unique(positions // count)}
    return np.array([epochs[int(p // count)][p % count] for p in positions])
