"""MMedExpert-mini: the embedded set, or any directory of cases in its schema, as a benchmark."""

from collections.abc import Iterator

from mmedexpert_jax.data.benchmarks.benchmark import from_case
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.rows import Row
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import SPECIALTIES, Case
from mmedexpert_jax.data.case_files import EMBEDDED, find, read_cases, with_images
from mmedexpert_jax.errors import DataError


def _rows(files: Files, split: str, subset: str) -> Iterator[Case | Row]:
    broken: list[DataError] = []
    yield from read_cases(find(files.root, split), refuse=broken.append)
    yield from (Row({}, "", 0, str(error)) for error in broken)


@reader(
    "mmedexpert_mini",
    "MMedExpert-mini",
    rows=_rows,
    splits=("test", "dev", "train"),
    expects="test.parquet or test.jsonl",
    default=str(EMBEDDED),
    strata=("specialty", "task"),
    columns={"specialty": {name: name for name in SPECIALTIES}},
    licence="per source, see the data card",
)
def _benchmark(case: Case, files: Files, subset: str) -> Case:
    return from_case(with_images(case))
