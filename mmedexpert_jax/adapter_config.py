"""adapter_config.json of peft, checked: what an adapter is, which modules it targets, and their ranks and alphas."""

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.errors import DataError

# Fields of adapter_config.json with the only values under which the factors mean plain LoRA
_PLAIN: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
# Fields that are read, or that say nothing about what a trained factor means. Any other that is set, such as use_dora,
# alora_invocation_tokens or one that a later peft adds, changes the adapter's arithmetic and is refused by its name.
_HARMLESS = (
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "target_modules"),
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version"),
    *("parent_library", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern"),
    *("megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "runtime_config"),
    *("qalora_group_size", "ensure_weight_tying"),
)
# Files of weights that trainers put beside peft's: of LLaVA's own, ms-swift's and LongLoRA's families
_BESIDE = ("non_lora*", "mm_projector.*", "vit.safetensors", "trainable_params.bin")


def read_config(file: Path) -> dict[str, Any]:
    """The settings of an adapter. Raises DataError, naming the key, for what is missing, wrong, or no plain LoRA."""
    config = border.read_json(file, dict[str, Any])
    refuse_whole_weights(file.parent)
    for key, valid in (("r", _is_rank), ("lora_alpha", _is_alpha)):
        if key not in config:
            raise DataError(f"{file}: key {key} is missing")
        if not valid(config[key]):
            raise DataError(f"{file}: {key}={border.shown(config[key])} is no finite number above 0")
    for key, valid in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict) or not all(map(valid, pattern.values())):
            raise DataError(f"{file}: {key}={border.shown(pattern)} is no object of finite numbers above 0")
    saved = config.get("modules_to_save") or []
    if not _is_names(saved):
        raise DataError(f"{file}: modules_to_save={border.shown(saved)} is no list of modules' names")
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        if not _is_names(config.get(key) or []) and not _is_expression(config[key]):
            raise DataError(
                f"{file}: {key}={border.shown(config[key])} is no list and no regular expression of modules' names"
            )
    layers = config.get("layers_to_transform")
    if not isinstance(layers, int | None) and not (
        isinstance(layers, list) and all(type(layer) is int for layer in layers)
    ):
        raise DataError(f"{file}: layers_to_transform={border.shown(layers)} is no list of layers' numbers")
    if not isinstance(config.get("use_rslora") or False, bool):
        raise DataError(f"{file}: use_rslora={border.shown(config['use_rslora'])} is not true or false")
    for key, value in config.items():
        plain = value in _PLAIN[key] if key in _PLAIN else key in _HARMLESS or value in (None, False, [], {}, "")
        if not plain:
            fix = "only plain LoRA is, merge it with peft first"
            raise DataError(f"{file}: {key}={border.shown(value)} is not supported: {fix}")
    return config


def refuse_whole_weights(folder: Path) -> None:
    """Raises DataError where a trainer put weights that it trained whole beside an adapter: neither peft nor its config
    knows of them, and without them it is another model."""
    for file in sorted(found for pattern in _BESIDE for found in folder.glob(pattern)):
        if zipfile.is_zipfile(file):  # of torch.save, whose tensors are records of their own
            with zipfile.ZipFile(file) as records:
                if not any("/data/" in name for name in records.namelist()):
                    continue
        raise DataError(
            f"{file}: holds weights that were trained whole beside the adapter, which are not read; merge both by the "
            "program that trained them and give the merged model, or delete the file if none were"
        )


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**20


def _is_alpha(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_expression(value: Any) -> bool:
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except re.error:
        return False


def by_pattern(config: dict[str, Any], key: str, module: str, default: str) -> float:
    """A module's own rank or alpha by peft's rule: the first pattern that ends the module's name, else the default."""
    for pattern, value in (config.get(key) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise DataError(f"adapter_config.json: {key}: {border.shown(pattern)} is no regular expression") from error
    return config[default]


def is_targeted(spelt: Sequence[str], config: Mapping[str, Any], linear: bool) -> bool:
    """True where peft gives factors to a module (check_target_module_exists), by one of its names; to "all-linear" it
    counts whether it is one."""
    targets, excluded = config["target_modules"], config.get("exclude_modules") or []
    saved = [re.compile(rf"(^|.*\.){re.escape(name)}($|\..*)") for name in config.get("modules_to_save") or ()]
    for name in spelt:
        if (excluded and _is_among(name, excluded)) or any(module.match(name) for module in saved):
            continue
        if isinstance(targets, str):
            found = linear if targets.lower() == "all-linear" else _is_among(name, targets)
        else:
            found = name in targets or (_is_among(name, targets) and _is_in_layers(name, config))
        if found:
            return True
    return False


def _is_among(name: str, modules: str | Sequence[str]) -> bool:
    """True where a module's name fits a regular expression as a whole, or ends with one of several names."""
    if isinstance(modules, str):
        return re.fullmatch(modules, name) is not None
    return any(name == module or name.endswith(f".{module}") for module in modules)


def _is_in_layers(name: str, config: Mapping[str, Any]) -> bool:
    """True where a module is of a layer that layers_to_transform names, or where that names none."""
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or [r"[^.]*"]
    if layers in (None, []):
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name) for pattern in patterns)
    number = next((int(match[1]) for match in found if match), None)
    return number in (layers if isinstance(layers, list) else [layers])
