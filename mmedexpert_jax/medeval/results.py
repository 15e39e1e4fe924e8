"""The record of a measured benchmark, and the files that hold its rows."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from mmedexpert_jax.data.benchmarks import Benchmark
from mmedexpert_jax.medeval.controls import Control
from mmedexpert_jax.medeval.evaluate import Evaluation

LONGEST = 240  # bytes of a file's name, of at most 255, before its ending


@dataclass(frozen=True)
class Result:
    """A benchmark, and by model what was measured on it."""

    benchmark: Benchmark
    evaluations: dict[str, Evaluation]
    controls: dict[str, list[Control]] = field(default_factory=dict)  # that were asked
    kept_back: dict[str, int] = field(default_factory=dict)  # number of items that `privacy=refuse` did not send


def slug(name: str) -> str:
    """A name as a file name; of one too long for a file system its beginning and a hash."""
    made = "".join(char if char.isalnum() or char in "-." else "-" for char in name).strip("-.")
    if len(made.encode()) <= LONGEST:
        return made
    digest = f"-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return made.encode()[: LONGEST - len(digest)].decode(errors="ignore") + digest


def rows_path(folder: Path, benchmark: str, model: str) -> Path:
    """The file of the rows of a model on a benchmark, in a run's folder."""
    return folder / "export" / "rows" / slug(benchmark) / f"{slug(model)}.jsonl"
