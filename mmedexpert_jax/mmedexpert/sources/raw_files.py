"""Rows of a file: JSON Lines, a JSON array or object of columns, CSV (commas or semicolons), Parquet. Directories
give all their files."""

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

csv.field_size_limit(sys.maxsize)


@dataclass(frozen=True)
class Unreadable:
    """A line that is no row: the start of its text, and why it cannot be read."""

    text: str
    why: str


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


def read(file: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) of a file; a line of JSON Lines that cannot be read comes as `Unreadable`.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    try:
        yield from enumerate(_rows(file), 1)
    except UnicodeDecodeError:
        raise DataError(f"{file} is not in UTF-8; save it so (in a spreadsheet: CSV UTF-8)") from None
    except DataError:
        raise
    # pyarrow raises what it likes on a damaged file, NotImplementedError and OverflowError among it.
    except Exception as error:
        raise DataError(f"{file} is not a readable {file.suffix or 'data'} file: {_line(error)}") from None


def _rows(file: Path) -> Iterator[Any]:
    if file.suffix == ".parquet":
        from pyarrow import parquet

        for batch in parquet.ParquetFile(file).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    elif file.suffix == ".csv":
        with file.open(encoding="utf-8-sig", newline="") as text:
            head = text.readline()
            text.seek(0)
            table = csv.DictReader(text, delimiter=";" if head.count(";") > head.count(",") else ",")
            table.fieldnames = [_heading(name) for name in table.fieldnames or ()]
            yield from table
    elif file.suffix == ".json":
        yield from _array(border.read_json(file))
    else:
        for number, line in border.read_lines(file):
            if line.strip():
                yield _row(line, f"{file.name} line {number}")


def _heading(name: str) -> str:
    """A column's name as formats know it: in lower case, the letter of an option in upper case."""
    bare = name.strip()
    return bare.upper() if len(bare) == 1 else bare.lower()


def _row(line: bytes, place: str) -> Any:
    try:
        return border.parse_json(line, place)
    except DataError as error:
        return Unreadable(line[:200].decode("utf-8", "replace"), str(error))


def _array(content: Any) -> Iterator[Any]:
    """Rows of a JSON file: an array, pandas' columns {"question": {"0": ...}}, or an object that holds one array."""
    if isinstance(content, list):
        yield from content
        return
    if not isinstance(content, dict) or not content:
        raise ValueError("an array of objects is needed")
    columns = [column for column in content.values() if isinstance(column, dict)]
    if len(columns) == len(content):
        for index in columns[0]:
            yield {name: column.get(index) for name, column in content.items()}
        return
    arrays = [value for value in content.values() if isinstance(value, list)]
    if len(arrays) != 1:
        raise ValueError("an array of objects is needed")
    yield from arrays[0]


def _line(error: Exception) -> str:
    return border.cut(f"{type(error).__name__}: {error}", 200)
