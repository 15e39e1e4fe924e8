"""Stored answers: one JSON line for each answered conversation, keyed by all that the answer depends on.

A folder holds one file per process that writes. Lines are appended as answers come, so that a run that is killed loses
what was in flight and no more; a line that a kill cut off is dropped when the file is next opened.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.data.benchmarks import ImageRef
from mmedexpert_jax.errors import DataError, ResourceError
from mmedexpert_jax.rollout import Reply
from mmedexpert_jax.runtime import files


def answer_key(messages: Sequence[Mapping[str, Any]], model: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Hash, 64 hexadecimal digits, of a conversation (images by their contents), a model and generation settings.

    Raises DataError where an image cannot be read.
    """
    hashed = {"messages": messages, "model": model, "settings": settings}
    text = json.dumps(hashed, sort_keys=True, ensure_ascii=False, default=_by_content)
    return hashlib.sha256(text.encode()).hexdigest()


def _by_content(value: Any) -> str:
    if isinstance(value, ImageRef):
        return value.sha256
    raise TypeError(f"{type(value).__name__} cannot be hashed")


class AnswerLog:
    """The answers in a folder; `process` names the file that this one writes. A context manager.

    Attributes:
        broken: lines that could not be read, a cut-off last one among them.
    """

    def __init__(self, folder: str | Path, process: int = 0):
        """Opens the folder. Raises ResourceError: another process writes this file, or it cannot be written."""
        self.folder = Path(folder)
        self.broken = 0
        self._found: dict[str, list[Reply]] = {}
        self._synced = 0.0  # when the file was last brought to the disk, by time.monotonic
        with files.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._path = self.folder / f"{process:05d}.jsonl"
            self._file = self._path.open("ab+", buffering=0)
            ours = files.exclusive(self._file)
        if not ours:
            self._file.close()
            raise ResourceError(
                f"{self._path} is being written by another process; give each one its own config.process"
            )
        self.broken += files.cut_short(self._file)
        for path in sorted(self.folder.glob("*.jsonl")):
            self._read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str) -> list[Reply]:
        """The answers under a key."""
        return self._found[key]

    def add(self, name: str, key: str, replies: Sequence[Reply]) -> None:
        """Stores the answers to one conversation, whatever ends this process; a machine that loses power may lose those
        of the last second. Raises ResourceError."""
        line = {"key": key, "item": name, "replies": [asdict(reply) for reply in replies]}
        files.append(self._file, self._path, (json.dumps(line, ensure_ascii=False) + "\n").encode())
        if time.monotonic() - self._synced > 1:  # a sync after each would be minutes of an idle device
            self._sync()
        self._found[key] = list(replies)

    def close(self) -> None:
        """Closes the file and gives back its lock."""
        if not self._file.closed:
            self._sync()
        self._file.close()

    def _sync(self) -> None:
        with files.writing(self._path):
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> "AnswerLog":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, path: Path) -> None:
        *lines, rest = path.read_bytes().split(b"\n")
        for line in lines:
            try:
                row = border.parse_json(line, path.name)
                self._found[row["key"]] = [Reply(**reply) for reply in row["replies"]]
            except (DataError, KeyError, TypeError):
                self.broken += 1
        self.broken += bool(rest)
