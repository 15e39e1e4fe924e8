"""Buckets of few sizes, to which micro-batches are padded, chosen for the micro-batches of a run."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmedexpert_jax.processing.processor import Encoded
from mmedexpert_jax.rounding import cdiv, round_up

# What is computed over what there is, at most, as long as LEVELS suffice for it.
TOKENS, PATCHES = 1.2, 1.3
LEVELS = 6  # each of them may be a program
# Attention has rows of a strip's images, whose padding cuDNN skips, but which take memory: they are not counted as long
# as they hold at most so many strips.
SPREAD = 4


class PromptSize(NamedTuple):
    """Size of a prompt, or of several; compared by its images first, which cost most."""

    images: int
    patches: int  # of the largest image
    tokens: int  # of the longest prompt, images included
    each: tuple[int, ...] = ()  # patches of each image

    @classmethod
    def of(cls, encoded: Encoded) -> "PromptSize":
        """That of an encoded prompt."""
        each = encoded.patch_counts
        return cls(len(each), max(each, default=0), len(encoded.tokens), each)

    @classmethod
    def together(cls, sizes: Sequence["PromptSize"]) -> "PromptSize":
        """That of several prompts."""
        each = tuple(itertools.chain.from_iterable(size.each for size in sizes))
        return cls(sum(s.images for s in sizes), max(s.patches for s in sizes), max(s.tokens for s in sizes), each)


class SizeBucket(NamedTuple):
    """The sizes to which a micro-batch is padded on each device."""

    tokens: int  # of a prompt
    images: int
    patches: int  # of an image
    strip: int = 0  # patches of all images, which stand side by side; 0: each has a row of its own

    @property
    def computed(self) -> int:
        """Patches that the tower computes."""
        rows = self.images * self.patches
        return max(self.strip, rows // SPREAD) if self.strip else rows


Group = Sequence[PromptSize]  # of a micro-batch


class RowBuckets(NamedTuple):
    """The buckets of a run: each image in a row of its own, padded to the largest."""

    overhead: float  # computed over what TOKENS and PATCHES allow, the worse of both; above 1 a bound is missed
    tokens: list[int]  # of a prompt, rising
    images: list[int]  # on a device, rising
    patches: list[int]  # of an image, rising

    @classmethod
    def of(cls, groups: Sequence[Group], devices: int, most: int) -> "RowBuckets":
        """For these micro-batches, of at most so many levels each."""
        whole = [PromptSize.together(group) for group in groups]
        counts = [cdiv(size.images, devices) for size in whole]
        real = [size.images for size in whole]
        padded = sum(one.images * one.patches for group in groups for one in group)
        waste = PATCHES**0.5  # wasted twice: in an image that is padded, and in one that only fills up
        images = levels(counts, np.full(len(counts), devices), sum(real), waste, most)
        patches = levels([size.patches for size in whole], real, padded, waste, most)
        buckets = cls(0.0, _token_levels(groups, most), images, patches)
        return buckets._replace(overhead=_overhead(buckets, groups, devices))

    def bucket(self, size: PromptSize, devices: int) -> SizeBucket:
        """The least that holds a micro-batch, which is split among so many devices."""
        images = level(self.images, cdiv(size.images, devices))
        return SizeBucket(level(self.tokens, size.tokens), images, level(self.patches, size.patches) if images else 0)


class StripBuckets(NamedTuple):
    """The buckets of a run: on each device the images side by side, so that unlike ones are not padded to the largest.

    Only attention has rows of images. Strips of a length have one number and width of them, or two, where many small
    images and few large ones meet.
    """

    # as of `RowBuckets`
    overhead: float
    tokens: list[int]
    # length of a strip, images in it, patches of an image; the cheapest that holds a micro-batch is taken
    sizes: list[tuple[int, int, int]]

    @classmethod
    def of(cls, groups: Sequence[Group], devices: int, most: int) -> "StripBuckets":
        """For these micro-batches, of at most so many levels each."""
        whole = [PromptSize.together(group) for group in groups]
        longest = [_longest(size.each, devices) for size in whole]
        grain = max(longest) // 256 + 1  # few distinct lengths to choose among
        longest = [round_up(length, grain) for length in longest]
        lengths = levels(longest, np.full(len(longest), devices), sum(sum(size.each) for size in whole), PATCHES, most)
        needs = [(level(lengths, length), *_bounds(size, devices)) for length, size in zip(longest, whole, strict=True)]
        sizes = [bucket for length in lengths for bucket in _widths([need for need in needs if need[0] == length])]
        buckets = cls(0.0, _token_levels(groups, most), sorted(sizes, key=_computed))
        return buckets._replace(overhead=_overhead(buckets, groups, devices))

    def bucket(self, size: PromptSize, devices: int) -> SizeBucket:
        """The cheapest that holds a micro-batch, which is split among so many devices; where none does, as when groups
        were dropped, the largest in each respect, or what is needed beyond it."""
        own = _longest(size.each, devices), *_bounds(size, devices)
        holds = (bucket for bucket in self.sizes if all(there >= one for there, one in zip(bucket, own, strict=True)))
        largest = tuple(max(*there, one) for *there, one in zip(*self.sizes, own, strict=True))
        length, images, patches = next(holds, largest)
        return SizeBucket(level(self.tokens, size.tokens), images, patches, length)


@functools.lru_cache(maxsize=4096)
def deal_images(each: tuple[int, ...], devices: int) -> tuple[tuple[int, ...], ...]:
    """Numbers of the images on each device: about as many patches, and at most an equal number of images."""
    most = cdiv(len(each), devices)
    work = np.zeros(most * devices, int)
    work[: len(each)] = each
    dealt = deal(np.arange(len(work)), work, most) if most else [np.arange(0)] * devices
    return tuple(tuple(number for number in images.tolist() if number < len(each)) for images in dealt)


def deal(rows: np.ndarray, work: np.ndarray, size: int) -> list[np.ndarray]:
    """The rows, `size` at a time and the last of what is left, with about equal sums of `work` [N].

    The longest come first, each to the group that has least so far and is not full (Graham 1969); then the group with
    most and the one with least exchange a row, as long as that brings them closer. Rows stay in their order, and so do
    the groups by their first rows, so that nothing moves where there is nothing to even out.
    """
    each = [int(work[row]) for row in rows]
    slots = [min(size, len(rows) - start) for start in range(0, len(rows), size)]
    held: list[list[int]] = [[] for _ in slots]  # places among the rows
    sums = [0] * len(slots)
    for place in sorted(range(len(rows)), key=lambda place: -each[place]):
        least = min((n for n in range(len(slots)) if len(held[n]) < slots[n]), key=sums.__getitem__)
        held[least].append(place)
        sums[least] += each[place]
    while held:
        most, least = (pick(range(len(sums)), key=sums.__getitem__) for pick in (max, min))
        gap = sums[most] - sums[least]
        pairs = ((abs(gap - 2 * (each[a] - each[b])), a, b) for a in held[most] for b in held[least])
        left, a, b = min(pairs, default=(gap, 0, 0))
        if left >= gap:
            break
        held[most][held[most].index(a)], held[least][held[least].index(b)] = b, a
        sums[most] += each[b] - each[a]
        sums[least] += each[a] - each[b]
    return [rows[places] for places in sorted(map(sorted, held), key=lambda places: (len(places) < size, places))]


def levels(
    values: Sequence[int], weights: Sequence[float] | np.ndarray, real: float, waste: float, most: int = LEVELS
) -> list[int]:
    """The fewest levels, at most `most`, to which values are rounded up so that little is wasted.

    Args:
        values: what each micro-batch needs.
        weights: how often each value counts.
        real: the sum that there would be without any padding.
        waste: times `real` that the weighted sum of the rounded values may be.

    Returns:
        Some of the values, rising, the largest among them; of all choices of so many the one with the least sum.
    """
    found, place = np.unique(np.asarray(values, int), return_inverse=True)
    weight = np.bincount(place, np.asarray(weights, float))
    before = np.concatenate([[0.0], np.cumsum(weight)])
    best = found * before[1:]  # sum over the values up to each, which is the only level so far
    ends = [[int(value)] for value in found]
    for _ in range(most - 1):
        if best[-1] <= waste * real:
            break
        # the level below each: itself none, or one of those before it
        costs = best[None, :] + found[:, None] * (before[1:, None] - before[None, 1:])
        costs = np.where(np.tri(len(found), k=-1, dtype=bool), costs, np.inf)
        last = costs.argmin(axis=1)
        better = costs.min(axis=1) < best
        ends = [[*ends[last[i]], int(found[i])] if better[i] else ends[i] for i in range(len(found))]
        best = np.where(better, costs.min(axis=1), best)
    return ends[-1]


def level(among: list[int], value: int) -> int:
    """The least level that holds a value; beyond all of them, as where groups were dropped, the value itself."""
    return next((one for one in among if one >= value), value)


def _longest(each: tuple[int, ...], devices: int) -> int:
    """Patches on the device that has most."""
    return max(sum(each[i] for i in images) for images in deal_images(each, devices))


def _bounds(size: PromptSize, devices: int) -> tuple[int, int]:
    """Images on a device and patches of the largest: the rows that attention has."""
    return cdiv(size.images, devices), size.patches


def _computed(size: tuple[int, int, int]) -> int:
    length, images, patches = size
    return SizeBucket(0, images, patches, length).computed


def _widths(needs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The size that holds all strips of one length, or two, divided by the width of an image, where that saves a tenth
    of what is computed."""
    needs = sorted(needs, key=lambda need: need[2])

    def joined(some: list[tuple[int, int, int]]) -> tuple[int, int, int]:
        return some[0][0], max(images for _, images, _ in some), some[-1][2]

    cuts = [cut for cut in range(1, len(needs)) if needs[cut - 1][2] < needs[cut][2]]
    pairs = [(joined(needs[:cut]), joined(needs[cut:]), cut) for cut in cuts]
    if not pairs:
        return [joined(needs)]
    work, narrow, wide = min((_computed(a) * cut + _computed(b) * (len(needs) - cut), a, b) for a, b, cut in pairs)
    return [narrow, wide] if work < 0.9 * _computed(joined(needs)) * len(needs) else [joined(needs)]


def _token_levels(groups: Sequence[Group], most: int) -> list[int]:
    longest = [max(size.tokens for size in group) for group in groups]
    return levels(longest, [*map(len, groups)], sum(one.tokens for group in groups for one in group), TOKENS, most)


def _overhead(buckets: "RowBuckets | StripBuckets", groups: Sequence[Group], devices: int) -> float:
    """Computed tokens over those that their bound allows, or patches over theirs: the larger of both."""
    padded = [(buckets.bucket(PromptSize.together(group), devices), len(group)) for group in groups]
    tokens = sum(one.tokens for group in groups for one in group)
    patches = sum(sum(one.each) for group in groups for one in group)
    of_tokens = sum(bucket.tokens * count for bucket, count in padded) / (TOKENS * tokens)
    return max(of_tokens, devices * sum(bucket.computed for bucket, _ in padded) / (PATCHES * max(1, patches)))
