"""CMB-Exam (Wang et al. 2023), Chinese, text only: the questions with one right answer, as MedEvalKit takes them.

The authors' keys stand in a file of their own; theirs is a total over questions with several right answers too.
"""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case

QUESTIONS, KEYS = "CMB-test-choice-question-merge.json", "CMB-test-choice-answer.json"
SINGLE = "单项选择题"


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    keys = {row.label("id"): row.label("answer") for part in files.find(KEYS) for row in rows.read(part)}
    for row in rows.read_all(files.need(QUESTIONS, "CMB-test.json*", "test-*.parquet")):
        if row.problem or row.values.get("question_type", SINGLE) == SINGLE:
            yield row if "answer" in row.values else row.having(answer=keys.get(row.label("id")))


@reader(
    "cmb",
    "CMB-Exam, one right answer",
    rows=_rows,
    hub="FreedomIntelligence/CMB",
    hub_files=(f"*{QUESTIONS}", f"*{KEYS}"),
    expects=f"{QUESTIONS} and {KEYS}",
    strata=("class",),
    licence="Apache-2.0 (hub page)",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    texts = row.choices("option")
    return Case(
        id=row.label("id") or str(row.number),
        question=row.text("question"),
        options=texts,
        answer=row.letter(len(texts), "answer"),
        labels={"exam": row.label("exam_type"), "class": row.label("exam_class"), "language": "zh"},
        columns={"raw_options": rows.tight(texts)},
    )
