"""SuperGPQA's discipline Medicine (M-A-P 2025), text only, 4 to 10 options: the hub's JSON Lines or Parquet."""

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import LETTERS, Case


@reader(
    "supergpqa_medicine",
    "SuperGPQA, medicine",
    files=("SuperGPQA-all.jsonl", "train-*.parquet"),
    keep=lambda row, split, subset: row.values.get("discipline", "Medicine") == "Medicine",
    hub="m-a-p/SuperGPQA",
    hub_files="SuperGPQA-all.jsonl",
    expects="SuperGPQA-all.jsonl, or train-*.parquet",
    strata=("field", "difficulty"),
    licence="ODC-BY (hub card); parts under their sources' own licences",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
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
