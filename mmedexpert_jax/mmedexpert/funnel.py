"""The funnel: how many cases are left after each stage, by modality, paradigm and specialty."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmedexpert_jax.data.case import PARADIGMS, SPECIALTIES
from mmedexpert_jax.mmedexpert.dataset_build import Built
from mmedexpert_jax.mmedexpert.record import RawCase, Trace
from mmedexpert_jax.mmedexpert.review import Verdict

STAGES = ("raw", "traced", "matched", "passed", "reviewed", "built")
MODALITIES = ("text", "image")
LABELS = ("modality", "paradigm", "specialty")  # of a cell
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
        counts["raw"].add(_place(record, paradigm))
    for trace in traces:
        place = _place(trace.case, trace.paradigm)
        counts["traced"].add(place)
        if trace.check.matched:
            counts["matched"].add(place)
        if trace.check.passed:
            counts["passed"].add(place)
        if trace.id in verdicts:
            counts["reviewed"].add(place)
    for one in built:
        counts["built"].add(_place(one.trace.case, one.trace.paradigm))
    sums = {stage: Counter(cell for cell, _ in places) for stage, places in counts.items()}
    rows: list[dict[str, Any]] = []
    for cell in itertools.product(MODALITIES, PARADIGMS, SPECIALTIES):
        found = {stage: sums[stage][cell] for stage in STAGES}
        if any(found.values()):
            rows.append(dict(zip(LABELS, cell, strict=True)) | found)
    return [*rows, {"modality": "all", "paradigm": "", "specialty": ""} | _sums(rows)]


def margins(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sums by modality, paradigm and specialty, and in all, as rows of one label each."""
    *cells, whole = rows
    out = []
    for label, values in zip(LABELS, (MODALITIES, PARADIGMS, SPECIALTIES), strict=True):
        for value in values:
            found = _sums([cell for cell in cells if cell[label] == value])
            if found["raw"]:
                out.append({"cases": value} | found)
    return [*out, {"cases": "all"} | {stage: whole[stage] for stage in STAGES}]


def _sums(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {stage: sum(row[stage] for row in rows) for stage in STAGES}


def _place(record: RawCase, paradigm: str) -> tuple[Cell, str]:
    """The cell that a case is counted in, and its id, by which it is counted once."""
    return (record.modality, paradigm, record.specialty), record.id
