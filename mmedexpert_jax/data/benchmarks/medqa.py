"""MedQA, USMLE (Jin et al. 2021), text only: four options (hub copy) or five (the authors' files)."""

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import LETTERS, Case


@reader(
    "medqa",
    "MedQA-USMLE",
    file={"4_options": "phrases_no_exclude_{split}.jsonl", "5_options": "US/{split}.jsonl"},
    splits=("test", "train"),
    subsets=("4_options", "5_options"),
    hub="GBaker/MedQA-USMLE-4-options",
    hub_files={"4_options": "phrases_no_exclude_{split}.jsonl"},
    expects="phrases_no_exclude_test.jsonl (4 options) or US/test.jsonl (5 options)",
    strata=("step",),
    published=lambda split, subset: {"test": {"items": 1_273}}.get(split, {}),
    licence="CC BY 4.0 (hub page); MIT (the authors' repository)",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    texts = row.choices("options")
    answer = row.letter(len(texts), "answer_idx")
    if (said := row.label("answer")) and said != texts[LETTERS.index(answer)]:
        raise row.bad("answer", f"{said!r} is not the text of option {answer}")
    return Case(
        id=str(row.number),
        question=row.text("question"),
        options=texts,
        answer=answer,
        labels={"step": row.label("meta_info")},
    )
