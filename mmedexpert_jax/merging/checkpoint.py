"""safetensors checkpoints as views of their files, and a writer that fills shards in place and resumes after a kill."""

import copy
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.lora import canonical
from mmedexpert_jax.merging.arrays import finite
from mmedexpert_jax.models.save import SHARD_BYTES
from mmedexpert_jax.models.stored_tensors import CODES, COMPUTED, differing, missing, tensor_files, views
from mmedexpert_jax.runtime import files


class Checkpoint(Mapping[str, np.ndarray]):
    """Tensors of a Hugging Face directory by canonical name: read-only views of its files, loaded page by page.

    Args:
        directory: with model.safetensors, or shards and model.safetensors.index.json.

    `stored` gives the names under which the files have them, `tokens` another vocabulary than tokenizer.json's.

    Raises:
        DataError: no weights, a broken or quantised file, or a shard that is missing.
    """

    def __init__(self, directory: str | Path):
        self.directory, self.tokens = Path(directory), dict[str, int]()
        self.stored: dict[str, str] = {}
        self._views: dict[str, np.ndarray] = {}
        held = {name: file for name, file in tensor_files(self.directory).items() if not COMPUTED.search(name)}
        for file in self._shards():
            for name, view in views(file).items():
                if held.get(name) != file:  # computed, or of another shard, as the index says
                    continue
                other = self.stored.setdefault(canonical(name), name)
                if other != name and not np.array_equal(view, self._views[canonical(name)]):
                    raise differing(self.directory, other, name)
                self._views.setdefault(canonical(name), view)
        if absent := [name for name in held if canonical(name) not in self._views]:
            raise missing(held[absent[0]], absent[0])

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def over(self, tokens: dict[str, int], tensors: Mapping[str, np.ndarray]) -> "Checkpoint":
        """The same with another vocabulary, whose tensors stand in the place of the files'."""
        found = copy.copy(self)
        found.tokens, found._views = tokens, self._views | dict(tensors)
        return found

    def fingerprint(self) -> list[list]:
        """Names, sizes and times of the files: what changes when the weights, or the tokens of their rows, do."""
        tokens = self.directory.glob("tokenizer.json")
        read = map(Path.resolve, [*self._shards(), *tokens])
        return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in read]

    def _shards(self) -> list[Path]:
        return sorted(set(tensor_files(self.directory).values()))


# What a model is loaded and served with; whatever else lies there (optimizers, schedules, logs) is its trainer's.
_SETTINGS = (
    "config.json", "generation_config.json", "*processor_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.tiktoken", "spiece.model", "sentencepiece*.model",
    "chat_template*", "LICENSE*",
)  # fmt: skip


def copy_settings(source: Path, target: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Copies a model's configs and tokenizer files, and the code that config.json names.

    Args:
        source: directory of the model.
        target: directory.
        changes: `dtype` of the weights, `num_hidden_layers`, and `layers`, which of the source's each layer is, for
            config.json; `chat_template`, for a file of its own; `tokens`, token -> row, which tokenizer.json and
            vocab_size take in, and `added`, the entries that other models' tokenizer.json has of them.
    """
    for pattern in _SETTINGS:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, target / file.name)
    config = files.json_or_none(source / "config.json")
    if not isinstance(config, dict):
        return
    for code in (config.get("auto_map") or {}).values():
        name = f"{str(code).partition('.')[0]}.py"
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if changes and "tokens" in changes:
        _add_tokens(target / "tokenizer.json", changes["tokens"], changes["added"])
    if changes and "chat_template" in changes:
        files.write_text(target / "chat_template.jinja", changes["chat_template"])
    if changes:
        text = config.get("text_config") if isinstance(config.get("text_config"), dict) else None
        for part in (config, text):
            if part is not None:
                _change(part, changes)
        files.write_json(target / "config.json", config)


def _change(config: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """One level of config.json: transformers 5 reads `dtype`, 4 reads `torch_dtype`; whichever is there is changed."""
    if dtype := changes.get("dtype"):
        present = [key for key in ("dtype", "torch_dtype") if key in config]
        config |= dict.fromkeys(present or (["torch_dtype"] if "architectures" in config else []), dtype)
    if "tokens" in changes and "vocab_size" in config:
        config["vocab_size"] = max(changes["tokens"].values()) + 1
    if "num_hidden_layers" in changes and "num_hidden_layers" in config:
        kinds = config.get("layer_types")
        if isinstance(kinds, list):
            config["layer_types"] = [kinds[number] for number in changes["layers"]]
        config["num_hidden_layers"] = changes["num_hidden_layers"]


def _add_tokens(file: Path, tokens: Mapping[str, int], entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Tokens behind the last one that a tokenizer knows, by their `entries`, such as special, or else as what
    transformers' add_tokens adds."""
    content = files.json_or_none(file)
    vocabulary = content["model"]["vocab"]
    known = set(vocabulary if isinstance(vocabulary, dict) else (token for token, _ in vocabulary))
    known |= {entry["content"] for entry in content["added_tokens"]}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False) | {"normalized": True}
    added = sorted((row, token) for token, row in tokens.items() if token not in known)
    more = [{"content": token, **plain, **entries.get(token, {}), "id": row} for row, token in added]
    content["added_tokens"] += more
    files.write_json(file, content)


def chat_template(directory: Path) -> str:
    """A model's chat template, from its own file or tokenizer_config.json; empty where it has none."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return border.read_text(file)
    for name in ("chat_template.json", "tokenizer_config.json"):
        content = files.json_or_none(directory / name)
        if isinstance(content, dict) and isinstance(content.get("chat_template"), str):
            return content["chat_template"]
    return ""


def check_finite(name: str, entries: np.ndarray) -> None:
    """Raises ConfigError where floats hold an infinity or NaN."""
    if not finite(entries):
        raise ConfigError(
            f"{name}: holds values that are not finite in {entries.dtype.name}; write bfloat16 or float32 "
            "(config.model.dtype, or out_dtype of a mergekit file), or mend the base"
        )


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
        digest = hashlib.sha256(json.dumps(files.plain(fingerprint)).encode())
        for file, (header, _) in self._headers.items():  # names, shapes, dtypes and places of the tensors
            digest.update(file.encode() + header)
        self.done: dict[str, Any] = self._resume(digest.hexdigest())
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

    def close(self, copy_from: Path | None = None, changes: Mapping[str, Any] | None = None) -> Path:
        """Syncs the shards, copies configs (with changes) and tokenizer files, and renames all into place."""
        with files.writing(self.partial):
            for handle in self._files.values():
                os.fsync(handle)
                os.close(handle)
            if len(self._files) > 1:
                weight_map = {name: file for name, (file, _) in self._layout.items()}
                index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
                files.write_json(self.partial / "model.safetensors.index.json", index)
            if copy_from:
                copy_settings(copy_from, self.partial, changes)
            self._journal.unlink()  # last: what fails before it goes on from here
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
                raise files.unwritable(self.path, errno.ENOSPC)
            for file, (header, size) in self._headers.items():
                with (self.partial / file).open("wb") as stream:
                    stream.write(header)
                    stream.truncate(len(header) + size)
            self._journal.write_text(json.dumps(digest) + "\n")
        return {}


def _plan(tensors: Mapping[str, tuple], most: int) -> tuple[dict[str, tuple[str, int]], dict[str, tuple[bytes, int]]]:
    """{tensor: (file, offset in it)} and {file: (header, bytes of data)}."""
    plan = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: int(np.prod(tensor[0])) * np.dtype(tensor[1]).itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=most,
    )
    layout: dict[str, tuple[str, int]] = {}
    headers: dict[str, tuple[bytes, int]] = {}
    for file, names in plan.filename_to_tensors.items():
        entries, size = {}, 0
        for name in names:
            shape, dtype = tensors[name]
            start, size = size, size + int(np.prod(shape)) * np.dtype(dtype).itemsize
            code = CODES[np.dtype(dtype).name]
            entries[name] = {"dtype": code, "shape": [int(n) for n in shape], "data_offsets": [start, size]}
        text = json.dumps({"__metadata__": {"format": "pt"}} | entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        headers[file] = header, size
        layout |= {name: (file, len(header) + entry["data_offsets"][0]) for name, entry in entries.items()}
    return layout, headers
