"""Reads mergekit's YAML files (0.1.5) into recipes that do the same merge."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging.parameters import Parameters, Spec
from mmedexpert_jax.merging.recipe import Recipe
from mmedexpert_jax.merging.switches import switches

# mergekit's method -> ours; those without a base work on whole weights.
_METHODS = {
    "linear": "average",
    "slerp": "weight_slerp",
    "nuslerp": "slerp",
    "karcher": "weight_karcher",
    "ramplus_tl": "ramplus",
    **{
        name: name
        for name in (
            "ties",
            "task_arithmetic",
            "dare_linear",
            "dare_ties",
            "della",
            "della_linear",
            "breadcrumbs",
            "breadcrumbs_ties",
            "model_stock",
            "multislerp",
            "ram",
        )
    },
}
_NUMBERS = {"weight": "weight", "density": "density", "gamma": "gamma", "epsilon": "epsilon", "lambda": "scale"}
_DEFAULTS = {"nuslerp_flatten": True, "nuslerp_row_wise": False, "filter_wise": False, "normalize_weights": True}
_KNOWN = {"merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype"}
_OURS = {"tokenizer_source": (None, "base"), "tokenizer": (None, {"source": "base"}), "chat_template": (None, "auto")}


def read_mergekit(path: str | Path) -> Recipe:
    """The recipe of a mergekit file. What mergekit computes in `dtype` is computed in float32 here.

    Raises:
        ConfigError: not a mergekit file, a method or an option that has no counterpart here; names the key.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content, Mapping) or "merge_method" not in content:
        raise ConfigError(f"{path}: not a mergekit file: merge_method is missing")
    theirs = content["merge_method"]
    if theirs not in _METHODS:
        raise ConfigError(f"{path}: merge_method {theirs} is unknown here: choose one of {', '.join(_METHODS)}")
    for key, value in content.items():
        if key not in _KNOWN and value not in _OURS.get(key, ()):
            raise ConfigError(f"{path}: {key} has no counterpart here; leave it out or merge with mergekit")
    models, shared = _inputs(path, content)
    if not content.get("base_model") and theirs not in ("linear", "karcher", "nuslerp", "multislerp"):
        raise ConfigError(f"{path}: {theirs} needs base_model")
    base = str(content.get("base_model") or models[0][0])
    whole = theirs in ("linear", "slerp", "karcher") or not content.get("base_model")
    experts = {name: given for name, given in models if whole or name != base}
    method = _METHODS[theirs]
    if not content.get("base_model") and method in ("slerp", "multislerp"):
        method = f"weight_{method}"
    names = _short(list(experts))
    numbers, flags = _numbers(path, shared, {names[model]: given for model, given in experts.items()})
    if "t" in shared:
        numbers["weight"] = _interpolation(path, base, names, shared["t"])
    rule = switches("mergekit", method)
    if "normalize" in flags:
        rule = replace(rule, denominator="weights" if flags["normalize"] else "none")
    if "rescale" in flags:
        rule = replace(rule, rescale="l1" if flags["rescale"] else "none")
    dtype = content.get("out_dtype") or content.get("dtype") or ""
    parameters = Parameters(method, tuple(names.values()), rule, numbers)
    return Recipe(base, {names[model]: _path(model) for model in experts}, parameters, (), dtype)


def _inputs(path: str | Path, content: Mapping[str, Any]) -> tuple[list[tuple[str, dict]], dict[str, Any]]:
    """[(model, its parameters)] and the parameters of all."""
    shared = dict(content.get("parameters") or {})
    if "models" in content:
        entries = content["models"]
    else:
        slices = content.get("slices") or []
        if len(slices) != 1 or any(source["layer_range"][0] != 0 for source in slices[0]["sources"]):
            raise ConfigError(f"{path}: slices must be one slice of whole models; stacks of layers are not merged here")
        entries = slices[0]["sources"]
        shared |= slices[0].get("parameters") or {}
    if not entries:
        raise ConfigError(f"{path}: models is empty")
    return [(str(entry["model"]), dict(entry.get("parameters") or {})) for entry in entries], shared


def _numbers(
    path: str | Path, shared: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Spec]], dict[str, bool]]:
    numbers: dict[str, dict[str, Spec]] = {}
    flags: dict[str, bool] = {}
    for owner, given in {"": shared, **own}.items():
        for key, value in given.items():
            if key in _NUMBERS:
                numbers.setdefault(_NUMBERS[key], {})[owner] = value
            elif key in ("normalize", "rescale"):
                flags[key] = bool(value)
            elif key not in ("int8_mask", "t") and value != _DEFAULTS.get(key):
                raise ConfigError(f"{path}: parameter {key}: {value} has no counterpart here")
    return numbers, flags


def _interpolation(path: str | Path, base: str, names: Mapping[str, str], t: Spec) -> dict[str, Spec]:
    """Weights of slerp's two models: t of the other, 1 - t of the base."""
    if len(names) != 2 or base not in names:
        raise ConfigError(f"{path}: slerp takes two models, one of them the base_model")
    other = next(model for model in names if model != base)
    return {names[base]: _complement(t), names[other]: t}


def _complement(spec: Spec) -> Spec:
    if isinstance(spec, Mapping):
        return dict(spec) | {"value": _complement(spec["value"])}
    return [_complement(one) for one in spec] if isinstance(spec, list) else 1 - float(spec)


def _path(model: str) -> str:
    """`base+adapter` is the adapter, which names its base itself."""
    return model.partition("+")[2] or model


def _short(models: list[str]) -> dict[str, str]:
    """Model -> its last folder's name, or the whole path where that is not unique."""
    last = {model: Path(_path(model)).name for model in models}
    return {model: name if list(last.values()).count(name) == 1 else model for model, name in last.items()}
