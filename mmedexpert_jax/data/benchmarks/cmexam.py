"""CMExam (Liu et al. 2023), the Chinese medical licensing examination, text only: the authors' CSV or the hub's copy.

A key of several letters stays ("A, B, D"): no single choice is right, which is how MedEvalKit counts it, and the census
says how many there are. Rows without a key are left out, as the authors do.
"""

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case

LABELS = {"department": "Clinical Department", "discipline": "Medical Discipline", "difficulty": "Difficulty level"}


@reader(
    "cmexam",
    "CMExam",
    files=("{split}_with_annotations.csv", "{split}.csv", "{split}.json*", "{split}-*.parquet"),
    keep=lambda row, split, subset: row.label("Answer"),
    hub="fzkuji/CMExam",
    hub_files="*{split}*",
    expects="test_with_annotations.csv or test.csv (the authors), or a copy's test.json",
    strata=("department",),
    licence="Apache-2.0 (hub page)",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    texts = row.choices("Options")
    return Case(
        id=str(row.number),
        question=row.text("Question"),
        options=texts,
        answer=row.letters(len(texts), "Answer"),
        labels={label: row.label(column) for label, column in LABELS.items()} | {"language": "zh"},
        columns={"raw_options": rows.tight(texts), "raw_answer": row.text("Answer")},
    )
