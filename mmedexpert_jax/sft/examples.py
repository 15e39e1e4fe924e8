"""Cases as micro-batches of few shapes, in an order that depends on the seed and the step alone."""

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mmedexpert_jax.data import Case
from mmedexpert_jax.data.order import batch_indices, epoch_order, steps_of
from mmedexpert_jax.data.prompts import completion, conversation
from mmedexpert_jax.errors import DataError, TooLong
from mmedexpert_jax.processing.processor import Encoded, Processor
from mmedexpert_jax.rollout.logprobs import packed
from mmedexpert_jax.rounding import round_up
from mmedexpert_jax.runtime.threads import in_order
from mmedexpert_jax.sft.loss import MicroBatch
from mmedexpert_jax.train.overlong import report_dropped

_GRAIN = 32  # tokens or patches; padded sizes are multiples, so that the experts' programs are often the same


Rows = list[tuple[int, bool]]  # index of a case, True where its prompt names no paradigm


class CaseSize(NamedTuple):
    """The size of a case, or of a padded micro-batch."""

    prompt: int  # tokens, images included
    completion: int  # tokens
    images: int
    patches: int  # of the largest image


class Examples:
    """The training rows of a run.

    Every case is measured first, so that one that is too long is refused before any work, and the shapes of all
    micro-batches, each of which costs a compilation, are known: `shapes`. The rows of a step are put in order of size
    before they are split, which changes no gradient (`loss_sums`), and padded to the least of `buckets` sizes.

    Args:
        shards: of a mesh; so many micro-batches of `batch_size` rows, padded alike, are computed at a time.

    Attributes:
        cases: those that are trained on, without what `overlong` drops.
        steps: of the run.

    Raises:
        DataError: a case without a trace, over the limits, or with an image that cannot be used; it names the case.
    """

    def __init__(self, cases: Sequence[Case], processor: Processor, config: ConfigDict, shards: int = 1):
        self._processor, self._config, self._shards = processor, config, shards
        measured = self._measured(cases)
        self.cases, self._completions, self._sizes = (list(parts) for parts in zip(*measured, strict=True))
        self._rows, self._size = config.batch_size * config.accumulation, config.batch_size * shards
        self.steps = config.steps or steps_of(config.epochs, len(self.cases), self._rows)
        # A shuffle of its own, by whose parity a case is asked neutrally in every other epoch: half of them in each.
        self._halves = epoch_order(len(self.cases), config.seed + 1, 0)
        self._buckets = _buckets(self._sizes, config.buckets)

    @functools.cached_property
    def shapes(self) -> set[CaseSize]:
        """Shapes of all micro-batches, found step by step, which takes a run of millions of steps minutes."""
        return {shape for step in range(self.steps) for _, shape in self._split(step)}

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """The micro-batches of a step (from 0): `accumulation` of `batch_size` rows, as many at a time as shards."""
        return [self._collate(rows, shape) for rows, shape in self._split(step)]

    def epoch(self, step: int) -> float:
        """Passes over the cases after so many steps."""
        return step * self._rows / len(self.cases)

    def _measured(self, cases: Sequence[Case]) -> list[tuple[Case, list[int], CaseSize]]:
        """The cases within the limits, each with its completion's ids and its size."""

        def measured(case: Case) -> tuple[Case, list[int], CaseSize] | None:
            try:
                ids = self._completion(case)
                return case, ids, _size(self._encode(case, case.paradigm or None), ids)
            except TooLong:
                if self._config.overlong == "error":
                    raise
                return None

        found = [*in_order(measured, cases)]
        kept = [one for one in found if one is not None]
        dropped = [case.id for case, one in zip(cases, found, strict=True) if one is None]
        limits = {name: self._config[name] for name in ("max_prompt_length", "max_new_tokens")}
        report_dropped(dropped, len(cases), " or ".join(f"{name} {limit}" for name, limit in limits.items()))
        return kept

    def _split(self, step: int) -> list[tuple[Rows, CaseSize]]:
        """The rows of each micro-batch, of all shards, and their padded shape."""
        indices = batch_indices(len(self.cases), self._rows, step, self._config.seed)
        epochs = np.arange(step * self._rows, (step + 1) * self._rows) // len(self.cases)
        rows = [(int(i), bool((self._halves[i] + e) % 2)) for i, e in zip(indices, epochs, strict=True)]
        by_size = operator.attrgetter("images", "prompt", "completion")
        rows.sort(key=lambda row: by_size(self._sizes[row[0]]))
        groups = [rows[start : start + self._size] for start in range(0, len(rows), self._size)]
        return [(group, self._shape([self._sizes[index] for index, _ in self._filled(group)])) for group in groups]

    def _filled(self, rows: Rows) -> Rows:
        """The rows, and, for shards that have none, the first ones again."""
        return [*rows, *itertools.islice(itertools.cycle(rows), self._size - len(rows))]

    def _shape(self, sizes: Sequence[CaseSize]) -> CaseSize:
        prompt, length = max(size.prompt for size in sizes), max(size.completion for size in sizes)
        prompt, length = next(b for b in self._buckets if b[0] >= prompt and b[1] >= length)
        images, patches = sum(size.images for size in sizes), max(size.patches for size in sizes)
        if images:  # the number of rows, or two, four, ... times it; patches likewise from the grain on
            images = len(sizes) << math.ceil(math.log2(max(1, images / len(sizes))))
            patches = _GRAIN << math.ceil(math.log2(max(1, patches / _GRAIN)))
        return CaseSize(prompt, length, images, patches)

    def _collate(self, rows: Rows, shape: CaseSize) -> MicroBatch:
        """The rows of all shards after one another, their images numbered through; what fills up has no completion."""
        filled = self._filled(rows)
        batch = self._processor.collate(
            [self._encode(self.cases[i], None if neutral else self.cases[i].paradigm or None) for i, neutral in filled],
            min_length=shape.prompt,
            min_images=shape.images,
            min_patches=shape.patches,
        )
        tokens = np.full((len(filled), shape.completion), self._processor.pad_id, np.int32)
        for row, (index, _) in zip(tokens, filled, strict=True):
            row[: len(self._completions[index])] = self._completions[index]
        lengths = np.array([len(self._completions[index]) for index, _ in filled], np.int32)
        lengths[len(rows) :] = 0
        capacities = self._config.packing if shape.completion > 1 else 0
        packing = packed(lengths[:, None], shape.completion, capacities, self._shards) if capacities else None
        return MicroBatch(batch, tokens, lengths, packing)

    def _encode(self, case: Case, paradigm: str | None) -> Encoded:
        try:
            return self._processor.encode(conversation(case, paradigm), max_length=self._config.max_prompt_length)
        except DataError as error:
            raise type(error)(f"case {case.id}: {error}") from error

    def _completion(self, case: Case) -> list[int]:
        if not case.trace:
            raise DataError(f"case {case.id}: no trace to imitate; leave it out of the training split")
        ids, limit = self._processor.completion(completion(case)), self._config.max_new_tokens
        if len(ids) > limit:
            raise TooLong(
                f"case {case.id}: its answer has {len(ids)} tokens, the limit is {limit}; raise max_new_tokens"
            )
        return ids


def _size(prompt: Encoded, completion: Sequence[int]) -> CaseSize:
    return CaseSize(len(prompt.tokens), len(completion), len(prompt.images), max(prompt.patch_counts, default=0))


def _buckets(sizes: Sequence[CaseSize], count: int) -> list[tuple[int, int]]:
    """(prompt, completion) lengths, rising in both, that take equally many of the cases in order of their length."""
    lengths = sorted(((size.prompt, size.completion) for size in sizes), key=sum)
    ends = [math.ceil(len(lengths) * (k + 1) / count) for k in range(count)]
    shorter = [lengths[:end] for end in ends if end]
    return [(round_up(max(p for p, _ in part), _GRAIN), round_up(max(c for _, c in part), _GRAIN)) for part in shorter]
