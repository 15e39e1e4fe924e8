"""VQA-RAD (Lau et al. 2018): the hub's Parquet files, or the original JSON with its image folder."""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.benchmarks.vqa import fields
from mmedexpert_jax.data.case import Case

ORIGINAL = "VQA_RAD Dataset Public.json"


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    if not (found := files.find(f"{split}-*.parquet")):
        found = files.need(ORIGINAL, f"{split}-*.parquet")
    for row in rows.read_all(found):
        phrase = row.values.get("phrase_type")
        if phrase is None or str(phrase).startswith("test") == (split == "test"):
            yield row


@reader(
    "vqa_rad",
    "VQA-RAD",
    rows=_rows,
    splits=("test", "train"),
    hub="flaviagiammarino/vqa-rad",
    hub_files="data/{split}-*.parquet",
    expects=f"data/test-*.parquet, or {ORIGINAL} and its images",
    strata=("kind",),
    columns={"kind": {"yes_no": "closed", "open": "open"}},
    published=lambda split, subset: {"items": 451} if split == "test" else {},
    licence="CC0 1.0 (hub card)",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    original = "image_name" in row.values
    image = files.image(row.text("image_name"), row.where) if original else row.image("image")
    labels = {"organ": row.label("image_organ"), "question_type": row.label("question_type")} if original else {}
    shared = fields(row)
    return Case(
        id=row.text("qid") if original else str(row.number),
        images=(image,),
        labels=labels | {"kind": shared["kind"]},
        **shared,
    )
