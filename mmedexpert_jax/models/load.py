"""Reads models from Hugging Face directories and hub ids, adapters and run directories, or draws random ones."""

import contextlib
import math
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.errors import ConfigError, DataError, RemoteError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import llava, llava_original, smollm2
from mmedexpert_jax.models.config import PUBLISHED, ModelConfig, own_file
from mmedexpert_jax.models.model import Model
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.quantised import quantisable, quantise
from mmedexpert_jax.models.random import random_tensors
from mmedexpert_jax.models.stored_tensors import Stored, read_checkpoint, read_json
from mmedexpert_jax.models.tree import nest
from mmedexpert_jax.runtime.mesh import shard, sharding

MINI = Path(__file__).parent.parent / "assets" / "mini"


# File that marks a directory without weights -> module that reads such a directory, by its functions `tensors_of` and
# `sources_of`. It stands above this folder, and is imported when such a directory is read.
READERS = {"recipe.json": "mmedexpert_jax.merging.merge_recipe"}
# What a job chose for all that it loads (config.model): the base under an adapter, an image's area in pixels, and the
# folder of a LLaVA's vision tower; the bits of the base's weights, and whether long images are shown in parts too.
_CHOSEN: dict[str, Any] = {
    **{"base": "", "max_pixels": None, "vision_tower": ""},
    **{"quantize": "none", "pan_and_scan": False},
}
_THREADS = 8  # threads that read tensors
_ALIGNMENT = 64  # bytes
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def load_model(
    src: str | Path, dtype: Any = None, mesh: jax.sharding.Mesh | None = None, seed: int = 0
) -> tuple[Model, dict]:
    """Model and parameters of the family Qwen2-VL / Qwen2.5-VL, adapters folded in.

    Folding into bfloat16 rounds small deltas away, and says so: `load_policy` keeps them.

    Args:
        src: a Hugging Face directory; a peft adapter directory (folded into its base, which is loaded by the name in
            adapter_config.json); a run directory (its export/); "mini"; "smollm2"; "random:<size>"; or a hub id,
            "owner/name" or "owner/name@revision", whose cache, token and offline mode are huggingface_hub's.
        dtype: of the parameters; None or "": float32 on CPU, the checkpoint's own on accelerators (smollm2 and
            random: bfloat16); "checkpoint": that everywhere.
        mesh: where to put the parameters, by the rules of `runtime.mesh`; every device's part is read by itself.
            None: the default device.
        seed: of "random:<size>".

    Raises:
        DataError: nothing there, another architecture, or missing, unexpected or misshapen tensors, by name.
        ConfigError: the packages of "smollm2" are not installed, or the mesh does not divide a tensor, by name.
        RemoteError: the hub cannot be reached.
    """
    model, params, lora = load_policy(src, dtype, mesh, seed, quantize="none")
    if lora is None:
        return model, params
    folded = lora_module.fold(params, lora)
    if params["model"]["embed_tokens"]["weight"].dtype != jnp.float32:
        warnings.warn(f"{src}: {lora_module.rounding(params, folded, lora)}; load_policy keeps them", stacklevel=2)
    return model, folded


def load_policy(
    src: str | Path,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    seed: int = 0,
    quantize: str = "",
) -> tuple[Model, dict, Lora | None]:
    """Model, base parameters and deltas: the policy as it was trained, for whoever samples, evaluates or trains on.

    Takes what `load_model` takes and raises what it raises. Adapters over adapters are one Lora of the sum of their
    ranks; None where `src` has no adapter. `quantize`: of `quantised.KINDS`, or "none"; "": as the job chose
    (config.model.quantize). Each weight is quantised as it is read.
    """
    quantize = quantize or _CHOSEN["quantize"]
    if str(src).startswith("random:"):
        config = _published(str(src))
        tensors = random_tensors(config, seed)
        adapters: list[Path] = []
    else:
        directory, adapters = trace(src)
        config = read_config(directory)
        tensors = _tensors(directory, config)
    params = _place(tensors, config, dtype, mesh, quantize)
    for adapter in adapters:
        params = lora_module.with_saved_modules(adapter, params)
    loras = [lora_module.load_peft(adapter, params) for adapter in adapters]
    lora = lora_module.stack(loras) if loras else None
    return Model(config), params, lora if mesh is None or lora is None else shard(lora, mesh)


@contextlib.contextmanager
def chosen(
    base: str = "",
    max_pixels: int = 0,
    vision_tower: str = "",
    quantize: str = "none",
    pan_and_scan: bool = False,
) -> Iterator[None]:
    """Inside, adapters are loaded over `base`, images limited to `max_pixels` where calls say nothing else, and the
    vision tower of a checkpoint in the original LLaVA's layout is that of the folder `vision_tower`. Base weights are
    quantised (`quantised.KINDS`, or "none"), and long images shown in parts too by families that know that.

    Empty and 0 leave it to the adapter's file and the checkpoint's.
    """
    before = dict(_CHOSEN)
    _CHOSEN.update(base=base, max_pixels=max_pixels or None, vision_tower=vision_tower)
    _CHOSEN.update(quantize=quantize, pan_and_scan=pan_and_scan)
    try:
        yield
    finally:
        _CHOSEN.update(before)


def load_architecture(src: str | Path) -> Model:
    """The model of `load_model` without its parameters."""
    return Model(_published(str(src)) if str(src).startswith("random:") else read_config(trace(src)[0]))


def load_processor(src: str | Path, max_pixels: int | None = None, base: str = "") -> Any:
    """The `Processor` of whatever `load_model` takes.

    An adapter's own tokenizer, chat template and image settings come before its base's.

    Raises:
        DataError: as `load_model`, or a tokenizer that does not fit the model.
    """
    from mmedexpert_jax.processing.chat_template import QWEN2_VL_TEMPLATE, SYSTEM
    from mmedexpert_jax.processing.processor import Processor

    if str(src).startswith("random:"):
        raise DataError(f"{src} has no tokenizer; load the processor of the checkpoint with that shape")
    max_pixels = max_pixels or _CHOSEN["max_pixels"]
    directory, adapters = trace(src, base)
    if gguf := next(directory.glob("*.gguf"), None):
        images = Processor.load(MINI, max_pixels).image_config
        return Processor(smollm2.tokenizer(gguf), images, QWEN2_VL_TEMPLATE.replace(SYSTEM, smollm2.SYSTEM))
    config = read_config(directory)
    own = own_file(config.family)
    if hasattr(own, "open_processor"):
        if max_pixels:
            raise ConfigError(f"{src}: every image is a square of one size; leave out config.model.max_pixels")
        processor = own.open_processor([*adapters[::-1], directory], config, _CHOSEN)
    else:
        processor = Processor.load(directory, max_pixels, adapters[::-1], config.family)
    _check_tokenizer(processor, config, directory)
    return processor


def _check_tokenizer(processor: Any, config: ModelConfig, directory: Path) -> None:
    """Raises DataError where the tokenizer has ids that the embedding has no row for, or another image token."""
    highest = max(processor.tokenizer.get_vocab().values())
    if highest >= config.text.vocab_size:
        raise DataError(
            f"{directory}: the tokenizer has ids up to {highest}, the embedding {config.text.vocab_size} rows; resize "
            "the embedding to the tokens that were added (resize_token_embeddings), or take the base's tokenizer"
        )
    if config.vision.depth and processor.image_token_id != config.image_token_id:
        raise DataError(
            f"{directory}: the image token is {processor.image_token_id} in the tokenizer and {config.image_token_id} "
            "in config.json (image_token_id); take both from the base model"
        )


def read_config(directory: Path) -> ModelConfig:
    """From config.json and, where there is one, generation_config.json; or from a GGUF file."""
    if gguf := next(directory.glob("*.gguf"), None):
        return smollm2.read_config(gguf, MINI)
    generation = directory / "generation_config.json"
    said = read_json(generation) if generation.exists() else None
    try:
        content = read_json(directory / "config.json")
        if llava_original.is_original(directory):
            content = llava_original.modern(content, directory, _CHOSEN["vision_tower"])
        return ModelConfig.from_hf(content, said)
    except DataError as error:
        message = str(error)
        raise DataError(message if message.startswith(str(directory)) else f"{directory}/{message}") from error


def trace(src: str | Path, base: str = "") -> tuple[Path, list[Path]]:
    """The checkpoint directory behind `src` and the adapters to fold into it, in order.

    `base` takes the place of the model that the innermost adapter names. Raises DataError.
    """
    base = base or _CHOSEN["base"]
    adapters: list[Path] = []
    while True:
        try:
            directory = _locate(src)
        except (DataError, RemoteError) as error:
            if not adapters:
                raise
            raise type(error)(
                f"{error} ({adapters[-1]}/adapter_config.json names it as its base; give the base with "
                "--config.model.base=)"
            ) from error
        if not (directory / "adapter_config.json").exists():
            return directory, adapters[::-1]
        if directory in adapters:
            raise DataError(
                f"{directory}/adapter_config.json: base_model_name_or_path leads back to the adapter itself"
            )
        adapters.append(directory)
        src = lora_module.base_of(read_json(directory / "adapter_config.json")) or base
        if base and not _is_adapter(src):
            src = base
        if not isinstance(src, str) or not src:
            raise DataError(
                f"{directory}/adapter_config.json: base_model_name_or_path is missing; name the base model there or "
                "with --config.model.base="
            )


def _is_adapter(src: Any) -> bool:
    """True where a base is itself an adapter or a run with one, on this machine."""
    places = [Path(str(src)), Path(str(src)) / "export" / "adapter"]
    return any((place / "adapter_config.json").is_file() for place in places)


def folders(src: str | Path) -> list[Path]:
    """Every directory that `load_model` and `load_processor` read for `src`."""
    directory, adapters = trace(src)
    if reader := _reader(directory):
        parts = reader.sources_of(directory)
    else:
        parts = ["mini"] if any(directory.glob("*.gguf")) else []
    tower = llava_original.tower_folder(directory, _CHOSEN["vision_tower"])
    own = [directory, *adapters, *([tower] if tower else [])]
    return [*own, *(folder for part in parts for folder in folders(part))]


def origin(src: str | Path) -> str:
    """The origin of a model: the base of its adapters as they name it, or `src` itself."""
    if str(src).startswith("random:"):
        return str(src)
    _, adapters = trace(src)
    if not adapters:
        return str(src)
    return _CHOSEN["base"] or lora_module.base_of(read_json(adapters[0] / "adapter_config.json"))


def _locate(src: str | Path) -> Path:
    """The local directory with the files of `src`: "mini", smollm2's package, a run's export, or from the hub."""
    if str(src) == "smollm2":
        return smollm2.find().parent
    path = MINI if str(src) == "mini" else Path(src).expanduser()
    if path.is_dir():
        exports = [path / "export" / "model", path / "export" / "adapter"]
        return next((export for export in exports if export.is_dir()), path)
    if path.exists():
        raise DataError(f"{path} is a file; give the directory of the model")
    if not lora_module.HUB_ID.fullmatch(str(src)) or str(src).startswith("."):
        raise DataError(
            f"{path}: no such model directory; give a directory, a hub id (owner/name), mini, smollm2 or random:<size>"
        )
    return _download(str(src))


def _download(hub_id: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    name, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES))
    except errors.GatedRepoError as error:
        raise DataError(f"{hub_id}: accept its terms on https://huggingface.co/{name} and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"{hub_id}: no such directory, and no such model on the hub (private ones need HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"{hub_id}: the hub has {name}, but no branch, tag or commit {revision} of it") from error
    except errors.LocalEntryNotFoundError as error:
        raise RemoteError(
            f"{hub_id}: no such directory, and the hub cannot be reached; download it or give a path"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise RemoteError(f"{hub_id}: download failed: {' '.join(str(error).split())}") from error


def _reader(directory: Path) -> Any:
    """The module that reads a directory without weights; None for all others."""
    found = next((module for mark, module in READERS.items() if (directory / mark).exists()), None)
    return None if found is None else import_module(found)


def _tensors(directory: Path, config: ModelConfig) -> dict[str, Stored]:
    if reader := _reader(directory):
        return reader.tensors_of(directory)
    if gguf := next(directory.glob("*.gguf"), None):
        return smollm2.read_tensors(gguf, MINI, config)
    complete = {}
    if config.family == "llava":
        complete["complete"] = lambda found: llava.complete(found, config, directory, _CHOSEN["vision_tower"])
    return read_checkpoint(directory, tensor_shapes(config), config.tie_word_embeddings, **complete)


def _place(
    tensors: dict[str, Stored], config: ModelConfig, dtype: Any, mesh: jax.sharding.Mesh | None, quantize: str = "none"
) -> dict:
    """Arrays of the tensors, each device's part of each read by itself; the quantised ones are on every device whole.

    The largest come first, so that what one takes for a moment is never on top of nearly all of them.
    """
    order = list(tensor_shapes(config))
    names = sorted(order, key=lambda name: -math.prod(tensors[name].shape))
    where = {} if mesh is None else {name: sharding(name, tensors[name].shape, mesh) for name in names}
    shapes = nest({name: jax.ShapeDtypeStruct(tensors[name].shape, jnp.float32) for name in names})
    coded = frozenset() if quantize == "none" else quantisable(shapes, quantize)

    def place(name: str) -> Any:
        stored, own = tensors[name], _dtype(dtype, tensors[name].dtype)
        if name in coded:
            small = quantise(jax.device_put(_copied(stored.read(()), own)), quantize)
            return small if mesh is None else jax.device_put(small, NamedSharding(mesh, PartitionSpec()))
        if mesh is None:
            return jax.device_put(_copied(stored.read(()), own))
        return jax.make_array_from_callback(
            stored.shape, where[name], lambda index: _copied(stored.read(index or ()), own)
        )

    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), _THREADS)) as pool:
        arrays = dict(zip(names, pool.map(place, names), strict=True))
    return nest({name: arrays[name] for name in order})


def _copied(values: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
    """A copy aligned as XLA asks for on CPU, which `device_put` then takes as it is: one copy, not two."""
    size = math.prod(values.shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + size].view(dtype).reshape(values.shape)
    copy[...] = values
    return copy


def _published(src: str) -> ModelConfig:
    name = src.removeprefix("random:")
    if name not in PUBLISHED:
        raise DataError(f"{src}: unknown size; use random: with one of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def _dtype(dtype: Any, own: str) -> jnp.dtype:
    if dtype == "checkpoint":
        return jnp.dtype(own)
    if dtype is not None and dtype != "":
        return jnp.dtype(dtype)
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else own)
