"""The prompts of a run as batches of few shapes, so that little is compiled and little is padded."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmedexpert_jax.errors import DataError, TooLong
from mmedexpert_jax.gba.guidelines import Guidelines, Prompt
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.processing.processor import Encoded, Processor
from mmedexpert_jax.train import Prefetched

# What is computed over what there is, at most, as long as LEVELS suffice for it. A patch is wasted twice: in an image
# that is padded, and in one that only fills up.
TOKENS, PATCHES = 1.2, math.sqrt(1.3)
LEVELS = 6  # each of them may be a program


class PromptSize(NamedTuple):
    """Room that a prompt, or a micro-batch on one device, takes; compared by its images first, which cost most."""

    images: int
    patches: int  # of the largest image
    tokens: int  # of the longest prompt, images included

    @classmethod
    def of(cls, encoded: Encoded) -> "PromptSize":
        """That of an encoded prompt."""
        return cls(len(encoded.images), max((len(p) for p, _ in encoded.images), default=0), len(encoded.tokens))

    @classmethod
    def together(cls, sizes: Sequence["PromptSize"]) -> "PromptSize":
        """That of several prompts on one device."""
        return cls(sum(s.images for s in sizes), max(s.patches for s in sizes), max(s.tokens for s in sizes))


Sizes = dict[tuple, PromptSize]  # of prompts, by case and paradigm
Order = Callable[[PromptSize], Any]  # what rows are sorted by before they are cut into micro-batches
# Which pads least depends on the data: by images, whose number a device pads to; by tokens, those with images apart;
# or by what a row costs, where a patch, in Qwen2-VL-2B's vision tower, is about half of a token.
ORDERS: tuple[Order, ...] = (
    lambda size: size,
    lambda size: (size.images > 0, size.tokens, size),
    lambda size: (size.tokens + size.images * size.patches // 2, size),
)


class Batches:
    """Encodes prompts, splits them into micro-batches of like size, and pads these to few shapes.

    The order of a run is known beforehand: every prompt is measured, and one that is too long refused, before any work
    is done, and shapes are chosen for the micro-batches that will be met: as few as keep the padding in bounds. They
    depend on the run's config and data alone, so that one that is resumed computes what it would have computed.

    Args:
        processor: of the model.
        guidelines: the prompts of every step.
        rounds: rollouts of the run at most.
        part: prompts of a micro-batch on one device.
        max_prompt_length: tokens of a prompt, its images included.
        devices: among which a micro-batch is split.
        minibatches: updates of a step, whose prompts are not mixed.
        known: sizes of prompts that were measured before.

    Attributes:
        max_length: tokens of the longest prompt of the run.
        order: of a step's rows: of ORDERS the one that pads least.

    Raises:
        DataError: a prompt over the limit, or an image that cannot be used; it names the case.
    """

    def __init__(
        self,
        processor: Processor,
        guidelines: Guidelines,
        rounds: int,
        part: int,
        max_prompt_length: int,
        devices: int = 1,
        minibatches: int = 1,
        known: Sizes | None = None,
    ):
        self._processor, self._guidelines, self._limit = processor, guidelines, max_prompt_length
        self._part, self._devices, self._minibatches = part, devices, minibatches
        known = {} if known is None else known
        steps: list[list[PromptSize]] = []
        for step in range(rounds):
            prompts = guidelines.prompts(step)
            for prompt in prompts:
                if _key(prompt) not in known:
                    known[_key(prompt)] = PromptSize.of(self.encode(prompt))
            steps.append([known[_key(prompt)] for prompt in prompts])
        # A minibatch that is computed at once is mixed in any case: shapes would be compiled and save little.
        most = LEVELS if len(prompts) > part * devices * minibatches else 1
        # one device pads to no other, and stays within the bounds by images
        orders = ORDERS if devices > 1 else ORDERS[:1]
        plans = [(*self._planned(steps, order, most), order) for order in orders]
        _, (self._images, self._patches, self._tokens), self.order = min(plans, key=lambda plan: plan[0])
        self.max_length = self._tokens[-1]
        self.ahead = Prefetched(self.encoded, rounds)

    def _planned(self, steps: Sequence[Sequence[PromptSize]], order: Order, most: int) -> tuple[float, list[list[int]]]:
        """The share that an order computes of its bounds, the worse of tokens and patches; and the levels of images on
        a device, patches and tokens. A micro-batch's images are split evenly over the devices, whosever they are."""
        groups = [[sizes[i] for i in rows] for sizes in steps for rows in self._cut(sizes, order)]
        devices, whole = self._devices, [PromptSize.together(group) for group in groups]
        images = [-(-size.images // devices) for size in whole]
        real = [sum(size.images for size in whole), sum(one.images * one.patches for group in groups for one in group)]
        tokens = sum(one.tokens for group in groups for one in group)
        found = [
            levels(images, np.full(len(images), devices), real[0], PATCHES, most),
            levels([size.patches for size in whole], [size.images for size in whole], real[1], PATCHES, most),
            levels([size.tokens for size in whole], [*map(len, groups)], tokens, TOKENS, most),
        ]
        padded = sum(_level(found[2], size.tokens) * len(group) for size, group in zip(whole, groups, strict=True))
        patches = sum(
            devices * _level(found[0], count) * _level(found[1], size.patches)
            for count, size in zip(images, whole, strict=True)
        )
        return max(padded / (TOKENS * tokens), patches / (PATCHES**2 * max(1, real[1]))), found

    def encode(self, prompt: Prompt) -> Encoded:
        """Token ids and patches of one prompt."""
        return _encode(self._processor, prompt, self._limit)

    def encoded(self, step: int) -> tuple[list[Prompt], list[Encoded]]:
        """The prompts of a step; `ahead(step)` gives the same, made in a thread before they are asked for."""
        prompts = self._guidelines.prompts(step)
        return prompts, [self.encode(prompt) for prompt in prompts]

    def micro_batches(self, sizes: Sequence[PromptSize]) -> list[np.ndarray]:
        """Rows of the micro-batches of a rollout's prompts: like sizes together.

        How a minibatch is split changes no gradient, which is a sum over its rows.
        """
        return self._cut(sizes, self.order)

    def _cut(self, sizes: Sequence[PromptSize], order: Order) -> list[np.ndarray]:
        count, parts = self._part * self._devices, np.array_split(np.arange(len(sizes)), self._minibatches)
        return [rows for part in parts for rows in cut(part, sizes, count, order)]

    def reads(self, encoded: Sequence[Encoded]) -> list[tuple[np.ndarray, Batch]]:
        """The micro-batches in which a rollout's prompts are read: their rows, and the rows as a batch."""
        sizes = [PromptSize.of(one) for one in encoded]
        return [(rows, self.collate([encoded[i] for i in rows], self._devices)) for rows in self.micro_batches(sizes)]

    def dealt(self, rows: np.ndarray, sizes: Sequence[PromptSize], work: np.ndarray) -> list[np.ndarray]:
        """Rows of the micro-batches of an update, whose completions have `work` [N] tokens: like sizes together, and
        among those of one shape about as much work for each device of each, so that one packed size holds all."""
        found: list[np.ndarray] = []
        count = self._part * self._devices
        for shape, cuts in itertools.groupby(
            cut(rows, sizes, count, self.order), lambda rows: self._shape([sizes[i] for i in rows], self._devices)
        ):
            plain = [*cuts]
            even = deal(np.concatenate(plain), work, self._part)
            even = [np.concatenate(even[i : i + self._devices]) for i in range(0, len(even), self._devices)]
            same = all(self._shape([sizes[i] for i in rows], self._devices) == shape for rows in even)
            found += even if same else plain  # another shape would be another program
        return found

    def collate(self, encoded: Sequence[Encoded], devices: int = 1) -> Batch:
        """A micro-batch in one of the run's shapes; its images are numbered through, and a multiple of the devices."""
        images, patches, tokens = self._shape([PromptSize.of(one) for one in encoded], devices)
        return self._processor.collate(
            encoded, min_length=tokens, min_images=images * devices, min_patches=patches if images else 0
        )

    def _shape(self, sizes: Sequence[PromptSize], devices: int) -> PromptSize:
        """The room that a micro-batch gets: images on a device, patches, tokens."""
        size = PromptSize.together(sizes)
        images = _level(self._images, -(-size.images // devices))
        return PromptSize(images, _level(self._patches, size.patches), _level(self._tokens, size.tokens))


def overlong(processor: Processor, guidelines: Guidelines, rounds: int, limit: int, known: Sizes) -> set[str]:
    """Ids of the cases of which a prompt of the run is over the limit; the sizes of the others' are added to `known`.

    Raises DataError where an image cannot be used.
    """
    found = set()
    for prompt in (prompt for step in range(rounds) for prompt in guidelines.prompts(step)):
        if prompt.case.id in found or _key(prompt) in known:
            continue
        try:
            known[_key(prompt)] = PromptSize.of(_encode(processor, prompt, limit))
        except TooLong:
            found.add(prompt.case.id)
    return found


def cut(rows: np.ndarray, sizes: Sequence[PromptSize], count: int, order: Order = ORDERS[0]) -> list[np.ndarray]:
    """Rows in order of their size, `count` at a time."""
    ordered = np.array(sorted(rows, key=lambda row: order(sizes[row])), int)
    return [ordered[i : i + count] for i in range(0, len(ordered), count)]


def deal(rows: np.ndarray, work: np.ndarray, part: int) -> list[np.ndarray]:
    """The rows, `part` at a time and the last of what is left, with about equal sums of `work` [N].

    The longest come first, each to those that have least so far and room (Graham 1969); then the part with most and
    the one with least exchange a row, as long as that brings them closer. Rows stay in their order, and so do the parts
    by their first rows, so that nothing moves where there is nothing to even out.
    """
    tokens = [int(work[row]) for row in rows]
    room = [min(part, len(rows) - start) for start in range(0, len(rows), part)]
    held: list[list[int]] = [[] for _ in room]  # places among the rows
    sums = [0] * len(room)
    for place in sorted(range(len(rows)), key=lambda place: -tokens[place]):
        least = min((n for n in range(len(room)) if len(held[n]) < room[n]), key=sums.__getitem__)
        held[least].append(place)
        sums[least] += tokens[place]
    while held:
        most, least = (pick(range(len(sums)), key=sums.__getitem__) for pick in (max, min))
        gap = sums[most] - sums[least]
        pairs = ((abs(gap - 2 * (tokens[a] - tokens[b])), a, b) for a in held[most] for b in held[least])
        left, a, b = min(pairs, default=(gap, 0, 0))
        if left >= gap:
            break
        held[most][held[most].index(a)], held[least][held[least].index(b)] = b, a
        sums[most] += tokens[b] - tokens[a]
        sums[least] += tokens[a] - tokens[b]
    return [rows[places] for places in sorted(map(sorted, held), key=lambda places: (len(places) < part, places))]


def levels(
    values: Sequence[int], weights: Sequence[float] | np.ndarray, real: float, waste: float, most: int = LEVELS
) -> list[int]:
    """The fewest levels, at most `most`, to which values are rounded up so that little is wasted.

    Args:
        values: what each micro-batch needs.
        weights: how often each value counts.
        real: the sum that there would be without any padding.
        waste: times `real` that the weighted sum of the rounded values may be.
        most: levels.

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


def _level(levels: Sequence[int], value: int) -> int:
    """The least level that holds a value; beyond all of them, as where groups were dropped, the value itself."""
    return next((level for level in levels if level >= value), value)


def _encode(processor: Processor, prompt: Prompt, limit: int) -> Encoded:
    try:
        return processor.encode(prompt.conversation, max_length=limit)
    except DataError as error:
        raise type(error)(f"case {prompt.case.id}: {error}") from error


def _key(prompt: Prompt) -> tuple:
    return prompt.case.id, prompt.paradigm
