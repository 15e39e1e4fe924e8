"""safetensors checkpoints as views of their files, and a writer that fills shards in place and resumes after a kill."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.lora import canonical
from mmedexpert_jax.models.checkpoint import CODES, tensor_files, views
from mmedexpert_jax.runtime import files

SHARD_BYTES = 5 * 10**9  # transformers' usual size


class Checkpoint(Mapping[str, np.ndarray]):
    """Tensors of a Hugging Face directory by canonical name: read-only views of its files, loaded page by page.

    Args:
        directory: with model.safetensors, or shards and model.safetensors.index.json.

    `stored` gives the names under which the files have them.

    Raises:
        DataError: no weights, a broken or quantised file, or a shard that is missing.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.stored: dict[str, str] = {}
        self._views: dict[str, np.ndarray] = {}
        for file in self._shards():
            for name, view in views(file).items():
                self.stored[canonical(name)] = name
                self._views[canonical(name)] = view

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def fingerprint(self) -> list[list]:
        """Names, sizes and times of the files: what changes when the weights do."""
        return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in map(Path.resolve, self._shards())]

    def _shards(self) -> list[Path]:
        return sorted(set(tensor_files(self.directory).values()))


class Tied(Mapping[str, np.ndarray]):
    """An expert's tensors under the base's names: an output layer tied in one of the two is filled in or left out.

    Raises:
        DataError: the base ties its output layer and the expert has one of its own that differs.
    """

    HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

    def __init__(self, expert: Mapping[str, np.ndarray], base: Mapping[str, Any], name: str):
        self._tensors = dict(expert)
        if self.HEAD in base and self.HEAD not in expert and self.EMBEDDING in expert:
            self._tensors[self.HEAD] = expert[self.EMBEDDING]
        if self.HEAD not in base and self.HEAD in expert:
            head = self._tensors.pop(self.HEAD)
            if not np.array_equal(head, expert.get(self.EMBEDDING, ())):
                raise DataError(
                    f"expert {name}: {self.HEAD} is not its embedding, but the base ties them: it is not of this base"
                )

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def copy_settings(source: Path, target: Path) -> None:
    """Copies a model's configs and tokenizer files."""
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith((".safetensors", ".index.json", ".bin", ".md", ".jsonl", ".gguf")):
            shutil.copyfile(file, target / file.name)


class Writer:
    """Shards laid out beforehand, filled tensor by tensor, renamed as a whole at the end.

    The directory `.<name>.partial` beside `path` holds the shards and a journal of the tensors that are done, with
    what was noted of each; another Writer with the same `fingerprint` goes on from there.

    Args:
        path: directory of the finished checkpoint; a model that stands there is replaced.
        tensors: {stored name: (shape, dtype)} in the order of the shards.
        fingerprint: of everything that the contents depend on.
        max_shard_bytes: a new shard starts where this would be exceeded.
    """

    def __init__(
        self, path: str | Path, tensors: Mapping[str, tuple], fingerprint: Any, max_shard_bytes: int = SHARD_BYTES
    ):
        self.path = Path(path)
        self.partial = files.partial(self.path)
        self._layout, self._headers = _plan(tensors, max_shard_bytes)
        self._total = sum(size for _, size in self._headers.values())
        self._journal = self.partial / "journal.jsonl"
        digest = hashlib.sha256(json.dumps(files.plain([fingerprint, list(tensors)])).encode()).hexdigest()
        self.done: dict[str, Any] = self._resume(digest)
        self._files = {file: os.open(self.partial / file, os.O_RDWR) for file in self._headers}

    def write(self, name: str, start: int, entries: np.ndarray) -> None:
        """Entries of a tensor from a flat index on, in its layout's dtype; from any thread. Raises ResourceError."""
        file, offset = self._layout[name]
        data = np.ascontiguousarray(entries).view(np.uint8).data
        offset += start * entries.dtype.itemsize
        with files.writing(self.partial):
            while data:
                written = os.pwrite(self._files[file], data, offset)
                data, offset = data[written:], offset + written

    def finish_tensor(self, name: str, note: Any) -> None:
        """Marks a tensor as written, with what a resumed merge wants to know of it."""
        with files.writing(self.partial), self._journal.open("a") as journal:
            journal.write(json.dumps([name, files.plain(note)]) + "\n")

    def close(self, copy_from: Path | None = None) -> Path:
        """Syncs the shards, copies configs and tokenizer files from a directory, and renames all into place."""
        with files.writing(self.partial):
            for handle in self._files.values():
                os.fsync(handle)
                os.close(handle)
            self._journal.unlink()
            if len(self._files) > 1:
                weight_map = {name: file for name, (file, _) in self._layout.items()}
                index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
                files.write_json(self.partial / "model.safetensors.index.json", index)
            if copy_from:
                copy_settings(copy_from, self.partial)
            files.replace_folder(self.path)
        return self.path

    def _resume(self, digest: str) -> dict[str, Any]:
        lines = files.json_lines(self._journal)
        if lines and lines[0][1] == digest:
            with files.writing(self._journal):  # the last line may be cut short, and more will follow it
                os.truncate(self._journal, sum(len(line) for line, _ in lines))
            return dict(entry for _, entry in lines[1:])
        with files.writing(self.partial):
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            if shutil.disk_usage(self.partial).free < self._total:
                raise files.unwritable(self.path, 28)
            for file, (header, size) in self._headers.items():
                with (self.partial / file).open("wb") as stream:
                    stream.write(header)
                    stream.truncate(len(header) + size)
            self._journal.write_text(json.dumps(digest) + "\n")
        return {}


def _plan(tensors: Mapping[str, tuple], most: int) -> tuple[dict[str, tuple[str, int]], dict[str, tuple[bytes, int]]]:
    """{tensor: (file, offset in it)} and {file: (header, bytes of data)}."""
    shards: list[dict[str, tuple]] = [{}]
    sizes = [0]
    for name, (shape, dtype) in tensors.items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if shards[-1] and sizes[-1] + size > most:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = ([int(n) for n in shape], np.dtype(dtype).name, sizes[-1], sizes[-1] + size)
        sizes[-1] += size
    layout: dict[str, tuple[str, int]] = {}
    headers: dict[str, tuple[bytes, int]] = {}
    for number, (shard, size) in enumerate(zip(shards, sizes, strict=True), 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        entries = {
            name: {"dtype": CODES[dtype], "shape": shape, "data_offsets": [start, stop]}
            for name, (shape, dtype, start, stop) in shard.items()
        }
        text = json.dumps({"__metadata__": {"format": "pt"}} | entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        headers[file] = header, size
        layout |= {name: (file, len(header) + start) for name, (_, _, start, _) in shard.items()}
    return layout, headers
