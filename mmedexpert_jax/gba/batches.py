"""The prompts of a run as batches of few shapes, so that little is compiled and little is padded."""

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmedexpert_jax.errors import DataError, TooLong
from mmedexpert_jax.gba.guidelines import Guidelines, Prompt
from mmedexpert_jax.gba.padding import LEVELS, PromptSize, RowBuckets, SizeBucket, StripBuckets, deal, deal_images
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.processing.processor import Encoded, Processor
from mmedexpert_jax.runtime.threads import in_order
from mmedexpert_jax.train import Prefetched

# Where both miss the bounds, images side by side are chosen if rows of their own compute this many times as much:
# attention moves their patches to rows and back.
WORTH = 1.15
Sizes = dict[tuple, PromptSize]  # of prompts, by case and paradigm
Order = Callable[[PromptSize], Any]  # what rows are sorted by before they are cut into micro-batches
# Which pads least depends on the data: by images, whose number a device pads to; by tokens, those with images apart or
# not; or by what a row costs, where a patch, in Qwen2-VL-2B's vision tower, is about half of a token.
ORDERS: tuple[Order, ...] = (
    lambda size: size,
    lambda size: (size.images > 0, size.tokens, size),
    lambda size: (size.tokens, size),
    lambda size: (size.tokens + size.images * size.patches // 2, size),
)


class Batches:
    """Encodes prompts, splits them into micro-batches of like size, and pads these to few shapes.

    The order of a run is known beforehand: every prompt is measured, and one that is too long refused, before any work
    is done, and shapes are chosen for the micro-batches that will be met: as few as keep the padding in bounds. They
    depend on the run's config and data alone, so that one that is resumed computes what it would have computed.

    Args:
        guidelines: the prompts of every step.
        rounds: rollouts of the run at most.
        size: prompts of a micro-batch on one device.
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
        size: int,
        max_prompt_length: int,
        devices: int = 1,
        minibatches: int = 1,
        known: Sizes | None = None,
    ):
        self._processor, self._guidelines, self._limit = processor, guidelines, max_prompt_length
        self._size, self._devices, self._minibatches = size, devices, minibatches
        known = {} if known is None else known
        new = _unknown(guidelines, rounds, known)
        known |= zip(new, in_order(lambda prompt: PromptSize.of(self.encode(prompt)), new.values()), strict=True)
        steps = [[known[_key(prompt)] for prompt in guidelines.prompts(step)] for step in range(rounds)]
        self._buckets, self.order = self._planned(steps)
        self.max_length = self._buckets.tokens[-1]
        self.ahead = Prefetched(self.encoded, rounds)

    def _planned(self, steps: Sequence[Sequence[PromptSize]]) -> tuple[RowBuckets | StripBuckets, Order]:
        """The buckets for the micro-batches of these steps, and the order of rows, that compute least."""
        # A minibatch that is computed at once is mixed in any case: shapes would be compiled and save little.
        most = LEVELS if len(steps[-1]) > self._size * self._devices * self._minibatches else 1

        def best(kind: type[RowBuckets | StripBuckets], orders: Sequence[Order]) -> tuple[Any, Order]:
            plans = []
            for order in orders:
                groups = [[sizes[i] for i in rows] for sizes in steps for rows in self._cut(sizes, order)]
                plans.append((kind.of(groups, self._devices, most), order))
            return min(plans, key=lambda plan: plan[0].overhead)

        rows = best(RowBuckets, ORDERS[:1])
        # one device pads to no other, and by images mostly keeps the bounds
        if self._devices > 1 or rows[0].overhead > 1:
            rows = min(rows, best(RowBuckets, ORDERS[1:]), key=lambda plan: plan[0].overhead)
        # families whose images are all of one size, Gemma's and LLaVA's, know no strips
        unlike = len({size for sizes in steps for one in sizes for size in one.each}) > 1
        if unlike and rows[0].overhead > 1:
            strips = best(StripBuckets, ORDERS)
            if strips[0].overhead <= max(1, rows[0].overhead / WORTH):
                return strips
        return rows

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

    def bucket_of(self, sizes: Sequence[PromptSize]) -> SizeBucket:
        """The bucket of a micro-batch on each device."""
        return self._buckets.bucket(PromptSize.together(sizes), self._devices)

    def _cut(self, sizes: Sequence[PromptSize], order: Order) -> list[np.ndarray]:
        count, minibatches = self._size * self._devices, np.array_split(np.arange(len(sizes)), self._minibatches)
        return [rows for minibatch in minibatches for rows in cut(minibatch, sizes, count, order)]

    def prompt_batches(self, encoded: Sequence[Encoded]) -> list[tuple[np.ndarray, Batch]]:
        """The micro-batches in which a rollout's prompts are read: their rows, and the rows as a batch."""
        sizes = [PromptSize.of(one) for one in encoded]
        return [(rows, self.collate([encoded[i] for i in rows], self._devices)) for rows in self.micro_batches(sizes)]

    def dealt(self, rows: np.ndarray, sizes: Sequence[PromptSize], work: np.ndarray) -> list[np.ndarray]:
        """Rows of the micro-batches of an update, whose completions have `work` [N] tokens: like sizes together, and
        among those of one bucket about as much work for each device of each, so that one packed size holds all."""
        found: list[np.ndarray] = []
        count = self._size * self._devices
        for bucket, cuts in itertools.groupby(
            cut(rows, sizes, count, self.order), lambda rows: self.bucket_of([sizes[i] for i in rows])
        ):
            plain = [*cuts]
            even = deal(np.concatenate(plain), work, self._size)
            even = [np.concatenate(even[i : i + self._devices]) for i in range(0, len(even), self._devices)]
            same = all(self.bucket_of([sizes[i] for i in rows]) == bucket for rows in even)
            found += even if same else plain  # another shape would be another program
        return found

    def collate(self, encoded: Sequence[Encoded], devices: int = 1) -> Batch:
        """A micro-batch in one of the run's shapes; its images are numbered through, and a multiple of the devices."""
        size = PromptSize.together([PromptSize.of(one) for one in encoded])
        bucket = self._buckets.bucket(size, devices)
        return self._processor.collate(
            encoded,
            min_length=bucket.tokens,
            min_images=bucket.images * devices,
            min_patches=bucket.patches,
            strips=deal_images(size.each, devices) if bucket.strip else (),
            min_strip=bucket.strip,
        )


def overlong(processor: Processor, guidelines: Guidelines, rounds: int, limit: int, known: Sizes) -> set[str]:
    """Ids of the cases of which a prompt of the run is over the limit; the sizes of the others' are added to `known`.

    Raises DataError where an image cannot be used.
    """

    def size(prompt: Prompt) -> PromptSize | None:
        try:
            return PromptSize.of(_encode(processor, prompt, limit))
        except TooLong:
            return None

    new = _unknown(guidelines, rounds, known)
    sizes = dict(zip(new, in_order(size, new.values()), strict=True))
    known |= {key: one for key, one in sizes.items() if one is not None}
    return {new[key].case.id for key, one in sizes.items() if one is None}


def check_sizes(processor: Processor, guidelines: Guidelines, rounds: int, limit: int, count: int) -> None:
    """Raises DataError where one of the `count` prompts of the longest texts of a run is over the limit."""
    prompts = _unknown(guidelines, rounds, {}).values()
    for prompt in heapq.nlargest(count, prompts, key=lambda prompt: len(str(prompt.conversation))):
        _encode(processor, prompt, limit)


def _unknown(guidelines: Guidelines, rounds: int, known: Sizes) -> dict[tuple, Prompt]:
    """The prompts of a run that are not measured yet, each once, in the order in which they are met."""
    prompts = (prompt for step in range(rounds) for prompt in guidelines.prompts(step))
    return {_key(prompt): prompt for prompt in prompts if _key(prompt) not in known}


def cut(rows: np.ndarray, sizes: Sequence[PromptSize], count: int, order: Order = ORDERS[0]) -> list[np.ndarray]:
    """Rows in order of their size, `count` at a time."""
    ordered = np.array(sorted(rows, key=lambda row: order(sizes[row])), int)
    return [ordered[i : i + count] for i in range(0, len(ordered), count)]


def _encode(processor: Processor, prompt: Prompt, limit: int) -> Encoded:
    try:
        return processor.encode(prompt.conversation, max_length=limit)
    except DataError as error:
        raise type(error)(f"case {prompt.case.id}: {error}") from error


def _key(prompt: Prompt) -> tuple:
    return prompt.case.id, prompt.paradigm
