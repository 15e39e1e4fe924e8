"""Duplicates inside the set: the same case under two ids' roofs, and texts that are nearly the same."""

import zlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange

from mmedexpert_jax.data.contamination import words_in
from mmedexpert_jax.mmedexpert.record import RawCase
from mmedexpert_jax.mmedexpert.sources.canonical import normal

WORDS = 5  # of a shingle
PERMUTATIONS, BANDS = 128, 32  # four rows a band: texts of Jaccard 0.8 meet with probability 1 - 1e-7
MARGIN = 0.2  # below the threshold, five standard errors of the share of PERMUTATIONS


@dataclass(frozen=True)
class Duplicate:
    """One finding."""

    record: RawCase  # the later case
    of: str  # id of the earlier one
    score: float  # Jaccard similarity of their word 5-grams; 1.0 for the same case
    same: bool  # whether it is the same case, word for word


def duplicates(records: Sequence[RawCase], threshold: float = 0.8) -> list[Duplicate]:
    """Later cases that repeat an earlier one.

    Two cases are nearly the same where the word 5-grams of their questions overlap by `threshold` (Jaccard), the right
    options read the same, and the images are the same: one vignette with two questions, and one question about two
    images, are two cases.
    """
    first: dict[str, RawCase] = {}
    found = []
    for record in records:
        if record.id in first:
            found.append(Duplicate(record, record.id, 1.0, True))
        else:
            first[record.id] = record
    unique = list(first.values())
    shingled = [shingles(record.question) for record in unique]
    dropped: set[int] = set()
    # right option and images, which a near duplicate has in common with a case
    common = [(normal(case.answer_text), *(picture.sha256 for picture in case.images)) for case in unique]
    groups, signatures = _groups(shingled, common)
    for a in range(len(unique)):
        if a in dropped:  # and not looked at again: of cases that are all the same the first drops the others
            continue
        near = np.array(sorted({b for group in groups[a] for b in group if b > a and b not in dropped}), np.int64)
        # equal entries estimate Jaccard to 0.04: what is far below is not counted word by word
        alike = (signatures[near] == signatures[a]).mean(axis=1) >= threshold - MARGIN
        for b in near[alike].tolist():
            score = len(shingled[a] & shingled[b]) / len(shingled[a] | shingled[b])
            if score >= threshold:
                dropped.add(b)
                found.append(Duplicate(unique[b], unique[a].id, score, False))
    return found


def with_several_keys(records: Sequence[RawCase]) -> list[RawCase]:
    """The cases with options that stand with several keys: one of them is wrong, and none can say which."""
    keys: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        keys[record.id].add(normal(record.answer_text))
    return [record for record in records if record.options and len(keys[record.id]) > 1]


def shingles(text: str) -> frozenset[int]:
    """Hashes of the text's word 5-grams; of the whole text where it is shorter."""
    found = words_in(text)
    grams = [found[i : i + WORDS] for i in range(max(1, len(found) - WORDS + 1))]
    return frozenset(zlib.crc32(" ".join(gram).encode()) for gram in grams)


def _groups(shingled: Sequence[frozenset[int]], shared: Sequence[Hashable]) -> tuple[list[list[list[int]]], np.ndarray]:
    """For each case the groups in which it stands: cases with the same `shared` whose MinHash signatures share a band
    (Broder 1997); and the signatures, [n, PERMUTATIONS]."""
    rng = np.random.default_rng(0)
    scale, shift = rng.integers(0, 2**64, (2, PERMUTATIONS), dtype=np.uint64)
    scale |= np.uint64(1)  # odd, modulo 2^64: small factors would leave the hashes nearly in their own order
    groups: defaultdict[tuple[Hashable, int, bytes], list[int]] = defaultdict(list)
    own: list[list[list[int]]] = []
    signatures = np.empty((len(shingled), PERMUTATIONS), np.uint64)
    for index, grams in enumerate(shingled):
        hashes = np.fromiter(grams, np.uint64, len(grams))
        signature = (hashes[:, None] * scale + shift).min(axis=0)  # [PERMUTATIONS]
        signatures[index] = signature
        bands = enumerate(rearrange(signature, "(band row) -> band row", band=BANDS))
        own.append([groups[shared[index], band, part.tobytes()] for band, part in bands])
        for group in own[-1]:
            group.append(index)
    return own, signatures
