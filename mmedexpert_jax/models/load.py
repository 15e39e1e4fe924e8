"""Reads models from Hugging Face directories and hub ids, adapters and run directories, or draws random ones."""

import contextlib
import functools
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import llava, llava_original, smollm2
from mmedexpert_jax.models.config import PUBLISHED, ModelConfig, own_file
from mmedexpert_jax.models.locate import CHOSEN, MINI, base_under, locate, trace
from mmedexpert_jax.models.model import Model
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.quantised import quantisable, quantise
from mmedexpert_jax.models.random import random_tensors
from mmedexpert_jax.models.stored_tensors import Stored, read_checkpoint, read_json
from mmedexpert_jax.models.tree import nest
from mmedexpert_jax.runtime.mesh import shard, sharding
from mmedexpert_jax.runtime.threads import cores

# File that marks a directory without weights -> module that reads such a directory, by its functions `tensors_of` and
# `sources_of`. It is above this folder, and imported when such a directory is read.
READERS = {"recipe.json": "mmedexpert_jax.merging.merge_recipe"}
_THREADS = 8  # threads that read tensors
_ALIGNMENT = 64  # bytes


def load_model(
    src: str | Path, dtype: Any = None, mesh: jax.sharding.Mesh | None = None, seed: int = 0
) -> tuple[Model, dict]:
    """Model and parameters, adapters folded in.

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
    model, params, cost = load_folded(src, dtype, mesh, seed)
    if cost:
        warnings.warn(f"{src}: {cost}; load_policy keeps them", stacklevel=2)
    return model, params


def load_folded(
    src: str | Path, dtype: Any = None, mesh: jax.sharding.Mesh | None = None, seed: int = 0
) -> tuple[Model, dict, str]:
    """As `load_model`, and in words the cost of folding into a dtype less exact than the deltas'; "" for none."""
    model, params, lora = load_policy(src, dtype, mesh, seed, quantize="none")
    if lora is None:
        return model, params, ""
    folded = lora_module.fold(params, lora)
    exact = params["model"]["embed_tokens"]["weight"].dtype == jnp.float32
    return model, folded, "" if exact else lora_module.rounding(params, folded, lora)


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
    quantize = quantize or CHOSEN["quantize"]
    if str(src).startswith("random:"):
        config = _published(str(src))
        tensors = random_tensors(config, seed)
        adapters: list[Path] = []
    else:
        directory, adapters = trace(src)
        config = read_config(directory)
        tensors = _tensors(directory, config)
    params = _place(tensors, config, dtype, mesh, quantize)
    loras: list[Lora] = []
    for adapter in adapters:  # each is of the model below it
        below, params = params, lora_module.with_saved_modules(adapter, params)
        loras = [lora_module.of_kept(lora, below, params) for lora in loras]
        loras.append(lora_module.load_peft(adapter, params))
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
    before = dict(CHOSEN)
    CHOSEN.update(base=base, max_pixels=max_pixels or None, vision_tower=vision_tower)
    CHOSEN.update(quantize=quantize, pan_and_scan=pan_and_scan)
    try:
        yield
    finally:
        CHOSEN.update(before)


def chosen_reading() -> dict[str, Any]:
    """The settings of `chosen` that change a model's answers and are in none of its files, as far as they are set."""
    names = ("quantize", "max_pixels", "pan_and_scan")
    return {name: CHOSEN[name] for name in names if CHOSEN[name] not in (None, "", "none", False)}


def load_architecture(src: str | Path) -> Model:
    """The model of `load_model` without its parameters."""
    return Model(_published(str(src)) if str(src).startswith("random:") else read_config(trace(src)[0]))


def check_files(src: str | Path, beside: Sequence[Path] = ()) -> None:
    """Raises DataError where loading a model would, as far as its config, headers, adapters and processor tell.

    Nothing is fetched: an adapter whose base lies elsewhere is left to its load. `beside`: adapters that are to share
    the model's weights.
    """
    folder, over = locate(src), list[Path]()
    while (folder / "adapter_config.json").is_file():
        base = base_under(folder, CHOSEN["base"], over)
        over.append(folder)
        if base not in ("mini", "smollm2") and not Path(base).expanduser().is_dir():
            return
        folder = locate(base)
    config = read_config(folder)
    tensors = _tensors(folder, config)
    shapes: dict[str, Any] = {name: jax.ShapeDtypeStruct(t.shape, jnp.dtype(t.dtype)) for name, t in tensors.items()}
    if (over or beside) and _reader(folder) is None:  # what adapters hold whole is held to it, by views of the files
        read = [lora_module.EMBEDDING] if smollm2.file_in(folder) else list(tensors)
        shapes |= {name: tensors[name].read(()) for name in read}
    params = nest(shapes)
    for adapter in over[::-1]:
        params = lora_module.with_saved_modules(adapter, params)
        lora_module.load_peft(adapter, params)
    for adapter in beside:
        lora_module.load_peft(adapter, params)
    load_processor(src)


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
    max_pixels = max_pixels or CHOSEN["max_pixels"]
    directory, adapters = trace(src, base)
    if gguf := smollm2.file_in(directory):
        images = Processor.load(MINI, max_pixels).image_config
        return Processor(smollm2.tokenizer(gguf), images, QWEN2_VL_TEMPLATE.replace(SYSTEM, smollm2.SYSTEM))
    config = read_config(directory)
    own = own_file(config.family)
    if max_pixels and hasattr(own, "open_processor"):
        raise ConfigError(f"{src}: every image is a square of one size; leave out config.model.max_pixels")
    try:
        if hasattr(own, "open_processor"):
            processor = own.open_processor([*adapters[::-1], directory], config, CHOSEN)
        else:
            processor = Processor.load(directory, max_pixels, adapters[::-1], config.family)
    except DataError as error:
        raise DataError(str(error) if str(directory) in str(error) else f"{src}: {error}") from error
    _check_tokenizer(processor, config, directory)
    _check_pictures(processor, config, directory)
    return processor


def _check_tokenizer(processor: Any, config: ModelConfig, directory: Path) -> None:
    """Raises DataError where the tokenizer has ids that the embedding has no row for, or another image token."""
    highest = max(processor.tokenizer.get_vocab().values())
    if highest >= config.text.vocab_size:
        raise DataError(
            f"{directory}: the tokenizer has ids up to {highest}, the embedding {config.text.vocab_size} rows; resize "
            "the embedding to the tokens that were added (resize_token_embeddings), or take the base's tokenizer"
        )
    if processor.chat_end_id not in config.eos_token_ids:
        _tell_end(directory, processor.marks.end, processor.chat_end_id, config.eos_token_ids)
    if processor.opens_reasoning:
        _tell_opened(directory)
    if config.vision.depth and processor.image_token_id != config.image_token_id:
        raise DataError(
            f"{directory}: the image token is {processor.image_token_id} in the tokenizer and {config.image_token_id} "
            "in config.json (image_token_id); take both from the base model"
        )


@functools.cache  # a job opens its processor several times, and says it once
def _tell_end(directory: Path, mark: str, id: int, ends: tuple[int, ...]) -> None:
    """Warns of answers that go on behind the token that ends an assistant's turn, as a base model's files have it."""
    logging.getLogger(__name__).warning(
        "%s: %s (%d) closes an answer and is not among the eos_token_id %s, so that answers go on behind it to "
        "max_new_tokens; write both into generation_config.json",
        *(directory, mark, id, list(ends)),
    )


@functools.cache
def _tell_opened(directory: Path) -> None:
    """Warns of prompts that open the reasoning, which our completions open themselves."""
    logging.getLogger(__name__).warning(
        "%s: the chat template ends a prompt with <think>, which DSA would train to be written again, and without "
        "which GBA's rewards of form find no reasoning; take it out of the template (the add_generation_prompt part)",
        directory,
    )


def _check_pictures(processor: Any, config: ModelConfig, directory: Path) -> None:
    """Raises DataError where images are cut into patches of another size than the vision tower reads."""
    vision, images = config.vision, processor.image_config
    wanted = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    if vision.depth and images.patch_dim != wanted:
        raise DataError(
            f"{directory}: preprocessor_config.json makes patches of {images.patch_dim} values, the vision tower of "
            f"config.json reads {wanted} (patch_size {vision.patch_size}, temporal_patch_size "
            f"{vision.temporal_patch_size}, {vision.in_channels} channels); take both from the base model"
        )


def read_config(directory: Path) -> ModelConfig:
    """From config.json and, where there is one, generation_config.json; or from a GGUF file."""
    if gguf := smollm2.file_in(directory):
        return smollm2.read_config(gguf, MINI)
    generation = directory / "generation_config.json"
    said = read_json(generation) if generation.exists() else None
    try:
        content = read_json(directory / "config.json")
        if llava_original.is_original(directory):
            content = llava_original.modern(content, directory, CHOSEN["vision_tower"])
        return ModelConfig.from_hf(content, said)
    except DataError as error:
        message = str(error)
        raise DataError(message if str(directory) in message else f"{directory}/{message}") from error


def folders(src: str | Path) -> list[Path]:
    """Every directory that `load_model` and `load_processor` read for `src`."""
    directory, adapters = trace(src)
    if reader := _reader(directory):
        parts = reader.sources_of(directory)
    else:
        parts = ["mini"] if smollm2.file_in(directory) else []
    tower = llava_original.tower_folder(directory, CHOSEN["vision_tower"])
    own = [directory, *adapters, *([tower] if tower else [])]
    return [*own, *(folder for part in parts for folder in folders(part))]


def _reader(directory: Path) -> Any:
    """The module that reads a directory without weights; None for all others."""
    found = next((module for mark, module in READERS.items() if (directory / mark).exists()), None)
    return None if found is None else import_module(found)


def _tensors(directory: Path, config: ModelConfig) -> dict[str, Stored]:
    if reader := _reader(directory):
        found = reader.tensors_of(directory)
        for name, shape in tensor_shapes(config).items():
            if name in found and found[name].shape != tuple(shape):
                raise DataError(
                    f"{directory}: {name} is {list(found[name].shape)} by its recipe, {list(shape)} by config.json: a "
                    "model that it merges has changed; merge again"
                )
        return found
    if gguf := smollm2.file_in(directory):
        return smollm2.read_tensors(gguf, MINI, config)
    complete = {}
    if config.family == "llava":
        complete["complete"] = lambda found: llava.complete(found, config, directory, CHOSEN["vision_tower"])
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

    with ThreadPoolExecutor(min(cores(), _THREADS)) as pool:
        arrays = dict(zip(names, pool.map(place, names), strict=True))
    return nest({name: arrays[name] for name in order})


def _copied(values: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
    """A copy aligned as XLA asks for on CPU, which `device_put` then takes as it is: one copy, not two."""
    size = math.prod(values.shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + size].view(dtype).reshape(values.shape)
    with np.errstate(over="ignore"):  # who writes them refuses infinities by name
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
