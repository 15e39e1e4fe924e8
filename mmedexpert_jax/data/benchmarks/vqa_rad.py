"""VQA-RAD (Lau et al. 2018): the hub's Parquet files, or the original JSON with its image folder."""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.registry import Spec, register
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.benchmarks.vqa import fields
from mmedexpert_jax.data.case import Case

ORIGINAL = "VQA_RAD Dataset Public.json"


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    if not (found := files.find(f"{split}-*.parquet")):
        found = files.need(ORIGINAL, f"{split}-*.parquet")
    number = 0  # over all parts
    for file in found:
        for row in rows.read(file):
            number += 1
            if "phrase_type" not in row.values or str(row.values["phrase_type"]).startswith("test") == (
                split == "test"
            ):
                yield rows.Row(row.values, row.where, number, row.problem)


def _item(row: rows.Row, files: Files, subset: str) -> Case:
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


register(
    Spec(
        name="vqa_rad",
        title="VQA-RAD",
        rows=_rows,
        item=_item,
        splits=("test", "train"),
        hub="flaviagiammarino/vqa-rad",
        hub_files=lambda split, subset: (f"data/{split}-*.parquet",),
        expects=f"data/test-*.parquet, or {ORIGINAL} and its images",
        strata=("kind",),
        columns={"kind": {"yes_no": "closed", "open": "open"}},
        published=lambda split, subset: {"items": 451} if split == "test" else {},
        licence="CC0 1.0 (hub card)",
    )
)
