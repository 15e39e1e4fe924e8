"""MedQA, MCMLE (Jin et al. 2021): the Mainland Chinese part, five options: the authors' files or the hub's copy."""

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import LETTERS, Case


@reader(
    "medqa_mcmle",
    "MedQA-MCMLE",
    files=("Mainland/{split}.jsonl", "mcmle_{split}.jsonl", "train-*.parquet", "*MCMLE*.json*"),
    hub="shuyuej/MedQA-MCMLE-Benchmark",
    hub_files=("*.jsonl", "*.json", "data/train-*.parquet"),
    expects="Mainland/test.jsonl (the authors), or a copy's train-*.parquet",
    strata=("step",),
    published={"items": 3_426},
    licence="MIT (the authors' repository)",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    texts = row.choices("options")
    answer = row.letter(len(texts), "answer_idx")
    if (said := row.label("answer")) and said not in (answer, texts[LETTERS.index(answer)]):
        raise row.bad("answer", f"it is not the text of option {answer}")
    return Case(
        id=str(row.number),
        question=row.text("question"),
        options=texts,
        answer=answer,
        labels={"step": row.label("meta_info"), "language": "zh"},
        columns={"raw_options": texts},  # MedEvalKit shows them without letters
    )
