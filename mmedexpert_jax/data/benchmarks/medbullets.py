"""Medbullets (Chen et al. 2024), USMLE steps 2 and 3, text only, with four or five options: the copies that
MedEvalKit reads, or the authors' CSV files."""

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case

LETTERS = {"op4": "ABCD", "op5": "ABCDE"}


@reader(
    "medbullets",
    "Medbullets",
    files=("medbullets_{subset}.csv", "medbullets_{subset}.jsonl", "train-*.parquet", "test-*.parquet"),
    subsets=("op4", "op5"),
    hub="tuenguyen/Medical-Eval-MedBullets_op4",
    hub_files={"op4": "data/train-*.parquet"},
    expects="medbullets_op4.csv or medbullets_op5.csv, or a hub copy's train-*.parquet",
    published={"items": 308},
    licence="none in the authors' repository; Apache-2.0 by the card of a third party's copy",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    letters = LETTERS[subset]
    apart = [f"op{letter.lower()}" for letter in letters]
    texts = row.choices("options") if "options" in row.values else tuple(map(row.text, apart))
    if len(texts) != len(letters):
        raise row.bad("options", f"{len(letters)} options are needed, got {len(texts)}; name the other subset")
    return Case(
        id=str(row.number), question=row.text("question"), options=texts, answer=row.letter(len(texts), "answer_idx")
    )
