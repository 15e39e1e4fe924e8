"""Rows of JSON, JSON Lines, CSV, TSV and Parquet files, each with its place; images inside stay unread."""

import base64
import binascii
import csv
import functools
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from mmedexpert_jax.data.benchmarks.source import Entry, MissingImage
from mmedexpert_jax.data.case import LETTERS
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing.images import ImageRef

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a cell may hold an image


@dataclass(frozen=True)
class Row:
    """A row of a file.

    Attributes:
        values: by key; an image inside a TSV or Parquet file is a callable that gives its bytes.
        where: file and number, from 1, the header not counted.
        number: the same number.
        problem: why the row cannot be read at all; "" where it can.
    """

    values: dict[str, Any]
    where: str
    number: int
    problem: str = ""

    def text(self, *keys: str) -> str:
        """The first of `keys` that the row has, as stripped text. Raises DataError where none is or it is empty."""
        key = next((key for key in keys if self.values.get(key) is not None), keys[0])
        value = self.values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{self.where}, key {' or '.join(keys)}: a text is needed, got {value!r}")
        return value.strip()

    def label(self, *keys: str) -> str:
        """As `text`, but "" where there is none: for what is only counted."""
        value = next((self.values[key] for key in keys if self.values.get(key) is not None), "")
        return str(value).strip()

    def letter(self, count: int, *keys: str) -> str:
        """A letter among the first `count`. Raises DataError."""
        letter = self.text(*keys).upper()
        if letter not in LETTERS[:count] or len(letter) != 1:
            raise DataError(f"{self.where}, key {keys[0]}: {letter!r} is not among {', '.join(LETTERS[:count])}")
        return letter

    def image(self, key: str) -> ImageRef:
        """The image of a cell. Raises MissingImage where the cell is empty."""
        value = self.values.get(key)
        if value is None:
            raise MissingImage(f"{self.where}, key {key}: no image")
        return ImageRef(f"{self.where}, {key}", value)

    def bad(self, key: str, problem: str) -> DataError:
        """The error of a key, to raise."""
        return DataError(f"{self.where}, key {key}: {problem}")


def read(found: tuple[str, Entry], images: Sequence[str] = ("image",)) -> Iterator[Row]:
    """Rows of a file by its suffix: .jsonl, .json (a list of objects), .csv, .tsv or .parquet.

    Args:
        found: (path, entry) of `Files`.
        images: keys of images inside a TSV (base64) or Parquet file (bytes).

    Raises:
        DataError: the file is not of its kind. A single row that cannot be read has its `problem` set.
    """
    path, entry = found
    suffix = path.rpartition(".")[2].lower()
    readers = {"jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet, "tsv": _tsv}
    if suffix not in readers:
        raise DataError(f"{path}: rows are read from {', '.join(readers)}")
    try:
        for number, values in enumerate(readers[suffix](path, entry, images), 1):
            where = f"{path}, row {number}"
            if isinstance(values, dict):
                yield Row(values, where, number)
            else:
                yield Row({}, where, number, f"{where}: {values}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); fetch it again") from None


Values = Iterator[dict[str, Any] | str]  # a row, or why there is none


def _jsonl(path: str, entry: Entry, images: Sequence[str]) -> Values:
    with entry.open() as file:
        for line in io.TextIOWrapper(file, "utf-8-sig"):
            if line.strip():
                try:
                    yield _object(json.loads(line))
                except ValueError as error:
                    yield f"not JSON ({error})"


def _json(path: str, entry: Entry, images: Sequence[str]) -> Values:
    try:
        rows = json.loads(entry().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); fetch it again") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: a list of objects is needed, got {type(rows).__name__}")
    yield from map(_object, rows)


def _object(row: Any) -> dict[str, Any] | str:
    return row if isinstance(row, dict) else f"an object is needed, got {type(row).__name__}"


def _csv(path: str, entry: Entry, images: Sequence[str]) -> Values:
    with entry.open() as file:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
        try:
            header = [name.strip() for name in next(rows, [])]
            for cells in rows:
                yield _cells(header, cells)
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: not CSV ({error}); fetch the file again") from None


def _cells(header: Sequence[str], cells: Sequence[str]) -> dict[str, Any] | str:
    if len(cells) != len(header):
        return f"{len(cells)} cells under {len(header)} columns"
    return dict(zip(header, cells, strict=True))


@dataclass(frozen=True)
class _TsvCell:
    """A base64 image in a TSV: read and decoded when called."""

    entry: Entry
    start: int
    size: int
    column: int

    def __call__(self) -> bytes:
        file = _opened(self.entry, os.getpid())
        file.seek(self.start)
        return _base64(_split(file.read(self.size).decode())[self.column])


def _base64(text: str) -> bytes:
    """Bytes of base64 as the field writes it: plain or URL-safe, wrapped in lines, without padding, as a data URI."""
    head, comma, body = text.partition(",")
    text = body if comma and head.startswith("data:") else text
    text = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise DataError(f"not base64: {error}") from None


@functools.lru_cache(maxsize=4)
def _opened(entry: Entry, process: int) -> BinaryIO:
    return entry.open()


def _split(record: str) -> list[str]:
    return next(csv.reader(io.StringIO(record, newline=""), delimiter="\t"), [])


def _tsv(path: str, entry: Entry, images: Sequence[str]) -> Values:
    """Records may span lines inside quotes; of an image only its place is kept.

    A cell of at most 64 characters that is another row's `index` stands for that row's image, as in VLMEvalKit's files.
    """
    with entry.open() as file:
        header = [name.strip() for name in _split(file.readline().decode("utf-8-sig"))]
        columns = [header.index(name) for name in images if name in header]
        start = file.tell()
        rows: list[dict[str, Any] | str] = []
        references: list[tuple[dict[str, Any], str, str]] = []  # row, key and the index that may stand there
        for record in _records(file):
            try:
                values = _cells(header, _split(record.decode()))
            except csv.Error as error:
                raise DataError(f"{path}, byte {start}: not TSV ({error}); fetch the file again") from None
            for key in (header[column] for column in columns):
                if isinstance(values, dict) and values[key]:
                    references += [(values, key, values[key])] if len(values[key]) <= INDEX else []
                    values[key] = _TsvCell(entry, start, len(record), header.index(key))
            start += len(record)
            rows.append(values)
    held = {values.get("index"): values for values in rows if isinstance(values, dict)}
    for values, key, index in references:
        values[key] = held.get(index, values)[key]
    yield from rows


INDEX = 64  # characters of an image cell that may be another row's index; no image is so small


def _records(file: BinaryIO) -> Iterator[bytes]:
    """Lines of a TSV, those that a quoted cell holds together as one record.

    A quote opens a cell only where the cell begins with it, as for pandas and the csv module: a lone one within a
    cell, such as an inch sign, is text.
    """
    record, quoted = [], False
    for line in file:
        record.append(line)
        quoted = _ends_quoted(line, quoted)
        if not quoted:
            if b"".join(record).strip():
                yield b"".join(record)
            record = []
    if any(part.strip() for part in record):
        yield b"".join(record)


def _ends_quoted(line: bytes, quoted: bool) -> bool:
    """True where a quoted cell is still open at the end of a line; `quoted`: it was at the line's beginning."""
    place = 0
    if not quoted and line[:1] == b'"':
        quoted, place = True, 1
    while True:
        if quoted:
            place = line.find(b'"', place) + 1
            if not place:
                return True
            quoted = line[place : place + 1] == b'"'  # a doubled quote is one of the text
            place += quoted
        else:
            place = line.find(b"\t", place) + 1
            if not place:
                return False
            quoted = line[place : place + 1] == b'"'
            place += quoted


@dataclass(frozen=True)
class _ParquetCell:
    """The bytes of an image struct in a Parquet file: read when called."""

    entry: Entry
    column: str
    group: int
    place: int

    def __call__(self) -> bytes:
        value = _group(self.entry, self.column, self.group, os.getpid())[self.place].as_py()
        if isinstance(value, bytes):
            return value
        if not value or value.get("bytes") is None:
            raise DataError("the cell holds no bytes")
        return value["bytes"]


@functools.lru_cache(maxsize=2)
def _group(entry: Entry, column: str, group: int, process: int) -> Any:
    import pyarrow.parquet as pq

    with entry.open() as file:
        return pq.ParquetFile(file).read_row_group(group, columns=[column])[column].combine_chunks()


def _parquet(path: str, entry: Entry, images: Sequence[str]) -> Values:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with entry.open() as stream:
            file = pq.ParquetFile(stream)
            names = file.schema_arrow.names
            plain = [name for name in names if name not in images]
            held = [
                name for name in names if name in images and not pa.types.is_null(file.schema_arrow.field(name).type)
            ]
            for group in range(file.num_row_groups):
                present = {name: _present(file, group, name) for name in held}
                for place, row in enumerate(file.read_row_group(group, columns=plain).to_pylist()):
                    cells = {n: _ParquetCell(entry, n, group, place) for n, valid in present.items() if valid[place]}
                    yield row | cells
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a readable Parquet file ({reason}); fetch it again") from None


def _present(file: Any, group: int, name: str) -> list[bool]:
    """Which cells of a column hold an image, [rows of the group]; their bytes are not read where there are paths."""
    kind = file.schema_arrow.field(name).type
    columns = [f"{name}.path"] if getattr(kind, "get_field_index", lambda key: -1)("path") >= 0 else [name]
    return file.read_row_group(group, columns=columns).column(name).is_valid().to_pylist()
