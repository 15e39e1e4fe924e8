"""Answers by this project's engine: checkpoints of `models.FAMILIES`, run directories and adapters."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import jax

from mmedexpert_jax import border
from mmedexpert_jax.errors import DataError, NotFinite, stop_if
from mmedexpert_jax.medeval.backends.base import STOPPED, OnReply, Refuse
from mmedexpert_jax.medeval.prompt_styles import Question, opened
from mmedexpert_jax.models import load_policy, load_processor
from mmedexpert_jax.models.load import chosen_reading, folders
from mmedexpert_jax.rollout import Engine, Settings
from mmedexpert_jax.runtime.mesh import make_mesh
from mmedexpert_jax.runtime.progress import doing

_SAMPLED = 2**16  # bytes of each stretch that a fingerprint reads
_STRETCHES = 64  # of each file
# bytes at both ends of each tensor of a file that these leave unread in part, and so many every _APART bytes: a norm or
# a bias is seen by its ends, and what changed in more than _APART bytes in a row by one of those between
_GRAIN, _APART = 2**12, 2**19
_HEADER = 100_000_000  # bytes at most, as the format says
_SUFFIXES = (".json", ".safetensors", ".gguf", ".jinja", ".txt")


class JaxBackend:
    """A model on all devices of this process, loaded when the first conversation comes."""

    def __init__(self, path: str, dtype: str, settings: Settings, interrupted: Callable[[], int | None] = lambda: None):
        """Takes what `load_policy` takes; `interrupted` tells of a signal and is looked at between answers."""
        self._interrupted = interrupted
        default = "float32" if jax.default_backend() == "cpu" else "checkpoint"  # as `load_policy` takes it
        self.identity: Mapping[str, Any] = {
            "weights": weights_hash(path),
            "dtype": dtype or default,
            **chosen_reading(),
        }
        self._path, self._dtype, self._settings = path, dtype, settings
        self._engines: dict[int, Engine] = {}

    def answer(
        self, asked: Sequence[Question], num_samples: int, on_reply: OnReply, refuse: Refuse | None = None
    ) -> None:
        """As in `Backend`."""
        conversations = ((lambda messages=question.messages: opened(messages)) for question in asked)
        ids, names = (question.row for question in asked), (question.name for question in asked)
        try:
            for number, replies in self._engine(num_samples).answer(conversations, ids, names, refuse):
                on_reply(number, replies)
                stop_if(self._interrupted, STOPPED)
        except NotFinite:
            raise NotFinite(self._path) from None

    def close(self) -> None:
        """Lets go of the weights."""
        self._engines.clear()

    def _engine(self, num_samples: int) -> Engine:
        if not self._engines:
            mesh = make_mesh() if jax.device_count() > 1 else None
            with doing(f"loading {self._path}"):
                model, params, lora = load_policy(self._path, dtype=self._dtype, mesh=mesh)
            engine = Engine(model, params, load_processor(self._path), self._settings, lora=lora, mesh=mesh)
            self._engines[self._settings.num_samples] = engine
        if num_samples not in self._engines:
            first = self._engines[self._settings.num_samples]
            self._engines[num_samples] = first.having(replace(self._settings, num_samples=num_samples))
        return self._engines[num_samples]


def weights_hash(path: str) -> str:
    """Hash of the files that a model is read from: their sizes, small ones whole, stretches of large ones and of each
    tensor in them."""
    if path.startswith("random:"):
        return path
    return content_hash(folders(path))


def content_hash(directories: Iterable[Path], suffixes: tuple[str, ...] = _SUFFIXES) -> str:
    """Hash of the files with `suffixes` in directories, read as `weights_hash` says."""
    found = (file for folder in directories for file in sorted(folder.iterdir()))
    return files_hash(file for file in found if file.suffix in suffixes and file.is_file())


def files_hash(read: Iterable[Path]) -> str:
    """Hash of files in their order, read as `weights_hash` says."""
    digest = hashlib.sha256()
    for file in read:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        _add_parts(digest, file)
    return digest.hexdigest()


def _add_parts(digest: "hashlib._Hash", file: Path) -> None:
    """Adds a file's stretches, all of a small one, and of a larger one the ends of its tensors."""
    size = file.stat().st_size
    step = max(_SAMPLED, size // _STRETCHES)
    with file.open("rb") as source:
        for start in range(0, size, step):
            source.seek(start)
            digest.update(source.read(_SAMPLED))
        source.seek(max(0, size - _SAMPLED))
        digest.update(source.read(_SAMPLED))
        if step > _SAMPLED:
            for start in sorted({*range(0, size, _APART), *_tensor_ends(source)}):
                source.seek(start)
                digest.update(source.read(_GRAIN))


def _tensor_ends(source: BinaryIO) -> set[int]:
    """Offsets of the first and the last _GRAIN bytes of each tensor of a safetensors file; none of another file."""
    source.seek(0)
    length = int.from_bytes(source.read(8), "little")
    if length > _HEADER:
        return set()
    try:
        entries = border.parse_json(source.read(length), "a header").values()
        spans = [entry["data_offsets"] for entry in entries if "data_offsets" in entry]
        ends = {place for first, last in spans for place in (first, max(first, last - _GRAIN))}
        return {8 + length + place for place in ends if 0 <= place < 2**60}
    except (AttributeError, DataError, TypeError, ValueError):
        return set()  # what it is, or what is wrong with it, is said where it is loaded
