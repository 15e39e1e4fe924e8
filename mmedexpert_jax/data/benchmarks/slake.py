"""SLAKE (Liu et al. 2021), English and Chinese: test.json and imgs/."""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.benchmarks.vqa import fields
from mmedexpert_jax.data.case import Case

COUNTS = {  # English and Chinese items
    "test": {"en": 1_061, "zh": 1_033},
    "validation": {"en": 1_053, "zh": 1_046},
    "train": {"en": 4_919, "zh": 4_916},
}


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    names = {"validation": ("validation.json", "validate.json")}.get(split, (f"{split}.json",))
    return (row for row in rows.read(files.one(*names)) if subset in ("all", row.values.get("q_lang", "en")))


@reader(
    "slake",
    "SLAKE",
    rows=_rows,
    splits=tuple(COUNTS),
    subsets=("en", "zh", "all"),
    hub="BoKelvin/SLAKE",
    hub_files=("{split}.json", "imgs.zip"),
    expects="test.json and imgs/ or imgs.zip",
    strata=("language", "answer_type", "modality"),
    columns={"answer_type": {"closed": "closed", "open": "open"}},
    published=lambda split, subset: {
        "items": sum(COUNTS[split].values()) if subset == "all" else COUNTS[split][subset]
    },
    licence="CC BY 4.0 (hub page)",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    shared = fields(row)
    closed = row.text("answer_type").upper() == "CLOSED"
    # MedEvalKit looks for "yes" and "no" in lower case, so that "Yes" is held to its rule for a word or phrase.
    shared["columns"] |= {"kit": "close" if closed else "open"}
    labels = {"answer_type": "closed" if closed else "open", "modality": row.label("modality")}
    labels["language"] = row.label("q_lang") or "en"
    return Case(
        id=row.text("qid"),
        images=(files.image(f"imgs/{row.text('img_name')}", row.where),),
        labels=labels | {"content_type": row.label("content_type"), "location": row.label("location")},
        **shared,
    )
