"""The record of a benchmark's question, and of a benchmark: what every loader gives and all of evaluation takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.processing.images import ImageRef

GRADED = ("report", "rubric")  # whose answers earn a share: by measures of text, or by a judge, criterion by criterion
KINDS = ("choice", "yes_no", "open", *GRADED)


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: stable and unique within its benchmark, subset and split.
        benchmark: name in the registry.
        question: without the options; of a conversation its last user turn.
        options: texts without letters, in order; empty unless `kind` is "choice".
        answer: letter of the right option; "yes" or "no"; or the gold text. Where a file's key is no option's text,
            that text stands for a choice too, and `scoring` holds nothing right under "strict".
        images: in order; read when opened.
        kind: one of KINDS.
        labels: what accuracies are broken down by: task, modality, department ...
        turns: (role, text) of a conversation before the question.
        meta: what else the file says. A "rubric" has its `criteria`. The keys `raw_question`, `raw_options` and
            `raw_answer` hold the file's own text where it differs from the cleaned fields: peers' prompts and scorers
            use them.
    """

    id: str
    benchmark: str
    question: str
    options: tuple[str, ...]
    answer: str
    images: tuple[ImageRef, ...] = ()
    kind: str = "choice"
    labels: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ScoredCriterion:
    """A criterion of a rubric.

    Attributes:
        text: what a response does, wanted or not.
        points: that it earns; below 0 where it is not wanted.
        tags: "axis:accuracy", "level:example" ...
    """

    text: str
    points: float
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """The questions of one split of a benchmark.

    Attributes:
        name: in the registry.
        title: as the paper writes it.
        items: in the file's order.
        columns: label -> {its value: heading}, in the order of the paper's table; empty where it has the total only.
        metric: of the headline: "micro" (mean over items) or "macro" (mean of the means by the first label's values).
        census: what was counted (`census.count`), with what differs from the published counts.
    """

    name: str
    title: str
    items: Sequence[Item]
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    metric: str = "micro"
    census: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels whose values make columns of the paper's table."""
        return tuple(self.columns)


def from_case(case: Case, benchmark: str = "mmedexpert_mini") -> Item:
    """A case of the training data as an item."""
    return Item(
        id=case.id,
        benchmark=benchmark,
        question=case.question,
        options=case.options,
        answer=case.answer,
        images=case.images,
        kind=case.kind,
        labels={
            "specialty": case.specialty,
            "task": case.task,
            "modality": case.modality,
            "paradigm": case.paradigm,
        },
        meta={"paradigms": case.paradigms},
    )
