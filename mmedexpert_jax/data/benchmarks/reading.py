"""The reading of a benchmark: its facts, and a decorator that makes them of a function of one row."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case


@dataclass(frozen=True)
class Spec:
    """The reading of a benchmark; a file of this folder holds one or more, which `registry.py` finds there."""

    name: str  # by which it is called
    title: str  # as its paper writes it
    # (files, split, subset) -> the rows of its distributed files, in order
    rows: Callable[[Files, str, str], Iterable[Any]]
    # (row, files, subset) -> the row's item; raises DataError on a row that cannot be used
    item: Callable[[Any, Files, str], Case]
    splits: tuple[str, ...] = ("test",)  # that have answers; the first is the default
    subsets: tuple[str, ...] = ("",)  # versions or parts of it; the first is the default
    hub: str = ""  # dataset id on the Hugging Face hub
    # (split, subset) -> patterns of the hub's files that are needed
    hub_files: Callable[[str, str], tuple[str, ...]] = lambda split, subset: ()
    expects: str = ""  # the files that a directory or zip must hold, in words for an error
    default: str = ""  # source where none is given; "" where one must be
    # (items of all rows, split) -> those of a split that the files do not know; None: all of them
    choose: Callable[[list[Case], str], list[Case]] | None = None
    strata: tuple[str, ...] = ()  # labels by which `limit` draws in proportion
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # see `Benchmark`
    # (split, subset) -> counts to hold the census against
    published: Callable[[str, str], Mapping[str, Any]] = lambda split, subset: {}
    licence: str = ""  # of the data, and where it was read


Patterns = str | Sequence[str] | Mapping[str, str | Sequence[str]]
Reader = Callable[[Any, Files, str], Case]


def reader(
    name: str,
    title: str,
    *,
    file: Patterns = (),
    files: Patterns = (),
    images: Sequence[str] = ("image",),
    keep: Callable[[rows.Row, str, str], Any] = lambda row, split, subset: True,
    hub_files: Patterns = (),
    published: Any = None,
    **facts: Any,
) -> Callable[[Reader], Spec]:
    """A decorator that makes a benchmark of what reads a row, (row, files, subset) -> the row's item; that of
    `data.benchmarks`, for files of one's own and notebooks, registers it too.

    Patterns are ends of paths in which {split} and {subset} stand for themselves, or {subset: such patterns}; of
    several the first that finds something counts.

    Args:
        name: of the `Spec`, as `title`.
        file: pattern of the one file of a split; of several found, that of the shortest path.
        files: pattern of the files of a split, all of which are read; in the place of `file`.
        images: keys of the images inside these files.
        keep: (row, split, subset) -> true for a row that belongs to them.
        hub_files: patterns of the hub's files that are needed.
        published: counts of every split and subset, or as of the `Spec`.
        facts: more of the `Spec`: `rows` in the place of `file` and `files`, `expects` where these say too little ...
    """
    paths = _paths(file or files)

    def read(found: Files, split: str, subset: str) -> Iterable[rows.Row]:
        wanted = paths(split, subset)
        alone = None if facts.get("subsets") else found.alone(split)  # a name may tell the subset
        parts = [alone or found.one(*wanted)] if alone or file else found.need(*wanted)
        every = rows.read_all(parts, images)
        return (row for row in every if row.problem or keep(row, split, subset))

    def read_by(item: Reader) -> Spec:
        known = Spec(name, title, item=item, hub_files=_paths(hub_files), **{"rows": read} | facts)
        expects = known.expects or " or ".join(paths(known.splits[0], known.subsets[0]))
        counts = published if callable(published) else lambda split, subset: published or {}
        return replace(known, expects=expects, published=counts)

    return read_by


def _paths(patterns: Patterns) -> Callable[[str, str], tuple[str, ...]]:
    """(split, subset) -> the patterns of these."""

    def of(split: str, subset: str) -> tuple[str, ...]:
        chosen = patterns.get(subset, ()) if isinstance(patterns, Mapping) else patterns
        return tuple(
            path.format(split=split, subset=subset) for path in ([chosen] if isinstance(chosen, str) else chosen)
        )

    return of
