"""SuperGPQA's discipline Medicine (M-A-P 2025), text only, 4 to 10 options: the hub's JSON Lines or Parquet."""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.registry import Spec, register
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import LETTERS, Case


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    parts = files.need("SuperGPQA-all.jsonl", "train-*.parquet")
    return (row for part in parts for row in rows.read(part) if row.values.get("discipline", "Medicine") == "Medicine")


def _item(row: rows.Row, files: Files, subset: str) -> Case:
    texts = row.texts("options")
    answer = row.letter(len(texts), "answer_letter")
    if (said := row.label("answer")) and said != texts[LETTERS.index(answer)]:
        raise row.bad("answer", f"it is not the text of option {answer}")
    return Case(
        id=row.text("uuid"),
        question=row.text("question"),
        options=texts,
        answer=answer,
        labels={key: row.label(key) for key in ("field", "difficulty")},
    )


register(
    Spec(
        name="supergpqa_medicine",
        title="SuperGPQA, medicine",
        rows=_rows,
        item=_item,
        hub="m-a-p/SuperGPQA",
        hub_files=lambda split, subset: ("SuperGPQA-all.jsonl",),
        expects="SuperGPQA-all.jsonl, or train-*.parquet",
        strata=("field", "difficulty"),
        licence="ODC-BY (hub card); parts under their sources' own licences",
    )
)
