"""MedQA, USMLE (Jin et al. 2021), text only: four options (hub copy) or five (the authors' files)."""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.registry import Spec, register
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import LETTERS, Case


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    name = f"phrases_no_exclude_{split}.jsonl" if subset == "4_options" else f"US/{split}.jsonl"
    return rows.read(files.one(name))


def _item(row: rows.Row, files: Files, subset: str) -> Case:
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


register(
    Spec(
        name="medqa",
        title="MedQA-USMLE",
        rows=_rows,
        item=_item,
        splits=("test", "train"),
        subsets=("4_options", "5_options"),
        hub="GBaker/MedQA-USMLE-4-options",
        hub_files=lambda split, subset: (f"phrases_no_exclude_{split}.jsonl",) if subset == "4_options" else (),
        expects="phrases_no_exclude_test.jsonl (4 options) or US/test.jsonl (5 options)",
        strata=("step",),
        published=lambda split, subset: {"test": {"items": 1_273}}.get(split, {}),
        licence="CC BY 4.0 (hub page); MIT (the authors' repository)",
    )
)
