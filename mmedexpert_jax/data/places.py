"""Places of files, in a folder or in a zip that stays packed: opened, read whole, measured."""

import functools
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mmedexpert_jax import border
from mmedexpert_jax.errors import DataError

LARGE = 2**24  # bytes from which a file is kept while its slices are asked for


@dataclass(frozen=True)
class InFolder:
    """A file of a directory."""

    path: Path

    def open(self) -> BinaryIO:
        """The file, seekable. Raises OSError, of a pipe or a device too, which may have no end."""
        self._refuse_endless()
        return border.existing(self.path).open("rb")

    def __call__(self) -> bytes:
        """All of it. Raises as `open`."""
        self._refuse_endless()
        path = border.existing(self.path)
        seen = path.stat()
        if seen.st_size < LARGE:
            return path.read_bytes()
        return _large(path, (seen.st_mtime_ns, seen.st_size))

    def size(self) -> int:
        """Bytes of it. Raises OSError."""
        return border.existing(self.path).stat().st_size

    def checksum(self) -> int:
        """CRC-32 of its content. Raises as `open`."""
        return zlib.crc32(self())

    def _refuse_endless(self) -> None:
        if self.path.exists() and not self.path.is_file():
            raise OSError("it is no file")


@functools.lru_cache(maxsize=1)
def _large(path: Path, seen: tuple[int, int]) -> bytes:
    """The last large file, a volume whose slices are asked for in turn; `seen` says whether it has changed."""
    return path.read_bytes()


@dataclass(frozen=True)
class InZip:
    """A member of a zip."""

    archive: Path
    member: str

    def open(self) -> BinaryIO:
        """The member, seekable; going back reads it from its beginning. Raises DataError if it cannot be unpacked."""
        try:
            return open_archive(self.archive, os.getpid()).open(self.member)  # type: ignore[return-value]
        except (RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:  # a password, a method of its own
            raise DataError(f"{self.archive}, {self.member}: {border.cut(str(error))}; unpack it by hand") from None

    def __call__(self) -> bytes:
        """All of it. Raises as `open`."""
        with self.open() as file:
            return file.read()

    def size(self) -> int:
        """Bytes of it."""
        return open_archive(self.archive, os.getpid()).getinfo(self.member).file_size

    def checksum(self) -> int:
        """CRC-32 of its content, as the zip has it."""
        return open_archive(self.archive, os.getpid()).getinfo(self.member).CRC


Place = InFolder | InZip


@functools.lru_cache(maxsize=16)
def open_archive(path: Path, process: int) -> zipfile.ZipFile:
    """A zip, opened once in each process, since forked ones would share its position. Raises DataError."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is not a readable zip ({error}); fetch it again") from None
