"""Reads models from Hugging Face directories and hub ids, adapters and run directories, or draws random ones."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.errors import DataError, RemoteError
from mmedexpert_jax.models.config import PUBLISHED, ModelConfig
from mmedexpert_jax.models.model import Model
from mmedexpert_jax.models.qwen2_vl import init_params, nest, tensor_shapes

MINI = Path(__file__).parent.parent / "assets" / "mini"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def load_model(
    src: str | Path, dtype: Any = None, mesh: jax.sharding.Mesh | None = None, seed: int = 0
) -> tuple[Model, dict]:
    """Model and parameters of the family Qwen2-VL / Qwen2.5-VL.

    Args:
        src: a Hugging Face directory; a peft adapter directory (folded into its base, which is loaded by the name in
            adapter_config.json); a run directory (its export/); "mini"; "random:<size>"; or a hub id, "owner/name" or
            "owner/name@revision".
        dtype: of the parameters; None or "": float32 on CPU, the checkpoint's own on accelerators (random: bfloat16).
        mesh: where to put the parameters, replicated; None: the default device.
        seed: of "random:<size>".

    Raises:
        DataError: nothing there, another architecture, or missing, unexpected or misshapen tensors, by name.
        RemoteError: the hub cannot be reached.
    """
    where = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    if str(src).startswith("random:"):
        config = _published(str(src))
        params = init_params(config, seed, _dtype(dtype, jnp.bfloat16))
        return Model(config), params if where is None else jax.device_put(params, where)
    directory, adapters = _trace(src)
    config = read_config(directory)
    params = _read_params(directory, config, dtype, where)
    for adapter in adapters:
        params = lora_module.fold(params, lora_module.load_peft(adapter, params))
    return Model(config), params


def load_architecture(src: str | Path) -> Model:
    """The model of `load_model` without its parameters."""
    return Model(_published(str(src)) if str(src).startswith("random:") else read_config(_trace(src)[0]))


def load_processor(src: str | Path, max_pixels: int | None = None) -> Any:
    """The `Processor` of whatever `load_model` takes; an adapter or a run has its base's."""
    from mmedexpert_jax.processing.processor import Processor

    if str(src).startswith("random:"):
        raise DataError(f"{src} has no tokenizer; load the processor of the checkpoint with that shape")
    directory, _ = _trace(src)
    return Processor.load(directory, max_pixels)


def read_config(directory: Path) -> ModelConfig:
    """From config.json and, where there is one, generation_config.json."""
    generation = directory / "generation_config.json"
    try:
        return ModelConfig.from_hf(
            _read_json(directory / "config.json"), _read_json(generation) if generation.exists() else None
        )
    except DataError as error:
        message = str(error)
        raise DataError(message if message.startswith(str(directory)) else f"{directory}/{message}") from error


def _trace(src: str | Path) -> tuple[Path, list[Path]]:
    """The checkpoint directory behind `src` and the adapters to fold into it, in order."""
    adapters: list[Path] = []
    while True:
        directory = _locate(src)
        if not (directory / "adapter_config.json").exists():
            return directory, adapters[::-1]
        if directory in adapters:
            raise DataError(
                f"{directory}/adapter_config.json: base_model_name_or_path leads back to the adapter itself"
            )
        adapters.append(directory)
        src = _read_json(directory / "adapter_config.json").get("base_model_name_or_path") or ""
        if not src:
            raise DataError(f"{directory}/adapter_config.json: base_model_name_or_path is missing; name the base model")


def _locate(src: str | Path) -> Path:
    """The local directory with the files of `src`: "mini", a run's export, or a download from the hub."""
    path = MINI if str(src) == "mini" else Path(src)
    if path.is_dir():
        exports = [path / "export" / "model", path / "export" / "adapter"]
        return next((export for export in exports if export.is_dir()), path)
    if path.exists():
        raise DataError(f"{path} is a file; give the directory of the model")
    if not _HUB_ID.fullmatch(str(src)) or str(src).startswith("."):
        raise DataError(
            f"{path}: no such model directory; give a directory, a hub id (owner/name), mini or random:<size>"
        )
    return _download(str(src))


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    name, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES))
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{hub_id}: no such directory, and no such model on the hub (private ones need HF_TOKEN)"
        ) from error
    except LocalEntryNotFoundError as error:
        raise RemoteError(
            f"{hub_id}: no such directory, and the hub cannot be reached; download it or give a path"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise RemoteError(f"{hub_id}: download failed: {str(error).splitlines()[0]}") from error


def _read_params(directory: Path, config: ModelConfig, dtype: Any, where: Any) -> dict:
    """Every tensor of the checkpoint, one after the other, so that host memory holds one at a time."""
    files = _tensor_files(directory)
    names = {_own_name(name): (name, file) for name, file in files.items()}
    readers = {file: _open(file) for file in set(files.values())}

    def tensor(name: str) -> Any:
        stored, file = names[name]
        return readers[file].get_slice(stored)

    if config.tie_word_embeddings and "lm_head.weight" in names:
        if not np.array_equal(tensor("lm_head.weight")[:], tensor("model.embed_tokens.weight")[:]):
            raise DataError(
                f"{directory}: lm_head.weight differs from embed_tokens.weight; set tie_word_embeddings false"
            )
        del names["lm_head.weight"]
    expected = tensor_shapes(config)
    _check_tensors(directory, expected, {name: tuple(tensor(name).get_shape()) for name in names})
    flat = {}
    for name in expected:
        value = tensor(name)[:]
        if value.dtype.name not in _DTYPES:
            raise DataError(
                f"{directory}: tensor {name} has dtype {value.dtype}; quantised checkpoints are not supported"
            )
        value = np.asarray(value, _dtype(dtype, value.dtype))
        flat[name] = jnp.array(value) if where is None else jax.device_put(value, where)
    return nest(flat)


def _tensor_files(directory: Path) -> dict[str, Path]:
    """{tensor name: file}, from the index of a sharded checkpoint or the one file."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read_json(index).get("weight_map", {})
        absent = sorted({file for file in weight_map.values() if not (directory / file).exists()})
        if absent:
            raise DataError(f"{index}: shards missing: {_listing(absent)}; download them again")
        return {name: directory / file for name, file in weight_map.items()}
    single = directory / "model.safetensors"
    if not single.exists():
        raise DataError(f"{directory}: no weights; expected model.safetensors or model.safetensors.index.json")
    return dict.fromkeys(_open(single).keys(), single)


def _check_tensors(directory: Path, expected: dict[str, tuple], found: dict[str, tuple]) -> None:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = {"missing": missing, "unexpected": extra, "misshapen": misshapen}
    lines = [f"{kind}: {_listing(names)}" for kind, names in problems.items() if names]
    if lines:
        raise DataError(f"{directory}: tensors do not fit config.json: {'; '.join(lines)}")


def _listing(names: list[str], limit: int = 12) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _own_name(name: str) -> str:
    """Names of transformers since 4.52 (`model.language_model.`, `model.visual.`) -> the hub files' names."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1) if name.startswith("model.language_model.") else name


def _open(file: Path) -> Any:
    try:
        return safe_open(file, "np")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: not a whole safetensors file ({error}); download it again") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror}); give the directory of a Hugging Face model"
        ) from error
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected a JSON object")
    return content


def _published(src: str) -> ModelConfig:
    name = src.removeprefix("random:")
    if name not in PUBLISHED:
        raise DataError(f"{src}: unknown size; use random: with one of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def _dtype(dtype: Any, own: Any) -> jnp.dtype:
    if dtype is not None and dtype != "":
        return jnp.dtype(dtype)
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else own)
