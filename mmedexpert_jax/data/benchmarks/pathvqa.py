"""PathVQA (He et al. 2020): the hub's Parquet files."""

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.benchmarks.vqa import fields
from mmedexpert_jax.data.case import Case

COUNTS = {"test": 6_719, "validation": 6_259, "train": 19_654}


@reader(
    "pathvqa",
    "PathVQA",
    files="{split}-*.parquet",
    splits=tuple(COUNTS),
    hub="flaviagiammarino/path-vqa",
    hub_files="data/{split}-*.parquet",
    expects="data/test-*.parquet",
    strata=("kind",),
    columns={"kind": {"yes_no": "closed", "open": "open"}},
    published=lambda split, subset: {"items": COUNTS[split]},
    licence="MIT (hub card); images of textbooks and of PEIR belong to their owners",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    shared = fields(row)
    return Case(id=str(row.number), images=(row.image("image"),), labels={"kind": shared["kind"]}, **shared)
