"""MMedExpert-mini: the embedded set, or any directory of cases in its schema, as a benchmark."""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks.benchmark import from_case
from mmedexpert_jax.data.benchmarks.registry import Spec, register
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import SPECIALTIES, Case
from mmedexpert_jax.data.case_files import EMBEDDED, load_cases


def _rows(files: Files, split: str, subset: str) -> Iterable[Case]:
    return load_cases(files.root, split)


def _item(case: Case, files: Files, subset: str) -> Case:
    return from_case(case)


register(
    Spec(
        name="mmedexpert_mini",
        title="MMedExpert-mini",
        rows=_rows,
        item=_item,
        splits=("test", "dev", "train"),
        expects="test.parquet or test.jsonl",
        default=str(EMBEDDED),
        strata=("specialty", "task"),
        columns={"specialty": {name: name for name in SPECIALTIES}},
        licence="per source, see the data card",
    )
)
