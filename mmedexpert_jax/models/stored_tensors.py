"""Tensors of a Hugging Face directory, read slice by slice when they are asked for."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from mmedexpert_jax import border
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.lora import canonical

# safetensors' names of dtypes, and numpy's.
DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    **{f"{kind}{bits}": f"{name}{bits}" for bits in (8, 16, 32, 64) for kind, name in (("I", "int"), ("U", "uint"))},
    "BOOL": "bool",
}
# What older versions of transformers saved, and newer ones compute: positions, and frequencies of rotary angles
COMPUTED = re.compile(r"(^|\.)(position_ids|(original_)?inv_freq)$")
_FLOATS = ("BF16", "F16", "F32", "F64")
CODES = {name: code for code, name in DTYPES.items()}
_ROWS = 4096  # rows of two matrices that are compared at a time
Index = tuple[slice, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor that is still in its file."""

    shape: tuple[int, ...]
    dtype: str  # as numpy names it
    read: Callable[[Index], np.ndarray]  # the part at an index; may be a view of the file


def read_checkpoint(
    directory: Path,
    expected: dict[str, tuple[int, ...]],
    tied: bool,
    complete: Callable[[dict[str, Stored]], dict[str, Stored]] = lambda found: found,
) -> dict[str, Stored]:
    """The tensors of a directory by the names here (`lora.canonical`), whichever version of transformers wrote them.

    Args:
        directory: holds model.safetensors, or model.safetensors.index.json and its shards.
        expected: shapes by name.
        tied: whether the output layer is the embedding; a file may then repeat it.
        complete: a family's own way from the tensors that were found to all that it needs.

    Raises:
        DataError: no weights, a broken file, a quantised tensor, or missing, unexpected or misshapen tensors, by name.
    """
    found = complete(_by_our_names(directory, tensors_in(directory)))
    head = found.pop("lm_head.weight", None) if tied else None
    if head and "model.embed_tokens.weight" not in found:  # safetensors' save_model keeps one of the two tied names
        found["model.embed_tokens.weight"] = head
    elif head and not _equal(head, found.get("model.embed_tokens.weight")):
        raise DataError(f"{directory}: lm_head.weight differs from embed_tokens.weight; set tie_word_embeddings false")
    _check(directory, expected, {name: stored.shape for name, stored in found.items()})
    return found


def _by_our_names(directory: Path, tensors: dict[str, Stored]) -> dict[str, Stored]:
    """The tensors by `lora.canonical` names. Raises DataError where two are one by these, of different values."""
    found: dict[str, tuple[str, Stored]] = {}
    for name, stored in tensors.items():
        other, first = found.setdefault(canonical(name), (name, stored))
        if first is not stored and not _equal(stored, first):
            raise differing(directory, other, name)
    return {ours: stored for ours, (_, stored) in found.items()}


def differing(directory: Path, name: str, other: str) -> DataError:
    """The refusal of a checkpoint that has one tensor under two names, with different values."""
    return DataError(f"{directory}: {name} and {other} are one tensor and differ; delete the one that is not meant")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; DataError for anything else."""
    return border.read_json(file, dict[str, Any])


def views(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by the names that it has: read-only views, read when they are used.

    `safe_open` has the same from its `get_slice`, but copies what it reads, which is then copied to the device.
    Raises DataError for a file that is not whole, and for a tensor of another dtype than DTYPES.
    """
    _open(file)
    with file.open("rb") as source:
        size = int.from_bytes(source.read(8), "little")
        tensors = border.parse_json(source.read(size), f"{file}, its header", dict[str, dict[str, Any]])
    tensors.pop("__metadata__", None)
    empty = file.stat().st_size == 8 + size  # which cannot be mapped
    content = np.empty(0, np.uint8) if empty else np.memmap(file, np.uint8, "r", offset=8 + size)
    found = {}
    for name, entry in tensors.items():
        if entry["dtype"] not in DTYPES:
            raise _quantised(file, name, entry["dtype"])
        start, end = entry["data_offsets"]
        found[name] = content[start:end].view(jnp.dtype(DTYPES[entry["dtype"]])).reshape(entry["shape"])
    return found


def tensor_files(directory: Path) -> dict[str, Path]:
    """{tensor name: file}, from the index of a sharded checkpoint or the one file. Raises DataError."""
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    weight_map = read_json(index).get("weight_map") if index.exists() else {}
    alone = isinstance(weight_map, dict) and all(file == single.name for file in weight_map.values())
    if index.exists() and single.exists() and not alone:  # transformers would take it, whichever is the newer
        raise DataError(
            f"{directory}: holds both model.safetensors and shards with an index, as saving over an older model leaves "
            "them; delete the one that is not meant"
        )
    if index.exists() and not single.exists():
        if not isinstance(weight_map, dict):
            raise DataError(f"{index}: not an index of shards; download it again")
        if not all(isinstance(file, str) and Path(file).name == file for file in weight_map.values()):
            raise DataError(f"{index}: a shard's name is not that of a file in the folder; download it again")
        absent = sorted({file for file in weight_map.values() if not (directory / file).exists()})
        if absent:
            raise DataError(f"{index}: shards missing: {border.listing(absent, 12)}; download them again")
        return {name: directory / file for name, file in weight_map.items()}
    if not single.exists():
        there = sorted(file.name for file in directory.glob("*.safetensors") if file.is_file())
        fix = f"; rename {there[0]} to model.safetensors" if len(there) == 1 else ""
        if len(there) > 1 or "-of-" in "".join(there):
            fix = f"; {border.listing(there, 2)} are shards without it: download the index too"
        raise DataError(f"{directory}: no weights; expected model.safetensors or model.safetensors.index.json{fix}")
    return dict.fromkeys(_open(single).keys(), single)


def tensors_in(directory: Path) -> dict[str, Stored]:
    """The tensors of a directory by their names in its files. Raises DataError."""
    return dict(_stored(directory))


def _stored(directory: Path) -> Iterator[tuple[str, Stored]]:
    files = {name: file for name, file in tensor_files(directory).items() if not COMPUTED.search(name)}
    found = {file: views(file) for file in set(files.values())}
    _refuse_two_values(files, found)
    for name, file in files.items():
        if name not in found[file]:
            raise missing(file, name)
        view = found[file][name]
        if (code := CODES[view.dtype.name]) not in _FLOATS:
            raise _quantised(file, name, code)
        yield name, Stored(view.shape, view.dtype.name, view.__getitem__)


def _refuse_two_values(files: dict[str, Path], found: dict[Path, dict[str, np.ndarray]]) -> None:
    """Raises DataError where another shard than the one that the index names has a tensor too, with other values:
    transformers would take that of the last shard. `found`: the tensors of each file."""
    for file, tensors in sorted(found.items()):
        for name in (name for name in tensors if files.get(name, file) != file):
            own = found[files[name]].get(name)
            if own is not None and not np.array_equal(own, tensors[name]):
                raise DataError(
                    f"{file}: holds {name} too, which the index puts into {files[name].name}, with other values; "
                    "download the shards again, all of one version"
                )


def missing(file: Path, name: str) -> DataError:
    """The refusal of a shard that lacks a tensor."""
    return DataError(f"{file}: has no tensor {name}, which the index puts there; download it again")


def _quantised(file: Path, name: str, code: str) -> DataError:
    return DataError(
        f"{file}: tensor {name} has dtype {code}; quantised checkpoints are not supported, take "
        "the 16-bit one that it was made of"
    )


def _open(file: Path) -> Any:
    try:
        return safe_open(file, "np")
    except (OSError, SafetensorError) as error:
        border.refuse_pointer(file)
        raise DataError(f"{file}: not a whole safetensors file ({error}); download it again") from error


def _equal(left: Stored, right: Stored | None) -> bool:
    if right is None or left.shape != right.shape:
        return False
    blocks = ((slice(start, start + _ROWS),) for start in range(0, left.shape[0], _ROWS))
    return all(np.array_equal(left.read(block), right.read(block)) for block in blocks)


def _check(directory: Path, expected: dict[str, tuple], found: dict[str, tuple]) -> None:
    if empty := [name for name, shape in found.items() if shape == (0,)]:
        raise DataError(
            f"{directory}: {border.listing(empty, 2)} are empty, as DeepSpeed's ZeRO-3 leaves them: "
            "write whole ones by the zero_to_fp32.py of that checkpoint (--safe_serialization)"
        )
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "misshapen": [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    lines = [f"{kind}: {border.listing(names, 12)}" for kind, names in problems.items() if names]
    if lines:
        raise DataError(f"{directory}: tensors do not fit config.json: {'; '.join(lines)}")
