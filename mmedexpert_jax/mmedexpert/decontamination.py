"""Decontamination: raw cases held against the test sets of the evaluation, and the sets that were not at hand."""

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmedexpert_jax.data import benchmarks, contamination
from mmedexpert_jax.data.benchmarks import Benchmark
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.mmedexpert.record import RawCase

# "all=<folder>": every known benchmark whose directory or zip stands there under its name, with all its subsets
EVERY = "all="


def test_sets(entries: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of the entries, "name[:subset][@split][=source]" or "all=<folder>".

    Raises:
        ConfigError, DataError, RemoteError: as `benchmarks.load`; DataError where a folder holds no benchmark.
    """
    found = []
    for entry in entries:
        if entry.startswith(EVERY):
            found += _of_folder(Path(entry.removeprefix(EVERY)).expanduser())
        else:
            found.append(benchmarks.load_entry(entry, skip_broken=True))
    return found


def leaked(records: Sequence[RawCase], tests: Sequence[Benchmark]) -> contamination.Findings:
    """Pairs of a record and a test item that share their text or an image."""
    items = [(known.name, item) for known in tests for item in known.items]
    return contamination.find([("raw", record) for record in records], items)


def compared(tests: Sequence[Benchmark]) -> dict[str, int]:
    """Items by test set: what the cases were held against; 0 for a known set that was not at hand."""
    found = dict.fromkeys(benchmarks.names(), 0)
    for known in tests:
        found[known.name] = found.get(known.name, 0) + len(known.items)
    return found


def line(found: contamination.Findings, compared: dict[str, int]) -> str:
    """The comparison's result in one line, with the known test sets that are still to be compared."""
    held = ", ".join(f"{name} ({count} items)" for name, count in compared.items() if count)
    missing = ", ".join(name for name, count in compared.items() if not count)
    dropped, seen = len(found.dropped()), len({pair.train_id for pair in found.pairs if pair.decision == "review"})
    said = f"held against {held or 'no test set'}: {dropped} cases dropped, {seen} to look at in contamination.csv"
    return said + (f"; not held against {missing}: name their files in config.benchmarks" if missing else "")


def table(compared: dict[str, int]) -> list[dict[str, str | int]]:
    """`compared` as rows of a report."""
    return [{"test set": name, "items": count or "not at hand"} for name, count in compared.items()]


def _of_folder(folder: Path) -> list[Benchmark]:
    """The benchmarks that lie in a folder, and those that come with the package."""
    places = {name: (folder / name, folder / f"{name}.zip") for name in benchmarks.names()}
    there = {name: path for name, paths in places.items() for path in paths if path.exists()}
    if not there:
        raise DataError(
            f"config.benchmarks: {folder} holds no benchmark; put each there in a directory or zip of its name "
            f"({', '.join(benchmarks.names())})"
        )
    names = [name for name in places if name in there or benchmarks.spec(name).default]
    return [_whole(name, there[name]) if name in there else benchmarks.load(name, skip_broken=True) for name in names]


def _whole(name: str, source: Path) -> Benchmark:
    """A benchmark with the items of every subset and test split whose files are there, each once. Raises DataError
    where the first is not."""
    known = benchmarks.spec(name)
    first = benchmarks.load(name, source, skip_broken=True)
    items = {_told(item): item for item in first.items}
    splits = [split for split in known.splits if split == known.splits[0] or split.startswith("test")]
    for split, subset in [*itertools.product(splits, known.subsets)][1:]:
        with contextlib.suppress(DataError):  # that it is not there; the line tells how many items are
            found = benchmarks.load(name, source, split=split, subset=subset, skip_broken=True)
            items |= {_told(item): item for item in found.items}
    return replace(first, items=tuple(items.values()))


def _told(item: Case) -> tuple[str, str, tuple[str, ...]]:
    """An item's id and texts: subsets share items, and some count their ids anew."""
    return item.id, item.question, item.options
