"""Reads mergekit's YAML files (0.1.5) into recipes of the same merge; what has no counterpart is refused by name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from mmedexpert_jax import border
from mmedexpert_jax.config.validate import parts_of
from mmedexpert_jax.errors import ConfigError, DataError, RemoteError
from mmedexpert_jax.merging.alignment import vocabularies
from mmedexpert_jax.merging.checkpoint import chat_template
from mmedexpert_jax.merging.merge_recipe import Recipe
from mmedexpert_jax.merging.methods import switches
from mmedexpert_jax.merging.parameters import Parameters, Spec
from mmedexpert_jax.merging.slices import Slice
from mmedexpert_jax.models.locate import trace
from mmedexpert_jax.processing.chat_template import syntax_fault

Given = dict[str, Any] | None


def _model(given: str) -> str:
    """A model as it is given, but for the revision of one that is a folder here, which mergekit passes over too."""
    parts = [(part, part.rpartition("@")[0]) for part in given.split("+")]
    return "+".join(path if Path(path or "-").is_dir() and not Path(part).exists() else part for part, path in parts)


class Input(msgspec.Struct, forbid_unknown_fields=True):
    """A model, as a path, a hub id or "base+adapter"."""

    model: str
    parameters: Given = None

    def __post_init__(self) -> None:
        self.model = _model(self.model)


class Source(msgspec.Struct, forbid_unknown_fields=True):
    """Layers [start, stop) of a model."""

    model: str
    layer_range: tuple[int, int]
    parameters: Given = None

    def __post_init__(self) -> None:
        self.model = _model(self.model)


class OutputSlice(msgspec.Struct, forbid_unknown_fields=True):
    """Layers that are merged, and stacked on those of the slices before."""

    sources: list[Source]
    base_model: str | None = None
    parameters: Given = None

    def __post_init__(self) -> None:
        self.base_model = self.base_model and _model(self.base_model)


class Tokenizer(msgspec.Struct, forbid_unknown_fields=True):
    """Of the result."""

    source: str = "union"

    def __post_init__(self) -> None:
        self.source = _model(self.source)


class File(msgspec.Struct, forbid_unknown_fields=True):
    """A mergekit file."""

    merge_method: str
    models: list[Input] | None = None
    slices: list[OutputSlice] | None = None
    base_model: str | None = None
    parameters: Given = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    name: Any = None  # of the merge, which changes nothing

    def __post_init__(self) -> None:
        self.base_model = self.base_model and _model(self.base_model)
        self.tokenizer_source = self.tokenizer_source and _model(self.tokenizer_source)


@dataclass(frozen=True)
class MergekitMethod:
    """A method of mergekit's."""

    ours: str  # its name in `methods.METHODS`
    # parameters of each model, theirs -> ours; those that mergekit has no default for are `required`
    own: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)  # parameters of the merge, theirs -> ours
    flags: Mapping[str, bool] = field(default_factory=dict)  # switches, with mergekit's defaults
    base: bool = True  # whether base_model must be there
    inputs: bool = False  # whether the base is one of the merged models, whose whole weights are merged
    required: tuple[str, ...] = ()  # of `own` and `shared`


def _arithmetic(name: str, *more: str, normalize: bool = False, rescale: bool = False) -> MergekitMethod:
    """A method of mergekit's generalised task arithmetic, with `more` parameters of each model; named as ours is."""
    own = {key: key for key in ("weight", "density", *more)}
    flags = {"normalize": normalize, "rescale": rescale, "int8_mask": False}
    return MergekitMethod(name, own, {"lambda": "scale"}, flags, required=("weight",))


def _weighted(ours: str, inputs: bool = False, **flags: bool) -> MergekitMethod:
    """A method that asks each model for a weight alone, and for no base."""
    return MergekitMethod(ours, {"weight": "weight"}, flags=flags, base=False, inputs=inputs, required=("weight",))


METHODS = {
    "ties": _arithmetic("ties", normalize=True),
    "task_arithmetic": _arithmetic("task_arithmetic"),
    "dare_linear": _arithmetic("dare_linear", rescale=True),
    "dare_ties": _arithmetic("dare_ties", rescale=True),
    "della": _arithmetic("della", "epsilon", normalize=True, rescale=True),
    "della_linear": _arithmetic("della_linear", "epsilon", rescale=True),
    "breadcrumbs": _arithmetic("breadcrumbs", "gamma"),
    "breadcrumbs_ties": _arithmetic("breadcrumbs_ties", "gamma"),
    "linear": _weighted("weight_sum", inputs=True, normalize=True),
    "passthrough": MergekitMethod("weight_sum", {"scale": "weight"}, base=False, inputs=True),
    "slerp": MergekitMethod("weight_slerp", shared={"t": "t"}, inputs=True, required=("t",)),
    "nuslerp": _weighted("nuslerp", nuslerp_flatten=True, nuslerp_row_wise=False),
    "multislerp": _weighted("multislerp", normalize_weights=True),
    "karcher": MergekitMethod("weight_karcher", shared={"max_iter": "max_iter", "tol": "tol"}, base=False, inputs=True),
    "model_stock": MergekitMethod("model_stock", flags={"filter_wise": False}),
    "ram": MergekitMethod("ram", shared={"epsilon": "threshold"}),
    "ramplus_tl": MergekitMethod("ramplus", shared={"epsilon": "threshold", "r": "slope", "alpha": "bound"}),
    "sce": MergekitMethod("sce", shared={"select_topk": "density"}, flags={"int8_mask": False}),
    "nearswap": MergekitMethod("nearswap", shared={"t": "t"}, required=("t",)),
    "arcee_fusion": MergekitMethod("arcee_fusion"),
}


def read_mergekit(path: str | Path) -> Recipe:
    """The recipe of a mergekit file. What mergekit computes in `dtype` is computed in float32 here.

    Raises:
        ConfigError: not a mergekit file, a method or an option that has no counterpart here; names the key.
    """
    file: File = border.read_yaml(path, File, error=ConfigError)
    if file.merge_method not in METHODS:
        raise ConfigError(
            f"{path}: merge_method {border.shown(file.merge_method)} is unknown here: choose one of "
            f"{', '.join(METHODS)}"
        )
    if (file.models is None) == (file.slices is None):
        raise ConfigError(f"{path}: give either models or slices")
    if file.models == [] or file.slices == [] or any(not part.sources for part in file.slices or ()):
        raise ConfigError(f"{path}: {'models' if file.models == [] else 'slices'} is empty: name the models to merge")
    if file.models is not None:
        recipe = _merge(path, file, file.models, [file.parameters], file.base_model)
    else:
        recipe = _stack(path, file)
    recipe = replace(recipe, tokenizer=_tokenizer(path, file, recipe))
    dtypes = [_dtype(path, key, getattr(file, key)) for key in ("out_dtype", "dtype")]
    return replace(recipe, dtype=dtypes[0] or dtypes[1], chat_template=_template(path, file, recipe))


def _dtype(path: str | Path, key: str, given: str | None) -> str:
    """A dtype by name, with or without "torch." as in mergekit; empty for none."""
    name = (given or "").removeprefix("torch.")
    if name not in ("", "float32", "float16", "bfloat16"):
        raise ConfigError(f"{path}: key {key} must be float32, float16 or bfloat16; found {border.shown(given)}")
    return name


def _merge(path: str | Path, file: File, inputs: list[Input], shared: list[Given], base_model: str | None) -> Recipe:
    """The merge of whole models. `shared`: parameters of all models, the ones that count first first."""
    method = METHODS[file.merge_method]
    own = {one.model: one.parameters or {} for one in inputs}
    if len(own) < len(inputs):
        raise ConfigError(f"{path}: a model is named twice; mergekit refuses that too")
    if method.base and not base_model:
        raise ConfigError(f"{path}: {file.merge_method} needs base_model")
    if base_model and file.models is not None:  # mergekit adds it as the last input
        own.setdefault(base_model, {})
    whole = method.inputs or not base_model
    base = base_model or parts_of(inputs[0].model)[0]
    if len(parts_of(base)) > 1:
        raise ConfigError(f"{path}: base_model {base} has an adapter; merge that one first, and name the result here")
    experts = {model: given for model, given in own.items() if whole or model != base}
    if not experts:
        raise ConfigError(f"{path}: no model but base_model is named")
    names = _short(list(experts))
    place = f"{path}: {file.merge_method}"
    if base not in experts:  # nothing is made of its numbers, which are checked all the same
        _numbers(place, method, [], {_short([base])[base]: own.get(base, {})})
    numbers, flags = _numbers(place, method, shared, {names[model]: given for model, given in experts.items()})
    if file.merge_method == "slerp":
        if len(names) != 2 or base not in names:
            raise ConfigError(f"{path}: slerp takes two models, one of them the base_model")
        names = {base: names[base]} | names  # t is the way from the base to the other
    if file.merge_method == "passthrough" and len(experts) > 1:
        raise ConfigError(f"{path}: passthrough takes one model; got {len(experts)}")
    if file.merge_method == "multislerp" and len(experts) == 1:  # mergekit gives one model back as it is
        flags["normalize_weights"] = True
    name, rule = _rule(method, whole, flags)
    parameters = Parameters(name, tuple(names.values()), rule, numbers, required=method.required)
    return Recipe(base, {name: model for model, name in names.items()}, parameters)


def _rule(method: MergekitMethod, whole: bool, flags: Mapping[str, bool]) -> tuple[str, Any]:
    """Our method and its switches."""
    name = method.ours
    if name == "nuslerp" and not flags["nuslerp_flatten"]:
        name = "slerp_columns" if flags["nuslerp_row_wise"] else "slerp_rows"
    if flags.get("filter_wise"):
        name = "model_stock_rows"
    if whole and not method.inputs:
        name = f"weight_{name}"
    rule = switches("mergekit", name)
    if "rescale" in flags:
        rule = replace(rule, rescale="l1" if flags["rescale"] else "none")
    normalize = flags.get("normalize", flags.get("normalize_weights"))
    if normalize is None:
        normalize = method.ours != "weight_sum"  # passthrough divides by nothing
    return name, replace(rule, denominator="weights" if normalize else "none")


def _numbers(
    place: str, method: MergekitMethod, shared: list[Given], own: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Spec]], dict[str, bool]]:
    """Numbers by ours and owner, and flags. Raises ConfigError for a parameter that mergekit would not read there."""
    numbers: dict[str, dict[str, Spec]] = {}
    flags = dict(method.flags)
    for settings in reversed(shared):  # what counts first comes last, and goes before the others
        for key, value in (settings or {}).items():
            if key in flags:
                if not isinstance(value, bool):
                    raise ConfigError(f"{place}: parameter {key} must be true or false; found {border.shown(value)}")
                flags[key] = value
            elif ours := method.own.get(key) or method.shared.get(key):
                place_of = numbers.setdefault(ours, {})
                place_of[""] = _before(_spec(f"{place}: parameter {key}", value), place_of.get(""))
            else:
                raise ConfigError(f"{place}: parameter {border.shown(key)} is none of its own ({_listed(method)})")
    for owner, given in own.items():
        for key, value in given.items():
            if key not in method.own:
                beside = "stands beside models, not in one" if key in (*flags, *method.shared) else "is none of its own"
                raise ConfigError(f"{place}: parameter {border.shown(key)} of {owner} {beside} ({_listed(method)})")
            numbers.setdefault(method.own[key], {})[owner] = _spec(f"{place}: parameter {key} of {owner}", value)
    return numbers, flags


def _listed(method: MergekitMethod) -> str:
    return ", ".join([*method.own, *method.shared, *method.flags]) or "it has none"


def _before(first: Spec, then: Spec | None) -> Spec:
    """A spec that falls to another where no filter of it fits."""
    if then is None or not (isinstance(first, Mapping) or (isinstance(first, list) and isinstance(first[0], Mapping))):
        return first
    many = [first] if isinstance(first, Mapping) else first
    falls = then if isinstance(then, list) and isinstance(then[0], Mapping) else [{"value": then}]
    return [*many, *([then] if isinstance(then, Mapping) else falls)]


def _spec(place: str, value: Any) -> Spec:
    """A number, a gradient or filters, checked; YAML's 1e-5 is text, which mergekit takes as a number."""
    if isinstance(value, Mapping):
        if "value" not in value or set(value) - {"value", "filter"}:
            raise ConfigError(f"{place}: filters have the keys filter and value; found {border.shown(dict(value))}")
        if not isinstance(value.get("filter"), str | None):
            raise ConfigError(f"{place}: filter must be text; found {border.shown(value['filter'])}")
        return {"filter": value.get("filter"), "value": _spec(place, value["value"])}
    if isinstance(value, list) and value and len({isinstance(one, Mapping) for one in value}) == 1:
        return [_spec(place, one) for one in value]
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML 1.1 reads yes and on as true
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        fits = "a number, a list of numbers, or a list of filters with values"
        raise ConfigError(f"{place} must be {fits}; found {border.shown(value)}")
    return number


def _stack(path: str | Path, file: File) -> Recipe:
    """The merge of slices: of whole models where one slice holds all of their layers."""
    assert file.slices is not None
    merges, parts = [], []
    for number, part in enumerate(file.slices):
        place = f"{path}: slices[{number}]"
        base_model = part.base_model or file.base_model
        inputs = [Input(source.model, source.parameters) for source in part.sources]
        method = METHODS[file.merge_method]
        if base_model and (method.base or not method.inputs) and base_model not in [one.model for one in inputs]:
            raise ConfigError(f"{place}: base_model {base_model} is not among its sources")
        base_model = base_model if base_model in [one.model for one in inputs] else None
        merge = _merge(path, file, inputs, [part.parameters, file.parameters], base_model)
        ranges = {source.model: source.layer_range for source in part.sources}
        first = part.sources[0].layer_range
        lengths = {stop - start for start, stop in ranges.values()}
        if len(lengths) > 1 or min(lengths) <= 0 or any(start < 0 for start, _ in ranges.values()):
            raise ConfigError(f"{place}: layer_range must be as many layers of each source, from 0 on")
        named = {name: ranges[model] for name, model in merge.experts.items()} | {"": ranges.get(merge.base, first)}
        for model, (_, stop) in ranges.items():
            if (count := _layers(model)) and stop > count:
                raise ConfigError(f"{place}: layer_range ends at {stop}, but {model} has {count} layers")
        merges.append(merge)
        parts.append(Slice(merge.base, merge.experts, named, merge.parameters))
    whole = all(span == (0, _layers(merges[0].base)) for span in parts[0].ranges.values())
    if len(parts) == 1 and whole and file.base_model in (None, merges[0].base):  # else the configs are another's
        return merges[0]
    base = file.base_model or merges[0].base
    experts = {name: model for merge in merges for name, model in merge.experts.items()}
    return Recipe(parts_of(base)[0], experts, merges[0].parameters, slices=tuple(parts))


def _layers(model: str) -> int:
    """Decoder layers of a model, as its config says; 0 where it does not."""
    file = trace(parts_of(model)[0])[0] / "config.json"
    config = border.read_json(file, dict[str, Any]) if file.exists() else {}
    count = config.get("num_hidden_layers") or (config.get("text_config") or {}).get("num_hidden_layers")
    return count if isinstance(count, int) else 0


def _tokenizer(path: str | Path, file: File, recipe: Recipe) -> str:
    """Empty for the base's, to which any other must be equal; "union" where the result has the tokens of all models."""
    if file.tokenizer and file.tokenizer_source:
        raise ConfigError(f"{path}: give either tokenizer or tokenizer_source")
    key, source = "tokenizer_source", file.tokenizer_source
    if file.tokenizer:
        key, source = "tokenizer.source", file.tokenizer.source
    if source in (None, "base", recipe.base):
        return ""
    models = list(recipe.experts.values()) if source == "union" else [source]
    base, place = trace(recipe.base)[0], f"{path}: {key}: {border.shown(source)}"
    try:
        others = [model for model in models if vocabularies(trace(parts_of(model)[0])[0], base) is not None]
    except (DataError, RemoteError) as error:
        raise type(error)(f"{place}: {error}; give base or union") from error
    if not others:
        return ""
    if source != "union":
        raise ConfigError(f"{place}: {others[0]} has other tokens than the base; give base, or union for those of both")
    if recipe.slices or not file.base_model:
        raise ConfigError(
            f"{place}: {others[0]} has other tokens; a union needs base_model, and models in place of slices"
        )
    return "union"


def _template(path: str | Path, file: File, recipe: Recipe) -> str:
    """The template that stands in the file, the base's, or for "auto" the most frequent one of the models."""
    if file.chat_template in (None, "auto"):
        models = dict.fromkeys((recipe.base, *(recipe.experts.values() if file.chat_template else ())))
        found = [chat_template(trace(parts_of(model)[0])[0]) for model in models]
        return max(filter(None, found), key=found.count, default="")
    if "{" not in str(file.chat_template):
        shown = border.shown(file.chat_template)
        raise ConfigError(f"{path}: chat_template: {shown} has no counterpart here; give auto or a Jinja template")
    if fault := syntax_fault(str(file.chat_template)):
        raise ConfigError(f"{path}: chat_template is no Jinja ({fault}); copy the base model's")
    return str(file.chat_template)


def _short(models: list[str]) -> dict[str, str]:
    """Model -> its last folder's name, or the whole path where that is not unique."""
    last = {model: Path(parts_of(model)[-1]).name for model in models}
    return {model: name if list(last.values()).count(name) == 1 else model for model, name in last.items()}
