"""Refusals of configs that can be known to be wrong before any long work, without JAX."""

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ml_collections import ConfigDict

from mmedexpert_jax import border
from mmedexpert_jax.config.fields import (
    BENCHMARK,
    HUB,
    HUB_ID,
    SPECIALTIES,
    VALUES,
    Field,
    elsewhere,
    facts_of,
    named_devices,
    named_path,
    raw_sources,
)
from mmedexpert_jax.config.job_config import (
    begun,
    convert,
    defaults,
    field_of,
    fields,
    given,
    in_words,
    names_of,
    nearest,
)
from mmedexpert_jax.config.presets import JOBS
from mmedexpert_jax.errors import ConfigError, DataError, holds_login, needs

INT_MAX = 2**31 - 1  # of any integer field: what an int32 holds
FLOAT_MIN, FLOAT_MAX = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # sizes that float32 holds; smaller ones count as 0
REMOTE_MODEL = re.compile(r"([^:/]*=)?(system|endpoint|transformers):")  # models that are not files here
WRITTEN = ("workdir", "output", "answers", "stages")  # fields that name what a job writes
BY_MERGEKIT = (  # fields of a merge that a mergekit file has in its own words
    *("weights", "parameters", "experts", "method", "rules", "density", "scale", "normalize_vectors", "space"),
    *("rl_origin", "fisher_prompts", "model.path"),
)
# fields that say nothing, others, and the values of these under which that is so
IDLE: tuple[tuple[tuple[str, ...], tuple[str, ...], Callable[[Any], bool]], ...] = (
    (("lora.rank", "lora.alpha", "lora.targets"), ("trainable",), "full".__eq__),
    (("ref_mixup",), ("ref_every",), operator.not_),
    (("perception_mask",), ("perception", "perception_entropy"), operator.not_),
    (("filter.least", "filter.most"), ("filter.samples", "filter.online"), operator.not_),
    (("sweep.scales",), ("sweep.densities",), operator.not_),
    (BY_MERGEKIT, ("mergekit",), bool),
)
_OF_HUB = "https://huggingface.co/"
# the default folder of a job's run: a path in it that is not there yet is what that job will make
RUN = re.compile(r"(?:\./)?runs/(ablation|dataset|dsa|export|gba|merge|pipeline|pretrain)-(\w+)(?:/(\w+))?(?:/.*)?")


def validate(config: ConfigDict, merged: Iterable[str] = ()) -> None:
    """Checks what does not go together, and the paths, of a config whose fields are right each (`check_fields`); the
    stages of a pipeline by the same rules.

    Args:
        merged: paths of the models that a mergekit file names; read after the values are checked.

    Raises:
        ConfigError: values that do not go together.
        DataError: a model, expert or data path where there is nothing to read.
    """
    _check_plan(config)
    for name in WRITTEN:
        _check_place(name, config.get(name))
    if "seeds" in config:
        _check_seeds(config.seeds)
    _check_drawn("", config)
    for prefix, stage in [("", config), *((f"{name}.", config[name]) for name in ("dsa", "gba") if name in config)]:
        if "steps" in stage and stage.steps == 0 and not stage.get("epochs"):
            both = f"and config.{prefix}epochs are both 0; set one of them" if "epochs" in stage else "is 0; set it"
            raise ConfigError(f"config.{prefix}steps {both}")
        if "adam_betas" in stage:
            _check_training(prefix, stage, begun(config))
        if "objective" in stage:
            check_groups(prefix, stage)
        _check_idle(config, prefix, stage)
        _check_changes(prefix, stage)
        _check_quantised(config, prefix, stage)
    if config.get("job") == "evaluate":
        _check_evaluated(config)
    elif "model" in config and not config.get("mergekit"):
        check_model("model.path", config.model.path)
    if not config.get("mergekit"):
        merged = [named_path(model)[1] for model in config.get("experts", ())]
    for model in merged:
        for part in parts_of(model):
            check_model("mergekit" if config.get("mergekit") else "experts", part)
    _check_base(config)
    for weight in config.get("weights", ()):
        convert("weights", weight, float)
    if config.get("job") == "review":
        _check_people(config)
    if config.get("job") == "dataset":
        _check_factory(config)
    elif config.get("job") == "review" and not config.data.path:
        pass  # it takes a run that is there, or the embedded set
    elif "data" in config and not _has_data(config.data.path):
        path = config.data.path or "it is empty"
        name = path.removeprefix(f"{_OF_HUB}datasets/")
        of_hub = f"; a data set of the hub is hub:{name}" if HUB_ID.fullmatch(name) else ""
        raise DataError(f"config.data.path: no such file or directory: {path}" + (_first(path) or of_hub))
    if config.get("job") in ("dsa", "gba") and config.eval.every >= 0:
        _check_held_out(config)


def check_fields(config: ConfigDict) -> None:
    """Raises ConfigError where a field is outside its bounds or choices, where the config names no job, and where a
    user's own config lacks a field of its job, has one that nothing reads, or none of the field's type in it."""
    facts, job, found = facts_of(config), config.get("job", ""), fields(config)
    for key, (_, _, value) in found.items():
        if value is not None:
            check_value(key, value, facts.get(key) or field_of(key, str(job)))
    if job not in JOBS:
        raise ConfigError(f"config.job={border.shown(job)} is no job; set it to one of {', '.join(JOBS)}")
    if unread := next((key for key in found if key not in names_of(job)), ""):
        hint = nearest(unread, list(names_of(job)))
        raise ConfigError(f"config.{unread} is read by nothing of the job {job}; {hint}leave it out of the config file")
    for key, (kind, optional, default) in defaults(job).items():
        own, _, value = found.get(key, (None, False, None))
        if own is None:
            raise ConfigError(
                f"config.{key} is missing, which the job {job} reads; let your config file begin with that of the job: "
                f'read_config("configs/{job}.py").unlock()'
            )
        if not (value is None and optional) and not _is_of(kind, value, default):
            raise ConfigError(f"config.{key} expects {in_words(kind, optional)}, got {border.shown(value)}")


def _is_of(kind: type, value: Any, default: Any = None) -> bool:
    """True for a value of a field's type; the parts of several are as the default's first, text where it has none."""
    if kind is tuple and isinstance(value, list | tuple):
        return all(_is_of(type(default[0]) if default else str, part) for part in value)
    return type(value) is kind or (type(value), kind) == (int, float)


def check_value(key: str, value: Any, field: Field | None = None) -> None:
    """Raises ConfigError where the value of a field is outside its bounds or choices: those given, else `field_of`."""
    texts = value if isinstance(value, tuple) else (value,)
    if any(isinstance(text, str) and holds_login(text) for text in texts):  # never shown, and in no run's files
        raise ConfigError(f"config.{key} holds a URL with a user name or password; put the key where key_env names it")
    field = field or field_of(key)
    listed = value if isinstance(value, tuple) else str(value).split(",")
    given = [name.strip() for name in listed] if field.several else [value]
    wrong = [name for name in given if field.choices and name not in field.choices]
    if wrong:
        text = str(wrong[0])[:100]
        close = [choice for choice in field.choices if choice.lower() == text.lower()]
        close = close or [name for name in (VALUES.get(text.lower()),) if name in field.choices]
        close = close or difflib.get_close_matches(text, field.choices, n=1, cutoff=0.7)
        alike = [choice for choice in field.choices if choice[:1] == text[:1]]
        close = close or difflib.get_close_matches(text, alike, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        names = ", ".join(choice or '""' for choice in field.choices)
        raise ConfigError(f"config.{key}={border.cut(str(wrong[0]))} is unknown; {hint}choose one of {names}")
    if key.rpartition(".")[2] == "url" and value:
        _check_url(key, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(value, int):
        field = replace(field, high=min(field.high, INT_MAX))
    if not field.holds(value):
        raise ConfigError(f"config.{key} must be {field.range()}, got {border.shown(value)}")
    if isinstance(value, float) and value and not FLOAT_MIN <= abs(value) <= FLOAT_MAX:
        raise ConfigError(
            f"config.{key}={value:g} becomes {'0' if abs(value) < 1 else 'infinite'} in float32, in which all is "
            f"computed; give a size from {FLOAT_MIN:.2g} to {FLOAT_MAX:.2g}"
        )


def _check_url(key: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # brackets that do not close, a port that is no number
        good = False
    if not good:
        raise ConfigError(f"config.{key} must be a URL such as https://host/v1, got {border.shown(url)}")


def _check_training(prefix: str, stage: ConfigDict, before: Mapping[str, Any]) -> None:
    """The optimizer's betas, and what held-out scores are to choose, unless the run began `before` with that."""
    betas = stage.adam_betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(
            f"config.{prefix}adam_betas must be two numbers from 0, below 1, such as 0.9,0.999; got {betas}"
        )
    if stage.warmup_steps and stage.warmup_ratio:
        raise ConfigError(
            f"config.{prefix}warmup_ratio={stage.warmup_ratio:g} says nothing beside warmup_steps="
            f"{stage.warmup_steps}; set one of them to 0, warmup_steps to use the ratio"
        )
    if stage.eval.split == "train" and stage.eval.every >= 0 and before.get(f"{prefix}eval.split") != "train":
        raise ConfigError(
            f"config.{prefix}eval.split=train are the cases that are trained on, and no held-out ones; choose dev or "
            f"test, or set --config.{prefix}eval.every=-1"
        )
    for name in ("best", "patience"):
        if stage.eval.every <= 0 and stage.eval[name]:
            made = "none" if stage.eval.every < 0 else "one at the end alone"
            raise ConfigError(
                f"config.{prefix}eval.{name} chooses by held-out scores, and eval.every={stage.eval.every} makes "
                f"{made}; set --config.{prefix}eval.every to a number of steps"
            )
        chose = before.get(f"{prefix}eval.split"), before.get(f"{prefix}eval.{name}")
        if stage.eval.split == "test" and stage.eval[name] and chose != ("test", stage.eval[name]):
            raise ConfigError(
                f"config.{prefix}eval.{name} chooses by the test split, which is to be reported alone; choose on dev: "
                f"--config.{prefix}eval.split=dev"
            )


def _check_idle(config: ConfigDict, prefix: str, stage: ConfigDict) -> None:
    """Raises ConfigError where a field was set that says nothing under the value of another (IDLE)."""
    found, said = fields(stage), given(config)
    for names, owners, idle in IDLE:
        if not all(owner in found and idle(found[owner][2]) for owner in owners):
            continue
        for key in (key for key in names if prefix + key in said):
            value = said[prefix + key]
            shown = f"{value:g}" if isinstance(value, float) else border.shown(value)
            without = f"without {owners[0]}; set --config.{prefix}{owners[0]}, or leave it out"
            beside = f"beside {owners[0]}={border.cut(str(found[owners[0]][2]))}; leave one of them out"
            why = without if idle is operator.not_ else beside
            raise ConfigError(f"config.{prefix}{key}={shown} says nothing {why}")


def _check_changes(prefix: str, stage: ConfigDict) -> None:
    """The fields that `allow_changes` names, and the run that `resume_from` is of."""
    known = [*fields(stage), *(["model.path"] if prefix else [])]  # which a stage has from the stages before it
    for name in stage.get("allow_changes") or ():
        if name not in known:
            close = [elsewhere(name, known), *difflib.get_close_matches(name, known, n=1)]
            hint = f"did you mean {meant}? " if (meant := next(filter(None, close), "")) else ""
            raise ConfigError(
                f"config.{prefix}allow_changes: no field {border.shown(name)}; {hint}--list_config shows all"
            )
    if stage.get("resume_from") and stage.get("specialty") == "all":
        raise ConfigError("config.resume_from is a step of one expert; choose it by --config.specialty")


def _check_quantised(config: ConfigDict, prefix: str, stage: ConfigDict) -> None:
    """Raises ConfigError where a quantised base meets training of its weights, parts of them on devices, or files."""
    kind = config.get("model", {}).get("quantize", "none")
    if kind == "none":
        return
    refused = {
        f"the job {config.job} writes them": config.get("job") in ("export", "merge", "pretrain"),
        f"config.{prefix}trainable=full trains them": stage.get("trainable") == "full",
        f"config.{prefix}shard=full splits them": stage.get("shard") == "full",
        f"config.{prefix}mesh.tensor splits them": stage.get("mesh", {}).get("tensor", 1) > 1,
    }
    for reason in (reason for reason, applies in refused.items() if applies):
        raise ConfigError(f"config.model.quantize={kind} freezes small weights, and {reason}; leave one of them out")


def parts_of(model: str) -> list[str]:
    """The base and the adapter of "BASE+ADAPTER"; any other model is one part."""
    return model.split("+", 1) if "+" in model and not Path(model).expanduser().exists() else [model]


def _check_held_out(config: ConfigDict) -> None:
    """A file and a benchmark have no splits: what is trained on would be asked as if it were held out."""
    path, split = config.data.path, config.eval.split
    if path.startswith(BENCHMARK) or Path(path).expanduser().is_file():
        raise ConfigError(
            f"config.data.path: {path} has no {split} split beside what is trained on; give a directory with "
            f"train.jsonl and {split}.jsonl (or .parquet), or set --config.eval.every=-1"
        )


def _check_place(key: str, path: Any) -> None:
    """Raises ConfigError for a path to write that the system would take for a new folder here, which nobody means."""
    if not isinstance(path, str) or not path:
        return
    place = f"config.{key}={border.shown(path)}"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise ConfigError(f"{place} is a URL, and files go to folders; mount it and give the folder")
    if unfilled := re.match(r"(.*/)?(\$\{?[A-Za-z_]\w*\}?)", path):
        raise ConfigError(f"{place} holds {unfilled[2]}, which no shell has filled in; write it out")
    if path[0] in "\"'":
        raise ConfigError(f"{place} holds quotes that no shell has taken off; leave them out")
    if path.lower() in ("none", "null"):
        raise ConfigError(
            f"{place} is the word for nothing, and would be a folder's name; leave it out, or write ./{path}"
        )
    if re.match(r"[A-Za-z]:[\\/]", path):
        raise ConfigError(f"{place} is a path of Windows; in WSL a drive is /mnt/{path[0].lower()}/...")
    if path != path.strip():
        raise ConfigError(f"{place} begins or ends with a space; leave it out")


def _check_plan(config: ConfigDict) -> None:
    """The fields that a plan alone reads: without one, the job itself would start."""
    for key in ("plan_mesh", "plan_compile"):
        if config.get(key) and not config.plan:
            raise ConfigError(f"config.{key} is of a plan; set --config.plan=True as well, or leave it out")
    if config.get("plan_mesh"):
        named_devices(config.plan_mesh)


def _check_seeds(seeds: tuple[int, ...]) -> None:
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        given = ",".join(map(str, seeds)) or "none"
        raise ConfigError(f"config.seeds must be different numbers from 0, at least one, such as 0,1,2; got {given}")


def _has_data(path: str) -> bool:
    known = path == "mini" or path.startswith(BENCHMARK)
    known = known or (path.startswith(HUB) and bool(HUB_ID.fullmatch(path.removeprefix(HUB))))
    return known or (bool(path) and Path(path).expanduser().exists())  # "" would be the current folder


def _check_evaluated(config: ConfigDict) -> None:
    """Models of an evaluation, and the process's number."""
    for key, entry in [("model.path", config.model.path), *(("compare", model) for model in config.compare)]:
        if not REMOTE_MODEL.match(entry):
            check_model(key, named_path(entry)[1])
    if config.endpoint.url or config.judge.url:
        needs("remote")
    if config.process >= config.processes:
        raise ConfigError(f"config.process={config.process} must be below config.processes={config.processes}")


def _check_factory(config: ConfigDict) -> None:
    """Stages, shares, raw files and endpoint of the dataset job."""
    if len(config.words) != 2 or not 0 < config.words[0] <= config.words[1]:
        raise ConfigError(f"config.words must be two rising numbers of words, such as 40,400; got {config.words}")
    if config.dev_share + config.test_share >= 1:
        raise ConfigError("config.dev_share and config.test_share leave nothing to train on; lower one of them")
    for entry in config.data.licences:
        if not all(part.strip() for part in (entry.partition("=")[0], entry.partition("=")[2])):
            raise ConfigError(f"config.data.licences: {entry!r} is not name=licence, such as plain=CC-BY-4.0")
    if config.push_to and (not (hub := HUB_ID.fullmatch(config.push_to)) or hub["revision"]):
        raise ConfigError(f"config.push_to must be owner/name, got {config.push_to!r}")
    if not config.stages:
        raise ConfigError("config.stages is empty; name one or more, such as collect,trace")
    named = [path for _, path in raw_sources(config.data.path)]
    for path in (named or [""]) if "collect" in config.stages else ():
        if not path or (path != "embedded" and not Path(path).expanduser().exists()):
            raise DataError(f"config.data.path: no such file or directory: {path or 'it is empty'}{_first(path)}")
    if config.teacher.kind != "local" and "trace" in config.stages:
        from mmedexpert_jax.remote.protocol import endpoint

        known_endpoint = endpoint(config.teacher)
        if not config.plan:
            known_endpoint.key()


def _check_people(config: ConfigDict) -> None:
    """One name, one person in one role: verdicts are kept by name. Raises ConfigError."""
    people = [*config.reviewers, *config.adjudicators]
    twice = next((name for name in people if people.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"config.reviewers and config.adjudicators name {twice!r} twice; an adjudicator is another person"
        )


def check_model(key: str, path: str) -> None:
    """Checks that a model path names something loadable, as far as file names tell. Raises DataError."""
    folder = Path(path).expanduser()
    if path in ("mini", "smollm2") or path.startswith("random:"):
        return
    if not path or not folder.exists():
        if HUB_ID.fullmatch(path) and path.partition("/")[0] != "runs" and not folder.parent.exists():
            return
        name = path.removeprefix(_OF_HUB).rstrip("/")
        hint = f"; did you mean {name}?" if name != path else "; give mini, smollm2, a directory, a run or a hub id"
        hint = _first(path) or hint
        raise DataError(f"config.{key}: no such model: {path or 'it is empty'}{hint}")
    kinds = ["*.safetensors", "export/*/*.safetensors", "recipe.json", "export/model/recipe.json"]
    kinds += ["ckpt/*/manifest.json"] if key in ("experts", "mergekit") else []
    if not folder.is_dir() or not any(next(folder.glob(kind), None) for kind in kinds):
        raise DataError(f"config.{key}: {no_weights(path)}")


def no_weights(path: str) -> str:
    """The line on a path without weights, with where these may be: in a folder of it, or in another format."""
    folder = Path(path).expanduser()
    hint = "; give the folder of the model" if folder.is_file() else _first(path)
    files = [*folder.glob("*/*.safetensors"), *folder.glob("snapshots/*/*.safetensors")]
    inside = sorted({str(file.parent.relative_to(folder)) for file in files}, key=_counted)
    if len(inside) == 1:
        hint = f"; its folder {inside[0]} does: give that"
    elif inside:
        hint = f"; its folders {border.listing(inside, 6)} do: give one"
    if any(next(folder.glob(kind), None) for kind in ("*.bin", "*.pt", "*.pth", "*.gguf")):
        hint = "; transformers' save_pretrained writes weights of another format as safetensors"
    if experts := [str(place.parent) for place in sorted(folder.glob("*/export"))]:
        hint = f"; its folders of runs do: {', '.join(experts[:8])}"
    if next(folder.glob("model_world_size_*.pt"), None):
        hint = "; verl's model_merger (python -m verl.model_merger merge) writes them as safetensors"
    return f"{path} holds no weights (*.safetensors) and no finished run's export/{hint}"


def _counted(name: str) -> list[tuple[int, str]]:
    """A name's key in an order in which numbers within names count: checkpoint-500 before checkpoint-1000."""
    return [(int(part or 0), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _check_base(config: ConfigDict) -> None:
    """Raises ConfigError where nothing that the config names is an adapter, whose base `model.base` would be, and
    DataError where that is nothing loadable."""
    base = config.get("model", {}).get("base", "")
    if not base:
        return
    models = [named_path(model)[1] for key in ("compare", "experts", "adapters") for model in config.get(key, ())]
    paths = [value for key, (_, _, value) in fields(config).items() if key.rpartition(".")[2] == "path"]
    parts = [part for model in (*paths, *models) for part in parts_of(model)]
    if not config.get("mergekit") and not any(map(_may_be_adapter, parts)):
        looked = border.cut(", ".join([config.model.path, *models]))
        raise ConfigError(
            f"config.model.base={border.shown(base)} is the model under an adapter, and none is named ({looked}); give "
            "it as --config.model.path, or leave it out"
        )
    check_model("model.base", base)


def _may_be_adapter(path: str) -> bool:
    """True for an adapter, a run with one, and what only the hub knows."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path not in ("mini", "smollm2") and bool(HUB_ID.fullmatch(path))
    adapters = (place / "adapter_config.json" for place in (folder, folder / "export" / "adapter"))
    return (folder / "ckpt").is_dir() or any(file.is_file() for file in adapters)


def _first(path: str) -> str:
    """The command of the job whose default folder a path is in; empty for any other path."""
    if not (found := RUN.fullmatch(path)):
        return ""
    job, preset, part = found.groups()
    one = f" --config.specialty={part}" if job == "dsa" and part in SPECIALTIES else ""
    if job == "dsa" and not Path(path).parent.exists():  # none of the four is there: one command trains them all
        one = ""
    return f"; run it first: python -m mmedexpert_jax.launch --config=configs/{job}.py:{preset}{one}"


def _check_asked(prefix: str, gba: ConfigDict) -> None:
    """The models that rewards ask: one in process must be there, one that is named must have a weight."""
    for name in ("judge", "similarity"):
        group, key = gba.rewards[name], f"{prefix}rewards.{name}"
        if group.weight and group.path not in ("", "policy"):
            check_model(f"{key}.path", group.path)
        for field in ("url", "model"):
            if group[field] and not group.weight:
                raise ConfigError(
                    f"config.{key}.{field} is set, but a weight of 0 asks nobody; set --config.{key}.weight, or leave "
                    "it out"
                )


def _check_drawn(prefix: str, sampling: ConfigDict) -> None:
    """Raises ConfigError where several answers to a prompt would be one, given again; so for groups within."""
    several = sampling.get("num_samples", 1) > 1
    if several and sampling.get("temperature", 1.0) <= 0:
        raise ConfigError(
            f"config.{prefix}temperature must be above 0: greedy samples of a prompt are all the same, and "
            f"config.{prefix}num_samples={sampling.num_samples}"
        )
    if several and sampling.get("top_k") == 1:
        raise ConfigError(f"config.{prefix}top_k=1 is greedy: samples of a prompt are all the same; 0 samples from all")
    warmth = sampling.teacher.get("temperature") if "teacher" in sampling else None  # None leaves it to a server
    if sampling.get("candidates", 1) > 1 and warmth is not None and warmth <= 0:
        raise ConfigError(
            f"config.{prefix}teacher.temperature must be above 0: greedy traces of a case are all the same, and "
            f"config.{prefix}candidates={sampling.candidates}"
        )
    for name, group in sampling.items():
        if isinstance(group, ConfigDict):
            _check_drawn(f"{prefix}{name}.", group)


def check_groups(prefix: str, gba: ConfigDict) -> None:
    """Raises ConfigError where groups do not have the two samples or more, apart, that equation 4 compares."""
    if gba.num_samples < 2:
        raise ConfigError(
            f"config.{prefix}num_samples must be at least 2: the advantage of equation 4 compares the samples of a "
            f"group; got {gba.num_samples}"
        )
    _check_drawn(prefix, gba)
    if gba.guideline_text and not gba.guided:
        raise ConfigError(
            f"config.{prefix}guideline_text is quoted by guided prompts alone, and objective={gba.objective} asks "
            f"without guidelines; set --config.{prefix}guided=True, or leave it out"
        )
    _check_asked(prefix, gba)
    if gba.paradigms_per_query > 4:
        raise ConfigError(f"config.{prefix}paradigms_per_query is at most 4, got {gba.paradigms_per_query}")
    split = "num_samples" if gba.group_by == "query" else "prompts_per_step"
    if gba.filter.least > gba.filter.most:
        raise ConfigError(
            f"config.{prefix}filter.least ({gba.filter.least:g}) is above config.{prefix}filter.most "
            f"({gba.filter.most:g}): no pass rate is between them"
        )
    if gba.filter.online and gba.zero_variance == "keep":
        raise ConfigError(
            f"config.{prefix}filter.online says which groups zero_variance leaves out, which is keep; set "
            f"--config.{prefix}zero_variance=drop or refill"
        )
    if gba[split] % gba.paradigms_per_query:
        raise ConfigError(
            f"config.{prefix}{split} ({gba[split]}) must be a multiple of paradigms_per_query "
            f"({gba.paradigms_per_query}) where group_by is {gba.group_by}"
        )
