"""Decontamination: raw cases held against the test sets of the evaluation, and the sets that were not at hand."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmedexpert_jax.data import benchmarks, contamination
from mmedexpert_jax.data.benchmarks import Benchmark
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.mmedexpert.record import RawCase

# "all=<folder>": every known benchmark whose directory or zip stands there under its name, with all its subsets
EVERY = "all="
# beginnings of the splits and subsets that people train on: OmniMedVQA's train_1000; PubMedQA's labeled, half of it
TRAINING = ("train", "labeled")


def test_sets(entries: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of the entries, "name[:subset][@split][=source]" or "all=<folder>"; behind them, without items,
    the parts that are not held though others of their benchmark are.

    Raises:
        ConfigError, DataError, RemoteError: as `benchmarks.load`; DataError where a folder holds no benchmark.
    """
    found: list[Benchmark] = []
    named: dict[str, set[str]] = {}  # subsets of the split that is tested on, by benchmark
    for entry in entries:
        if entry.startswith(EVERY):
            found += _of_folder(Path(entry.removeprefix(EVERY)).expanduser())
        else:
            known = benchmarks.load_entry(entry, skip_broken=True)
            rest, _, split = entry.partition("=")[0].partition("@")
            tested = split in ("", benchmarks.spec(known.name).splits[0])
            named.setdefault(known.name, set()).update([rest.partition(":")[2]] if tested else [])
            found.append(known)
    return found + [part for name, subsets in named.items() for part in _unnamed(name, subsets)]


def leaked(records: Sequence[RawCase], tests: Sequence[Benchmark]) -> contamination.Findings:
    """Pairs of a record and a test item that share their text or an image."""
    items = [(known.name, item) for known in tests for item in known.items]
    return contamination.find([("raw", record) for record in records], items)


def compared(tests: Sequence[Benchmark]) -> dict[str, int]:
    """Items by test set: what the cases were held against; 0 for a known set, or a part of one, not at hand."""
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
    found = [part for name in names if name in there for part in _whole(name, there[name])]
    return found + [benchmarks.load(name, skip_broken=True) for name in names if name not in there]


def _whole(name: str, source: Path) -> list[Benchmark]:
    """A benchmark with the items of every subset and split that is not trained on and whose files are there, each once;
    behind it, without items, what is not there. Raises DataError where nothing of the split that is tested on is."""
    known, wrong = benchmarks.spec(name), []
    held: dict[str, list[Benchmark]] = {split: [] for split in known.splits if not split.startswith(TRAINING)}
    named = set()
    for split, subset in itertools.product(held, (part for part in known.subsets if not part.startswith(TRAINING))):
        try:
            held[split].append(benchmarks.load(name, source, split=split, subset=subset, skip_broken=True))
            named.update([subset] if split == known.splits[0] else [])
        except DataError as error:  # that it is not there, most likely; naming it as an entry says so
            wrong.append(error)
    if not held[known.splits[0]]:
        raise wrong[0]
    # by id and texts: subsets share items, and some count their ids anew
    items = {
        (item.id, item.question, item.options): item for found in held.values() for part in found for item in part.items
    }
    lacking = [_lacking(f"{name}@{split}") for split, found in held.items() if not found]
    return [replace(held[known.splits[0]][0], items=tuple(items.values())), *_unnamed(name, named), *lacking]


def _unnamed(name: str, subsets: set[str]) -> list[Benchmark]:
    """The subsets of a benchmark's tested split that are not among those held, each without items."""
    known = benchmarks.spec(name)
    held = {subset or known.subsets[0] for subset in subsets}
    if "all" in held:
        return []
    rest = (subset for subset in known.subsets if subset not in held and not subset.startswith(TRAINING))
    return [_lacking(f"{name}:{subset}" if subset else f"{name}@{known.splits[0]}") for subset in rest]


def _lacking(name: str) -> Benchmark:
    return Benchmark(name, name, ())
