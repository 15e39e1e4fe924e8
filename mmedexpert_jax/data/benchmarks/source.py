"""A benchmark's files where they lie: a directory, a zip, zips inside a directory, or the hub's cache."""

import fnmatch
import functools
import os
import re
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmedexpert_jax import border
from mmedexpert_jax.border import one_line
from mmedexpert_jax.data import tables
from mmedexpert_jax.data.places import InFolder, InZip, Place, open_archive
from mmedexpert_jax.data.tables import SUFFIXES
from mmedexpert_jax.errors import DataError, RemoteError
from mmedexpert_jax.processing.images import ImageRef

JUNK = ("__MACOSX/", "/._", ".cache/")
PACKED = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar", ".zip")  # a zip in a zip is not looked into


class MissingImage(DataError):
    """An image that a row names and the files do not hold."""


class Files:
    """The files of one benchmark, found by the end of their paths."""

    def __init__(self, name: str, root: Path, places: Iterator[tuple[str, Place]], expects: str = ""):
        """Takes a name for errors, and (path with slashes, place) pairs; unpacked files before those in zips."""
        self.name, self.root, self.expects = name, root, expects
        self._by_name: dict[str, list[tuple[str, Place]]] = defaultdict(list)
        self._are_alike = functools.cache(_alike)  # many questions name one image
        for path, place in places:
            path = path.replace("\\", "/")  # as some tools of Windows write a zip's members
            if not any(junk in f"/{path}" for junk in JUNK):
                self._by_name[_composed(path.rpartition("/")[2])].append((path, place))

    @classmethod
    def open(cls, source: str | Path, expects: str = "") -> "Files":
        """Files of a directory (its zips looked into) or of a zip. Raises DataError."""
        root = Path(source).expanduser()
        if root.is_dir():
            return cls(str(root), root, _walk(root), expects)
        if root.is_file() and zipfile.is_zipfile(root):
            return cls(str(root), root, _members(root), expects)
        if root.is_file() and root.suffix.lower() == ".zip":
            raise DataError(f"{root} is not a readable zip; fetch it again")
        if root.is_file():
            return cls(str(root), root, iter([(root.name, InFolder(root))]), expects)
        raise DataError(f"no such directory or zip: {source}; give one with {expects or 'the files'}, or hub")

    @classmethod
    def from_hub(cls, repository: str, patterns: Sequence[str]) -> "Files":
        """Downloads the files of a hub dataset that match `patterns` into the cache of `datasets`.

        Raises:
            RemoteError: the hub refuses or cannot be reached, or has no such files.
        """
        names, download = _hub(repository)
        chosen = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
        if not chosen:
            raise RemoteError(
                f"hub:{repository} has no file {' or '.join(patterns)}; give another copy as hub:owner/name"
            )
        local = [(name, Path(download(name))) for name in chosen]
        plain = ((name, InFolder(path)) for name, path in local if not name.endswith(".zip"))
        zipped = (pair for name, path in local if name.endswith(".zip") for pair in _members(path))
        return cls(f"hub:{repository}", Path(), iter([*plain, *zipped]))

    def find(self, pattern: str) -> list[tuple[str, Place]]:
        """Files whose path ends with `pattern` ("QA_information/Open-access/*.json"), sorted by path.

        Raises DataError where some parts of a file in parts are missing.
        """
        name = pattern.rpartition("/")[2]
        pools = [self._by_name[name]] if name in self._by_name else self._by_name.values()
        found = [pair for pool in pools for pair in pool if _ends(pair[0], pattern)]
        tables.refuse_gaps(self.name, [name for name, _ in found])
        return sorted(dict(reversed(found)).items())

    def need(self, *patterns: str) -> list[tuple[str, Place]]:
        """`find` of the first pattern that finds something. Raises DataError."""
        for pattern in patterns:
            if found := self.find(pattern):
                return found
        held = sorted(self._by_name)
        some = border.listing(held, 5) or "nothing"
        wanted = self.expects or " or ".join(patterns)
        raise DataError(
            f"{self.name} holds no {' or '.join(patterns)} (but {some}); give the place with {wanted}, under that name"
            f"{self._packed}"
        )

    def alone(self, split: str) -> tuple[str, Place] | None:
        """The file of a source that is one table, of whatever name that speaks of no other split; None of others."""
        word = re.search("train|dev|val|test", self.root.stem.lower())
        known = self.root.suffix.lower() in SUFFIXES and self.root.is_file() and (not word or split.startswith(word[0]))
        return (self.root.name, InFolder(self.root)) if known else None

    def one(self, *patterns: str) -> tuple[str, Place]:
        """The file that `need` finds with the shortest path."""
        return min(self.need(*patterns), key=lambda pair: (len(pair[0]), pair[0]))

    def image(self, path: str, where: str, instead: str = "") -> ImageRef:
        """The image whose path ends as `path` does, or where none does, as `instead`. Raises MissingImage, which names
        `where`; DataError where files of several folders do that are not the same."""
        wanted = _composed(re.sub(r"^(?:\.{0,2}/)+", "", path.strip().replace("\\", "/")))
        pool = self._by_name.get(wanted.rpartition("/")[2], ()) if wanted else ()
        found = [(name, place) for name, place in pool if f"/{_composed(name)}".endswith(f"/{wanted}")]
        if not found and self.root.is_file() and (beside := self.root.parent / wanted).is_file():
            return ImageRef(wanted, InFolder(beside))
        if not found and instead:
            return self.image(instead, where)
        if not found:
            raise MissingImage(f"{where}: no image {path!r}{self._packed}")
        if not self._are_alike(tuple(place for _, place in found)):
            names = " and ".join(name for name, _ in found[:2])
            raise DataError(f"{where}: image {path!r} may be {names}, which differ; leave one of them")
        return ImageRef(wanted, found[0][1])

    @functools.cached_property
    def _packed(self) -> str:
        """A word on an archive among the files that is not looked into; "" where there is none."""
        name = next((name for name in self._by_name if name.lower().endswith(PACKED)), "")
        return f"; {name} is not looked into, unpack it" if name else ""


def _alike(places: Sequence[Place]) -> bool:
    """True where files of one name are of one size, and those in folders of one content, and those in zips: a file is
    not read to compare it with its copy in a zip, since whole sets lie so."""
    if len(places) < 2:
        return True
    try:
        sizes = {place.size() for place in places}
        contents = [{place.checksum() for place in places if isinstance(place, kind)} for kind in (InFolder, InZip)]
    except OSError:  # a link to nowhere, which is named when it is opened
        return True
    return len(sizes) == 1 and all(len(content) < 2 for content in contents)


def _composed(path: str) -> str:
    """A path with "é" as one character, which macOS packs as two."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _ends(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"*/{pattern}")


def _walk(root: Path) -> Iterator[tuple[str, Place]]:
    """Paths begin with the directory's own name, so that "MM/test.jsonl" is found in a directory MM as well."""
    zips = []
    for folder, folders, names in os.walk(root.absolute(), followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if name.lower().endswith(".zip"):
                zips.append(path)
            else:
                yield path.relative_to(root.absolute().parent).as_posix(), InFolder(path)
    for path in zips:
        yield from _members(path)


def _members(path: Path) -> Iterator[tuple[str, Place]]:
    for member in open_archive(path, os.getpid()).namelist():
        if not member.endswith("/"):
            yield member, InZip(path, member)


def _hub(repository: str) -> tuple[list[str], Callable[[str], str]]:
    """Names of a hub dataset's files, and what downloads one of them."""
    from datasets import DownloadManager
    from huggingface_hub import HfApi

    def remote(call: Callable[[], object]) -> object:
        try:
            return call()
        except Exception as error:  # the hub's clients raise their own, requests' and OS errors
            reason = one_line(error)
            raise RemoteError(f"hub:{repository}: {reason}; download it by hand and give its directory") from None

    names = remote(lambda: HfApi().list_repo_files(repository, repo_type="dataset"))
    manager = DownloadManager()
    return list(names), lambda name: str(remote(lambda: manager.download(f"hf://datasets/{repository}/{name}")))  # type: ignore[call-overload]
