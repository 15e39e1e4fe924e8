"""MedFrameQA (Yu et al. 2025): questions over two to five frames of a medical video; the hub's Parquet files."""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.registry import Spec, register
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case

IMAGES = tuple(f"image_{n}" for n in range(1, 6))


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    return rows.read_all(files.need("test-*.parquet"), IMAGES)


def _item(row: rows.Row, files: Files, subset: str) -> Case:
    texts = row.texts("options")
    return Case(
        id=row.label("question_id") or str(row.number),
        question=row.text("question"),
        options=texts,
        answer=row.letter(len(texts), "correct_answer"),
        images=tuple(row.image(key) for key in IMAGES if row.values.get(key) is not None),
        labels={key: row.label(key) for key in ("system", "organ", "modality")},
    )


register(
    Spec(
        name="medframeqa",
        title="MedFrameQA",
        rows=_rows,
        item=_item,
        hub="SuhaoYu1020/MedFrameQA",
        hub_files=lambda split, subset: ("data/test-*.parquet",),
        expects="test-*.parquet",
        strata=("system",),
        licence="CC BY 4.0 (hub page)",
    )
)
