"""The shape and stored dtype of a model without its weights, and without fetching them."""

from pathlib import Path

from mmedexpert_jax.config.presets import MODELS
from mmedexpert_jax.errors import DataError, RemoteError
from mmedexpert_jax.merging.vectors import FLOATS
from mmedexpert_jax.models import ModelConfig, load_architecture
from mmedexpert_jax.models.config import PUBLISHED
from mmedexpert_jax.models.llava_original import is_original
from mmedexpert_jax.models.load import read_config
from mmedexpert_jax.models.locate import CHOSEN, base_under
from mmedexpert_jax.models.stored_tensors import read_json

# Hub ids whose shapes are published in models/config.py.
_HUB = {
    MODELS["qwen2_vl_2b"]: "qwen2_vl_2b",
    "Qwen/Qwen2-VL-7B-Instruct": "qwen2_vl_7b",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl_3b",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2_5_vl_7b",
    "Qwen/Qwen2.5-VL-32B-Instruct": "qwen2_5_vl_32b",
    "Qwen/Qwen2.5-VL-72B-Instruct": "qwen2_5_vl_72b",
    MODELS["lingshu_7b"]: "qwen2_5_vl_7b",
    MODELS["medgemma_4b"]: "medgemma_4b",
    "microsoft/llava-med-v1.5-mistral-7b": "llava_med_7b",
    "FreedomIntelligence/HuatuoGPT-Vision-7B": "huatuogpt_vision_7b",
    "MBZUAI/BiMediX2-8B": "bimedix2_8b",
    MODELS["medgemma_27b"]: "medgemma_27b",
}


def architecture(source: str, over: tuple[Path, ...] = ()) -> tuple[ModelConfig, str]:
    """Shape and dtype of what load_model takes; of a hub id that is not listed here only config.json is fetched.

    `over` are the adapters that name it as their base.

    Raises:
        DataError: nothing there, or another architecture.
        RemoteError: the hub cannot be reached.
    """
    if source.startswith("random:") or source == "smollm2":
        return load_architecture(source).config, "bfloat16"
    if source == "mini":
        return load_architecture(source).config, "float32"
    if source in _HUB:
        return PUBLISHED[_HUB[source]], "bfloat16"
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return _of(_fetched(source))
    folder = next((f for f in (folder / "export" / "model", folder / "export" / "adapter") if f.is_dir()), folder)
    if (folder / "adapter_config.json").is_file():
        return architecture(base_under(folder, CHOSEN["base"], over), (*over, folder))
    return _of(folder / "config.json")


def _of(file: Path) -> tuple[ModelConfig, str]:
    found = read_json(file)
    config = read_config(file.parent) if is_original(file.parent) else ModelConfig.from_hf(found)
    stored = str(found.get("torch_dtype") or found.get("dtype")).removeprefix("torch.")
    return config, stored if stored in FLOATS else "bfloat16"


def _fetched(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    name, _, revision = hub_id.partition("@")
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision or None))
    except HFValidationError as error:
        raise DataError(f"{hub_id}: no such model directory, and no hub id") from error
    except OSError as error:
        raise RemoteError(f"{hub_id}: its config.json is not in the hub's cache and cannot be fetched") from error
