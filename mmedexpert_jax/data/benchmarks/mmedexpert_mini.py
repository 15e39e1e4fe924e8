"""MMedExpert-mini: the embedded set, or any directory of cases in its schema, as a benchmark."""

from mmedexpert_jax.data.benchmarks.benchmark import from_case
from mmedexpert_jax.data.benchmarks.registry import Spec, register
from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.data.case_files import EMBEDDED, load_cases

register(
    Spec(
        name="mmedexpert_mini",
        title="MMedExpert-mini",
        rows=lambda files, split, subset: load_cases(files.root, split),
        item=lambda case, files, subset: from_case(case),
        splits=("test", "dev", "train"),
        expects="test.parquet or test.jsonl",
        default=str(EMBEDDED),
        strata=("specialty", "task"),
        columns={"specialty": {name: name for name in SPECIALTIES}},
        licence="per source, see the data card",
    )
)
