"""MMMU, Health and Medicine (Yue et al. 2024), validation: the hub's Parquet files of five subjects.

The test part has no answers. Images of the options stand among the item's images, in order of their number.
"""

from collections.abc import Iterable

from mmedexpert_jax import border
from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.benchmarks.vqa import kind_of
from mmedexpert_jax.data.case import Case

SUBJECTS = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)
IMAGES = tuple(f"image_{n}" for n in range(1, 8))


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    for subject in SUBJECTS:
        for file in files.need(f"{subject}/{split}-*.parquet"):
            for row in rows.read(file, images=IMAGES):
                yield row.having(subject=subject)


@reader(
    "mmmu_medical",
    "MMMU Health & Medicine",
    rows=_rows,
    splits=("validation", "dev"),
    hub="MMMU/MMMU",
    hub_files=tuple(f"{subject}/{{split}}-*.parquet" for subject in SUBJECTS),
    expects="Clinical_Medicine/validation-*.parquet and the four other subjects",
    strata=("subject",),
    columns={"subject": {name.replace("_", " "): name.replace("_", " ") for name in SUBJECTS}},
    published=lambda split, subset: {"items": {"validation": 150, "dev": 25}[split]},
    licence="Apache-2.0 (a copy of the hub card)",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    choice = row.text("question_type") == "multiple-choice"
    options = _options(row) if choice else ()
    answer, *others = [row.letter(len(options), "answer")] if choice else _accepted(row)
    accepted = {"accepted": tuple(others)} if others else {}
    images = tuple(row.image(key) for key in IMAGES if row.values.get(key) is not None)
    return Case(
        id=row.text("id"),
        question=row.text("question"),
        options=options,
        answer=answer,
        images=images,
        kind="choice" if choice else kind_of(answer),
        labels={"subject": row.text("subject").replace("_", " "), "difficulty": row.label("topic_difficulty")},
        columns={"kit": "mmmu"} | accepted,
    )


def _options(row: rows.Row) -> tuple[str, ...]:
    """The list that the cell spells as Python."""
    texts = row.parsed("options")
    if not isinstance(texts, list) or not 2 <= len(texts) <= 10:
        raise row.bad("options", f"2 to 10 texts are needed, got {border.shown(texts)}")
    return tuple(str(text).strip() for text in texts)


def _accepted(row: rows.Row) -> list[str]:
    """The answers that are right for an open question, of which the cell may spell a list as Python."""
    found = row.parsed("answer")
    texts = [str(text).strip() for text in found] if isinstance(found, list) else []
    return [text for text in texts if text] or [row.text("answer")]
