"""The border: files and bodies come in here, bounded and checked, and values go out here, finite and whole.

Every reader refuses, in one line that names file, row, key and value, what is too large or too deep, a key written
twice, a number that is not finite or does not fit in 64 bits, text that UTF-8 cannot hold, and what a schema does not
allow. A schema is a type that msgspec understands: int, list[str], a dataclass, a TypedDict, or a `msgspec.Struct`,
whose fields may be bounded by `Annotated[float, msgspec.Meta(ge=0)]` and whose unknown keys are refused under
`forbid_unknown_fields=True`. Types are strict: "4" is no int and 1 no bool.

    settings = border.read_json(folder / "adapter_config.json", AdapterConfig)
    for number, row in border.read_jsonl(path, dict[str, Any]): ...
    body = border.parse_json(content, "answer of api.example.org", error=RemoteError)
"""

import csv
import errno
import io
import json
import math
import os
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import msgspec
import yaml

from mmedexpert_jax.errors import DataError, ResourceError, UserError, without_login

MAX_BYTES = 1 << 28  # of a file or body that is held whole; the tokenizers of the family have 11 MB
MAX_LINE = 1 << 26  # bytes of a line of JSON Lines or a record of CSV; an image may stand in it as base64
MAX_DEPTH = 64  # containers within containers; the deepest files of the field have about 10
MAX_VALUES = 1 << 24  # of a YAML document, whose aliases can name one list a billion times
SHOWN = 80  # characters of a value in an error
LFS = "version https://git-lfs"  # begins what Git LFS leaves in a large file's place
POINTER = "a Git LFS pointer in the place of the file; run git lfs pull"

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_FIXES = {
    errno.ENOSPC: "free some space, then run the same command to resume",
    errno.EDQUOT: "free some of the quota, then run the same command to resume",
    errno.EFBIG: "raise the limit on file sizes, then run the same command to resume",
    errno.EROFS: "choose a workdir on a writable disk",
    errno.EACCES: "choose a workdir that this user may write",
    errno.EPERM: "choose a workdir that this user may write",
    errno.ENOTDIR: "choose a workdir that is a directory, or a new one",
    errno.EEXIST: "choose a workdir that is a directory, or a new one",
    errno.ENAMETOOLONG: "choose a shorter path",
}


class Refused(ValueError):
    """A value that the border does not let in; its text says why, without the place, which the reader adds."""


# -- values ------------------------------------------------------------------------------------------------------------


class _Repr(reprlib.Repr):
    """Short forms in which no URL shows its password."""

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(without_login(x), level)


def shown(value: Any, width: int = SHOWN) -> str:
    """`repr(value)` on one line of at most `width` characters, however large or deep the value is."""
    short = _Repr()
    short.maxstring = short.maxother = short.maxlong = width
    try:
        text = " ".join(short.repr(value).split())
    except (RecursionError, ValueError):  # a tree too deep to print; an integer of over 4,300 digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= width else text[: width - 3] + "..."


def cut(text: str, width: int = SHOWN) -> str:
    """`text` on one line of at most `width` characters."""
    text = " ".join(without_login(text)[: 4 * width].split())  # 4: blanks are joined, and a text may have gigabytes
    return text if len(text) <= width else text[: width - 3] + "..."


def listing(names: Sequence[str], most: int) -> str:
    """The first `most` names, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def passed_on(name: str) -> str:
    """A name as strangers may read it: of a place on this machine the last part alone; any other, such as a hub id, as
    it is."""
    local = name.startswith(("~", ".")) or Path(name).is_absolute() or Path(name).exists()
    return Path(name).name if local else name


def message_of(error: BaseException, width: int = SHOWN) -> str:
    """Kind and text of an exception on one line of at most `width` characters, whatever its own text raises."""
    try:
        text = str(error)
    except Exception:  # a class of a user's own
        text = ""
    return cut(f"{type(error).__name__}: {text}".rstrip(": "), width)


def one_line(error: BaseException) -> str:
    """An error of a library, without its kind where it has a text, on one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def check(value: Any, schema: Any, place: str, error: type[UserError] = DataError) -> Any:
    """Converts a plain value to a schema. Raises `error` that names place, key, expected type and value."""
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as problem:
        expected, _, path = str(problem).partition(" - at `")
        path = path.rstrip("`").removeprefix("$").lstrip(".")
        key = f"key {cut(path)}: " if path else ""
        found = _at(value, path)
        raise error(f"{place}: {key}{_in_our_words(expected)}; found {shown(found)}") from None
    except RecursionError:
        raise error(f"{place}: nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeEncodeError:  # msgspec tries to read text as a number
        raise error(f"{place}: holds half of a surrogate pair, which is no character") from None


def finite(value: Any) -> bool:
    """True where a plain value (dicts, lists, numbers, text) holds no NaN and no infinity."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(finite, value.values()))
    return all(map(finite, value)) if isinstance(value, (list, tuple)) else True


def _at(value: Any, path: str) -> Any:
    """The part of `value` at a path of msgspec's, such as "a.b[3]"; the deepest part that can be found."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]", path):
        try:
            value = value[name] if name else value[int(index)]
        except (KeyError, IndexError, TypeError, ValueError):
            break
    return value


def _in_our_words(problem: str) -> str:
    """A message of msgspec's in the words of our errors: "expected `int`, got `str`" -> "must be int"."""
    problem = re.sub(r", got `[^`]*`$", "", problem)
    return (
        problem.replace("Expected ", "must be ")
        .replace("Object missing required field", "lacks the key")
        .replace("Object contains unknown field", "has the unknown key")
        .replace("`", "")
    )


def _bounded(tree: Any) -> Any:
    """`tree`, walked level by level without recursion. Raises Refused where it is too deep, too wide or not finite."""
    level, seen = [tree], 0
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for node in level:
            if isinstance(node, float) and not math.isfinite(node):
                raise Refused(f"{_path_to(node, tree)}{json.dumps(node)} is no finite number")
            if isinstance(node, dict):
                below.extend(node.values())
            elif isinstance(node, list):
                below.extend(node)
            if seen + len(below) > MAX_VALUES:
                raise Refused(f"holds more than {MAX_VALUES} values")
        if not below:
            return tree
        level, seen = below, seen + len(below)
    raise Refused(f"is nested deeper than {MAX_DEPTH} levels")


def _path_to(found: float, tree: Any) -> str:
    """The place in `tree` of a number, that very object, in words: "key a.b[3]: "; empty where it is all of it."""
    level = [("", tree)]
    while level:
        below: list[tuple[str, Any]] = []
        for path, node in level:
            if node is found:
                return f"key {cut(path)}: " if path else ""
            if isinstance(node, dict):
                below.extend((f"{path}.{name}".lstrip("."), value) for name, value in node.items())
            elif isinstance(node, list):
                below.extend((f"{path}[{index}]", value) for index, value in enumerate(node))
        level = below
    return ""


# -- readers -----------------------------------------------------------------------------------------------------------


def read_bytes(path: str | os.PathLike, limit: int = MAX_BYTES, error: type[UserError] = DataError) -> bytes:
    """A file's content. Raises `error` where it is missing, no file, unreadable or longer than `limit` bytes."""
    with _open(path, error) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise error(f"{_name(path)} is longer than the {limit} bytes that are read of such a file")
    return content


def read_text(path: str | os.PathLike, limit: int = MAX_BYTES, error: type[UserError] = DataError) -> str:
    """A file's UTF-8 text. Raises `error`, as `read_bytes` does, and where it is none."""
    return _parsed(_name(path), "text", error, str, read_bytes(path, limit, error))


def read_json(
    path: str | os.PathLike, schema: Any = Any, *, limit: int = MAX_BYTES, error: type[UserError] = DataError
) -> Any:
    """The value of a JSON file, converted to `schema`. Raises `error`."""
    return parse_json(read_bytes(path, limit, error), _name(path), schema, error=error)


def parse_json(
    content: str | bytes,
    place: str,
    schema: Any = Any,
    *,
    limit: int = MAX_BYTES,
    error: type[UserError] = DataError,
    nan: Any = math.nan,
) -> Any:
    """The value of a JSON text, converted to `schema`; `place` names where the text comes from, `nan` is what NaN
    stands for, which is refused as it is. Raises `error`."""
    if len(content) > limit:
        raise error(f"{place} is longer than the {limit} bytes that are read of it")
    value = _parsed(place, "JSON", error, partial(_json, nan=nan), content)
    return value if schema is Any else check(value, schema, place, error)


def read_jsonl(
    path: str | os.PathLike, schema: Any = Any, *, limit: int = MAX_LINE, error: type[UserError] = DataError
) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of each line of a JSON Lines file that is not blank. Raises `error` at a bad line."""
    for number, line in read_lines(path, limit=limit, error=error):
        if line.strip():
            yield number, parse_json(line, f"{_name(path)} line {number}", schema, limit=limit, error=error)


def read_lines(
    path: str | os.PathLike, *, limit: int = MAX_LINE, error: type[UserError] = DataError
) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes with the line's end) of a file, a line at a time. Raises `error` at a longer line."""
    with _open(path, error) as file:
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            if len(line) > limit:
                raise error(f"{_name(path)} line {number} is longer than {limit} bytes")
            yield number, line


def read_yaml(
    path: str | os.PathLike,
    schema: Any = Any,
    *,
    limit: int = 1 << 20,  # PyYAML reads 250 KB a second, and people write its files by hand
    error: type[UserError] = DataError,
) -> Any:
    """The value of a YAML file (no tags of Python's), converted to `schema`. Raises `error`."""
    value = _parsed(_name(path), "YAML", error, _yaml, read_bytes(path, limit, error))
    return value if schema is Any else check(value, schema, _name(path), error)


def _parsed(place: str, form: str, error: type[UserError], parse: Any, content: str | bytes) -> Any:
    """`parse(text)`, bounded. Raises `error` with one line, whatever a parser raises on hostile text."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        return _bounded(parse(text))
    except UnicodeDecodeError as problem:
        raise error(f"{place} is not UTF-8 text (byte {problem.start}); save it in UTF-8") from None
    except RecursionError:
        raise error(f"{place} is nested deeper than {MAX_DEPTH} levels") from None
    except Refused as problem:
        raise error(f"{place}: {problem}") from None
    except (ValueError, yaml.YAMLError) as problem:
        if text.startswith(LFS):
            raise error(f"{place}: {POINTER}") from None
        raise error(f"{place} is not {form}: {cut(str(problem), 2 * SHOWN)}") from None


def _json(text: str, nan: Any) -> Any:
    constants = {"NaN": nan, "Infinity": math.inf, "-Infinity": -math.inf}
    value = json.loads(text, object_pairs_hook=_unique_keys, parse_int=_int, parse_constant=constants.get)
    return _encodable(value, text)


def _encodable(value: Any, text: str) -> Any:
    """`value` that was read from `text`. Raises Refused where an escape made text of it that cannot be written again.

    Half of a surrogate pair is JSON and YAML, and no character.
    """
    if "\\u" in text or "\\U" in text:
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            raise Refused("holds half of a surrogate pair, which is no character") from None
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise Refused(f"the key {shown(_first_twice(names))} is written twice")
    return found


def _first_twice(names: Iterable[Any]) -> Any:
    """The first of names that stands twice; None where each stands once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _int(text: str) -> int | float:
    """A whole number; beyond 64 bits a float, as tokenizers say that they have no longest text (10**30)."""
    if len(text) > 40:  # a longer one is no count of anything, and Python takes long over thousands of digits
        raise Refused(f"the number {cut(text, 40)} does not fit in 64 bits")
    number = int(text)
    return number if -(2**63) <= number < 2**64 else float(number)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without Python's tags, and without keys written twice, of which PyYAML keeps the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """A mapping's dict. Raises Refused at a key written twice or one that is no scalar."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(names) < len(node.value):
            raise Refused("a key is no scalar")
        if len(set(names)) < len(names):
            raise Refused(f"the key {shown(_first_twice(names))} is written twice")
        return super().construct_mapping(node, deep)


def _yaml(text: str) -> Any:
    return _encodable(yaml.load(text, Loader=_Loader), text)  # a SafeLoader: it makes no object of a tag


@contextmanager
def _open(path: str | os.PathLike, error: type[UserError]) -> Iterator[IO[bytes]]:
    """A regular file, open for reading; a pipe or device, which may have no end, is refused."""
    try:
        refuse_endless(path, error)
        file = Path(path).open("rb")  # noqa: SIM115 (the block below closes it)
    except (OSError, ValueError) as problem:  # ValueError: a path with a zero byte
        reason = getattr(problem, "strerror", None) or str(problem)
        raise error(f"cannot read {_name(path)}: {reason.lower()}") from None
    with file:
        try:
            yield file
        except OSError as problem:
            raise error(f"cannot read {_name(path)}: {(problem.strerror or str(problem)).lower()}") from None


def existing(path: Path) -> Path:
    """`path`, or what is there of its name in the other form of Unicode, as macOS packs "é": as a letter and a mark,
    or with slashes in the place of Windows' marks, or both; `path` itself where nothing is."""
    if (str(path).isascii() and "\\" not in str(path)) or path.exists():
        return path
    names = (str(path), str(path).replace("\\", "/"))
    forms = (Path(unicodedata.normalize(form, name)) for name in names for form in ("NFC", "NFD"))
    return next((form for form in forms if form.exists()), path)


def refuse_pointer(path: str | os.PathLike, error: type[UserError] = DataError) -> None:
    """Raises `error` where a file is a pointer of Git LFS, which a clone without it leaves in a large file's place."""
    with suppress(OSError), Path(path).open("rb") as file:
        if file.read(len(LFS)) == LFS.encode():
            raise error(f"{_name(path)}: {POINTER}")


def refuse_endless(path: str | os.PathLike, error: type[UserError] = DataError) -> None:
    """Raises `error` where a path is a pipe or a device, which may have no end, or a folder."""
    if Path(path).exists() and not Path(path).is_file():
        raise error(f"{_name(path)} is no file")


def _name(path: str | os.PathLike) -> str:
    return cut(os.fspath(path), 300)


# -- writers -----------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turns an OSError of the block into a ResourceError of one line that names `path` and the fix."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error.errno or 0) from error


def unwritable(path: str | os.PathLike, code: int) -> ResourceError:
    """The error of a path that cannot be written, for an errno."""
    fix = _FIXES.get(code, "choose another workdir")
    return ResourceError(f"cannot write {_name(path)}: {os.strerror(code).lower()}; {fix}")


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a whole file by way of a temporary one beside it, so that a reader sees the old or the new content.

    Raises ResourceError, after which the old file stands untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """As `write_bytes`, in UTF-8; half of a surrogate pair, which a model or a server may send, becomes "?"."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a plain value as indented strict JSON, whole. Raises DataError where it holds NaN or an infinity."""
    write_text(path, _dumped(path, value, indent=1) + "\n")


def write_settings(path: Path, value: Mapping[str, Any], ascii_only: bool = True) -> None:
    """Writes a model's or tokenizer's JSON file in the form that transformers gives it, into a folder being made."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=ascii_only) + "\n", encoding="utf-8")


def write_jsonl(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON Lines, whole. Raises DataError where one holds NaN or an infinity."""
    write_text(path, "".join(_dumped(path, row) + "\n" for row in rows))


def write_csv(path: str | os.PathLike, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes `csv_text`, whole."""
    write_text(path, csv_text(columns, rows))


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A table with a header; cells that a spreadsheet would run are text (`inert`)."""
    buffer = io.StringIO()
    columns = list(columns)
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow([inert(column) for column in columns])
    table.writerows([[inert(row.get(column, "")) for column in columns] for row in rows])
    return buffer.getvalue()


def inert(cell: Any) -> Any:
    """A cell of CSV that no spreadsheet takes for a formula: text that begins as one, and is no number such as "-5",
    gets a ' in front."""
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _dumped(path: str | os.PathLike, value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    except ValueError:
        raise DataError(f"{_name(path)} is not written: a value of it is not finite") from None


# -- code of users -----------------------------------------------------------------------------------------------------


@contextmanager
def same_folder() -> Iterator[None]:
    """A user's code may change the working folder inside; afterwards it is as before, unless that folder is deleted."""
    folder = None
    with suppress(FileNotFoundError):
        folder = os.getcwd()
    try:
        yield
    finally:
        if folder is not None:
            with suppress(FileNotFoundError):
                os.chdir(folder)
