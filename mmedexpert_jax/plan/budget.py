"""The lines of a plan on memory, steps, tokens and disk, and what to change where a job does not fit."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate
from operator import attrgetter, or_
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from mmedexpert_jax.config.fields import named_path
from mmedexpert_jax.config.presets import SHARED
from mmedexpert_jax.data import SPECIALTIES
from mmedexpert_jax.data.order import steps_of
from mmedexpert_jax.errors import ConfigError, ResourceError
from mmedexpert_jax.gba import split
from mmedexpert_jax.models import ModelConfig
from mmedexpert_jax.plan import hardware
from mmedexpert_jax.plan.architecture import architecture
from mmedexpert_jax.plan.hardware import Devices
from mmedexpert_jax.plan.needs import ESTIMATES, STACKS, Needs, needs, rows

TRAINING = ("dsa", "gba", "pretrain")
ASKED = 200  # tokens of a judge's instructions and rubric
CHECKPOINTS = 3  # two are kept, a third is being written


def count(config: ConfigDict, factor: float = 0.0, **changes: Any) -> tuple[Needs, Devices, str]:
    """Needs, devices and the dtype of the weights, with some fields changed.

    Args:
        factor: of `compiled_ratio`: the update's estimates are corrected by it; 0: they stand.
        changes: values by field.
    """
    if changes:
        config = config.copy_and_resolve_references().unlock()
        config.update_from_flattened_dict(changes)
    devices = hardware.find(config.get("plan_mesh", ""))
    shape, stored = _architecture(config)
    widened = devices.kind == "cpu" and config.job != "merge"  # a merge writes what the base's files hold
    given = config.model.dtype if "model" in config else ""
    dtype = given or ("float32" if widened else stored)
    found = needs(config, shape, dtype, devices)
    if factor:
        update = found.phases["update"]
        estimated = sum(update.pop(name) for name in ESTIMATES)
        update.pop("policy's copy", 0)  # the program makes it
        update["compiled program"] = round(factor * estimated)
    return found, devices, dtype


def compiled_ratio(config: ConfigDict) -> float:
    """Bytes of the compiled update over those that are estimated; 0 where `plan_compile` does not ask for it.

    Raises:
        ConfigError: no compiler for the devices of `plan_mesh` is installed.
    """
    if config.job not in ("dsa", "gba") or not config.plan_compile:
        return 0.0
    from mmedexpert_jax.plan import compiled

    found, devices, dtype = count(config)
    mesh = devices.mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    shape, _ = architecture(config.model.path)
    kind = devices.kind if config.plan_mesh else ""
    taken = compiled.temporary(FrozenConfigDict(config), shape, dtype, kind, *rows(config, mesh))
    update = found.phases["update"]
    return max(taken - update.get(STACKS, 0), 0) / sum(update[name] for name in ESTIMATES)


def lines(config: ConfigDict, prefix: str, train: Counter) -> list[str]:
    """The needs of a job, or of the stage of a pipeline that `prefix` names; `train`: its cases by specialty."""
    found, devices, dtype = count(config, compiled_ratio(config))
    trained = f", {found.trained:,} trained ({found.trained / found.parameters:.1%})" if found.trained else ""
    memory = f"{gb(devices.memory)} for a program on each" if devices.memory else "memory not known"
    phase, peak = found.peak
    used = 1
    if config.job in ("dsa", "gba"):
        used = devices.mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor).size
    if prefix:
        space = memory.removesuffix(" for a program on each")
        return [
            prefix.rstrip("."),
            f"  parameters {found.parameters:,} {dtype}{trained}",
            f"  peak       {gb(peak)} on a device of {space}, in {phase}; * estimated",
            f"  memory     {_listed(found.held | found.phases.get(phase, {})) or 'nothing'}",
            *(f"  {line}" for line in _work(config, found, train) if not line.startswith("disk")),
        ]
    return [
        "needs",
        f"  parameters {found.parameters:,} {dtype}{trained}",
        f"  devices    {devices.count} x {devices.kind}, {memory}; the job uses {used}",
        f"  held       {_listed(found.held) or 'nothing'}",
        *(f"  {name:10} {_listed(parts)}" for name, parts in found.phases.items()),
        f"  peak       {gb(peak)} on a device, in {phase}; * estimated (docs/plan.md)",
        *([f"  room left  {gb(devices.memory - peak)}{_spare(config, devices)}"] if peak <= devices.memory else []),
        *(f"  {line}" for line in _work(config, found, train)),
    ]


def _spare(config: ConfigDict, devices: Devices) -> str:
    """The field that would use the room that is left, doubled as often as it fits; empty where none would."""
    for changes, effect in _larger(config):
        fitting: list[dict[str, Any]] = []
        for change in changes:
            if not devices.memory or not _fits(config, change, 0.0):
                break
            fitting.append(change)
        if fitting:
            peak = count(config, **fitting[-1])[0].peak[1]
            fields = " ".join(f"{key}={value}" for key, value in fitting[-1].items())
            return f"; {fields} {effect} and needs {gb(peak)}"
    return ""


def _larger(config: ConfigDict) -> Iterator[tuple[list[dict[str, Any]], str]]:
    """(changes from small to large, their effect), first of fields that leave the result as it is."""
    doublings, faster = (2, 4, 8), "runs larger programs, with the same result,"
    if config.job == "dsa":
        parts = [n for n in doublings if config.accumulation % n == 0]
        changes = [{"batch_size": n * config.batch_size, "accumulation": config.accumulation // n} for n in parts]
        yield changes, faster
    elif config.job == "gba":
        most = config.prompts_per_step // config.minibatches
        sizes = [n * config.micro_batch for n in doublings if 0 < n * config.micro_batch <= most]
        yield [{"micro_batch": size} for size in sizes], faster
        yield [{"prompts_per_step": n * config.prompts_per_step} for n in doublings], "takes larger steps"
    elif config.job == "evaluate":
        sizes = [n * config.batch_size for n in doublings if n * config.batch_size <= 512]
        yield [{"batch_size": size} for size in sizes], "answers more at once"


def problem(config: ConfigDict, prefix: str) -> str:
    """ "" where the job fits its devices, or their memory is not known; else one line with the smallest fix."""
    factor = compiled_ratio(config)
    found, devices, _ = count(config, factor)
    phase, peak = found.peak
    if not devices.memory or peak <= devices.memory:
        return ""
    known = f"{gb(peak)} are needed in {phase} on a device, {gb(devices.memory)} are there ({devices.kind})"
    return f"{prefix.rstrip('.') or config.job} does not fit: {known}; {_fix(config, prefix, devices, factor)}"


def _fix(config: ConfigDict, prefix: str, devices: Devices, factor: float) -> str:
    """The first single change that suffices, else as many of them together as it takes."""
    steps = [step for step in _steps(config, devices) if any(attrgetter(k)(config) != v for k, v in step.items())]
    together: dict[str, Any] = {}
    for change in [*steps, *accumulate(steps, or_)]:
        if _fits(config, change, factor):
            together = change
            break
    for step in reversed(steps):  # of several together, those that are not needed
        fewer = {key: value for key, value in together.items() if key not in step}
        if fewer and _fits(config, fewer, factor):
            together = fewer
    if not together:
        return "no field fixes that; use devices with more memory or a smaller model"
    fields = {key if key.partition(".")[0] in SHARED else prefix + key: value for key, value in together.items()}
    return "set " + " ".join(f"--config.{key}={value}" for key, value in fields.items())


def _steps(config: ConfigDict, devices: Devices) -> Iterator[dict[str, Any]]:
    """Changes that lower the peak, from those that change no result to those that do."""
    if config.job in ("dsa", "gba"):
        yield {"remat": True}
        if config.job == "gba":
            yield {"micro_batch": 1}
        else:
            yield {"batch_size": 1, "accumulation": config.batch_size * config.accumulation}
        yield from ({"eval.batch_size": n} for n in (32, 16, 8, 4, 1) if n < config.eval.batch_size)
        yield {"scan_layers": False}
        if config.job == "gba" and devices.count > 1:
            yield {"mesh.fsdp": devices.count, "shard": "optimizer"}
        yield {"eval.every": -1}
        yield {"model.dtype": "bfloat16"}
        yield {"trainable": "lora"}
        if config.trainable == "lora" and config.shard != "full" and config.mesh.tensor == 1:
            yield {"model.quantize": "nf4"}
        if config.job == "gba":
            yield {"prompts_per_step": devices.count * config.minibatches}
        yield from ({"max_new_tokens": n} for n in (512, 256, 128) if n < config.max_new_tokens)
        samples = config.get("num_samples", 0)  # of a group, split evenly over the paradigms
        yield from ({"num_samples": n} for n in (8, 4, 2) if n < samples and not n % config.paradigms_per_query)
    elif config.job == "pretrain":
        yield from ({"prompts_per_step": n} for n in (8, 4, 2, 1) if n < config.prompts_per_step)
    elif config.job == "dataset":
        yield from ({"teacher.batch_size": n} for n in (32, 16, 8, 4, 1) if n < config.teacher.batch_size)
        yield {"model.dtype": "bfloat16"}
    elif config.job == "merge":
        yield {"sweep.score": False}
        yield {"rank": 0}
    elif config.job == "evaluate":
        yield from ({"batch_size": n} for n in (8, 4, 2, 1) if n < config.batch_size)
        yield {"model.dtype": "bfloat16"}
    else:
        yield {"model.dtype": "bfloat16"}


def _fits(config: ConfigDict, change: dict[str, Any], factor: float) -> bool:
    try:
        found, devices, _ = count(config, factor, **change)
    except (ConfigError, ResourceError):  # a mesh that does not divide the model, a batch that the mesh does not
        return False
    return found.peak[1] <= devices.memory


def _work(config: ConfigDict, found: Needs, train: Counter) -> Iterator[str]:
    """Steps, tokens and disk of a training job; the disk of an export."""
    if config.job in TRAINING:
        names = SPECIALTIES if config.job == "dsa" and config.specialty == "all" else ("",)
        steps = {name: training_steps(config, train, name) for name in names}
        total = sum(steps.values())
        by_run = f" ({', '.join(f'{name} {n}' for name, n in steps.items())})" if len(steps) > 1 else ""
        if total:
            asked = filter_answers(config, train)
            first = f", after {asked:,} answers for the filter" if asked else ""
            tokens = total * tokens_per_step(config)
            yield f"steps      {total:,}{by_run}, at most {tokens:,} tokens with padding{first}"
        else:
            yield f"steps      not known without the cases, at most {tokens_per_step(config):,} tokens in each"
        if config.job == "gba":
            yield from _paid(config, total)
        yield f"disk       at most {gb(len(steps) * disk(found))}: checkpoints and export"
    elif config.job in ("merge", "export"):
        yield f"disk       {gb(disk(found))}: export"


def _paid(config: ConfigDict, steps: int) -> Iterator[str]:
    """The requests of rewards that ask an endpoint, and their dollars where prices are set, of a run or, without steps,
    of one step; a text is asked about once."""
    completions = (1 + split.refills(config)) * config.prompts_per_step * config.num_samples * (steps or 1)
    judge, similarity, said = config.rewards.judge, config.rewards.similarity, config.max_new_tokens
    shown = 1 + (judge.kind == "pairwise")
    asked = {
        "judge": (judge, completions, config.max_prompt_length + shown * said + ASKED, judge.max_tokens),
        "embedder": (similarity, 2 * completions, said, 0),  # the answer and its reference
    }
    for name, (group, requests, read, written) in asked.items():
        if not group.weight or group.path:
            continue
        price = requests * (read * group.price_input + written * group.get("price_output", 0.0)) / 1e6
        dollars = f", about ${price:,.2f}, {f'budget ${group.budget:g}' if group.budget else 'no budget set'}"
        each = "" if steps else " a step"
        yield f"{name:10} {group.model}: at most {requests:,} requests{each}{dollars if price else ''}"


def disk(found: Needs) -> int:
    """Bytes that one run leaves: its checkpoints and its export."""
    return found.exported + CHECKPOINTS * found.saved


def _architecture(config: ConfigDict) -> tuple[ModelConfig, str]:
    """Shape and stored dtype of the model."""
    if config.job == "pretrain":
        from mmedexpert_jax.models import load_processor
        from mmedexpert_jax.train.pretrain import model_config

        return model_config(config.shape, load_processor(config.tokenizer)), "float32"
    return architecture(named_path(_base(config))[1])


def _base(config: ConfigDict) -> str:
    """The model whose shape counts: `model.path`, or what a merge's mergekit file names."""
    if config.job == "merge" and config.mergekit:
        from mmedexpert_jax.merging.mergekit import read_mergekit

        return read_mergekit(config.mergekit).base
    return config.model.path


def training_steps(config: ConfigDict, train: Mapping[str, int], specialty: str = "") -> int:
    """Optimizer steps of one training, from its training cases by specialty: those of `specialty`, else the config's,
    else all."""
    specialty = specialty or config.get("specialty", "")
    count = train.get(specialty, 0) if specialty in SPECIALTIES else sum(train.values())  # own specialties too
    return config.steps or steps_of(config.epochs, count, _cases_per_step(config))


def filter_answers(config: ConfigDict, train: Mapping[str, int]) -> int:
    """Answers that a training asks of its cases before the first step."""
    return config.get("filter", {}).get("samples", 0) * sum(train.values())


def _cases_per_step(config: ConfigDict) -> int:
    if config.job == "dsa":
        return config.batch_size * config.accumulation
    return (
        config.prompts_per_step if config.group_by == "query" else config.prompts_per_step // config.paradigms_per_query
    )


def tokens_per_step(config: ConfigDict) -> int:
    """Prompts and completions at their limits; a step that refills may sample more."""
    if config.job == "dsa":
        return config.batch_size * config.accumulation * (config.max_prompt_length + config.max_new_tokens)
    if config.job == "pretrain":  # two completions of each prompt
        return config.prompts_per_step * (config.max_prompt_length + 2 * config.max_new_tokens)
    completions = config.prompts_per_step * config.num_samples * config.max_new_tokens
    return (1 + split.refills(config)) * (split.prompts(config) * config.max_prompt_length + completions)


def _listed(parts: dict[str, int]) -> str:
    return ", ".join(f"{name}{'*' if name in ESTIMATES else ''} {gb(size)}" for name, size in parts.items())


def gb(size: int) -> str:
    """Bytes in decimal units, for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
