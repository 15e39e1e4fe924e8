"""Cases from files, checked row by row; images are opened, not decoded, and only those of the cases that are kept."""

import functools
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmedexpert_jax import border, hub
from mmedexpert_jax.config.fields import BENCHMARK, HUB
from mmedexpert_jax.data import forms, tables
from mmedexpert_jax.data.case import LETTERS, SPECIALTIES, Case
from mmedexpert_jax.data.case_rows import PROVENANCE, case_of
from mmedexpert_jax.data.places import InFolder
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing import medical
from mmedexpert_jax.processing.images import ImageRef
from mmedexpert_jax.processing.windows import chosen

# The end of a prompt of other trainers, verl's and DAPO's: \boxed{}, "after ####", "Answer: $Answer".
_OTHER_FORM = re.compile(r"\\(?:boxed|fbox)\b|(?:after|behind|with|by)\W{1,4}####|answer:\s*\\?\$", re.IGNORECASE)
_BESIDE = re.compile(r"(?:dataset_infos?|dataset_dict|state|.*config)\.json")  # files of `datasets` that are no tables
EMBEDDED = Path(__file__).parents[1] / "assets" / "mmedexpert_mini"


def load_cases(path: str | Path, split: str, specialty: str | None = None, limit: int = 0, seed: int = 0) -> list[Case]:
    """Reads the cases of one split.

    Args:
        path: "mini" for the embedded set, a directory with `<split>.parquet`, `.jsonl`, `.json`, `.csv` or `.tsv`, or
            all parts `<split>-00000-of-00002.parquet` there or in `data/`, or one such file;
            "hub:owner/name[@revision]", a data set of the hub with such files; or
            "benchmark:name[:subset][@split][=source]", the choice questions of a benchmark, which have no specialty.
            Rows are of the schema `case_rows.KEYS` or of one of `forms.FORMS`.
        split: name of the split; ignored where `path` is a file or a benchmark.
        specialty: keep this specialty only (D_k of equation 1); None keeps all.
        limit: keep at most so many cases, the specialties in turn; 0 keeps all.
        seed: of the choice that `limit` makes.

    Returns:
        Cases in file order, or in the order of the choice. Their images are references, of which headers have been
        read.

    Raises:
        DataError: no such file, or a row that breaks the schema, named by file, row and key.
    """
    if specialty is not None and specialty not in SPECIALTIES:
        raise DataError(f"no specialty {specialty!r}: choose one of {', '.join(SPECIALTIES)}")
    if str(path).startswith(BENCHMARK):
        if specialty is not None:
            raise DataError(f"{path}: a benchmark has no specialties ({specialty}); give a set that has them")
        return _subset(_benchmark(str(path).removeprefix(BENCHMARK)), limit, seed)
    files = find(path, split)
    cases = list(read_cases(files, needs_four=specialty is not None))
    if specialty is not None:
        cases = [case for case in cases if case.specialty == specialty]
    if not cases:
        raise DataError(f"{files[0]}: no cases{f' of specialty {specialty}' if specialty else ''}")
    return [with_images(case) for case in _subset(cases, limit, seed)]


def read_cases(
    files: Sequence[Path],
    needs_four: bool = False,
    refuse: Callable[[DataError], None] | None = None,
    ids: set[str] | None = None,
) -> Iterator[Case]:
    """Cases of a split's files in order, their images not opened yet.

    Args:
        files: tables, as `data.tables` reads them.
        needs_four: refuse a specialty that is none of SPECIALTIES.
        refuse: takes the error of a row, which is then left out; None raises the first.
        ids: those that may not stand here again; those of the cases are added.

    Raises:
        DataError: as in `load_cases`.
    """
    seen = set() if ids is None else ids
    kept: set[str] = set()
    formed: list[str] = []  # ids
    for file in files:
        for number, row in tables.read(InFolder(file), str(file), ("images", "image")):
            try:
                name = tables.row_name(file, number)
                case = case_of(row, f"{file}, row {number}", name, file.parent, needs_four)
                if case.id in seen:
                    raise DataError(f"{file}, row {number}: id {case.id!r} stands twice; ids must be unique")
            except DataError as error:
                if refuse is None:
                    raise
                refuse(error)
                continue
            seen.add(case.id)
            kept.update(case.columns)
            formed += [case.id] * bool(_OTHER_FORM.search(case.question))
            yield case
    if others := sorted(kept - {*PROVENANCE, *forms.KEPT}):
        _tell("%s: keys that only rewards of your own read: %s", files[0], border.cut(", ".join(others), 200))
    if formed:
        _tell(
            "%s: %d questions ask for another form of answer, such as that of %s; ours, <answer></answer>, is asked "
            "for behind it and alone counts: delete theirs from the rows",
            *(files[0], len(formed), formed[0]),
        )


@functools.cache  # a job reads its files several times, and says it once
def _tell(message: str, *parts: object) -> None:
    logging.getLogger(__name__).warning(message, *parts)


def _benchmark(entry: str) -> list[Case]:
    """The questions of a benchmark with a letter as key, as cases. Raises DataError, ConfigError, RemoteError."""
    from mmedexpert_jax.data.benchmarks.registry import load_entry

    items = load_entry(entry, whole=True).items
    found = [item for item in items if item.kind == "choice" and item.answer in tuple(LETTERS[: len(item.options)])]
    if not found:
        raise DataError(f"{BENCHMARK}{entry}: no choice questions to train on")
    return [
        Case(
            *(item.id, item.question, item.options, item.answer),
            task=item.benchmark,
            images=item.images,
            columns=item.columns,
            labels=item.labels,
        )
        for item in found
    ]


def find(path: str | Path, split: str) -> list[Path]:
    """The file of a split, or all of its parts. Raises DataError."""
    if str(path).startswith(HUB):
        root = _downloaded(str(path).removeprefix(HUB), split)
    else:
        root = EMBEDDED if str(path) == "mini" else border.existing(Path(path).expanduser())
    if root.is_file():
        if note := lone_part(root):
            _tell("%s: %s", root, note)
        return [root]
    files = files_of(root, split)
    made = [file for file in files if file.suffix.lower() in (".parquet", ".jsonl")]  # perhaps of the others
    if len(made) == 1 < len(files):
        others = border.cut(", ".join(file.name for file in files if file != made[0]), 200)
        _tell("%s: %s is read; %s, which it may be made of, is not", root, made[0].name, others)
        files = made
    if len(files) > 1 and len(files) != tables.part_of(files[0])[1]:
        named = border.cut(", ".join(file.name for file in files), 200)
        raise DataError(f"{root} holds several files of {split} ({named}); keep one, or write them into one")
    if files:
        return files
    if not root.exists():
        raise DataError(f"no such data: {path}; give a .parquet or .jsonl file, a directory of splits, or 'mini'")
    found = sorted(file.name for file in root.iterdir() if file.suffix in tables.SUFFIXES)
    there = ", ".join(found) or "no .parquet or .jsonl file"
    fix = (
        f"add {split}.jsonl"
        if split == "train"
        else f"add {split}.jsonl, or name one of these as the split to evaluate on"
    )
    raise DataError(f"{root} has no split {split!r}; it holds {there}; {of_arrow(root) or fix}")


def of_arrow(root: Path) -> str:
    """The fix for a folder of datasets' `save_to_disk`; "" of any other."""
    if next(itertools.chain(root.glob("*.arrow"), root.glob("*/*.arrow")), None) is None:
        return ""
    return "write its *.arrow as Parquet, each split by datasets.load_from_disk(...).to_parquet('train.parquet')"


def files_of(root: Path, split: str) -> list[Path]:
    """The files of a split in a folder, by its name, or else the parts of it in the hub's layout.

    Raises:
        DataError: parts are missing.
    """
    names = [f"{split}{suffix}" for suffix in tables.SUFFIXES]
    found = sorted(root.iterdir()) if root.is_dir() else []
    if files := [file for file in found if file.name.lower() in names and file.is_file()]:
        return files
    for folder in (root, root / "data"):
        parts = sorted(file for file in folder.glob(f"{split}-*") if tables.PART.fullmatch(file.name))
        tables.refuse_gaps(str(folder), (file.name for file in parts))
        if parts:
            return parts
    return []


def lone_part(file: Path) -> str:
    """A line about a file that is one part of a table; "" of a whole one."""
    _, count, _ = tables.part_of(file)
    return f"one of {count} parts of its table, read alone; give the folder for all" if count > 1 else ""


def tables_in(root: Path, split: str) -> list[Path]:
    """The files of the one table of a folder, or of that which has the split's name; none where it has no table.

    Raises:
        DataError: several tables, parts are missing, or it is of datasets' `save_to_disk`.
    """
    there = sorted(file for folder in (root, root / "data") for file in folder.glob("*") if file.is_file())
    found = [file for file in there if file.suffix.lower() in tables.SUFFIXES and not _BESIDE.fullmatch(file.name)]
    if not found and (fix := of_arrow(root)):
        raise DataError(f"{root} holds no table; {fix}")
    found = [file for file in found if tables.part_of(file)[0].lower() == split] or found
    if len({tables.part_of(file)[0] for file in found}) == 1:
        tables.refuse_gaps(str(root), (file.name for file in found))
    if found and len(found) != tables.part_of(found[0])[1]:
        named = border.cut(", ".join(str(file.relative_to(root)) for file in found), 200)
        raise DataError(f"{root} holds several tables ({named}); give one of them")
    return found


@functools.cache  # a job asks for its splits several times
def _downloaded(hub_id: str, split: str) -> Path:
    """The folder of a hub's data set with the files of a split; images beside a table that is no Parquet come along."""
    root = hub.snapshot(hub_id, [f"{split}.*", f"{split}-*", f"data/{split}-*"], kind="dataset")
    if all(file.suffix == ".parquet" for file in files_of(root, split)):
        return root
    return hub.snapshot(hub_id, kind="dataset")


def with_images(case: Case) -> Case:
    """The case with one reference for each picture, after a look at the headers. Raises DataError."""
    if not case.images:
        return case
    return replace(case, images=tuple(picture for image in case.images for picture in pictures(image)))


def pictures(image: ImageRef) -> Iterator[ImageRef]:
    """References to the pictures that an image of a row stands for: itself, the chosen slices of a file, or the chosen
    files of a folder with a DICOM series. Raises DataError."""
    folder = getattr(image.read, "path", None)
    if isinstance(folder, Path) and os.path.isdir(folder):  # False, not an error, for a path that none can be
        if image.view.plane:  # cut across the slices, so that a picture is of all files
            yield from replace(image, read=medical.Series(folder)).expand()
            return
        files = medical.series(folder, image.name)
        for place in chosen(len(files), image.view.slices, image.name):
            view = replace(image.view, slices=None)
            yield ImageRef(f"{image.name}/{files[place].name}", InFolder(files[place]), view)
        return
    yield from image.expand()


def _subset(cases: list[Case], limit: int, seed: int) -> list[Case]:
    """`limit` cases, drawn by `seed`, the specialties in turn as long as they last; all in their order for limit 0, or
    one that they do not reach."""
    if not 0 < limit < len(cases):
        return cases
    order = np.random.default_rng(seed).permutation(len(cases))
    names = list(dict.fromkeys((*SPECIALTIES, *(case.specialty for case in cases))))
    places = dict(zip(names, range(len(names)), strict=True))
    seen: Counter[str] = Counter()
    turns = []
    for i in order.tolist():
        name = cases[i].specialty
        turns.append((seen[name], places[name], i))
        seen[name] += 1
    return [cases[i] for _, _, i in sorted(turns)[:limit]]
