"""Controls of an evaluation: the same items without their image, with another's, with their options reordered, or in
pairs that only their images tell apart.

A model that answers as well without looking has not used the image; one whose answers follow the letters instead of
the options has not read them; one that gives the same answer to two near-identical images has not seen what differs.
Every control is a set of items that keep their ids, so that each is paired with the plain answers over the very items
that it changed. All are asked in one pass, and answers are stored by their conversation, like any others.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from mmedexpert_jax.answers import LETTERS
from mmedexpert_jax.data.benchmarks import ImageRef
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.data.contamination import dhash
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.medeval.evaluate import Evaluation
from mmedexpert_jax.processing.images import EncodedImage, open_image

BLIND = ("blank", "other_image", "question_only")
CONTROLS = (*BLIND, "shuffle", "pairs")
NEAR = 32  # of the 256 bits of a dHash that may differ in a pair: an eighth, where unrelated images differ in half
_GREY = (128, 128, 128)
# An option that names others by their letters or places, which mean others in another order.
_OF_OTHERS = re.compile(
    r"\b(?:both|all|none|any|either|neither|two|all but one)\b.{0,20}\babove\b|"
    r"^\W*(?:(?:both|all|only|options?|choices?|answers?|neither|either)\W+)*\(?[A-J]\)?"
    r"(?:\s*(?:,|&|/|\+|\b(?:and|or|nor|et|und|y)\b|[和、及与或])\s*\(?[A-J]\b\)?)+"
    r"(?=\W*$|\W+(?:only|alone|both|together|are|is|correct|true|above)\b)|"
    r"^\W*(?:both|only|options?|choices?|all but) \(?[A-J]\)?\W*$|^以上|"
    r"以上(?=都|皆|均|全|所有|选项|選項|各[项項]|のすべて|どれ)|上述",
    re.I,
)


@dataclass(frozen=True)
class Control:
    """A control of one benchmark, and the answers of one model to it."""

    name: str  # one of CONTROLS
    # the changed items, those that it applies to; of "pairs" unchanged ones, the two of a pair side by side
    items: tuple[Case, ...]
    rotation: int = 0  # places by which the options moved; 0 but for "shuffle"
    evaluation: Evaluation = field(default_factory=lambda: Evaluation(()))  # the answers to them


def variants(items: Sequence[Case], name: str, rotations: int = 1, seed: int = 0) -> list[Control]:
    """The items of one control, not asked yet: once, but of "shuffle" once for each rotation of the options. One with
    an option that names others, such as "A and B" or "none of the above", or with several that are letters, is not
    rotated.

    Args:
        name: one of CONTROLS.
        rotations: of the options of an item with n options, at most n - 1 are made.
        seed: of the choice of another item's image.

    Raises:
        ConfigError: an unknown control.
    """
    if name not in CONTROLS:
        raise ConfigError(f"config.controls: no control {name!r}; choose among {', '.join(CONTROLS)}")
    looked_at = [item for item in items if item.images]
    if name == "blank":
        return [Control(name, tuple(replace(item, images=tuple(map(_blank, item.images))) for item in looked_at))]
    if name == "question_only":
        return [Control(name, tuple(replace(item, images=()) for item in looked_at))]
    if name == "other_image":
        return [Control(name, _exchanged(looked_at, seed))]
    if name == "pairs":
        return [Control(name, tuple(item for pair in near_pairs(looked_at) for item in pair))]
    choices = [item for item in items if _keyed(item) and not any(map(_OF_OTHERS.search, item.options))]
    choices = [item for item in choices if sum(option.strip(" ().") in tuple(LETTERS) for option in item.options) < 2]
    return [
        Control(name, tuple(_rotated(item, places) for item in choices if places < len(item.options)), places)
        for places in range(1, rotations + 1)
    ]


def _keyed(item: Case) -> bool:
    """True for a choice whose key is one of its options' letters."""
    return item.kind == "choice" and item.answer in tuple(LETTERS[: len(item.options)])


def near_pairs(items: Sequence[Case]) -> Iterator[tuple[Case, Case]]:
    """Pairs of items of one question and the same options, in any order, with different keys and nearly the same image.

    Each item in turn is paired with the one whose images look most alike (`contamination.dhash`), if at most NEAR bits
    differ and neither has a pair yet. Questions of yes and no count too; open ones do not, since their keys may differ
    in words alone. Reads the images of all questions that are asked more than once; raises DataError.
    """
    groups: dict[Any, list[Case]] = defaultdict(list)
    for item in items:
        if _keyed(item) or item.kind == "yes_no":
            options = tuple(sorted(same_words(text) for text in item.options))
            groups[same_words(item.question), options, len(item.images)].append(item)
    for group in groups.values():
        keys = np.array([same_words(item.answer_text) for item in group])
        if len(set(keys)) < 2:
            continue
        hashes = np.stack([[dhash(image.picture()) for image in item.images] for item in group])  # [n, images, 4]
        free = np.ones(len(group), bool)
        for place, item in enumerate(group):
            bits = np.bitwise_count(hashes ^ hashes[place]).sum(-1, np.int64).max(-1)  # of the image that differs most
            bits[(keys == keys[place]) | ~free] = NEAR + 1
            nearest = int(bits.argmin())
            if free[place] and bits[nearest] <= NEAR:
                free[[place, nearest]] = False
                yield item, group[nearest]


def same_words(text: str) -> str:
    """A text without what two writings of one question differ in: case and spaces."""
    return " ".join(text.lower().split())


def _blank(image: ImageRef) -> ImageRef:
    """A grey image of the same size, so that the model meets as many image tokens as before."""

    def read() -> bytes:
        return EncodedImage(Image.new("RGB", open_image(image).size, _GREY))()

    return ImageRef(f"{image.name}, blank", read)


def _exchanged(items: Sequence[Case], seed: int) -> tuple[Case, ...]:
    """Items with the images of another of as many that shows something else; left out where all show the same.

    One seeded cycle through all items of a number of images, those that show the same side by side, each with the
    images so many places on as the most of them are: none meets its own again, and each image is used once. Where more
    than half show the same, these take the images of the others in turn.
    """
    changed: dict[str, Case] = {}
    for count in {len(item.images) for item in items}:
        group = sorted((item for item in items if len(item.images) == count), key=lambda item: item.id)
        random.Random(f"{seed} {count}").shuffle(group)
        alike: dict[Any, list[Case]] = defaultdict(list)
        for item in group:
            alike[tuple(map(_content, item.images))].append(item)
        order = [item for members in sorted(alike.values(), key=len, reverse=True) for item in members]
        most = max(map(len, alike.values()))
        rest = len(order) - most
        for place, item in enumerate(order if rest else ()):
            to = most + place % rest if place < most else (place + most) % len(order)
            changed[item.id] = replace(item, images=order[to].images)
    return tuple(changed[item.id] for item in items if item.id in changed)


def _content(image: ImageRef) -> str:
    """Hash of what an image shows; the name of one that cannot be read, which is told when it is asked."""
    try:
        return image.sha256
    except DataError:
        return image.name


def _rotated(item: Case, places: int) -> Case:
    """The item with its options moved by some places; what peers show of the file itself is made from them anew."""
    order = [(place - places) % len(item.options) for place in range(len(item.options))]
    columns = {key: value for key, value in item.columns.items() if not key.startswith("raw_")}
    return replace(
        item,
        options=tuple(item.options[place] for place in order),
        answer=LETTERS[order.index(LETTERS.index(item.answer))],
        columns=columns,
    )
