"""Experts from their paths: checkpoints, adapters over any of them, runs with Orbax checkpoints, and recipes."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.lora import Lora, load_peft
from mmedexpert_jax.merging.checkpoint import Checkpoint, Tied
from mmedexpert_jax.merging.vectors import Adapter, Expert, Origin
from mmedexpert_jax.models.load import trace
from mmedexpert_jax.models.tree import nest
from mmedexpert_jax.runtime import files
from mmedexpert_jax.runtime.checkpoints import Checkpoints

RECIPE = "recipe.json"
# Leaves of `vars(runtime.training.State(...))`, which the trainers save.
_FACTOR = re.compile(r"^\['trained'\]\.factors\['(.+)'\]\['([ab])'\]$")
_WEIGHT = re.compile(r"^\['trained'\]((?:\['[^']+'\])+)$")


class Loaded(dict[str, Any]):
    """Tensors in memory, of a base whose files are no safetensors checkpoint."""

    def __init__(self, tensors: Mapping[str, Any], directory: Path):
        super().__init__(tensors)
        self.directory = directory


Base = Checkpoint | Loaded


def is_checkpoint(path: str) -> bool:
    """Whether a model's weights are safetensors files, which can be merged without being loaded."""
    return any(trace(path)[0].glob("*.safetensors"))


def open_base(path: str) -> Checkpoint:
    """The base's files. Raises DataError where the path names an adapter or a recipe and no full checkpoint."""
    directory, adapters = trace(path)
    if adapters or not any(directory.glob("*.safetensors")):
        raise DataError(f"{directory}: no full checkpoint, but a merge needs one as its base; export one first")
    return Checkpoint(directory)


def open_expert(name: str, path: str, base: Base, start_only: bool = False) -> Expert:
    """An expert as task vectors over `base`; nothing is read yet but headers and adapters.

    Args:
        name: of the expert.
        path: a full checkpoint, an adapter over any base (followed to its end), a run (its export, or its newest
            Orbax checkpoint where it has none yet), or a recipe.
        base: the merge's.
        start_only: the task vector of an adapter starts where its training did, whatever its own base is.

    Raises:
        DataError: nothing there, or something of another base.
    """
    directory, folders = trace(path)
    loaded = [Adapter.of(_load_adapter(folder, base, name)) for folder in folders]
    paths = (str(directory), *map(str, folders))
    if start_only and loaded:
        return Expert(name, adapters=(loaded[-1],), paths=paths[-1:])
    if _same(directory, base.directory):
        return Expert(name, adapters=tuple(loaded), paths=paths)
    if (directory / RECIPE).exists():
        return Expert(name, adapters=tuple(loaded), origin=_open_recipe(directory, base), paths=paths)
    if _orbax(directory) is None:
        return Expert(name, Tied(Checkpoint(directory), base, name), tuple(loaded), paths=paths)
    found = _read_orbax(directory)
    if not isinstance(found, Lora):
        return Expert(name, Tied(found, base, name), tuple(loaded), paths=paths)
    start = (files.read_json(directory / "config.json") or {}).get("model", {}).get("path", "")
    under = Expert(name) if start_only else open_expert(name, start, base)
    return replace(under, adapters=(*under.adapters, Adapter.of(found), *loaded), paths=(*under.paths, *paths))


def _same(first: Path, second: Path) -> bool:
    return first == second or first.resolve() == second.resolve()


def _load_adapter(directory: Path, base: Base, name: str) -> Lora:
    shapes = nest({key: np.broadcast_to(np.float32(0), view.shape) for key, view in base.items()})
    try:
        return load_peft(directory, shapes)
    except DataError as error:
        raise DataError(f"expert {name}: {error}") from error


def _open_recipe(directory: Path, base: Base) -> Origin:
    from mmedexpert_jax.merging.recipe import read_recipe

    recipe = read_recipe(directory)
    if not _same(trace(recipe.base)[0], base.directory):
        raise DataError(f"{directory / RECIPE}: its base is {recipe.base}, not {base.directory}: merge over that base")
    return recipe.open(base)


def _orbax(folder: Path) -> Path | None:
    """The checkpoints of a run that has exported nothing yet."""
    exported = any((folder / "export" / part).is_dir() for part in ("model", "adapter"))
    return folder / "ckpt" if (folder / "ckpt").is_dir() and not exported else None


def _read_orbax(folder: Path) -> Lora | dict[str, np.ndarray]:
    """What a run was training, from its newest whole checkpoint: LoRA factors, or full weights by name."""
    checkpoints = Checkpoints(folder / "ckpt")
    step = checkpoints.latest()
    if step is None:
        raise DataError(f"{folder / 'ckpt'}: no whole checkpoint there; let the run save one first")
    leaves = checkpoints.read(step)
    pairs: dict[str, dict[str, Any]] = {}
    weights = {}
    for key, leaf in leaves.items():
        if match := _FACTOR.match(key):
            pairs.setdefault(match[1], {})[match[2]] = jax.numpy.asarray(leaf)
        elif match := _WEIGHT.match(key):
            weights[".".join(re.findall(r"\['([^']+)'\]", match[1]))] = leaf
    if pairs:
        settings = (files.read_json(folder / "config.json") or {}).get("lora", {})
        rank = next(iter(pairs.values()))["a"].shape[0]
        return Lora(pairs, rank, float(settings.get("alpha", rank)))
    if not weights:
        raise DataError(f"{folder / 'ckpt' / str(step)}: holds no LoRA factors and no weights of a trainer")
    return weights
