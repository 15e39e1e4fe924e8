"""The funnel: how many cases are left after each stage, by modality, paradigm and specialty."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmedexpert_jax.data.case import PARADIGMS, SPECIALTIES
from mmedexpert_jax.mmedexpert.dataset_build import Built
from mmedexpert_jax.mmedexpert.record import RawCase, Trace
from mmedexpert_jax.mmedexpert.review import Verdict

STAGES = ("raw", "traced", "matched", "passed", "reviewed", "built")
Cell = tuple[str, str, str]


def funnel(
    pairs: Iterable[tuple[RawCase, str]],
    traces: Iterable[Trace],
    verdicts: Mapping[str, Verdict],
    built: Iterable[Built],
) -> list[dict[str, Any]]:
    """Rows of modality, paradigm, specialty and a count of cases for each of STAGES; the last row is the sum.

    "raw" are cases with a designated paradigm, "traced" those with an answer, "matched" those with a candidate whose
    answer is the key, "passed" those with one that passed stage 1 whole, "reviewed" those with one that has a verdict.
    """
    counts: dict[str, set[tuple[Cell, str]]] = {stage: set() for stage in STAGES}
    for record, paradigm in pairs:
        counts["raw"].add((_cell(record, paradigm), record.id))
    for trace in traces:
        place = (_cell(trace.case, trace.paradigm), trace.case.id)
        counts["traced"].add(place)
        if trace.check.answer is not None and "wrong-answer" not in trace.check.reasons:
            counts["matched"].add(place)
        if trace.check.passed:
            counts["passed"].add(place)
        if trace.id in verdicts:
            counts["reviewed"].add(place)
    for one in built:
        counts["built"].add((_cell(one.trace.case, one.trace.paradigm), one.trace.case.id))
    sums = {stage: Counter(cell for cell, _ in places) for stage, places in counts.items()}
    cells = [
        (modality, paradigm, specialty)
        for modality in ("text", "image")
        for paradigm in PARADIGMS
        for specialty in SPECIALTIES
        if any(sums[stage][modality, paradigm, specialty] for stage in STAGES)
    ]
    rows: list[dict[str, Any]] = [
        {"modality": cell[0], "paradigm": cell[1], "specialty": cell[2]} | {s: sums[s][cell] for s in STAGES}
        for cell in cells
    ]
    return [*rows, total(rows, "all")]


def total(rows: Sequence[Mapping[str, Any]], name: str, **where: str) -> dict[str, Any]:
    """The sum of the rows that have the given labels."""
    chosen = [row for row in rows if all(row[key] == value for key, value in where.items())]
    labels = {"modality": name, "paradigm": "", "specialty": ""} | where
    return labels | {stage: sum(row[stage] for row in chosen) for stage in STAGES}


def margins(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sums by modality, paradigm and specialty, and in all, as rows of one label each."""
    cells, out = rows[:-1], []
    labels = {"modality": ("text", "image"), "paradigm": PARADIGMS, "specialty": SPECIALTIES}
    for label, values in labels.items():
        for value in values:
            found = total(cells, "", **{label: value})
            if found["raw"]:
                out.append({"cases": value} | {stage: found[stage] for stage in STAGES})
    return [*out, {"cases": "all"} | {stage: rows[-1][stage] for stage in STAGES}]


def _cell(record: RawCase, paradigm: str) -> Cell:
    return record.modality, paradigm, record.specialty
