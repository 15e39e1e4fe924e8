"""Writes that leave nothing half-written, and values made plain enough for strict JSON."""

import base64
import contextlib
import fcntl
import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mmedexpert_jax import border
from mmedexpert_jax.border import DISK_ERRORS, unwritable, write_bytes, write_text, writing
from mmedexpert_jax.errors import DataError

__all__ = [
    "DISK_ERRORS",
    "append",
    "data_uri",
    "json_lines",
    "lock",
    "partial",
    "plain",
    "read_json",
    "replace_folder",
    "replacing",
    "unwritable",
    "write_bytes",
    "write_json",
    "write_text",
    "writing",
]

THUMBNAIL = 256  # longest side, in pixels, of an image inside a samples table


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `plain(value)` as indented strict JSON, whole."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """The value in a JSON file; None where the file is missing or broken."""
    try:
        return border.read_json(path)
    except DataError:
        return None


def json_lines(path: Path) -> list[tuple[bytes, Any]]:
    """(line, value) pairs of a JSON-lines file up to the first line that is not whole; none where there is no file."""
    found: list[tuple[bytes, Any]] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            value = border.parse_json(line, path.name)
        except DataError:
            break
        if not line.endswith(b"\n"):
            break
        found.append((line, value))
    return found


@contextlib.contextmanager
def replacing(folder: str | os.PathLike) -> Iterator[Path]:
    """An empty folder to be filled: it stands at `folder` when the block ends, and is gone where the block raises.

    A process killed at any point leaves the old folder or the new one whole: at `folder`, or, of one killed between
    two renames, at `.<name>.old`, from where the next call brings it back.
    """
    folder = Path(folder)
    new = partial(folder)
    _settle(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        replace_folder(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def partial(folder: Path) -> Path:
    """Where the next `folder` is filled: beside it, hidden."""
    return folder.with_name(f".{folder.name}.partial")


def replace_folder(folder: Path) -> None:
    """Puts `partial(folder)` at `folder`, and deletes what stood there only then."""
    _settle(folder)
    try:
        if folder.is_dir():
            folder.rename(_aside(folder))
        partial(folder).rename(folder)
    finally:
        _settle(folder)


def _settle(folder: Path) -> None:
    """Ends a replacement that was cut short: the old folder goes back where no new one came, and else goes."""
    old = _aside(folder)
    if old.is_dir() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def lock(path: Path) -> IO[str] | None:
    """Takes an exclusive lock, which closing the file drops, or the system when the process ends, however it ends.

    Returns:
        The open file, with this process's id in it; None where another process has it.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    return file


def append(file: io.RawIOBase, path: str | os.PathLike, data: bytes) -> None:
    """Appends `data` to an unbuffered file whole or not at all; raises ResourceError."""
    with writing(path):
        size = file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:]) or 0
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def plain(value: Any) -> Any:
    """`value` in JSON's own types: mappings to dicts, sequences and arrays to lists, NaN and infinities to None,
    images to JPEG data URIs of at most THUMBNAIL pixels, anything else to its str."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and JAX scalars and arrays
        return plain(value.tolist())
    if hasattr(value, "thumbnail"):  # PIL
        return data_uri(value)
    return str(value)


def data_uri(image: Any) -> str:
    """A PIL image as a small JPEG that HTML and JSON can hold."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
