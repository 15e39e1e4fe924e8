"""The one reader of tables: JSON Lines, JSON, CSV, TSV and Parquet, row by row, with images left where they lie."""

import base64
import binascii
import contextlib
import csv
import functools
import hashlib
import io
import itertools
import os
import re
import threading
import uuid
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mmedexpert_jax import border
from mmedexpert_jax.data.places import InFolder, Place
from mmedexpert_jax.errors import DataError

# texts of cells that are empty, also as pandas, databases and spreadsheets write them
ABSENT = ("", "nan", "<na>", "null", "#n/a", "#ref!", "#value!", "#name?")
# of spreadsheets in English and the larger languages of Europe, with those of newer ones
_ERROR = re.compile(
    r"#(?:(?:DIV|DEEL|DZIEL|SAYI|ДЕЛ)/0|NULL|NUM|REF|VALUE|SPILL|CALC|FIELD|BLOCKED|CONNECT|UNKNOWN|BUSY|PYTHON|EXTERNAL"
    r"|ERROR|WERT|BEZUG|ZAHL|ÜBERLAUF|KALK|FELD|NUL|VALEUR|NOMBRE|CHAMP|VALOR|NULO|NÚM|VALORE|NULLO|RIF|WAARDE|VERW"
    r"|GETAL|LEEG|ARG|ADR|LICZBA|ZERO|DEĞER|BAŞV|SAYI|BOŞ|ЗНАЧ|ССЫЛКА|ЧИСЛО|ПУСТО)!|#(?:NAME|NOM|NOME|NAAM|NAZWA|AD|ИМЯ)\?"
    r"|#¡(?:DIV/0|NULO|VALOR|REF|NUM|DESBORDAMIENTO|CALC|CAMPO)!|#¿NOMBRE\?|#N/[A-Z]+|#Н/Д|#NV|#{4,}"
)
# a part of a table as the hub has it: start, number, count; of older sets a hash
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?\.\w+")
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
GROUP_BYTES = 1 << 26  # of a Parquet row group's images that are held to read one of them
INDEX = 64  # characters of an image cell that may be another row's index; no image is so small
MAX_CELLS = 10_000  # columns of a table; the widest of the field have some 50
ASKS = ("question", "messages", "prompt", "conversations", "problem", "instruction")  # keys of a row's question
# Beginnings of files that are taken for tables, and what to do with them.
_OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer; run git lfs pull",
    b"<!doctype html": "a web page, perhaps an error of the server; fetch the file itself",
    b"<html": "a web page, perhaps an error of the server; fetch the file itself",
    b"pk\x03\x04": "a zip or a spreadsheet's own file; unpack it, or save the sheet as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "a spreadsheet's own file; save the sheet as CSV UTF-8",
    b"\x1f\x8b": "packed with gzip; unpack it",
    b"sqlite format 3": "a database; write its rows out as JSON Lines",
}
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # the first line of a CSV that a spreadsheet wrote
_END_OF_LINE = re.compile("_x000D_\n?|\r\n?|\x0b")  # within a cell, as spreadsheets write it
_END = "\0end of the table"  # no cell holds it
_COPYING = threading.Lock()  # of large Parquet groups into the cache
_OPEN = "a quote opens a cell and is never closed"

csv.field_size_limit(border.MAX_LINE)  # a cell may hold an image; the module's own limit is 128 KiB

Values = Iterator[dict[str, Any] | str]  # a row, or the reason why there is none


def absent(cell: str) -> bool:
    """True for the text of an empty cell; "Null" is a word, such as that of an allele."""
    bare = cell.strip()
    return (bare.lower() in ABSENT and bare != "Null") or _ERROR.fullmatch(bare) is not None


def refuse_gaps(place: str, names: Iterable[str]) -> None:
    """Raises DataError where of a table's parts, "-00000-of-00003", some are not there."""
    parts: dict[tuple[str, str], set[int]] = {}
    for match in filter(None, map(PART.fullmatch, names)):
        parts.setdefault((match[1], match[3]), set()).add(int(match[2]))
    for (start, count), there in sorted(parts.items()):
        if lacking := sorted(set(range(int(count))) - there):
            raise DataError(f"{place}: {start}-{lacking[0]:05d}-of-{count} is not there; fetch all {int(count)} parts")


def part_of(file: Path) -> tuple[str, int, str]:
    """Of a table's file the table's name, how many parts it is in, and the number of this one as its name writes it;
    1 and "" of one that is whole."""
    part = PART.fullmatch(file.name)
    if part is None:
        return file.stem, 1, ""
    return part[1], int(part[3]), part[2] * (int(part[3]) > 1)


def row_name(file: Path, number: int) -> str:
    """A name for a row without an id of its own: its number in its file, behind that of its part of a table."""
    return "-".join(filter(None, (part_of(file)[2], str(number))))


def by_numbers(name: str) -> list[str | int]:
    """A key that sorts names by their numbers: 2 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def read(place: Place, name: str, images: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(number from 1, row) of a table; a row that cannot be read comes as the reason, in one line.

    Args:
        place: where the file lies.
        name: of the file, whose suffix says its form; for errors.
        images: columns of images. In a TSV (base64) and a Parquet file (bytes, a `datasets` struct {bytes, path}, or a
            list of these) a cell that holds one becomes a picklable callable that gives its bytes when asked.

    Raises:
        DataError: the file as a whole is not of its kind.
    """
    suffix = name[name.rfind(".") :].lower()
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".tsv": _tsv}
    if suffix not in readers:
        raise DataError(f"{name}: rows are read from {', '.join(readers)}")
    try:
        _refuse_other(place, name)
        yield from enumerate(readers[suffix](place, name, images), 1)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} cannot be read as UTF-8 text (byte {error.start}); save it in UTF-8 (in a spreadsheet: CSV UTF-8)"
        ) from None
    except (zipfile.BadZipFile, zlib.error) as error:  # of a member, found while it is read
        raise DataError(f"{name} cannot be unpacked ({border.cut(str(error))}); fetch its zip again") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror or border.cut(str(error))})") from None


def _refuse_other(place: Place, name: str) -> None:
    """Raises DataError where a file begins as one of another kind does."""
    with place.open() as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if what := next((what for mark, what in _OTHERS.items() if head.startswith(mark)), ""):
        raise DataError(f"{name} is {what}")
    if head.startswith(b"par1") and not name.lower().endswith(".parquet"):
        raise DataError(f"{name} is a Parquet file; call it .parquet")


# ------------------------------------------------------------------------------------------------ text


def _jsonl(place: Place, name: str, images: Sequence[str]) -> Values:
    with place.open() as file:
        for line in _lines(file, name):
            if line.strip():
                yield _object(line)


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Lines at "\\n" alone: a text may hold any other mark of a line's end."""
    while line := file.readline(border.MAX_LINE + 1):
        if len(line) > border.MAX_LINE:
            raise DataError(f"{name}: a line of more than {border.MAX_LINE} bytes; give images by path")
        yield line


def _object(line: bytes) -> dict[str, Any] | str:
    try:
        row = border.parse_json(line, "the row", limit=border.MAX_LINE, nan=None)  # an empty cell of pandas
    except DataError as error:
        why = re.sub("^the row:? (is )?", "", str(error))
        return f"{why}; a line holds one whole object, other JSON is read from .json" if "not JSON" in why else why
    if isinstance(row, list):
        return "an object is needed, got list; an array of rows is read from .json"
    return _mapping(row)


def _mapping(row: Any) -> dict[str, Any] | str:
    if not isinstance(row, dict):
        return f"an object is needed, got {type(row).__name__}"
    return row if len(row) <= MAX_CELLS else f"{len(row)} keys; a row has at most {MAX_CELLS}"


def _json(place: Place, name: str, images: Sequence[str]) -> Values:
    """An array of objects, pandas' columns {"question": {"0": ...}}, objects by id, an object that holds one array, one
    row, or, as some sets are distributed, an object a line."""
    with place.open() as file:
        content = file.read(border.MAX_BYTES + 1)
    if re.match(rb"(?:\xef\xbb\xbf)?\s*\{[^\n]*\}\r?\n\s*\{", content):
        yield from _jsonl(place, name, images)
        return
    if len(content) > border.MAX_BYTES:
        raise DataError(f"{name} is longer than the {border.MAX_BYTES} bytes of JSON that are read; use JSON Lines")
    value = border.parse_json(content, name, nan=None)
    if isinstance(value, dict) and value:
        arrays = [column for column in value.values() if isinstance(column, list)]
        if all(isinstance(column, dict) for column in value.values()):
            value = _of_objects(value)
        elif _asks(value):
            value = [value]
        elif len(arrays) == 1:
            value = arrays[0]
    if not isinstance(value, list):
        raise DataError(f"{name}: a list of objects is needed, got {type(value).__name__}")
    yield from map(_mapping, value)


def _of_objects(value: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of an object of objects: pandas' columns, whose rows are numbered, or else rows by their ids."""
    index = next(iter(value.values()))
    if _asks(value) or (index and all(key.isdecimal() for key in index)):
        return [{key: column.get(number) for key, column in value.items()} for number in index]
    return [{"id": id} | row for id, row in value.items()]


def _asks(keys: Iterable[str]) -> bool:
    """True where a key is one of those that hold a row's question."""
    return any(key.lower() in ASKS for key in keys)


def _csv(place: Place, name: str, images: Sequence[str]) -> Values:
    with place.open() as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as text:
        head = text.readline(border.MAX_LINE)
        told = _SEPARATOR.fullmatch(head)
        bare = re.sub(r'"(?:[^"]|"")*"', "", head)  # a quoted name may hold any mark
        marks = "|" if "|" in bare and not set(bare) & set(",;\t") else ",;\t"  # a bar may stand within a name
        mark = told[1] if told else max(marks, key=bare.count)
        # a blank line in the place of the one that names the separator, so that lines keep their numbers
        rows = csv.reader(itertools.chain(["\n" if told else head], text, [_END]), delimiter=mark)
        try:
            whole = _whole(rows, name)
            if told:
                next(whole)  # the blank one
            header = _header(next(whole, []), name)
            for cells in whole:
                if any(cells):
                    yield _cells(header, cells)
        except csv.Error as error:
            raise DataError(f"{name}, line {rows.line_num}: not CSV ({error}); fetch the file again") from None


def _whole(rows: Any, name: str) -> Iterator[list[str]]:
    """Records of a CSV reader up to _END, which stands alone unless a quoted cell is open there: all rows behind the
    quote would be one cell, in silence. Raises DataError."""
    line = 1
    for cells in rows:
        if cells and cells[-1].endswith(_END):
            if cells != [_END]:
                raise DataError(f"{name}, line {line}: not CSV ({_OPEN}); close it there, or fetch the file again")
            return
        yield cells
        line = rows.line_num + 1


def _header(cells: Iterable[str], name: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    if len(header) > MAX_CELLS:
        raise DataError(f"{name}: {len(header)} columns; a table has at most {MAX_CELLS}")
    twice = next((cell for cell, count in Counter(header).items() if cell and count > 1), None)
    if twice is not None:
        raise DataError(f"{name}: two columns are called {border.shown(twice)}; rename one")
    return header


def _cells(header: Sequence[str], cells: Sequence[str]) -> dict[str, Any] | str:
    if len(cells) != len(header):
        alone = f" ({border.shown(header[0])}); the first line of a table names its columns" if len(header) == 1 else ""
        return f"{len(cells)} cells under {len(header)} columns{alone}"
    # a column without a name holds the numbers of the rows, as pandas writes them
    return {name: _plain(cell) for name, cell in zip(header, cells, strict=True) if name}


def _plain(cell: str) -> str:
    """A cell with plain line ends; a look first, since a cell may hold megabytes of base64."""
    return _END_OF_LINE.sub("\n", cell) if any(mark in cell for mark in ("\r", "\x0b", "_x000D_")) else cell


@dataclass(frozen=True)
class _TsvCell:
    """A base64 image in a TSV: read and decoded when called."""

    place: Place
    start: int
    size: int
    column: int

    def __call__(self) -> bytes:
        file = _opened(self.place, os.getpid(), threading.get_ident())  # each its own place in the file
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


@functools.lru_cache(maxsize=8)
def _opened(place: Place, process: int, thread: int) -> BinaryIO:
    return place.open()


def _split(record: str) -> list[str]:
    return next(csv.reader(io.StringIO(record, newline=""), delimiter="\t"), [])


def _tsv(place: Place, name: str, images: Sequence[str]) -> Values:
    """Records may span lines inside quotes; of an image only its place is kept.

    A cell of at most 64 characters that is another row's `index` stands for that row's image, as in VLMEvalKit's files.
    """
    with place.open() as file:
        first = file.readline(border.MAX_LINE)
        if b"\n" not in first and b"\r" in first.rstrip(b"\r"):
            raise DataError(f"{name}: its lines end with carriage returns alone; save it with line ends (LF or CRLF)")
        header = _header(_split(first.decode("utf-8-sig")), name)
        if len(header) == 1 and re.search("[,;|]", header[0]):
            raise DataError(f"{name}: no tab in its first line ({border.shown(header[0])}); call it .csv")
        columns = [header.index(key) for key in images if key in header]
        rows: list[dict[str, Any] | str] = []
        references: list[tuple[dict[str, Any], str, str]] = []  # row, key and the index that may stand there
        try:
            for cells, record in _records(file):
                values = _cells(header, cells)
                for key in (header[column] for column in columns):
                    if isinstance(values, dict) and values[key]:
                        references += [(values, key, values[key])] if len(values[key]) <= INDEX else []
                        start = file.tell() - len(record)  # blank lines stand before some records
                        values[key] = _TsvCell(place, start, len(record), header.index(key))
                rows.append(values)
        except csv.Error as error:
            where = f"{name}, row {len(rows) + 1}"
            raise DataError(f"{where}: not TSV ({error}); mend it there, or fetch the file again") from None
    held = {values.get("index"): values for values in rows if isinstance(values, dict)}
    for values, key, index in references:
        values[key] = held.get(index, values)[key]
    yield from rows


def _records(file: BinaryIO) -> Iterator[tuple[list[str], bytes]]:
    """Cells and bytes of the records of a TSV but blank ones; a quoted cell may hold several lines together.

    A quote opens a cell only where the cell begins with it: a lone one within a cell, such as an inch sign, is text.
    Raises csv.Error where the file ends within a quoted cell.
    """
    record: list[bytes] = []

    def lines() -> Iterator[str]:
        size = 0
        for line in file:
            size = size + len(line) if record else len(line)
            record.append(line)
            if size > border.MAX_LINE:
                raise csv.Error(f"a record of more than {border.MAX_LINE} bytes: {_OPEN}")
            yield line.decode()
        yield _END

    for cells in csv.reader(lines(), delimiter="\t"):
        if cells and cells[-1].endswith(_END):
            if record:
                raise csv.Error(_OPEN)
            return
        if (whole := b"".join(record)).strip():
            yield cells, whole
        record.clear()


# --------------------------------------------------------------------------------------------- Parquet


@dataclass(frozen=True)
class ParquetCell:
    """The bytes of an image in a Parquet file, read when called."""

    # place, column: of the cell
    place: Place
    column: str
    # group, index: row group, and row within it
    group: int
    index: int
    item: int | None = None  # number within a list of images; None where the cell is one image
    path: str = ""  # file name that stands beside the bytes; ""

    def __call__(self) -> bytes:
        """The encoded image. Raises DataError."""
        value = _column(self.place, self.column, self.group, os.getpid())[self.index].as_py()
        if self.item is not None:
            value = value[self.item]
        if isinstance(value, bytes):
            return value
        if not value or value.get("bytes") is None:
            raise DataError(f"key {self.column}: the cell holds no bytes")
        return value["bytes"]


@functools.lru_cache(maxsize=2)  # rows are mostly read in order; of a group at most GROUP_BYTES are held
def _column(place: Place, column: str, group: int, process: int) -> Any:
    import pyarrow.parquet as pq

    with place.open() as stream:
        file = pq.ParquetFile(stream)
        if _size(file, column, group) <= GROUP_BYTES:
            return file.read_row_group(group, columns=[column])[column].combine_chunks()
    return _mapped(place, column, group)


def _size(file: Any, column: str, group: int) -> int:
    """Unpacked bytes of a column in a row group."""
    chunks = (file.metadata.row_group(group).column(k) for k in range(file.metadata.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


def _mapped(place: Place, column: str, group: int) -> Any:
    """A large row group's column, memory-mapped from an Arrow file in the user's cache, written once.

    Parquet has no way to one row but through those before it, and a set of 10,000 photographs is one group of 15 GB.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    stat = (place.path if isinstance(place, InFolder) else place.archive).stat()
    key = f"{place} {(stat.st_mtime_ns, stat.st_size)} {column} {group}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmedexpert-jax" / "tables"
    file = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrow"
    with _COPYING:  # threads that ask for the same group wait for one copy
        if not file.exists():
            partial = file.with_suffix(f".{os.getpid()}-{uuid.uuid4().hex[:8]}")  # numbers come again on other machines
            try:
                with border.writing(file), place.open() as stream:
                    folder.mkdir(parents=True, exist_ok=True)
                    parquet = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)  # pages, not the group
                    schema = pa.schema([parquet.schema_arrow.field(column)])
                    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                        for batch in parquet.iter_batches(batch_size=16, row_groups=[group], columns=[column]):
                            writer.write_batch(batch)
                    partial.replace(file)
            finally:
                with contextlib.suppress(OSError):  # a folder that is none has its own refusal
                    partial.unlink()  # what a full disk or a broken page cut off
            pa.default_memory_pool().release_unused()  # a page of 1,024 photographs is over 1 GB
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()[column]


def _parquet(place: Place, name: str, images: Sequence[str]) -> Values:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with place.open() as stream:
            file = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)  # pages, not whole columns
            fields = {field.name: field.type for field in file.schema_arrow}
            held = [key for key in fields if key in images and _is_binary(fields[key])]
            plain = [key for key in fields if key not in held]
            for group in range(file.num_row_groups):
                cells = {key: _image_cells(file, place, key, group) for key in held}
                rows = (
                    row
                    for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=plain)
                    for row in batch.to_pylist(maps_as_pydicts="strict")
                )
                for index, row in enumerate(rows):
                    yield row | {key: found[index] for key, found in cells.items() if found[index] is not None}
    except (pa.ArrowException, OSError, ValueError, KeyError, NotImplementedError, OverflowError) as error:
        reason = border.cut(str(error).splitlines()[0] if str(error) else type(error).__name__, 160)
        raise DataError(f"{name} is not a readable Parquet file ({reason}); fetch it again") from None


def _is_binary(kind: Any) -> bool:
    """True where cells of an Arrow type hold image bytes: binary, {bytes, path}, or a list of either."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _image_cells(file: Any, place: Place, column: str, group: int) -> list[Any]:
    """A column's cells in one row group as `ParquetCell`s, lists of them, or None; bytes are not read where paths
    stand beside them."""
    import pyarrow as pa

    kind = file.schema_arrow.field(column).type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    inner = kind.value_type if listed else kind
    named = pa.types.is_struct(inner) and inner.get_field_index("path") >= 0
    leaves = [
        path
        for path in (file.schema.column(k).path for k in range(len(file.schema)))
        if path.split(".")[0] == column and path.rsplit(".", 1)[-1] == "path"
    ]
    cells: list[Any] = []
    batches = file.iter_batches(batch_size=64, row_groups=[group], columns=leaves if named else [column])

    def cell(value: Any, item: int | None = None) -> ParquetCell:
        path = value["path"].as_py() if named and value.is_valid else None
        return ParquetCell(place, column, group, len(cells), item, path or "")

    for value in (value for batch in batches for value in batch.column(0)):
        if not value.is_valid:
            cells.append(None)
        elif listed:
            cells.append([cell(one, number) for number, one in enumerate(value)])
        else:
            cells.append(cell(value))
    return cells
