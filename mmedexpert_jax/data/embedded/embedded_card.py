"""The data card of MMedExpert-mini, README.md beside the splits: written from the splits themselves."""

from collections import Counter
from pathlib import Path

from mmedexpert_jax.data.case import LETTERS, SPECIALTIES, SPLITS, Case
from mmedexpert_jax.data.case_files import load_cases
from mmedexpert_jax.data.embedded import baselines
from mmedexpert_jax.data.embedded.recipe import TASKS
from mmedexpert_jax.data.embedded.traces import PARADIGMS
from mmedexpert_jax.report import pages
from mmedexpert_jax.report.text_tables import markdown


def write_card(directory: Path) -> None:
    """Writes README.md for the splits in `directory`, from the template card.md."""
    cases = {split: load_cases(directory, split) for split in SPLITS}
    parts = {
        "counts": _counts(cases),
        "tasks": _tasks(cases),
        "baselines": baselines.table(cases["train"], cases["test"]),
        "example": _example(cases["train"]),
    }
    text = pages.render("data/embedded/card.md", **parts) + "\n"
    (directory / "README.md").write_text(text, encoding="utf-8")


def _table(heads: list[str], lines: list[list[object]]) -> str:
    return markdown([dict(zip(heads, line, strict=True)) for line in lines]).rstrip("\n")


def _counts(cases: dict[str, list[Case]]) -> str:
    lines = []
    for split, members in cases.items():
        specialties, modalities = Counter(c.specialty for c in members), Counter(c.modality for c in members)
        paradigms = Counter(c.paradigm for c in members)
        pictured = f"{modalities['image']} ({modalities['image'] / len(members):.0%})"
        by_specialty, by_paradigm = [specialties[s] for s in SPECIALTIES], [paradigms[p] for p in PARADIGMS]
        lines.append([split, len(members), *by_specialty, pictured, *by_paradigm])
    return _table(["split", "cases", *SPECIALTIES, "with image", *PARADIGMS], lines)


def _tasks(cases: dict[str, list[Case]]) -> str:
    counts = {split: Counter(case.task for case in members) for split, members in cases.items()}
    images = {case.task for members in cases.values() for case in members if case.images}
    return _table(
        ["task", "specialty", "kind", "rule", "DOI", "options", "source", "licence", *cases],
        [
            [
                *(task.task, task.specialty, "image" if task.task in images else "text", task.title),
                *(f"[{task.doi}](https://doi.org/{task.doi})", "; ".join(task.options), task.source, task.licence),
                *(counts[split][task.task] for split in cases),
            ]
            for task in TASKS
        ],
    )


def _example(train: list[Case]) -> str:
    shown = (case for case in train if case.paradigm == "differential" and case.task == "curb65")
    case = next(case for case in shown if len(case.trace.split()) > 30)
    options = " ".join(f"({letter}) {text}" for letter, text in zip(LETTERS, case.options, strict=False))
    return f"> {case.question} {options}\n>\n> {case.trace} Answer: {case.answer}."
