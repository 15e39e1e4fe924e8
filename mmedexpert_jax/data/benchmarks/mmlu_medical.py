"""MMLU's medical subjects (Hendrycks et al. 2021), text only: the hub's Parquet files, one folder a subject.

Six subjects are what MultiMedQA and most papers count; MedEvalKit adds nutrition, virology and high_school_biology.
"""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case

SIX = {
    "anatomy": 135,
    "clinical_knowledge": 265,
    "college_biology": 144,
    "college_medicine": 173,
    "medical_genetics": 100,
    "professional_medicine": 272,
}
PUBLISHED = {"items": sum(SIX.values()), "subject": SIX}
SUBJECTS = {"six": tuple(SIX), "nine": (*SIX, "nutrition", "virology", "high_school_biology")}


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    for subject in SUBJECTS[subset]:
        for part in files.need(f"{subject}/{split}-*.parquet"):
            for row in rows.read(part):
                yield row.having(subject=subject, id=f"{subject}-{row.number}")


@reader(
    "mmlu_medical",
    "MMLU, medical subjects",
    rows=_rows,
    splits=("test", "validation", "dev"),
    subsets=("six", "nine"),
    hub="cais/mmlu",
    hub_files={part: [f"{subject}/{{split}}-*.parquet" for subject in some] for part, some in SUBJECTS.items()},
    expects="anatomy/test-00000-of-00001.parquet and those of the other subjects",
    strata=("subject",),
    columns={"subject": {name: name.replace("_", " ") for name in SIX}},
    published=lambda split, subset: PUBLISHED if (split, subset) == ("test", "six") else {},
    licence="MIT (a hub copy's card)",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    texts = row.texts("choices", 4)
    return Case(
        id=row.text("id"),
        question=row.text("question"),
        options=texts,
        answer=row.place("answer", 4),
        labels={"subject": row.text("subject")},
    )
