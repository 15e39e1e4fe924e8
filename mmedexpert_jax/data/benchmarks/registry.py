"""The benchmarks by name, and the one way to load any of them."""

import difflib
import functools
import importlib
import pkgutil
import runpy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.answers import yes_no_key
from mmedexpert_jax.data.benchmarks import census, reading
from mmedexpert_jax.data.benchmarks import subset as subsets
from mmedexpert_jax.data.benchmarks.benchmark import Benchmark
from mmedexpert_jax.data.benchmarks.reading import Reader, Spec
from mmedexpert_jax.data.benchmarks.source import Files, MissingImage
from mmedexpert_jax.data.case import KINDS, LETTERS, Case
from mmedexpert_jax.errors import ConfigError, DataError

_SPECS: dict[str, Spec] = {}


def register(spec: Spec) -> Spec:
    """Makes a benchmark known by its name; the last of a name counts."""
    _SPECS[spec.name] = spec
    return spec


@functools.wraps(reading.reader)
def reader(*facts: Any, **more: Any) -> Callable[[Reader], Spec]:
    """`reading.reader`, whose benchmark is registered too."""
    return lambda item: register(reading.reader(*facts, **more)(item))


def names() -> tuple[str, ...]:
    """Names of the registered benchmarks."""
    _discover()
    return tuple(sorted(_SPECS))


def spec(name: str) -> Spec:
    """The benchmark of a name, or the one that a Python file ("my_benchmark.py") registers. Raises ConfigError."""
    _discover()
    if name.endswith(".py"):
        return _from_file(name)
    if name not in _SPECS and Path(name).expanduser().exists():
        raise ConfigError(
            f"{name} is a path; say what it holds: NAME={name}, of one's own cases mmedexpert_mini={name}"
        )
    if name not in _SPECS and (known := entry_parts(name)[0]) in _SPECS:
        raise ConfigError(f"{name} is an entry; give {known}, and subset and split by name, or `load_entry` of it")
    if name not in _SPECS:
        close = difflib.get_close_matches(name, _SPECS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"no benchmark {name!r}; {hint}choose one of {', '.join(sorted(_SPECS))}, or a .py file")
    return _SPECS[name]


def load(
    name: str,
    source: str | Path = "",
    *,
    split: str = "",
    subset: str = "",
    limit: int = 0,
    seed: int = 0,
    skip_broken: bool = False,
    whole: bool = False,
) -> Benchmark:
    """Reads one split of a benchmark from its distributed files; images stay unread.

    Args:
        name: in the registry, or a Python file that registers one.
        source: a directory, a zip (read without unpacking), "hub", or "hub:owner/name" for a copy on the hub.
            Zips inside the directory are looked into as well.
        split: one of the benchmark's; "" is its first.
        subset: a version or part of it; "" is its first.
        limit: items to keep, a seeded sample in proportion to the benchmark's strata; a smaller one is part of a
            larger one. 0 keeps all.
        seed: of the sample.
        skip_broken: leave out malformed rows and items whose images are missing; the census counts and names them.
        whole: add the other keys of an item's row to its columns, as rewards of one's own read them.

    Raises:
        ConfigError: no such benchmark, split or subset, or no source where one is needed.
        DataError: no such directory or file, a malformed row, missing images.
        RemoteError: the hub cannot be reached or refuses.
    """
    known, split, subset = _known(name, split, subset)
    files = _open(known, str(source) or known.default, split, subset)
    items, malformed, missing, rows = _read(known, files, split, subset, whole)
    counted = census.count(known.name, items, rows, malformed, missing, known.published(split, subset))
    if (malformed or missing) and not skip_broken:
        raise DataError(f"{files.name}: {census.broken(counted)}; skip_broken=True goes on without them")
    if not items:
        why = census.broken(counted)
        raise DataError(f"{files.name}: no usable row of {known.title}, split {split}{why and f'; {why}'}")
    if known.choose is not None:
        items = known.choose(items, split)
    items = subsets.stratified(items, limit, seed, known.strata)
    return Benchmark(known.name, known.title, tuple(items), known.columns, counted)


def load_entry(entry: str, **settings: Any) -> Benchmark:
    """`load` of "name[:subset][@split][=source]", as configs write it; `settings` are its other arguments."""
    name, subset, split, source = entry_parts(entry)
    return load(name, source, split=split, subset=subset, **settings)


def published_items(entry: str) -> int:
    """Items of an entry by its authors' count, without its files; 0 where none is known. Raises as `load_entry`."""
    name, subset, split, _ = entry_parts(entry)
    known, split, subset = _known(name, split, subset)
    return known.published(split, subset).get("items", 0)


def entry_parts(entry: str) -> tuple[str, str, str, str]:
    """Name, subset, split and source of an entry."""
    key, _, source = entry.partition("=")
    rest, _, split = key.partition("@")
    name, _, subset = rest.partition(":")
    return name, subset, split, source


def _known(name: str, split: str, subset: str) -> tuple[Spec, str, str]:
    """A benchmark with its split and subset, the first where none is named. Raises ConfigError."""
    known = spec(name)
    split, subset = split or known.splits[0], subset or known.subsets[0]
    for kind, value, choices in (("split", split, known.splits), ("subset", subset, known.subsets)):
        if value not in choices:
            raise ConfigError(f"{known.name} has no {kind} {value!r}: choose one of {', '.join(choices)}")
    return known, split, subset


def _read(
    known: Spec, files: Files, split: str, subset: str, whole: bool
) -> tuple[list[Case], list[str], list[str], int]:
    items: dict[str, Case] = {}
    malformed: list[str] = []
    missing: list[str] = []
    rows = 0
    for row in known.rows(files, split, subset):
        rows += 1
        if problem := getattr(row, "problem", ""):
            malformed.append(problem)
            continue
        try:
            item = _keyed(known.item(row, files, subset), getattr(row, "where", f"row {rows}"))
            if not item.benchmark:  # a published file does not say how its questions may be reasoned about
                item = replace(item, benchmark=known.name, paradigms=())
            if whole:
                item = replace(item, columns={**_said(row), **item.columns})
            if item.id in items:
                raise DataError(f"{getattr(row, 'where', item.id)}: id {item.id!r} stands twice")
            items[item.id] = item
        except MissingImage as error:
            missing.append(str(error))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # a value of another type
            where = getattr(row, "where", f"row {rows}")
            malformed.append(f"{where}: {known.name} cannot read it ({border.message_of(error)})")
        except DataError as error:
            malformed.append(str(error))
    return list(items.values()), malformed, missing, rows


def _said(row: Any) -> dict[str, Any]:
    """The cells of a row by key, but for its images and empty cells."""
    held = row.columns if isinstance(row, Case) else getattr(row, "values", None)
    said = row if isinstance(row, Mapping) else held
    cells = said.items() if isinstance(said, Mapping) else ()
    return {key: value for key, value in cells if value is not None and not callable(value)}


def _keyed(item: Case, where: str) -> Case:
    """The item with its key as scorers compare it: "yes" or "no" of a yes or no in any language, and the letter of a
    choice's key that is an option's text or a letter in lower case; a key that is no option's stays.

    Raises:
        DataError: an unknown kind, an option that is no text, or a key of yes or no that is neither.
    """
    if item.kind not in KINDS:
        raise DataError(f"{where}: kind {border.shown(item.kind)} is none of {', '.join(KINDS)}")
    if not all(isinstance(option, str) for option in item.options):
        raise DataError(f"{where}: options {border.shown(item.options)} are not all texts; make str(...) of each")
    if item.kind == "yes_no":
        if (key := yes_no_key(item.answer)) is None:
            raise DataError(f"{where}: answer {border.shown(item.answer)} of kind yes_no is neither yes nor no")
        return replace(item, answer=key)
    letters = tuple(LETTERS[: len(item.options)])
    if item.kind != "choice" or item.answer in letters:
        return item
    if item.options.count(item.answer) == 1:
        return replace(item, answer=letters[item.options.index(item.answer)])
    return replace(item, answer=item.answer.upper()) if item.answer.upper() in letters else item


def _open(known: Spec, source: str, split: str, subset: str) -> Files:
    if not source:
        raise ConfigError(f"{known.name} needs a source: a directory or zip with {known.expects}, or hub")
    if source == "hub" or source.startswith("hub:"):
        repository = source.removeprefix("hub").lstrip(":") or known.hub
        patterns = known.hub_files(split, subset)
        if not repository or not patterns:
            raise ConfigError(f"{known.name} is not on the hub: give a directory or zip with {known.expects}")
        return Files.from_hub(repository, patterns)
    return Files.open(source, known.expects)


@functools.cache
def _discover() -> None:
    """Registers the benchmarks that the files of this folder hold: each `Spec` among a file's names, or tuple of
    them."""
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        for value in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values():
            for spec in value if isinstance(value, tuple) else (value,):
                if isinstance(spec, Spec):
                    _SPECS.setdefault(spec.name, spec)


def _from_file(path: str) -> Spec:
    if not Path(path).is_file():
        raise ConfigError(f"no such benchmark file: {path}")
    before = dict(_SPECS)
    try:
        runpy.run_path(path)
    except Exception as error:  # whatever the user's file raises
        raise ConfigError(f"{path} cannot be run: {border.message_of(error, 200)}") from None
    added = [spec for name, spec in _SPECS.items() if before.get(name) is not spec]
    if len(added) != 1:
        raise ConfigError(f"{path} registers {len(added)} benchmarks: a file that is given by its path registers one")
    return added[0]
