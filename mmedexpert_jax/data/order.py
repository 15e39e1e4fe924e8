"""Deterministic data order: which cases a step sees depends on the seed and the step alone."""

import hashlib
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from mmedexpert_jax.data.case import Case


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


def seeded(seed: int, text: str) -> bytes:
    """A hash of a text and a seed: a key for an order, or for a choice, that depends on these alone."""
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()


def steps_of(epochs: float, cases: int, batch: int) -> int:
    """Steps of `batch` cases that visit each of `cases` cases `epochs` times, the last perhaps in part."""
    return math.ceil(round(epochs * cases / batch, 9))  # 1.1 x 100 is 110.00000000000001


def fingerprint(cases: Iterable[Case], levels: Mapping[str, float] | None = None) -> int:
    """CRC-32 of what the cases say, in their order, of the sizes of their images' files, which are not read, and of the
    `levels` of difficulty by which they are ordered.

    Paths do not count: a set may be moved. Two runs over sets with the same fingerprint see the same steps.
    """
    crc = 0
    for case in cases:
        images = [(image.view, _size(getattr(image.read, "path", None))) for image in case.images]
        texts = case.id, case.question, case.options, case.answer, case.paradigm, case.trace, case.paradigms
        more = (sorted(case.columns.items()),) if case.columns else ()  # what one's own rewards read
        crc = zlib.crc32(repr((texts, case.specialty, case.task, images, *more)).encode(), crc)
    return crc if levels is None else zlib.crc32(repr(sorted(levels.items())).encode(), crc)


def _size(path: object) -> int:
    """Bytes of an image's own file; -1 where it has none, or it cannot be read."""
    try:
        return path.stat().st_size if isinstance(path, Path) else -1
    except OSError:
        return -1
