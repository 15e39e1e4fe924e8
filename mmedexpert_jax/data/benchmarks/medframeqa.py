"""MedFrameQA (Yu et al. 2025): questions over two to five frames of a medical video; the hub's Parquet files."""

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case

IMAGES = tuple(f"image_{n}" for n in range(1, 6))


@reader(
    "medframeqa",
    "MedFrameQA",
    files="test-*.parquet",
    images=IMAGES,
    hub="SuhaoYu1020/MedFrameQA",
    hub_files="data/test-*.parquet",
    strata=("system",),
    licence="CC BY 4.0 (hub page)",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    texts = row.texts("options")
    return Case(
        id=row.label("question_id") or str(row.number),
        question=row.text("question"),
        options=texts,
        answer=row.letter(len(texts), "correct_answer"),
        images=tuple(row.image(key) for key in IMAGES if row.values.get(key) is not None),
        labels={key: row.label(key) for key in ("system", "organ", "modality")},
    )
