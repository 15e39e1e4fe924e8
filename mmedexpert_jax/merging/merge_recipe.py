"""Recipes: a merge written down instead of its result, applied block by block wherever its result is needed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from mmedexpert_jax import border
from mmedexpert_jax.config.validate import parts_of
from mmedexpert_jax.errors import ConfigError, DataError, RemoteError, UserError
from mmedexpert_jax.lora import EMBEDDING, Lora, load_peft, with_saved_modules
from mmedexpert_jax.merging.alignment import aligned, enlarged, layers, rows_of, union, vocabularies
from mmedexpert_jax.merging.blockwise import Merge
from mmedexpert_jax.merging.checkpoint import (
    SHARD_BYTES,
    Checkpoint,
    Writer,
    chat_template,
    check_finite,
    copy_settings,
)
from mmedexpert_jax.merging.interference import Interference
from mmedexpert_jax.merging.parameters import Parameters
from mmedexpert_jax.merging.settings import Switches
from mmedexpert_jax.merging.slices import Merges, Slice
from mmedexpert_jax.merging.vectors import Adapter, Expert, Origin, check
from mmedexpert_jax.models.locate import from_above, locate, trace
from mmedexpert_jax.models.stored_tensors import Stored
from mmedexpert_jax.models.tree import flatten, nest
from mmedexpert_jax.runtime import files
from mmedexpert_jax.runtime.checkpoints import Checkpoints

RECIPE = "recipe.json"


class Loaded(dict[str, Any]):
    """Tensors in memory, of a base whose files are no safetensors checkpoint."""

    def __init__(self, tensors: Mapping[str, Any], directory: Path):
        super().__init__(tensors)
        self.directory = directory


Base = Checkpoint | Loaded


def is_checkpoint(path: str) -> bool:
    """True where a model's weights are safetensors files, which can be merged without being loaded."""
    return any(trace(path)[0].glob("*.safetensors"))


def opened(recipe: "Recipe", tensors: Mapping[str, Any]) -> Merge:
    """The merge over its base's files, or over the base's tensors where their format must be loaded."""
    return recipe.open(None if is_checkpoint(recipe.base) else Loaded(tensors, trace(recipe.base)[0]))


def open_base(path: str) -> Checkpoint:
    """The base's files. Raises DataError where the path names an adapter or a recipe and no full checkpoint."""
    directory, adapters = trace(path)
    if adapters or not any(directory.glob("*.safetensors")):
        kind = "an adapter" if adapters else "no full checkpoint"
        raise DataError(f"{path}: {kind}, but a merge needs a full checkpoint as its base; export one first")
    return Checkpoint(directory)


def open_expert(name: str, path: str, base: Base, start_only: bool = False) -> Expert:
    """An expert as task vectors over `base`; nothing is read yet but headers, adapters and differing tokenizers.

    Args:
        path: a full checkpoint, an adapter over any base (followed to its end), "BASE+ADAPTER" for an adapter over a
            base that it does not name, a run (its export, or its newest Orbax checkpoint where it has none yet), or a
            recipe.
        base: the merge's.
        start_only: the task vector of an adapter starts where its training did, whatever its own base is.

    Raises:
        DataError: nothing there, or something of another base.
    """
    left, *right = parts_of(path)
    if right:
        return _adapted(Expert(name) if start_only else open_expert(name, left, base), [locate(right[0])], base)
    try:
        directory, folders = behind(path)
    except (DataError, RemoteError) as error:
        settings = locate(path) / "adapter_config.json"
        if not settings.exists():
            raise
        border.read_json(settings)  # broken, it names no base, and says so itself
        fix = f"where its base is this merge's, give it as BASE+ADAPTER: {name}={base.directory}+{path}"
        raise type(error)(f"expert {name}: the base that its adapter names is not there ({error}); {fix}") from error
    if start_only and folders:
        return _adapted(Expert(name), folders[-1:], base)
    expert = Expert(name, paths=(str(directory),))
    if _same(directory, base.directory):
        return _adapted(expert, folders, base)
    if (directory / RECIPE).exists():
        return _adapted(replace(expert, origin=_open_recipe(directory, base)), folders, base)
    if own_checkpoints(directory) is None:
        found: Any = Checkpoint(directory)
    else:
        found = _read_orbax(directory)
    if not isinstance(found, Lora):
        tokens = getattr(base, "tokens", None)
        rows = rows_of(tokens, directory) if tokens else vocabularies(directory, base.directory)
        tied = (files.json_or_none(directory / "config.json") or {}).get("tie_word_embeddings") is not False
        weights, notes = aligned(found, base, name, rows, tied)
        return _adapted(replace(expert, weights=weights, notes=notes), folders, base)
    start = (files.json_or_none(directory / "config.json") or {}).get("model", {}).get("path", "")
    under = Expert(name) if start_only else open_expert(name, start, base)
    under = replace(under, adapters=(*under.adapters, Adapter.of(found)), paths=(*under.paths, *expert.paths))
    return _adapted(under, folders, base)


def _same(first: Path, second: Path) -> bool:
    return first == second or first.resolve() == second.resolve()


def _adapted(expert: Expert, folders: Iterable[Path], base: Base) -> Expert:
    """The expert with adapters on it; what they hold whole (modules_to_save) takes the place of its own tensors."""
    zeros = {key: np.broadcast_to(np.float32(0), view.shape) for key, view in base.items()}
    zeros |= {EMBEDDING: base[EMBEDDING]} if EMBEDDING in base else {}  # which an adapter's own may untie
    for folder in folders:
        try:
            filled = with_saved_modules(folder, nest(zeros))
            adapter = Adapter.of(load_peft(folder, filled))
        except DataError as error:
            raise DataError(f"expert {expert.name}: {error}") from error
        whole = {key: np.asarray(tensor) for key, tensor in flatten(filled).items() if tensor is not zeros[key]}
        if whole and expert.origin is not None:
            key = next(iter(whole))
            raise DataError(f"expert {expert.name}: {folder} holds {key} whole, over a recipe: merge that recipe first")
        own = base if expert.weights is None else expert.weights
        # what this adapter holds whole is all of a tensor: deltas of adapters below are of the one that it replaces
        below = [
            replace(one, factors={key: pair for key, pair in one.factors.items() if key not in whole})
            for one in expert.adapters
        ]
        expert = replace(
            expert,
            weights={**own, **whole} if whole else expert.weights,
            adapters=(*below, adapter),
            paths=(*expert.paths, str(folder)),
        )
    return expert


def _open_recipe(directory: Path, base: Base) -> Origin:
    recipe = read_recipe(directory)
    if not _same(trace(recipe.base)[0], base.directory):
        raise DataError(f"{directory / RECIPE}: its base is {recipe.base}, not {base.directory}: merge over that base")
    origin = recipe.open(base)
    if any(origin.base[name].shape != tensor.shape for name, tensor in base.items()):
        raise DataError(f"{directory / RECIPE}: a union of vocabularies, which the base lacks: merge that recipe first")
    return origin


def behind(path: str) -> tuple[Path, list[Path]]:
    """As `trace`, of an expert, which may also be a run that is not over: its newest checkpoint is read."""
    folder = Path(path).expanduser()
    return trace(path) if own_checkpoints(folder) is None else (folder, [])


def is_going_on(path: str) -> bool:
    """True for an expert that is a run which has exported nothing yet."""
    return own_checkpoints(Path(parts_of(path)[0]).expanduser()) is not None


def own_checkpoints(folder: Path) -> Path | None:
    """The checkpoints of a run that has exported nothing yet."""
    exported = any((folder / "export" / part).is_dir() for part in ("model", "adapter"))
    return folder / "ckpt" if (folder / "ckpt").is_dir() and not exported else None


def _read_orbax(folder: Path) -> Lora | dict[str, np.ndarray]:
    """The trained part of a run's newest whole checkpoint: LoRA factors, or full weights by name."""
    from mmedexpert_jax.train.state import trained_part  # here: with a trainer comes Flax, whose import costs a second

    checkpoints = Checkpoints(folder / "ckpt")
    step = checkpoints.latest()
    if step is None:
        raise DataError(f"{folder / 'ckpt'}: no whole checkpoint there; let the run save one first")
    factors, weights = trained_part(checkpoints.read(step))
    if factors:
        settings = (files.json_or_none(folder / "config.json") or {}).get("lora", {})
        rank = next(iter(factors.values()))["a"].shape[0]
        return Lora(factors, rank, float(settings.get("alpha", rank)))
    if not weights:
        raise DataError(f"{folder / 'ckpt' / str(step)}: holds no LoRA factors and no weights of a trainer")
    return weights


# What an expert is read from: weights, the settings of an adapter, a recipe or a run, the checkpoints of a run.
_FILES = ("*.safetensors", "adapter_config.json", RECIPE, "config.json", "tokenizer.json", "ckpt/*/manifest.json")


@dataclass(frozen=True)
class Recipe:
    """A merge of checkpoints on disk."""

    base: str  # path or hub id of the model that all experts started from; its configs and tokenizer are the result's
    experts: Mapping[str, str]  # name -> path (`open_expert`), in the order of the merge
    parameters: Parameters  # method, switches and numbers; `names` is filled in when the base is opened
    start_only: tuple[str, ...] = ()  # names of experts whose task vector starts where their training did
    dtype: str = ""  # of the output; empty: the base's
    chat_template: str = ""  # of the result; empty: the one that all experts were trained with, or else the base's
    # of a stack, whose layers come from several merges; then `experts` is what they name in all
    slices: tuple[Slice, ...] = ()
    tokenizer: str = ""  # "union" for the tokens of all models, else the base's
    fisher: str = ""  # directory with a checkpoint of each expert's Fisher information, by its name; empty: none

    def open(self, base: Base | None = None) -> Merge:
        """The merge over its opened base and experts; headers and adapters are read, and everything is checked.

        Raises:
            ConfigError: numbers that do not fit.
            DataError: an expert that is not of this base.
        """
        if self.slices:
            raise ConfigError("a stack of slices is merged into a model alone: leave out rank, sweep and result=recipe")
        base = base or open_base(self.base)
        if self.tokenizer == "union" and isinstance(base, Checkpoint):
            tokens, others = self._union(), {folder: Checkpoint(folder) for folder in self._folders()}
            base = base.over(tokens, enlarged(tokens, base, base.directory, others))
        how = replace(self.parameters, names=tuple(base), stored=getattr(base, "stored", {}), _settings={})
        how.check()
        experts = tuple(open_expert(name, path, base, name in self.start_only) for name, path in self.experts.items())
        check(base, experts)
        if self.fisher:
            experts = tuple(replace(one, fisher=Checkpoint(Path(self.fisher) / one.name)) for one in experts)
        return Merge(base, experts, how)

    def stack(self) -> Merges:
        """The merges of the slices. Raises as `open`."""
        merges, first = [], 0
        for number, part in enumerate(self.slices):
            whole = open_base(part.base)
            outside = (number == 0, number == len(self.slices) - 1)
            renamed = {name: partial(layers, *span, first, outside) for name, span in part.ranges.items()}
            experts = []
            for name, path in part.experts.items():
                expert = open_expert(name, path, whole)
                check(whole, [expert])
                if expert.weights is None and part.ranges[name] != part.ranges[""]:  # over other layers of the base
                    expert = replace(expert, weights=whole)
                experts.append(expert.renamed(renamed[name]))
            base = renamed[""](whole)
            own = {name: take({name: name for name in whole}) for name, take in renamed.items()}
            how = replace(part.parameters, names=tuple(base), renamed=own, _settings={})
            how.check()
            merges.append(Merge(base, tuple(experts), how))
            first += part.count
        return Merges(tuple(merges), Checkpoint(trace(self.base)[0]))

    def changes(self) -> dict[str, Any]:
        """Settings that differ from the base's, for `copy_settings`."""
        found: dict[str, Any] = {"dtype": self.dtype} if self.dtype else {}
        template = self.chat_template or self.template_of_experts()
        if template and template != chat_template(trace(self.base)[0]):
            found["chat_template"] = template
        if self.tokenizer == "union":
            found["tokens"] = self._union()
            tokenizers = [border.read_json(folder / "tokenizer.json") for folder in self._folders()]
            entries = [entry for content in tokenizers[::-1] for entry in content.get("added_tokens", ())]
            found["added"] = {entry["content"]: entry for entry in entries}  # of several models' the first one's
        if self.slices:
            found["num_hidden_layers"] = sum(part.count for part in self.slices)
            found["layers"] = [n for part in self.slices for n in range(*part.ranges[""])]
        return found

    def _folders(self) -> list[Path]:
        """Of the experts' full models, but the base's own."""
        base = trace(self.base)[0]
        found = dict.fromkeys(behind(parts_of(path)[0])[0] for path in self.experts.values())
        return [folder for folder in found if not _same(folder, base)]

    def _union(self) -> dict[str, int]:
        return union(trace(self.base)[0], self._folders())

    def template_of_experts(self) -> str:
        """The chat template that all experts were trained with, where the base's is another; empty for none."""
        found = {template for path in self.experts.values() if (template := _trained_with(path))}
        return found.pop() if len(found) == 1 and found != {chat_template(trace(self.base)[0])} else ""

    def write(self, folder: Path) -> Path:
        """Writes recipe.json beside the base's configs and tokenizer files: a directory that `load_model` takes."""
        content = {
            "base": self.base,
            "experts": dict(self.experts),
            "start_only": list(self.start_only),
            "dtype": self.dtype,
            "parameters": self.parameters.to_json(),
            "tokenizer": self.tokenizer,
            "fisher": self.fisher and str(Path(self.fisher).resolve()),
        }
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            copy_settings(trace(self.base)[0], folder, self.changes())
        files.write_json(folder / RECIPE, content)
        return folder / RECIPE


def _trained_with(path: str) -> str:
    """The chat template of an expert: of its outermost adapter that has one, or of its model; empty for none."""
    left, *right = parts_of(path)
    model, on_it = behind(left)
    folders = [model, *on_it, *map(locate, right)]
    return next((template for folder in reversed(folders) if (template := chat_template(folder))), "")


class _Numbers(TypedDict):
    """The keys of a recipe's parameters that are read of every version."""

    method: str
    switches: dict[str, Any]
    numbers: dict[str, dict[str, Any]]
    seed: int


class _Written(TypedDict):
    """The keys of recipe.json that are read of every version."""

    base: str
    experts: dict[str, str]
    start_only: list[str]
    dtype: Literal["", "float32", "bfloat16", "float16"]
    parameters: _Numbers


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a directory or a run. Raises DataError where it is missing or broken."""
    file = trace(path)[0] / RECIPE
    content = border.read_json(file)
    try:
        border.check(content, _Written, RECIPE)
        values = content["parameters"]
        parameters = Parameters(
            values["method"],
            tuple(content["experts"]),
            Switches(**values["switches"]),
            _older_numbers(values) | values["numbers"],
            values["seed"],
            space=values.get("space", ""),
            compress=values.get("compress", 0),
        )
        more = {key: content.get(key, "") for key in ("tokenizer", "fisher")}
        parameters.check()
        start_only = tuple(content["start_only"])
        base, experts = from_above(content["base"], file.parent), dict(content["experts"])
        for name, expert in experts.items():
            experts[name] = "+".join(from_above(part, file.parent) for part in parts_of(expert))
        return Recipe(base, experts, parameters, start_only, content["dtype"], **more)
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: not a recipe of a merge ({error}); write it again with --config.result=recipe"
        ) from error


def _older_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """RAM's numbers under the names that recipes had before, so that an older file means the merge it meant."""
    found = {"threshold": {"": values["threshold"]}} if "threshold" in values else {}
    if "amplify" in values:
        slope, bound = values["amplify"]
        found |= {"slope": {"": slope}, "bound": {"": bound}}
    return found


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
    job: Any = recipe.stack() if recipe.slices else recipe.open()
    base = job.base
    path = Path(path)
    files.claim(path)
    dtypes = {name: output_dtype(view, recipe.dtype) for name, view in base.items()}
    tensors = {base.stored[name]: (view.shape, dtypes[name]) for name, view in base.items()}
    writer = Writer(path, tensors, ingredients(recipe, job), max_shard_bytes)
    report = Interference(tuple(recipe.experts))
    for number, (name, view) in enumerate(base.items(), 1):
        stored = base.stored[name]
        if stored not in writer.done:
            sums = None
            if name in job.touched:
                sums = job.tensor(name, dtypes[name], partial(writer.write, stored))
            if sums is None:
                _copy(name, view, dtypes[name], partial(writer.write, stored))
            writer.finish_tensor(stored, sums)
            writer.done[stored] = sums
        if writer.done[stored] is not None:
            report.sums[name] = {key: np.asarray(value, np.float64) for key, value in writer.done[stored].items()}
        if on_tensor:
            on_tensor(number, len(base))
    writer.close(base.directory, recipe.changes())
    return report


def tensors_of(directory: Path) -> dict[str, Stored]:
    """The tensors that a recipe stands for, each computed when it is read: what `load_model` makes of the directory."""
    recipe = read_recipe(directory)
    job = recipe.open()
    base = job.base  # of a union of vocabularies with more rows than the files have

    def stored(name: str) -> Stored:
        view = base[name]
        dtype = output_dtype(view, recipe.dtype)

        def read(index: Any) -> np.ndarray:
            merged, changed = job.entries(name, dtype) if name in job.touched else (view, None)
            return view[index].astype(dtype, copy=False) if changed is None else merged[index]

        return Stored(view.shape, dtype.name, read)

    return {name: stored(name) for name in base}


def sources_of(directory: Path) -> list[str]:
    """The models that a recipe merges."""
    recipe = read_recipe(directory)
    return [recipe.base, *recipe.experts.values()]


def output_dtype(view: np.ndarray, dtype: str) -> np.dtype:
    """The output's dtype of a tensor: the one asked for, for floating-point tensors."""
    import ml_dtypes

    floating = view.dtype.kind == "f" or view.dtype == ml_dtypes.bfloat16
    wanted = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}.get(dtype) or np.dtype(dtype or view.dtype)
    return wanted if floating and dtype else view.dtype


def _copy(name: str, view: np.ndarray, dtype: np.dtype, write: Callable[[int, np.ndarray], None]) -> None:
    entries = view.reshape(-1)
    for start in range(0, entries.size, 1 << 22):
        with np.errstate(over="ignore"):
            part = entries[start : start + (1 << 22)].astype(dtype, copy=False)
        check_finite(name, part)
        write(start, part)


def ingredients(recipe: Recipe, job: Merge | Merges) -> list[Any]:
    """Everything that the result depends on, in JSON's types; files by their size and time."""
    base = job.base.fingerprint() if isinstance(job.base, Checkpoint) else recipe.base
    bases = [Checkpoint(trace(part.base)[0]).fingerprint() for part in recipe.slices]
    parts = [[part.parameters.to_json(), part.ranges, own] for part, own in zip(recipe.slices, bases, strict=True)]
    known = [expert.fisher.fingerprint() for expert in job.experts if isinstance(expert.fisher, Checkpoint)]
    own = [recipe.parameters.to_json(), recipe.dtype, recipe.start_only, recipe.tokenizer]
    return files.plain([*own, base, _sources(job), parts, known])


def files_read(folders: Iterable[Path]) -> list[Path]:
    """The files in some folders that a merge reads, in order."""
    return sorted(file for folder in folders for pattern in _FILES for file in folder.glob(pattern))


def _sources(job: Merge | Merges) -> list[Any]:
    """Name, paths and files of the experts, and of those behind the merges that they start from."""
    found: list[Any] = []
    for expert in job.experts:
        read = files_read(map(Path, expert.paths))
        stats = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in read]
        behind = _sources(expert.origin) if isinstance(expert.origin, Merge) else []
        found.append([expert.name, expert.paths, stats, behind])
    return found
