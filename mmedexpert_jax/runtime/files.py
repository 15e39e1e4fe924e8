"""Writes that leave nothing half-written, and values made plain enough for strict JSON."""

import base64
import contextlib
import errno
import fcntl
import functools
import io
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mmedexpert_jax import border
from mmedexpert_jax.border import DISK_ERRORS as DISK_ERRORS
from mmedexpert_jax.border import unwritable as unwritable
from mmedexpert_jax.border import write_bytes as write_bytes
from mmedexpert_jax.border import write_text as write_text
from mmedexpert_jax.border import writing as writing
from mmedexpert_jax.errors import ConfigError, DataError

MARKER = ".mmedexpert.json"  # in every folder that this package made; what lacks it is the user's
_DESKTOP = re.compile(
    r"\.DS_Store|\._.+|Thumbs\.db|desktop\.ini", re.IGNORECASE
)  # files that a desktop leaves anywhere
EXPORTS = ("model", "adapter", "dataset", "public")  # folders of a run's export/, which earlier versions did not mark
THUMBNAIL = 256  # longest side, in pixels, of an image inside a samples table


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `plain(value)` as indented strict JSON, whole: a figure that is not defined, NaN, stands as null."""
    border.write_json(path, plain(value))


def json_or_none(path: str | os.PathLike) -> Any:
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


def owner(folder: Path) -> dict[str, Any]:
    """The marker of a folder that this package made: its kind ("run" or "artefact") and more; empty without one."""
    found = json_or_none(folder / MARKER)
    return found if isinstance(found, dict) and found.get("kind") in ("run", "artefact") else {}


def is_run(folder: Path) -> bool:
    """True for a run's folder: one with our marker, or, of an earlier version, with three files that only runs have."""
    if owner(folder):
        return owner(folder)["kind"] == "run"
    return all((folder / name).is_file() for name in ("STATUS.json", "cmd.txt", "env.json"))


def mark(folder: Path, kind: str, **facts: Any) -> None:
    """Writes our marker into a folder; an artefact's lists its files, so that one that was added later is seen."""
    if kind == "artefact":
        facts["files"] = sorted(_names(folder))
    write_json(folder / MARKER, {"kind": kind, **facts})


def is_whole(folder: Path) -> bool:
    """True for a folder that has all files that its marker lists, of an earlier version without one for any folder."""
    listed = owner(folder).get("files")
    return folder.is_dir() and all((folder / str(name)).exists() for name in listed or ())


def claim(folder: Path) -> None:
    """Raises ConfigError where a folder may not be replaced: it, or a file in it, was not made by this package.

    What is missing, empty, or of an earlier version inside a run's export/ may be replaced, as may an artefact with
    our marker to which nobody has added a file.
    """
    fix = "choose a new directory, or move that away first"
    if folder.is_symlink() and folder.is_dir():
        raise ConfigError(f"{folder} is a link to a directory, which a new one would replace; give {folder.resolve()}")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder} is there already and no directory; {fix}")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    marker = owner(folder)
    if not marker:
        inside = next((parent for parent in folder.absolute().parents if parent.name == "export"), None)
        if inside is not None and is_run(inside.parent) and folder.name in EXPORTS:
            return
        raise ConfigError(f"{folder} holds something other than a model, adapter or data set made here; {fix}")
    if marker["kind"] == "run":
        raise ConfigError(f"{folder} is a run's folder; {fix}")
    listed = marker.get("files")
    added = _names(folder) - set(listed if isinstance(listed, list) else ())
    if added:
        raise ConfigError(f"{folder} holds {border.cut(min(added))}, which was added to it; {fix}")


def _names(folder: Path) -> set[str]:
    """Paths of the files below a folder, less our marker and what a desktop leaves."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    ours = (path for path in files if path.name != MARKER and not _DESKTOP.fullmatch(path.name))
    return {path.relative_to(folder).as_posix() for path in ours}


@contextlib.contextmanager
def replacing(folder: str | os.PathLike) -> Iterator[Path]:
    """An empty folder to be filled: it stands at `folder` when the block ends, and is gone where the block raises.

    A process killed at any point leaves the old folder or the new one whole: at `folder`, or, of one killed between
    two renames, at `.<name>.old`, from where the next call brings it back.
    """
    folder = Path(folder)
    new = partial(folder)
    _settle(folder)
    claim(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        replace_folder(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def partial(folder: Path) -> Path:
    """The place in which the next `folder` is filled: beside it, hidden."""
    return folder.with_name(f".{folder.name}.partial")


def replace_folder(folder: Path) -> None:
    """Puts `partial(folder)` at `folder`, and deletes what stood there only then."""
    _settle(folder)
    claim(folder)
    mark(partial(folder), "artefact")
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


def exclusive(file: IO[Any]) -> bool:
    """Takes an exclusive lock on an open file; False where another process has it.

    Of a file system that has no locks, as Lustre without `flock`, a line says so once, and the file counts as ours.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        _say_unlocked(Path(file.name).parent)
    return True


@functools.cache
def _say_unlocked(folder: Path) -> None:
    print(f"the file system of {folder} has no locks: see that no second command writes there", flush=True)


def lock(path: Path) -> IO[str] | None:
    """Takes an exclusive lock, which closing the file drops, or the system when the process ends, however it ends.

    Returns:
        The open file, with this process's id in it; None where another process has it.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
        if not exclusive(file):
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


def cut_short(file: IO[bytes]) -> bool:
    """Cuts an open file of lines behind its last whole one, for more to follow; True where a kill had cut one short."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    file.truncate(whole)
    return whole < len(content)


def lines(path: Path) -> io.FileIO:
    """A file to `append` lines to, made with its folder where it is not there. Raises ResourceError."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+", buffering=0)
        cut_short(file)
    return file


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
        return thumbnail_uri(value)
    return str(value)


def thumbnail_uri(image: Any) -> str:
    """A PIL image as a small JPEG that HTML and JSON can hold."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
