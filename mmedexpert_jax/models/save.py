"""Writes Hugging Face directories that transformers and vLLM load unchanged."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError, DataError, RemoteError, ResourceError
from mmedexpert_jax.lora import finite
from mmedexpert_jax.models.config import own_file
from mmedexpert_jax.models.hub_card import model_card
from mmedexpert_jax.models.model import Model
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.tree import flatten, unstack
from mmedexpert_jax.runtime import files

SHARD_BYTES = 5 * 10**9  # transformers' usual size


def save_pretrained(
    path: str | Path,
    model: Model,
    params: dict,
    processor: Any = None,
    max_shard_bytes: int = SHARD_BYTES,
    origin: str = "",
    about: str = "",
) -> None:
    """Writes weights, config.json, generation_config.json, a model card and, if given, the processor's files.

    The weights keep their dtypes and the names of the hub's files. All is written to a temporary directory beside
    `path` and renamed at the end, so that what stands at `path` is always whole; a model that stood there is replaced.

    Args:
        path: directory to write.
        model: the network.
        params: nested dict of JAX or numpy arrays; sharded ones are gathered tensor by tensor.
        processor: tokenizer, chat template and image settings, or None.
        max_shard_bytes: of one weights file; one tensor may be larger.
        origin: what the model was made from, for its card.
        about: how it was trained, for its card.

    Raises:
        ConfigError: `path` holds something other than a model; a weight is not finite in its dtype.
        DataError: `params` are not those of `model`.
        ResourceError: the disk is full or cannot be written.
    """
    path = Path(path)
    files.claim(path)
    flat = flatten(unstack(params))
    if {name: tuple(value.shape) for name, value in flat.items()} != tensor_shapes(model.config):
        raise DataError(f"{path}: the parameters' names or shapes are not those of the model's config")
    # names on the hub: ours, where the family's file has no `hub_name`, and of a model without a tower
    hub_name = getattr(own_file(model.config.family), "hub_name", str) if model.config.vision.depth else str
    try:
        with files.replacing(path) as partial:
            _write_weights(partial, {hub_name(name): value for name, value in flat.items()}, max_shard_bytes)
            _write_configs(partial, model, flat)
            card = model_card(model.config, _dtype(flat), origin, about)
            (partial / "README.md").write_text(card, encoding="utf-8")
            if processor is not None:
                processor.save(partial)
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"{path}: the model cannot be written ({error}); free space or choose another path"
        ) from error


def check_repository(name: str) -> None:
    """Raises ConfigError where a name is no "owner/name" of the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"config.push: {border.shown(name)} is no hub repository; give owner/name") from error
    if "/" not in name:
        raise ConfigError(f"config.push: {border.shown(name)} has no owner; give owner/name")


def push(folder: str | Path, repository: str) -> str:
    """Uploads a saved folder to a hub repository, made private where there is none; returns the commit's address.

    Raises:
        ConfigError: `repository` is no "owner/name".
        RemoteError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    check_repository(repository)
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        return str(
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="mmedexpert-jax").commit_url
        )
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's
        reason = border.cut(str(error), 160)
        raise RemoteError(f"{repository}: upload failed: {reason}; {folder} holds what was to be uploaded") from error


def _write_weights(directory: Path, flat: dict, max_shard_bytes: int) -> None:
    shards: list[list[str]] = [[]]
    size = 0
    for name, value in flat.items():
        if shards[-1] and size + value.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += value.nbytes
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        tensors = {name: finite(name, np.ascontiguousarray(flat[name])) for name in names}
        save_file(tensors, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(value.nbytes for value in flat.values())
        border.write_settings(
            directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def _write_configs(directory: Path, model: Model, flat: dict) -> None:
    config = model.config
    border.write_settings(directory / "config.json", config.to_hf() | {"torch_dtype": _dtype(flat)})
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
    }
    border.write_settings(
        directory / "generation_config.json", border.parse_json(config.generation, "generation_config.json") | ids
    )


def _dtype(flat: dict) -> str:
    return str(flat["model.embed_tokens.weight"].dtype)
