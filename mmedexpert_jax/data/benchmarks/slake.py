"""SLAKE (Liu et al. 2021), English: test.json and imgs/."""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.item import Item
from mmedexpert_jax.data.benchmarks.registry import Spec, register
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.benchmarks.vqa import fields

COUNTS = {"test": 1_061, "validation": 1_053, "train": 4_919}


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    names = {"validation": ("validation.json", "validate.json")}.get(split, (f"{split}.json",))
    return (row for row in rows.read(files.one(*names)) if row.values.get("q_lang", "en") == "en")


def _item(row: rows.Row, files: Files, subset: str) -> Item:
    shared = fields(row)
    closed = row.text("answer_type").upper() == "CLOSED"
    # MedEvalKit looks for "yes" and "no" in lower case, so that "Yes" is held to its rule for a word or phrase.
    shared["meta"] |= {"kit": "close" if closed else "open"}
    labels = {"answer_type": "closed" if closed else "open", "modality": row.label("modality")}
    return Item(
        id=row.text("qid"),
        benchmark="slake",
        images=(files.image(f"imgs/{row.text('img_name')}", row.where),),
        labels=labels | {"content_type": row.label("content_type"), "location": row.label("location")},
        **shared,
    )


register(
    Spec(
        name="slake",
        title="SLAKE",
        rows=_rows,
        item=_item,
        splits=tuple(COUNTS),
        hub="BoKelvin/SLAKE",
        hub_files=lambda split, subset: (f"{split}.json", "imgs.zip"),
        expects="test.json and imgs/ or imgs.zip",
        strata=("answer_type", "modality"),
        columns={"answer_type": {"closed": "closed", "open": "open"}},
        published=lambda split, subset: {"items": COUNTS[split]},
        licence="CC BY 4.0 (hub card)",
    )
)
