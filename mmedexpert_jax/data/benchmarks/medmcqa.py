"""MedMCQA (Pal et al. 2022), text only: the hub's Parquet files (keys from 0) or the authors' dev.json (keys from 1).

The test split has no keys; validation is what everybody reports.
"""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case

AUTHORS = {"validation": "dev.json", "train": "train.json"}


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    if parts := files.find(f"{split}-*.parquet"):
        return (row for part in parts for row in rows.read(part))
    lines = files.one(f"{split}.jsonl", AUTHORS[split])
    first = 1 if lines[0].endswith(AUTHORS[split]) else 0
    return (row.having(first=first) for row in rows.read(lines))


@reader(
    "medmcqa",
    "MedMCQA",
    rows=_rows,
    splits=("validation", "train"),
    hub="openlifescienceai/medmcqa",
    hub_files="data/{split}-*.parquet",
    expects="validation-00000-of-00001.parquet (hub) or dev.json (the authors)",
    strata=("subject",),
    published=lambda split, subset: {"items": {"validation": 4_183, "train": 182_822}[split]},
    licence="Apache-2.0 (hub page); MIT (the authors' repository)",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    texts = tuple(row.text(key) for key in ("opa", "opb", "opc", "opd"))
    return Case(
        id=row.text("id"),
        question=row.text("question"),
        options=texts,
        answer=row.place("cop", 4, row.values.get("first", 0)),
        labels={"subject": row.label("subject_name")},
    )
