"""CMMLU's medical subjects (Li et al. 2023), Chinese, text only: the authors' CSV files, one a subject, or their zip.

The seven subjects are MedEvalKit's.
"""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case

SUBJECTS = {
    "anatomy": 148,
    "clinical_knowledge": 237,
    "college_medicine": 273,
    "genetics": 176,
    "traditional_chinese_medicine": 185,
    "nutrition": 145,
    "virology": 169,
}


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    for subject in SUBJECTS:
        for row in rows.read(files.one(f"{split}/{subject}.csv")):
            yield row.having(subject=subject)


@reader(
    "cmmlu_medical",
    "CMMLU, medical subjects",
    rows=_rows,
    splits=("test", "dev"),
    hub="haonan-li/cmmlu",
    hub_files="*.zip",
    expects="test/anatomy.csv and those of the other subjects",
    strata=("subject",),
    columns={"subject": {name: name.replace("_", " ") for name in SUBJECTS}},
    published=lambda split, subset: (
        {"items": sum(SUBJECTS.values()), "subject": SUBJECTS} if split == "test" else {"items": 5 * len(SUBJECTS)}
    ),
    licence="CC BY-NC-SA 4.0 (the authors' repository)",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    texts = tuple(row.text(letter) for letter in "ABCD")
    return Case(
        id=f"{row.text('subject')}-{row.number}",
        question=row.text("Question"),
        options=texts,
        answer=row.letter(4, "Answer"),
        labels={"subject": row.text("subject"), "language": "zh"},
        columns={"raw_options": rows.tight(texts)},
    )
