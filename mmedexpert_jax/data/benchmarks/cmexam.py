"""CMExam (Liu et al. 2023), the Chinese medical licensing examination, text only: the authors' CSV or the hub's copy.

A key of several letters stays ("A, B, D"): no single choice is right, which is how MedEvalKit counts it, and the census
says how many there are. Rows without a key are left out, as the authors do.
"""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.registry import Spec, register
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case

LABELS = {"department": "Clinical Department", "discipline": "Medical Discipline", "difficulty": "Difficulty level"}


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    found = files.need(f"{split}_with_annotations.csv", f"{split}.csv", f"{split}.json*", f"{split}-*.parquet")
    return (row for row in rows.read_all(found) if row.problem or row.label("Answer"))


def _item(row: rows.Row, files: Files, subset: str) -> Case:
    texts = row.choices("Options")
    return Case(
        id=str(row.number),
        question=row.text("Question"),
        options=texts,
        answer=row.letters(len(texts), "Answer"),
        labels={label: row.label(column) for label, column in LABELS.items()} | {"language": "zh"},
        columns={"raw_options": rows.tight(texts), "raw_answer": row.text("Answer")},
    )


register(
    Spec(
        name="cmexam",
        title="CMExam",
        rows=_rows,
        item=_item,
        hub="fzkuji/CMExam",
        hub_files=lambda split, subset: (f"*{split}*",),
        expects="test_with_annotations.csv or test.csv (the authors), or a copy's test.json",
        strata=("department",),
        licence="Apache-2.0 (hub page)",
    )
)
