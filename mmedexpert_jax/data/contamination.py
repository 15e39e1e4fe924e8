"""Training cases held against test sets: by 8-gram containment of the texts and by hashes of the images.

A shared 8-gram alone says nothing of clinical vignettes: their boilerplate ("which of the following is the most
likely") flags 1,065 of MedXpertQA-MM's 2,000 items against MedQA's test questions. So the share of 8-grams decides,
between two texts, without their last question.
"""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image

from mmedexpert_jax import border
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.data.words import CHINESE_JAPANESE
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing.images import open_image

GRAM = 8  # words
MIN_GRAMS = 12  # a text with fewer is compared whole: of a short question, eight words are nearly all
DROP, REVIEW = 0.5, 0.3  # containment
SIDE = 16  # a dHash has SIDE * SIDE bits
MAX_BITS = 12  # of 256 that may differ between images that look alike
PLAIN = 16  # a hash with fewer ones or fewer zeros is of a nearly uniform image, and says nothing
BLOCK = 4096  # test images compared at once
Member = tuple[str, Case]  # a case and the name of its set, split included
_FACTORS = np.array([pow(0x9E3779B97F4A7C15, k + 1, 2**64) for k in range(GRAM)], np.uint64)


@dataclass(frozen=True)
class Pair:
    """A training case and a test item that have something in common."""

    # train_set, train_id, test_set, test_id: whose they are
    train_set: str
    train_id: str
    test_set: str
    test_id: str
    containment: float  # share of the shorter text's 8-grams that the longer one holds, 0 to 1
    image: str  # "", "same file", "same pixels", or "alike (n bits)" of 256
    decision: str  # "drop" (containment of at least DROP, or the same image) or "review" (REVIEW, or an image alike)


@dataclass(frozen=True)
class Findings:
    """Pairs, the gravest first, and images that could not be read, a line each."""

    pairs: list[Pair]
    unreadable: list[str]

    def dropped(self) -> set[tuple[str, str]]:
        """(set, id) of the training cases to leave out."""
        return {(pair.train_set, pair.train_id) for pair in self.pairs if pair.decision == "drop"}

    def write(self, path: str | Path) -> None:
        """Writes the pairs as CSV, whole."""
        rows = (asdict(pair) | {"containment": f"{pair.containment:.3f}"} for pair in self.pairs)
        border.write_csv(path, [field.name for field in fields(Pair)], rows)

    def table(self) -> list[dict[str, str]]:
        """Pairs and training cases by pair of sets and decision, as rows of a report."""
        sets: dict[tuple[str, str], list[Pair]] = defaultdict(list)
        for pair in self.pairs:
            sets[pair.train_set, pair.test_set].append(pair)
        rows = []
        for (train, test), pairs in sorted(sets.items()):
            row = {"training": train, "test": test}
            for decision in ("drop", "review"):
                chosen = [pair for pair in pairs if pair.decision == decision]
                cases = len({pair.train_id for pair in chosen})
                row[decision] = f"{len(chosen)} pairs of {cases} cases"
            rows.append(row)
        return rows


# A word that a line's end parts, but not "T-cell", "COVID-negative", "non-small", whose hyphens are their own.
_OWN_HYPHEN = "non|well|anti|post|pre|self|low|high|long|short|age|sex|dose|beta|alpha|gamma"
_BROKEN = re.compile(rf"\b(?!(?i:{_OWN_HYPHEN})-)([^\W\d_][a-zß-ÿ]{{2,}})-[^\S\n]*\n\s*(?=[a-zß-ÿ])")


def words_in(text: str) -> tuple[str, ...]:
    """Words of a text in lower case, in one form of Unicode, whole where soft hyphens, marks without width or a line's
    end (`_BROKEN`) part them; where no spaces part words, as in Chinese and Japanese, its characters."""
    text = unicodedata.normalize("NFKC", text)
    if not text.isascii():
        text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    text = _BROKEN.sub(r"\1", text).lower()
    return tuple(re.findall(r"\w+", CHINESE_JAPANESE.sub(r" \g<0> ", text)))


def words_of(case: Case) -> tuple[str, ...]:
    """Words of question and options, without the question that all share."""
    return words_in("\n".join([without_last_question(case.question), *case.options]))


def grams(words: Sequence[str]) -> np.ndarray:
    """Hashes of the different runs of GRAM words, sorted, [n] uint64; equal within one process only."""
    count = len(words) - GRAM + 1
    if count < 1:
        return np.empty(0, np.uint64)
    hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
    return np.unique(np.sum([hashes[k : k + count] * factor for k, factor in enumerate(_FACTORS)], 0, np.uint64))


def without_last_question(text: str) -> str:
    """A text without its last sentence where that is a question and not the whole text: the stem that all share."""
    parts = re.split(r"(?<=[.!?])\s+|(?<=[。！？])\s*", text.strip())
    parts = [part for part in parts if part]
    return " ".join(parts[:-1]) if len(parts) > 1 and parts[-1].endswith(("?", "？")) else text


def find(
    training: Iterable[Member],
    tests: Sequence[Member],
    images: bool = True,
    on_case: Callable[[int], None] = lambda done: None,
) -> Findings:
    """Compares every training case with every test item.

    Args:
        training: read once.
        tests: of all test sets.
        images: compare images too; reads all of them.
        on_case: called with the number of training cases done.

    Returns:
        Pairs by falling containment, those with the same image before.
    """
    unreadable: list[str] = []
    texts = TextIndex([item for _, item in tests])
    pictures = ImageIndex(tests, unreadable) if images else None
    pairs = []
    for done, member in enumerate(training, 1):
        words = words_of(member[1])
        held = grams(words)
        shares = texts.containment(words, held)
        looks = pictures.alike(member, unreadable) if pictures else {}
        for index in sorted({*np.flatnonzero(shares >= REVIEW).tolist(), *looks}):
            shortest = min(len(held), int(texts.sizes[index]))
            pair = _pair(member, tests[index], float(shares[index]), looks.get(index, ""), shortest)
            pairs += [pair] if pair else []
        on_case(done)
    pairs.sort(key=lambda pair: (not pair.image.startswith("same"), -pair.containment, pair.train_id, pair.test_id))
    return Findings(pairs, unreadable)


def _pair(train: Member, test: Member, containment: float, image: str, shortest: int) -> Pair | None:
    """The finding on two members, the shorter of which has `shortest` 8-grams; None for nothing."""
    (train_set, case), (test_set, item) = train, test
    if shortest < MIN_GRAMS and (case.images or item.images) and not image:
        containment = 0.0  # a short question of another image: a template
    if containment >= DROP or image.startswith("same"):
        decision = "drop"
    elif containment >= REVIEW or image:
        decision = "review"
    else:
        return None
    return Pair(train_set, case.id, test_set, item.id, containment, image, decision)


class TextIndex:
    """The test items that hold each 8-gram: all their 8-grams in one sorted array, and whose each is beside it."""

    def __init__(self, items: Sequence[Case]):
        self._whole: dict[tuple[str, ...], list[int]] = defaultdict(list)
        found = []
        for index, item in enumerate(items):
            words = words_of(item)
            self._whole[words].append(index)
            found.append(grams(words))
        self.sizes = np.array(list(map(len, found)), np.int64)  # [items] 8-grams of each
        held = [own if len(own) >= MIN_GRAMS else own[:0] for own in found]
        together = np.concatenate([np.empty(0, np.uint64), *held])
        order = np.argsort(together, kind="stable")
        self._grams, self._owners = together[order], np.repeat(np.arange(len(held)), list(map(len, held)))[order]

    def containment(self, words: tuple[str, ...], held: np.ndarray) -> np.ndarray:
        """Share of the shorter text's 8-grams in the longer by test item, [n], of a text with these words and 8-grams;
        1 for equal texts of any length."""
        shares = np.zeros(len(self.sizes))
        if len(held) >= MIN_GRAMS:
            common = np.bincount(self._holders(held), minlength=len(shares))
            shares = common / np.maximum(np.minimum(self.sizes, len(held)), 1)
        if words:
            shares[self._whole.get(words, [])] = 1.0
        return shares

    def _holders(self, grams: np.ndarray) -> np.ndarray:
        """The item of every occurrence of the given 8-grams in the index."""
        first = np.searchsorted(self._grams, grams, "left")
        counts = np.searchsorted(self._grams, grams, "right") - first
        ahead = np.cumsum(counts) - counts
        return self._owners[np.repeat(first - ahead, counts) + np.arange(counts.sum())]


@dataclass(frozen=True)
class Look:
    """Hashes of one image: of the file, of the upright RGB pixels, and of how it looks ([4] uint64)."""

    file: str
    pixels: str
    dhash: np.ndarray


def look(data: bytes) -> Look:
    """Hashes of an encoded image. Raises DataError where it cannot be decoded."""
    image = open_image(data)
    pixels = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    return Look(hashlib.sha256(data).hexdigest(), pixels, dhash(image))


def dhash(image: Image.Image) -> np.ndarray:
    """Difference hash: whether each pixel of a SIDE x (SIDE + 1) grey thumbnail is darker than the next, [4] uint64."""
    small = np.asarray(image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX), np.int16)
    return np.packbits(small[:, :-1] < small[:, 1:]).view(np.uint64)


class ImageIndex:
    """The images of the test items by their hashes."""

    def __init__(self, tests: Sequence[Member], unreadable: list[str]):
        self._exact: dict[str, set[int]] = defaultdict(set)
        owners, hashes = [], []
        for index, item in enumerate(tests):
            for seen in _looks(item, unreadable):
                self._exact[seen.file].add(index)
                self._exact[seen.pixels].add(index)
                if _telling(seen.dhash):
                    owners.append(index)
                    hashes.append(seen.dhash)
        self._owners = np.array(owners, np.int64)
        self._hashes = np.array(hashes, np.uint64).reshape(-1, SIDE * SIDE // 64)

    def alike(self, member: Member, unreadable: list[str]) -> dict[int, str]:
        """Test item -> how an image of it relates to one of the case."""
        found: dict[int, str] = {}
        for seen in _looks(member, unreadable):
            near = self._near(seen.dhash) if _telling(seen.dhash) else {}
            same = dict.fromkeys(self._exact.get(seen.pixels, ()), "same pixels")
            same |= dict.fromkeys(self._exact.get(seen.file, ()), "same file")
            found |= {index: f"alike ({bits} bits)" for index, bits in near.items() if index not in found}
            found |= same
        return found

    def _near(self, wanted: np.ndarray) -> dict[int, int]:
        near: dict[int, int] = {}
        for start in range(0, len(self._hashes), BLOCK):
            bits = np.bitwise_count(self._hashes[start : start + BLOCK] ^ wanted).sum(-1)
            for place in np.flatnonzero(bits <= MAX_BITS):
                index = int(self._owners[start + place])
                near[index] = min(near.get(index, SIDE * SIDE), int(bits[place]))
        return near


def _telling(wanted: np.ndarray) -> bool:
    ones = int(np.bitwise_count(wanted).sum())
    return PLAIN <= ones <= SIDE * SIDE - PLAIN


def _looks(member: Member, unreadable: list[str]) -> list[Look]:
    (name, case), looks = member, []
    for number, image in enumerate(case.images, 1):
        try:
            looks.append(look(image.plain()))
        except DataError as error:
            unreadable.append(f"{name} {case.id}, image {number}: {error}")
    return looks
