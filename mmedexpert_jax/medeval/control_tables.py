"""Tables of controls: what each takes away from a model's accuracy, and whether the image is used at all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmedexpert_jax.answers import LETTERS
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.medeval.controls import BLIND, NEAR, Control, same_words
from mmedexpert_jax.medeval.evaluate import AnswerRow, Evaluation, compare_evaluations
from mmedexpert_jax.medeval.stats import bootstrap
from mmedexpert_jax.report import Figure

TITLES = {
    "blank": "a grey image",
    "other_image": "another item's image",
    "question_only": "no image",
    "shuffle": "options rotated",
    "pairs": "near-identical pairs",
}
EXPLAINED = (
    "Plain and changed accuracy over the items that a control changes, and the paired loss in points with its 95 % "
    "bootstrap interval. Consistency: percent of items of which every order of the options got the same one chosen. "
    "Letter bias: the letter chosen most beyond its share of the keys, in points. Near-identical pairs: two items of "
    "one question and the same options with different keys, whose images differ in at most "
    f"{NEAR} of 256 bits of a difference hash; changed is the share of pairs right on both, told apart that of pairs "
    "with two different answers. A model that does not look tells none apart but by the order of the options."
)


def table(plain: Mapping[str, Evaluation], controls: Mapping[str, Sequence[Control]]) -> list[dict[str, Any]]:
    """A row for each model and control: accuracy without and with the change over the same items, the paired loss in
    points with its 95 % bootstrap interval; for rotated options also consistency and letter bias, for pairs the share
    that is told apart.

    Args:
        plain: evaluations of the unchanged items by model.
        controls: what was asked of each.
    """
    rows = []
    for model, made in controls.items():
        for name in dict.fromkeys(control.name for control in made):
            repeats = [control for control in _comparable(plain[model], made) if control.name == name]
            if repeats:
                rows.append({"model": model, "control": TITLES[name]} | _row(plain[model], repeats))
    return rows


def _comparable(plain: Evaluation, made: Sequence[Control]) -> list[Control]:
    """Controls with an answer to an item that was answered unchanged too, of pairs to both items of one."""
    known = {row.id for row in plain.rows}
    return [
        control
        for control in made
        if (_answered(control) if control.name == "pairs" else known & control.evaluation.by_item().keys())
    ]


def _row(plain: Evaluation, repeats: Sequence[Control]) -> dict[str, Any]:
    if repeats[0].name == "pairs":
        return _pairs_row(repeats[0])
    before = plain.over({row.id for control in repeats for row in control.evaluation.rows})
    after = [control.evaluation for control in repeats]
    compared = compare_evaluations([before], after)
    accuracy = before.accuracy()["accuracy"]
    loss, low, high = (-100 * gain for gain in (compared.difference, compared.high, compared.low))
    row: dict[str, Any] = {
        "items": compared.items,
        "plain": Figure.percent(accuracy),
        "changed": Figure.percent(accuracy + compared.difference),
        "loss": Figure(loss, other=(low, high), signed=True, paired=True),
        "consistency": "",
        "letter bias": "",
    }
    if repeats[0].name == "shuffle":
        row["consistency"] = Figure.percent(consistency(before, repeats))
        row["letter bias"] = letter_bias(before, repeats)
    return row


def _pairs_row(pairs: Control) -> dict[str, Any]:
    """Items of the pairs, their accuracy, the share of pairs right on both, and of those with two different answers."""
    found = _answered(pairs)
    single = np.array([np.mean([row.value for row in (*first, *second)]) for first, second, *_ in found])
    both = np.array([np.mean([a.value * b.value for a, b in zip(*two[:2], strict=False)]) for two in found])
    apart = [_chosen(first[0], one) != _chosen(second[0], other) for first, second, one, other in found]
    low, high = bootstrap(single - both)
    return {
        "items": 2 * len(found),
        "plain": Figure.percent(single.mean()),
        "changed": Figure.percent(both.mean()),
        "loss": Figure(100 * float((single - both).mean()), other=(100 * low, 100 * high), signed=True, paired=True),
        "told apart": Figure.percent(float(np.mean(apart))),
    }


def _answered(pairs: Control) -> list[tuple[list[AnswerRow], list[AnswerRow], Case, Case]]:
    """Rows and items of the pairs of which both were answered."""
    rows = pairs.evaluation.by_item()
    return [
        (rows[one.id], rows[other.id], one, other)
        for one, other in zip(pairs.items[::2], pairs.items[1::2], strict=True)
        if one.id in rows and other.id in rows  # a question that was refused has no row
    ]


def _chosen(row: AnswerRow, item: Case) -> str | None:
    """The answer as a text, since the options of a pair may stand in different orders."""
    if row.said and row.said in LETTERS[: len(item.options)]:
        return same_words(item.options[LETTERS.index(row.said)])
    return row.said


def consistency(plain: Evaluation, repeats: Sequence[Control]) -> float:
    """Share of items (under each paradigm, where several are asked for) of which every order of the options got the
    same option chosen, its first sample counting; an answer that cannot be read agrees with none."""
    sizes = {item.id: len(item.options) for control in repeats for item in control.items}
    orders = [(0, plain), *((control.rotation, control.evaluation) for control in repeats)]
    chosen: dict[tuple[str, str | None], list[str | None]] = {}
    for rotation, evaluation in orders:
        for row in evaluation.rows:
            if row.sample == 0 and row.id in sizes:
                asked = row.id, row.labels.get("paradigm")  # a question may be asked under each paradigm
                chosen.setdefault(asked, []).append(_original(row.said, rotation, sizes[row.id]))
    agreed = [len(set(said)) == 1 and None not in said for said in chosen.values()]
    return sum(agreed) / max(1, len(agreed))


def _original(said: str | None, rotation: int, count: int) -> str | None:
    """The letter that a chosen option had before the rotation."""
    if not said or said not in LETTERS[:count]:
        return None
    return LETTERS[(LETTERS.index(said) - rotation) % count]


def letter_bias(plain: Evaluation, repeats: Sequence[Control]) -> str:
    """The letter that is chosen most beyond its share of keys, over all orders, in points of all answers, those that
    cannot be read included: "A +12.3"."""
    orders = [plain, *(control.evaluation for control in repeats)]
    rows = [row for evaluation in orders for row in evaluation.rows if row.said]
    if not rows:
        return ""
    asked = sum(len(evaluation.rows) for evaluation in orders)
    excess = {letter: sum((row.said == letter) - (row.answer == letter) for row in rows) / asked for letter in LETTERS}
    letter = max(LETTERS, key=excess.__getitem__)
    return f"{letter} {100 * excess[letter]:+.1f}"


def sentence(model: str, plain: Evaluation, made: Sequence[Control]) -> str:
    """The share of a model's score that needs the image, in words; "" where no blind control was asked, nor pairs."""
    asked = _comparable(plain, made)
    blind = next((control for name in BLIND for control in asked if control.name == name), None)
    told = [_by_blindness(model, plain, blind)] if blind else []
    for control in asked:
        if control.name == "pairs":
            row = _pairs_row(control)
            told.append(
                f"{model}: of {row['items'] // 2} pairs of near-identical images with different keys "
                f"{row['changed']} % are right on both, and {row['told apart']} % are told apart."
            )
    return " ".join(told)


def _by_blindness(model: str, plain: Evaluation, blind: Control) -> str:
    ids = {row.id for row in blind.evaluation.rows}
    seeing = plain.over(ids)
    compared = compare_evaluations([blind.evaluation], [seeing])
    before = seeing.accuracy()["accuracy"]
    left = before - compared.difference
    need = Figure.percent(compared.difference, compared.low, compared.high, paired=True)
    doubt = "" if need.settled else " The interval holds 0: that the image is used is not shown."
    (interval,) = need.intervals()
    return (
        f"{model}: of {100 * before:.1f} % right on the {len(ids)} items with images {100 * left:.1f} % remain with "
        f"{TITLES[blind.name]}; {need.middle} points {interval} need the image.{doubt}"
    )
