"""Recipes: a merge written down instead of its result, applied block by block wherever its result is needed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.merging.checkpoint import SHARD_BYTES, Checkpoint, Writer, copy_settings
from mmedexpert_jax.merging.engine import Merge
from mmedexpert_jax.merging.interference import Interference
from mmedexpert_jax.merging.parameters import Parameters
from mmedexpert_jax.merging.sources import RECIPE, Base, open_base, open_expert
from mmedexpert_jax.merging.switches import Switches
from mmedexpert_jax.merging.vectors import check
from mmedexpert_jax.models.checkpoint import Stored
from mmedexpert_jax.models.load import READERS, Reader, trace
from mmedexpert_jax.runtime import files

# What an expert is read from: weights, the settings of an adapter, a recipe or a run, the checkpoints of a run.
_FILES = ("*.safetensors", "adapter_config.json", RECIPE, "config.json", "ckpt/*/manifest.json")


@dataclass(frozen=True)
class Recipe:
    """A merge of checkpoints on disk.

    Attributes:
        base: path or hub id of the model that all experts started from.
        experts: name -> path (`sources.open_expert`), in the order of the merge.
        parameters: method, switches and numbers; `names` is filled in when the base is opened.
        start_only: names of experts whose task vector starts where their training did.
        dtype: of the output; empty: the base's.
    """

    base: str
    experts: Mapping[str, str]
    parameters: Parameters
    start_only: tuple[str, ...] = ()
    dtype: str = ""

    def open(self, base: Base | None = None) -> Merge:
        """The merge over its opened base and experts; headers and adapters are read, and everything is checked.

        Raises:
            ConfigError: numbers that do not fit.
            DataError: an expert that is not of this base.
        """
        base = base or open_base(self.base)
        how = replace(self.parameters, names=tuple(base), _settings={})
        how.check()
        experts = tuple(open_expert(name, path, base, name in self.start_only) for name, path in self.experts.items())
        check(base, experts)
        return Merge(base, experts, how)

    def write(self, folder: Path) -> Path:
        """Writes recipe.json beside the base's configs and tokenizer files: a directory that `load_model` takes."""
        content = {
            "base": self.base,
            "experts": dict(self.experts),
            "start_only": list(self.start_only),
            "dtype": self.dtype,
            "parameters": self.parameters.to_json(),
        }
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            copy_settings(trace(self.base)[0], folder)
        files.write_json(folder / RECIPE, content)
        return folder / RECIPE


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a directory or a run. Raises DataError where it is missing or broken."""
    file = trace(path)[0] / RECIPE
    try:
        content = json.loads(file.read_text())
        values = content["parameters"]
        parameters = Parameters(
            values["method"],
            tuple(content["experts"]),
            Switches(**values["switches"]),
            values["numbers"],
            values["seed"],
            threshold=values["threshold"],
            amplify=tuple(values["amplify"]),
        )
        return Recipe(content["base"], content["experts"], parameters, tuple(content["start_only"]), content["dtype"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: not a recipe of a merge ({error}); write it again with --config.result=recipe"
        ) from error


def merge_to_disk(
    recipe: Recipe,
    path: str | Path,
    on_tensor: Callable[[int, int], None] | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> Interference:
    """Merges checkpoints tensor by tensor into a new checkpoint with the base's keys, and reports the interference.

    Shards are read lazily and written in place; memory holds a few blocks. After a kill the same call goes on with
    the tensors that are not done. Configs and tokenizer files are the base's.

    Args:
        recipe: the merge.
        path: directory of the result, which appears whole at the end.
        on_tensor: called with the number of tensors done and of all.
        max_shard_bytes: of the output.

    Raises:
        ConfigError, DataError: as `Recipe.open`; also a task vector that is not finite.
        ResourceError: the disk is full or cannot be written.
    """
    base = open_base(recipe.base)
    job = recipe.open(base)
    path = Path(path)
    files.claim(path)
    dtypes = {name: output_dtype(view, recipe.dtype) for name, view in base.items()}
    tensors = {base.stored[name]: (view.shape, dtypes[name]) for name, view in base.items()}
    writer = Writer(path, tensors, fingerprint(recipe, job), max_shard_bytes)
    report = Interference(tuple(recipe.experts))
    for number, (name, view) in enumerate(base.items(), 1):
        stored = base.stored[name]
        if stored not in writer.done:
            sums = None
            if name in job.touched:
                sums = job.tensor(name, dtypes[name], partial(writer.write, stored))
            if sums is None:
                _copy(view, dtypes[name], partial(writer.write, stored))
            writer.finish_tensor(stored, sums)
            writer.done[stored] = sums
        if writer.done[stored] is not None:
            report.sums[name] = {key: np.asarray(value, np.float64) for key, value in writer.done[stored].items()}
        if on_tensor:
            on_tensor(number, len(base))
    writer.close(base.directory)
    return report


def tensors_of(directory: Path) -> dict[str, Stored]:
    """The tensors that a recipe stands for, each computed when it is read: what `load_model` makes of the directory."""
    recipe = read_recipe(directory)
    base = open_base(recipe.base)
    job = recipe.open(base)

    def stored(name: str) -> Stored:
        view = base[name]
        dtype = output_dtype(view, recipe.dtype)

        def read(index: Any) -> np.ndarray:
            if name not in job.touched:
                return view[index].astype(dtype, copy=False)
            out = np.empty(view.size, dtype)

            def write(start: int, merged: np.ndarray) -> None:
                out[start : start + len(merged)] = merged

            if job.tensor(name, dtype, write) is None:
                return view[index].astype(dtype, copy=False)
            return out.reshape(view.shape)[index]

        return Stored(view.shape, dtype.name, read)

    return {name: stored(name) for name in base}


def sources_of(directory: Path) -> list[str]:
    """The models that a recipe merges."""
    recipe = read_recipe(directory)
    return [recipe.base, *recipe.experts.values()]


READERS[RECIPE] = Reader(tensors_of, sources_of)


def output_dtype(view: np.ndarray, dtype: str) -> np.dtype:
    """The output's dtype of a tensor: the one asked for, for floating-point tensors."""
    import ml_dtypes

    floating = view.dtype.kind == "f" or view.dtype == ml_dtypes.bfloat16
    wanted = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}.get(dtype) or np.dtype(dtype or view.dtype)
    return wanted if floating and dtype else view.dtype


def _copy(view: np.ndarray, dtype: np.dtype, write: Callable[[int, np.ndarray], None]) -> None:
    entries = view.reshape(-1)
    for start in range(0, entries.size, 1 << 22):
        write(start, entries[start : start + (1 << 22)].astype(dtype, copy=False))


def fingerprint(recipe: Recipe, job: Merge) -> list[Any]:
    """Everything that the result depends on, in JSON's types; files by their size and time."""
    base = job.base.fingerprint() if isinstance(job.base, Checkpoint) else recipe.base
    return files.plain([recipe.parameters.to_json(), recipe.dtype, recipe.start_only, base, _sources(job)])


def _sources(job: Merge) -> list[Any]:
    """Name, paths and files of the experts, and of those behind the merges that they start from."""
    found: list[Any] = []
    for expert in job.experts:
        read = sorted(file for path in expert.paths for pattern in _FILES for file in Path(path).glob(pattern))
        stats = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in read]
        behind = _sources(expert.origin) if isinstance(expert.origin, Merge) else []
        found.append([expert.name, expert.paths, stats, behind])
    return found
