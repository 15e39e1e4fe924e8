"""Files of raw cases, and their rows by the one reader of tables. Directories give all their files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmedexpert_jax.data import tables
from mmedexpert_jax.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def files(path: Path) -> list[Path]:
    """The files behind a path, in order of name. Raises DataError where there are none."""
    if path.is_file() and path.suffix not in SUFFIXES:
        raise DataError(f"{path}: no such kind of file is read; save the cases as {', '.join(SUFFIXES)}")
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES) if path.is_dir() else []
    if not found:
        raise DataError(f"{path} holds no raw cases; give a {', '.join(SUFFIXES)} file or a directory of them")
    return found


def read(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(number from 1, row) of a file; a row that cannot be read comes as the reason. Raises DataError."""
    for number, row in tables.read(tables.InFolder(file), file.name):
        if file.suffix == ".csv" and isinstance(row, dict):
            row = {_heading(name): value for name, value in row.items()}
        yield number, row


def _heading(name: str) -> str:
    """A column's name as formats know it: in lower case, the letter of an option in upper case."""
    bare = name.strip()
    return bare.upper() if len(bare) == 1 else bare.lower()
