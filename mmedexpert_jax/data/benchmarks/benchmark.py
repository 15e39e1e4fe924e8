"""The record of a benchmark: what every loader gives and all of evaluation takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.processing.images import ImageRef


@dataclass(frozen=True)
class ScoredCriterion:
    """A criterion of a rubric."""

    text: str  # what a response does, wanted or not
    points: float  # that it earns; below 0 where it is not wanted
    tags: tuple[str, ...] = ()  # "axis:accuracy", "level:example" ..


@dataclass(frozen=True)
class Benchmark:
    """The questions of one split of a benchmark."""

    name: str  # in the registry
    title: str  # as the paper writes it
    items: Sequence[Case]  # in the file's order
    # label -> {its value: heading}, in the order of the paper's table; empty where it has the total only
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # what was counted (`census.count`), with what differs from the published counts
    census: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels whose values make columns of the paper's table."""
        return tuple(self.columns)


def from_case(case: Case, benchmark: str = "mmedexpert_mini") -> Case:
    """A case of the training data as a benchmark's, with the labels that accuracies are broken down by."""
    labels = {"specialty": case.specialty, "task": case.task, "modality": case.modality, "paradigm": case.paradigm}
    # what else is right stays; a row's other columns are not a kit's
    columns = {key: value for key, value in case.columns.items() if key == "accepted"}
    return replace(case, benchmark=benchmark, labels=labels, columns=columns)


def Item(  # a class once: benchmark files that people wrote call it so
    id: str,
    benchmark: str,
    question: str,
    options: tuple[str, ...],
    answer: str,
    images: tuple[ImageRef, ...] = (),
    kind: str = "choice",
    labels: Mapping[str, str] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Case:
    """A benchmark's case by the arguments of earlier versions; `meta` holds its columns."""
    shared: dict[str, Any] = {"images": images, "kind": kind, "labels": labels or {}, "columns": meta or {}}
    return Case(id, question, options, answer, benchmark=benchmark, paradigms=(), **shared)
