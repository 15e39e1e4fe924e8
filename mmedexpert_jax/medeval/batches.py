"""Prompts in batches of few shapes, so that little is compiled and little is padded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.processing.processor import Encoded, Processor

MULTIPLE = 32  # of the padded length, so that evaluations of alike splits share shapes


@dataclass(frozen=True)
class Job:
    """One prompt to answer: a case under a paradigm (None: no guideline)."""

    case: Case
    paradigm: str | None
    conversation: list[dict[str, Any]]


@dataclass(frozen=True)
class Size:
    """What a prompt needs: tokens, patches of its largest image, images."""

    tokens: int
    patches: int
    images: int


def plan(
    processor: Processor, jobs: Sequence[Job], batch_size: int, max_length: int | None = None
) -> Iterator[tuple[Batch, list[int]]]:
    """Yields batches with the numbers of their jobs, longest prompts first; the last of a bucket repeats its first job.

    All batches of a bucket have one shape. Patches are not kept: a prompt with images is encoded again for its batch.

    Raises:
        DataError: a prompt cannot be encoded or has more than `max_length` tokens, named by its case.
    """
    sizes, texts = [], {}
    for number, job in enumerate(jobs):
        encoded = _encode(processor, job, max_length)
        patches = max((len(patches) for patches, _ in encoded.images), default=0)
        sizes.append(Size(len(encoded.tokens), patches, len(encoded.images)))
        if not encoded.images:
            texts[number] = encoded
    for members in buckets(sizes, batch_size):
        rows = min(batch_size, len(members))
        shape = {
            "min_length": max(sizes[number].tokens for number in members),
            "min_patches": max(sizes[number].patches for number in members),
            "min_images": rows * sizes[members[0]].images,
            "multiple": MULTIPLE,
        }
        for start in range(0, len(members), rows):
            chosen = members[start : start + rows]
            chosen = chosen + chosen[:1] * (rows - len(chosen))
            prompts = [texts.get(number) or _encode(processor, jobs[number], max_length) for number in chosen]
            yield processor.collate(prompts, **shape), chosen


def buckets(sizes: Sequence[Size], least: int) -> list[list[int]]:
    """Groups prompts with as many images and lengths alike within a factor of two, longest first.

    A group of fewer than `least` joins the next longer one with as many images.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i].images, -sizes[i].tokens, -sizes[i].patches, i))
    groups: list[list[int]] = []
    for number in order:
        if groups and _alike(sizes[groups[-1][0]], sizes[number]):
            groups[-1].append(number)
        else:
            groups.append([number])
    merged: list[list[int]] = []
    for group in groups:
        if merged and len(group) < least and sizes[merged[-1][0]].images == sizes[group[0]].images:
            merged[-1] += group
        else:
            merged.append(group)
    return merged


def _alike(first: Size, size: Size) -> bool:
    short = 2 * size.tokens <= first.tokens or 4 * size.patches < first.patches
    return first.images == size.images and not short


def _encode(processor: Processor, job: Job, max_length: int | None) -> Encoded:
    try:
        return processor.encode(job.conversation, max_length=max_length)
    except DataError as error:
        raise DataError(f"case {job.case.id}: {error}") from None
