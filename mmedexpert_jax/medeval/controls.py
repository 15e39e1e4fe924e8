"""Controls of an evaluation: the same items without their image, with another's, or with their options reordered.

A model that answers as well without looking has not used the image; one whose answers follow the letters instead of
the options has not read them. Every control is a set of changed items that keep their ids, so that each is paired with
the plain answers over the very items that it changed. Answers are stored by their conversation, like any others.
"""

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from mmedexpert_jax.answers import LETTERS
from mmedexpert_jax.data.benchmarks import ImageRef
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.medeval.evaluate import Evaluation, compare_evaluations
from mmedexpert_jax.processing.images import open_image
from mmedexpert_jax.report import Figure

BLIND = ("blank", "other_image", "question_only")
CONTROLS = (*BLIND, "shuffle")
TITLES = {
    "blank": "a grey image",
    "other_image": "another item's image",
    "question_only": "no image",
    "shuffle": "options rotated",
}
_GREY = (128, 128, 128)


@dataclass(frozen=True)
class Control:
    """A control that was asked of one model.

    Attributes:
        name: one of CONTROLS.
        items: the changed items, those that it applies to.
        evaluation: the answers to them.
        rotation: places by which the options moved; 0 for the blind controls.
    """

    name: str
    items: tuple[Case, ...]
    evaluation: Evaluation
    rotation: int = 0


def variants(items: Sequence[Case], name: str, rotations: int = 1, seed: int = 0) -> list[tuple[int, tuple[Case, ...]]]:
    """The changed items of one control: (rotation, items) once for the blind ones, once for each rotation of options.

    Args:
        items: of a benchmark.
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
        return [(0, tuple(replace(item, images=tuple(map(_blank, item.images))) for item in looked_at))]
    if name == "question_only":
        return [(0, tuple(replace(item, images=()) for item in looked_at))]
    if name == "other_image":
        return [(0, _exchanged(looked_at, seed))]
    choices = [item for item in items if item.kind == "choice" and item.answer in tuple(LETTERS[: len(item.options)])]
    return [
        (places, tuple(_rotated(item, places) for item in choices if places < len(item.options)))
        for places in range(1, rotations + 1)
    ]


def _blank(image: ImageRef) -> ImageRef:
    """A grey image of the same size, so that the model meets as many image tokens as before."""

    def read() -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", open_image(image.open(), image.name).size, _GREY).save(buffer, "PNG", compress_level=0)
        return buffer.getvalue()

    return ImageRef(f"{image.name}, blank", read)


def _exchanged(items: Sequence[Case], seed: int) -> tuple[Case, ...]:
    """Items with the images of another, of as many images where there is one; an item alone of its kind is left out.

    One seeded cycle through all items of a number of images: none keeps its own place, and each image is used once.
    """
    changed: dict[str, Case] = {}
    for count in {len(item.images) for item in items}:
        group = sorted((item for item in items if len(item.images) == count), key=lambda item: item.id)
        random.Random(f"{seed} {count}").shuffle(group)
        for item, other in zip(group, group[1:] + group[:1], strict=True):
            if item is not other:
                changed[item.id] = replace(item, images=other.images)
    return tuple(changed[item.id] for item in items if item.id in changed)


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


def table(plain: Mapping[str, Evaluation], controls: Mapping[str, Sequence[Control]]) -> list[dict[str, Any]]:
    """A row for each model and control: accuracy without and with the change over the same items, the paired loss in
    points with its 95 % bootstrap interval; for rotated options also consistency and letter bias.

    Args:
        plain: evaluations of the unchanged items by model.
        controls: what was asked of each.
    """
    rows = []
    for model, made in controls.items():
        for name in dict.fromkeys(control.name for control in made):
            parts = [control for control in made if control.name == name and control.evaluation.rows]
            if parts:
                rows.append({"model": model, "control": TITLES[name]} | _row(plain[model], parts))
    return rows


def _row(plain: Evaluation, parts: Sequence[Control]) -> dict[str, Any]:
    ids = {row.id for part in parts for row in part.evaluation.rows}
    before = Evaluation(tuple(row for row in plain.rows if row.id in ids))
    after = [part.evaluation for part in parts]
    compared = compare_evaluations([before], after)
    accuracy = before.accuracy()["accuracy"]
    loss, low, high = (-100 * gain for gain in (compared.difference, compared.high, compared.low))
    row: dict[str, Any] = {
        "items": str(compared.items),
        "plain": f"{100 * accuracy:.1f}",
        "changed": f"{100 * (accuracy + compared.difference):.1f}",
        "loss": Figure(loss, other=(low, high), signed=True, paired=True),
        "consistency": "",
        "letter bias": "",
    }
    if parts[0].name == "shuffle":
        row |= {"consistency": f"{100 * consistency(before, parts):.1f}", "letter bias": letter_bias(before, parts)}
    return row


def consistency(plain: Evaluation, parts: Sequence[Control]) -> float:
    """Share of items of which every order of the options got the same option chosen, its first sample counting; an
    answer that cannot be read agrees with none."""
    sizes = {item.id: len(item.options) for part in parts for item in part.items}
    orders = [(0, plain), *((part.rotation, part.evaluation) for part in parts)]
    chosen: dict[str, list[str | None]] = {}
    for rotation, evaluation in orders:
        for row in evaluation.rows:
            if row.sample == 0 and row.id in sizes:
                chosen.setdefault(row.id, []).append(_original(row.said, rotation, sizes[row.id]))
    agreed = [len(set(said)) == 1 and None not in said for said in chosen.values()]
    return sum(agreed) / max(1, len(agreed))


def _original(said: str | None, rotation: int, count: int) -> str | None:
    """The letter that a chosen option had before the rotation."""
    if not said or said not in LETTERS[:count]:
        return None
    return LETTERS[(LETTERS.index(said) - rotation) % count]


def letter_bias(plain: Evaluation, parts: Sequence[Control]) -> str:
    """The letter that is chosen most beyond its share of keys, over all orders, in points: "A +12.3"."""
    rows = [row for evaluation in (plain, *(part.evaluation for part in parts)) for row in evaluation.rows if row.said]
    if not rows:
        return ""
    excess = {
        letter: sum((row.said == letter) - (row.answer == letter) for row in rows) / len(rows) for letter in LETTERS
    }
    letter = max(LETTERS, key=excess.__getitem__)
    return f"{letter} {100 * excess[letter]:+.1f}"


def sentence(model: str, plain: Evaluation, made: Sequence[Control]) -> str:
    """The share of a model's score that needs the image, in words; "" where no blind control was asked."""
    blind = next((control for name in BLIND for control in made if control.name == name), None)
    if blind is None or not blind.evaluation.rows:
        return ""
    ids = {row.id for row in blind.evaluation.rows}
    before = Evaluation(tuple(row for row in plain.rows if row.id in ids)).accuracy()["accuracy"]
    compared = compare_evaluations([blind.evaluation], [Evaluation(tuple(r for r in plain.rows if r.id in ids))])
    left = before - compared.difference
    doubt = " The interval holds 0: that the image is used is not shown." if compared.low <= 0 <= compared.high else ""
    return (
        f"{model}: of {100 * before:.1f} % right on the {len(ids)} items with images {100 * left:.1f} % remain with "
        f"{TITLES[blind.name]}; {100 * compared.difference:.1f} points [{100 * compared.low:.1f}, "
        f"{100 * compared.high:.1f}] need the image.{doubt}"
    )


EXPLAINED = (
    "Plain and changed accuracy over the items that a control changes, and the paired loss in points with its 95 % "
    "bootstrap interval. Consistency: percent of items of which every order of the options got the same one chosen. "
    "Letter bias: the letter chosen most beyond its share of the keys, in points."
)
