"""The prompts of a run as batches of one shape, so that each program is compiled once."""

from collections.abc import Sequence

import numpy as np

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.gba.guidelines import Guidelines, Prompt
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.processing.processor import Encoded, Processor


class Batches:
    """Encodes prompts and pads them to the largest that the run will meet.

    The order of a run is known beforehand: every prompt is measured, and one that is too long refused, before any work
    is done.

    Args:
        processor: of the model.
        guidelines: the prompts of every step.
        rounds: rollouts of the run at most.
        part: prompts of a micro-batch on one device.
        max_prompt_length: tokens of a prompt, its images included.
        devices: whose multiple a rollout's number of images is.
        ordered: whether a micro-batch holds prompts that follow one another in their rollout.

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
        ordered: bool = True,
    ):
        self._processor = processor
        self._limit = max_prompt_length
        sizes: dict[tuple, tuple[int, int, int]] = {}
        self._images: dict[int, int] = {}  # most images of so many prompts
        for step in range(rounds):
            prompts = guidelines.prompts(step)
            for prompt in prompts:
                if _key(prompt) not in sizes:
                    sizes[_key(prompt)] = _size(self.encode(prompt))
            counts = [sizes[_key(prompt)][2] for prompt in prompts]
            for rows in {1, part, len(prompts)}:
                most = max(sum(counts[i : i + rows]) for i in range(0, len(prompts), rows))
                if not ordered and rows == part:
                    most = rows * max(counts)
                multiple = devices if rows == len(prompts) else 1
                self._images[rows] = max(self._images.get(rows, 0), -(-most // multiple) * multiple)
        self.max_length = max(size[0] for size in sizes.values())
        self.max_patches = max(size[1] for size in sizes.values())

    def encode(self, prompt: Prompt) -> Encoded:
        """Token ids and patches of one prompt."""
        try:
            return self._processor.encode(prompt.conversation, max_length=self._limit)
        except DataError as error:
            raise DataError(f"case {prompt.case.id}: {error}") from error

    def collate(self, encoded: Sequence[Encoded], shares: int = 1) -> Batch:
        """A rollout's prompts, or a micro-batch of them, in the run's one shape for so many rows.

        With several `shares`, one for each device, every share has its images, and their numbers, to itself: the
        arrays of the shares stand one after the other.
        """
        rows = len(encoded) // shares
        parts = [self._collate(encoded[i : i + rows]) for i in range(0, len(encoded), rows)]
        if shares == 1:
            return parts[0]
        return Batch(*(np.concatenate(arrays) for arrays in zip(*(vars(part).values() for part in parts), strict=True)))

    def _collate(self, encoded: Sequence[Encoded]) -> Batch:
        images = self._images.get(len(encoded), 0)
        return self._processor.collate(
            encoded, min_length=self.max_length, min_patches=self.max_patches, min_images=images
        )


def _key(prompt: Prompt) -> tuple:
    return prompt.case.id, prompt.paradigm


def _size(encoded: Encoded) -> tuple[int, int, int]:
    """Tokens, patches of the largest image, images."""
    return len(encoded.tokens), max((len(patches) for patches, _ in encoded.images), default=0), len(encoded.images)
