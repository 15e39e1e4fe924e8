"""`--config.plan=True`: what a job would read, do, need and write, without loading weights."""

import contextlib
import heapq
import itertools
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmedexpert_jax import border
from mmedexpert_jax.config.fields import named_path
from mmedexpert_jax.config.job_config import fields, given, read_config
from mmedexpert_jax.config.presets import SHARED
from mmedexpert_jax.config.validate import REMOTE_MODEL, parts_of
from mmedexpert_jax.data import SPECIALTIES, benchmarks, load_cases
from mmedexpert_jax.data.case import SPLITS, Case
from mmedexpert_jax.errors import ConfigError, DataError, RemoteError, ResourceError
from mmedexpert_jax.launch import ablation, pipeline
from mmedexpert_jax.launch.pipeline import stage_config
from mmedexpert_jax.processing.images import in_turn
from mmedexpert_jax.runtime import metrics
from mmedexpert_jax.runtime.run import finished, has_ended
from mmedexpert_jax.runtime.threads import in_order

INSTALLED = ("mini", "smollm2")  # models of packages
STAGED = ("pipeline", "ablation")  # jobs of several stages
REPEATABLE = ("dataset", "evaluate", *STAGED)  # they reuse what is done and may be run again
TRAINED = ("dsa", "gba", "pretrain")
LOW_LR = 5e-6  # below it, AdamW's steps of a LoRA delta are lost in a few hundred steps
DECODED = 2000  # images that a plan decodes, in a minute or so; of more it makes sure that they can be read
LONGEST = 64  # cases, by their text, whose prompts a plan measures; a run measures all
COUNTED = ("dsa", "gba", "merge", "evaluate", "export")  # jobs of one model, whose memory and disk are counted


def describe(config: ConfigDict) -> str:
    """A text of a few lines on the model, its memory, the cases, the run directory and the settings."""
    if config.job == "dataset":
        from mmedexpert_jax.mmedexpert import dataset_plan

        *lines, last = dataset_plan.describe(config).splitlines()
        return "\n".join([*lines, *_needed(config, {"train": Counter()}), last])
    asked_for = config
    if config.get("mergekit"):
        config = _as_its_file_says(config)
    run = Path(config.workdir)
    ended = config.job not in REPEATABLE and not config.fresh and has_ended(run, config)
    state = "resumes what is there" if (run / "STATUS.json").is_file() and not config.fresh else "starts anew"
    if ended:
        more = ", steps= goes on" if config.job in TRAINED else ""
        state = f"is finished: nothing is left; fresh=True starts over{more}"
    lines = [f"job      {config.job} (preset {config.preset})"]
    counts: dict[str, Counter | str] = {}
    asked = 0
    if "data" in config:
        counts, images = _counts(config)
        if config.job == "evaluate":
            from mmedexpert_jax.medeval import eval_plan as evaluation

            said, asked = evaluation.describe(config)
            lines += said
        else:
            lines += [f"model    {config.model.path}", *(f"cases    {line}" for line in _census(counts, images))]
        if config.job == "ablation":
            lines += ablation.describe(config)
        lines += _needed(config, counts)
    elif config.job == "pretrain":
        lines += ["cases    generated as the steps go, none are read", *_needed(config, {"train": Counter()})]
    elif config.job == "contamination":
        from mmedexpert_jax.data import contamination_job

        lines += contamination_job.describe(config)
    lines += [f"workdir  {run}: {state}", *([] if ended else _hours(config, counts, asked))]
    lines += [*_advice(config, counts), *_changed_fields(asked_for)]
    start = "" if ended else "without plan it starts; "
    return "\n".join([*lines, f"nothing was run; {start}fields: mmedexpert {config.job} --help"])


def _as_its_file_says(config: ConfigDict) -> ConfigDict:
    """The config of a merge with the base and the experts that its mergekit file names."""
    from mmedexpert_jax.merging.merge_job import recipe_of

    recipe, config = recipe_of(config), config.copy_and_resolve_references().unlock()
    config.model.path, config.experts = recipe.base, tuple(recipe.experts.values())
    return config.lock()


def preflight(config: ConfigDict) -> None:
    """Raises what the job would raise once it runs: of its cases, images, rewards, guidelines, a local model.

    A hub id is not fetched: what cannot be known without the network is left to the run. Only a plan reads the images,
    since a run meets them anyway.
    """
    if finished(Path(config.workdir)) and not config.fresh:
        return
    if config.job == "pretrain":
        from mmedexpert_jax.train import pretrain

        pretrain.preflight(config)
        return
    metrics.check_tracker(config.get("tracker", ""))
    trains = [config] if config.job in ("dsa", "gba") else []
    if config.job in STAGED:
        trains = [stage_config(config, job) for job in ("dsa", "gba") if job in config]
    for stage in trains:
        held_out = {stage.eval.split} if stage.eval.every >= 0 else set()
        for split in ("train", *sorted(held_out - {"train"})):
            cases = load_cases(config.data.path, split, limit=config.limit, seed=config.seed)
            _check_cases(cases, split, stage.job, stage.get("specialty", "all"), config.data.path, decode=config.plan)
            if config.plan and split == "train":
                _check_longest(stage, cases)
            if stage.job == "gba" and split == "train":
                from mmedexpert_jax.gba import trainer

                try:
                    trainer.preflight(stage, cases)
                except ConfigError as error:
                    raise ConfigError(_as_given(str(error), config)) from error
    if "model" in config and Path(config.model.path).expanduser().is_dir():
        from mmedexpert_jax.plan.architecture import architecture

        architecture(config.model.path)


def _check_longest(config: ConfigDict, cases: list[Case]) -> None:
    """Raises DataError where a training case of the longest is over a limit of tokens, with a model that is here."""
    here = config.model.path in INSTALLED or Path(config.model.path).expanduser().is_dir()
    if config.overlong != "error" or not here:
        return
    from mmedexpert_jax.models import load_processor

    processor = load_processor(config.model.path)
    if config.job == "gba":
        from mmedexpert_jax.gba import trainer

        trainer.check_longest(config, cases, processor, LONGEST)
        return
    from mmedexpert_jax.sft.examples import Examples

    learned = [case for case in cases if config.get("specialty", "all") in (case.specialty, "all", "mixed")]
    Examples(heapq.nlargest(LONGEST, learned, key=lambda case: len(case.question + case.trace)), processor, config)


def _as_given(message: str, config: ConfigDict) -> str:
    """An error of GBA in the words of the config at hand: "config.gba.lr" where that has several stages."""
    own = rf"\bconfig\.(?!(?:{'|'.join(SHARED)})\b)"
    return re.sub(own, "config.gba.", message) if config.job in STAGED else message


def check_models(config: ConfigDict) -> None:
    """Raises what a job would raise once it loads or merges the models that lie here, as far as their headers tell."""
    from mmedexpert_jax.models.load import check_files

    if config.get("job") == "merge":
        _check_merge(config)
        return
    for model in (config.model.path, *config.get("compare", ())):
        path = named_path(model)[1]
        if not REMOTE_MODEL.match(model) and Path(path).expanduser().is_dir():
            check_files(path)


def _check_merge(config: ConfigDict) -> None:
    from mmedexpert_jax.merging.merge_job import check_together, naming, recipe_of
    from mmedexpert_jax.merging.merge_recipe import is_checkpoint

    recipe = recipe_of(config)
    check_together(config, recipe)
    paths = [part for model in (recipe.base, *recipe.experts.values()) for part in parts_of(model)]
    if all(path == "mini" or Path(path).expanduser().is_dir() for path in paths) and is_checkpoint(recipe.base):
        with naming(config):
            (recipe.stack if recipe.slices else recipe.open)()


def _check_cases(cases: list[Case], split: str, job: str, specialty: str, path: str, decode: bool) -> None:
    """Raises DataError where a split lacks a specialty that is trained, a trace to imitate, or an image."""
    wanted = SPECIALTIES if specialty == "all" else (specialty,)
    present = {case.specialty for case in cases}
    for case in cases if job == "dsa" and split == "train" and specialty != "mixed" else ():
        if case.specialty and case.specialty not in SPECIALTIES:  # a slip, or a case that no expert would learn
            raise DataError(
                f"case {case.id}, key specialty: {border.shown(case.specialty)} is none of {', '.join(SPECIALTIES)}; "
                "set it, or --config.specialty=mixed"
            )
    missing = [name for name in wanted if name in SPECIALTIES and name not in present]
    if job == "dsa" and split == "train" and missing:
        raise DataError(
            f"{path}: the {split} split has no case of {', '.join(missing)}, for which an expert is to be trained; "
            f"set --config.specialty to one of {', '.join(sorted(present)) or 'those it has'}, or mixed"
        )
    for case in cases:
        if job == "dsa" and split == "train" and not case.trace:
            raise DataError(f"case {case.id}: no trace to imitate; leave it out of the training split")
    if decode:
        first = itertools.accumulate((len(case.images) for case in cases), initial=0)
        deque(in_order(_look_at, zip(first, cases, strict=False)), maxlen=0)


def _look_at(numbered: tuple[int, Case]) -> None:
    """Decodes the images of a case, whose first is of that number in its split, or makes sure that they can be read."""
    first, case = numbered
    with in_turn(case.images):
        for number, image in enumerate(case.images, first):
            if number < DECODED:
                image.picture()
            else:
                image.open()


def _advice(config: ConfigDict, counts: Mapping[str, Counter | str]) -> Iterator[str]:
    """Lines on settings that run but rarely do what is wanted."""
    from mmedexpert_jax.plan.budget import training_steps
    from mmedexpert_jax.train.optimizer import unreached

    yield from (f"note     {line}" for line in [*beyond_positions(config), *overruled(config)])
    train = counts.get("train")
    kinds = {"": config} if config.job in ("dsa", "gba") else {}
    if config.job in STAGED:
        kinds = {f"{name}.": stage_config(config, name) for name in ("dsa", "gba")}
    for prefix, stage in kinds.items():
        # AdamW moves an entry by about lr a step, whatever the gradient: at 1e-6 a thousand steps move a LoRA factor
        # of typical size 0.02 by 0.001, and B, which starts at 0, keeps the delta a fifth of a percent of the weights.
        if stage.trainable == "lora" and stage.lr < LOW_LR:
            yield (
                f"note     {prefix}lr {stage.lr:g} (appendix B) hardly moves LoRA deltas; others train them at 1e-5 to "
                f"2e-4: --config.{prefix}lr=1e-5"
            )
        runs = SPECIALTIES if stage.get("specialty") == "all" else ("",)
        steps = [training_steps(stage, train, run) if isinstance(train, Counter) else stage.steps for run in runs]
        updates = min(steps) * stage.get("inner_epochs", 1) * stage.get("minibatches", 1)
        if sentence := unreached(stage, updates):
            yield f"note     {prefix}{sentence}"


def overruled(config: ConfigDict) -> Iterator[str]:
    """A sentence for each `epochs` that was set beside steps, which overrule them."""
    found = fields(config)
    for key in (key for key in given(config) if re.fullmatch(r"(.+\.)?epochs", key)):
        name = f"{key[:-6]}steps"
        if steps := found[name][2]:
            yield f"{key}={found[key][2]:g} says nothing beside {name}={steps}; {name}=0 counts epochs"


def beyond_positions(config: ConfigDict) -> Iterator[str]:
    """A sentence for each model here that prompts and answers may take beyond the positions that it was trained for."""
    from mmedexpert_jax.plan.architecture import architecture

    if config.job not in ("dsa", "gba", "evaluate"):
        return
    asked = config.max_prompt_length + config.max_new_tokens
    for entry in (config.model.path, *config.get("compare", ())):
        path = named_path(entry)[1]
        if REMOTE_MODEL.match(entry) or not (path in INSTALLED or Path(path).expanduser().is_dir()):
            continue
        context = asked
        with contextlib.suppress(DataError, RemoteError):  # which its load will raise
            context = architecture(path)[0].text.max_position_embeddings
        if asked > context:
            yield (
                f"max_prompt_length and max_new_tokens are {asked:,} tokens together, and {path} has positions for "
                f"{context:,}: what it says beyond them is worth little"
            )


def _hours(config: ConfigDict, counts: dict[str, Counter | str], planned: int) -> Iterator[str]:
    """The line on the time and the money of what is left: by measured steps of this run, else by the roofline.

    `planned`: the answers of an evaluation, controls and other models included; 0 of any other job.
    """
    from mmedexpert_jax.plan import budget, hardware, hours

    if config.job == "ablation":  # projects its own, from the stages that are done
        return
    train = counts.get("train")
    cases = {name: found.total() if isinstance(found, Counter) else 0 for name, found in counts.items()}
    if config.job in ("dsa", "gba") and isinstance(train, Counter) and not config.plan_mesh:
        steps = budget.training_steps(config, train)
        step, rest = hours.measured(config, steps)
        if step:
            money = hours.money(rest, hardware.find(""), config.price)
            left_of = f"left of {steps:,} steps{money}: {step:.1f} s each, measured here"
            yield f"time     about {hours.duration(rest)} {left_of}"
            return
    taken, looked = 0.0, False
    try:
        for stage in left(config):
            if stage.job not in ("dsa", "gba", "evaluate") or not isinstance(train, Counter):
                continue
            with stage.unlocked():  # what a stage before it will have made has the base's shape
                stage.model.path = config.model.path
            if not _counted(stage):
                continue
            split = stage.split if stage.job == "evaluate" else stage.eval.split
            entries = stage.benchmarks if stage.job == "evaluate" else ("mmedexpert_mini",)
            answers = sum(
                cases.get(split, 0) if entry == "mmedexpert_mini" else benchmarks.published_items(entry)
                for entry in entries
            )
            asked = min(stage.limit or answers, answers) * (1 + len(stage.get("compare", ())))
            asked = planned // stage.num_samples if planned else asked
            looked, taken = True, taken + hours.seconds(stage, train, asked)
        devices = hardware.find(config.get("plan_mesh", ""))
    except (DataError, RemoteError):
        return
    if taken:
        yield hours.line(taken, devices, config.get("price", 0.0), "all at its limits, by the roofline")
    elif looked and not all(hours.roofline(devices)):
        yield f"time     not known for {hours.name_of(devices)}, of which no figures are here; a few steps measure it"


def _changed_fields(config: ConfigDict) -> Iterator[str]:
    """A line for each field that differs from its preset's value."""
    try:
        preset = fields(read_config(f"configs/{config.job}.py:{config.preset}"))
    except ConfigError:  # a config file of the user's own
        return
    for key, (_, _, value) in fields(config).items():
        if key in preset and preset[key][2] != value and key not in ("plan", "workdir"):
            yield f"set      {key} = {border.shown(value)} (preset: {border.shown(preset[key][2])})"


def brief(config: ConfigDict) -> str:
    """The needs of a job on the devices that are here, for a notebook's first cell. Raises as `check_memory`."""
    check_memory(config)
    return "\n".join(_needed(config, _counts(config)[0]))


def check_devices(config: ConfigDict) -> None:
    """Refuses what a trainer that is to run would refuse, before the stages that come first.

    Raises:
        ConfigError, ResourceError: a mesh that the devices do not make, that does not divide the batch or the model, or
            whose devices cannot hold its weights.
    """
    for prefix, stage in stages(config):
        if stage.job not in ("dsa", "gba"):
            continue
        from mmedexpert_jax.plan import mesh_check

        mesh_check.check(stage, prefix)


def check_memory(config: ConfigDict) -> None:
    """Raises ResourceError with the smallest change under which it fits, where a job does not fit the devices."""
    from mmedexpert_jax.plan import budget

    for prefix, stage in stages(config):
        try:
            problem = budget.problem(stage, prefix)
        except (DataError, RemoteError):
            continue
        if problem:
            raise ResourceError(problem)


def stages(config: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
    """(prefix of its fields, config) of what is counted of a job: itself, or of its stages that are left the largest of
    each kind."""
    if config.job in STAGED:
        samples = max(config.evaluate.num_samples, config.diversity.num_samples if "diversity" in config else 1)
        largest: dict[str, dict[str, Any]] = {
            "dsa": {"specialty": "all"},
            "gba": {},
            "merge": {"experts": (*SPECIALTIES, "RL"), "weights": ()},
            "evaluate": {"compare": (), "num_samples": samples},
        }
        waiting = {stage.job for stage in left(config)}
        for job, own in largest.items():
            if job in waiting:
                yield f"{job}.", stage_config(config, job, **own)
    elif _counted(config):
        yield "", config


def _counted(config: ConfigDict) -> bool:
    """True where a job of one model has that model on devices of ours."""
    if config.job == "dataset":
        return config.teacher.kind == "local" and "trace" in config.stages
    if config.job == "pretrain":
        return True
    return config.job in COUNTED and not REMOTE_MODEL.match(config.model.path)


def _needed(config: ConfigDict, counts: dict[str, Counter | str]) -> Iterator[str]:
    """The lines of memory, steps, tokens and disk of the parts that are counted."""
    from mmedexpert_jax.plan import budget

    train = counts["train"] if isinstance(counts["train"], Counter) else Counter()
    kinds = dict(stages(config))
    try:
        for prefix, stage in kinds.items():
            yield from budget.lines(stage, prefix, train)
        if config.job in STAGED:
            yield from _totals(config, {stage.job: stage for stage in kinds.values()}, train)
    except (DataError, RemoteError) as error:
        yield f"memory   not counted: {error}"


def _counts(config: ConfigDict) -> tuple[dict[str, Counter | str], dict[str, int]]:
    """Cases of each split by specialty, the error's line where there are none; how many of them have images."""
    found: dict[str, Counter | str] = {}
    images: dict[str, int] = {}
    for split in SPLITS:
        try:
            cases = load_cases(config.data.path, split, limit=config.limit, seed=config.seed)
        except (DataError, RemoteError) as error:
            found[split] = str(error)
            continue
        found[split] = Counter(case.specialty for case in cases)
        images[split] = sum(case.modality == "image" for case in cases)
    return found, images


def _census(counts: dict[str, Counter | str], images: dict[str, int]) -> Iterator[str]:
    for split, found in counts.items():
        if isinstance(found, str):
            yield f"{split}: {found}"
            continue
        total = found.total()
        parts = [f"{name} {found[name]}" for name in SPECIALTIES]
        if others := total - sum(found[name] for name in SPECIALTIES):
            parts.append(f"others {others}")
        yield f"{split}: {total} ({', '.join(parts)}; {images[split]} with images)"


def left(config: ConfigDict) -> list[ConfigDict]:
    """Configs of the stages that are not done, in order; all where `fresh` deletes them; a job without stages' own."""
    if config.job == "pipeline":
        stages = pipeline.stages(config)
    elif config.job == "ablation":
        stages = [task.config for task in ablation.tasks(config)]
    else:
        return [config]
    deleted = config.fresh and not config.get("stages")  # a folder that sweeps share stays
    return [stage for stage in stages if deleted or not finished(Path(stage.workdir))]


def _totals(config: ConfigDict, kinds: Mapping[str, ConfigDict], train: Mapping[str, int]) -> Iterator[str]:
    """The lines of a plan on all that is left.

    Args:
        config: of the pipeline or the sweep.
        kinds: by job, the config of a stage whose disk stands for all of its kind.
        train: training cases by specialty.
    """
    from mmedexpert_jax.plan import budget

    remaining = left(config)
    counts = Counter(stage.job for stage in remaining)
    jobs = {job: counts[job] for job in kinds}
    yield "in all"
    yield f"  stages     {', '.join(f'{count} {job}' for job, count in jobs.items()) or 'none'} left"
    steps = [(budget.training_steps(stage, train), stage) for stage in remaining if stage.job in budget.TRAINING]
    if all(count for count, _ in steps):
        tokens = sum(count * budget.tokens_per_step(stage) for count, stage in steps)
        yield f"  steps      {sum(count for count, _ in steps):,}, at most {tokens:,} tokens with padding"
    else:
        yield "  steps      not known without the training cases"
    each = {job: budget.disk(budget.count(kinds[job])[0]) for job in jobs if job != "evaluate"}
    parts = [f"{jobs[job]} {job} x {budget.gb(size)}" for job, size in each.items()]
    known = sum(jobs[job] * size for job, size in each.items())
    answers = _answers(config, [stage for stage in remaining if stage.job == "evaluate"])
    if answers is None:
        parts.append("answers not counted: their number is not known")
    else:
        from mmedexpert_jax.medeval import eval_plan as evaluation

        longest = config.evaluate.max_new_tokens
        stored = answers * evaluation.answer_bytes(longest)
        yield f"  answers    {answers:,}, at most {answers * longest:,} tokens"
        parts.append(f"answers {budget.gb(stored)}")
        known += stored
    yield f"  disk       at most {budget.gb(known)}: {', '.join(parts)}"


def _answers(config: ConfigDict, stages: list[ConfigDict]) -> int | None:
    """Answers of the evaluations; None where a benchmark's items are not known without its files."""
    counts = [_items(config, entry) for entry in config.evaluate.benchmarks]

    def of(stage: ConfigDict, items: int) -> int:
        return (min(stage.limit, items) if stage.limit else items) * stage.num_samples * (1 + len(stage.compare))

    if all(counts):
        return sum(of(stage, items) for stage in stages for items in counts)
    if all(stage.limit for stage in stages):
        return sum(of(stage, stage.limit) for stage in stages for _ in counts)
    return None


def _items(config: ConfigDict, entry: str) -> int:
    """Items of a benchmark: those of `data.path`, or as its authors count them; 0: not known."""
    if entry != "mmedexpert_mini":
        return benchmarks.published_items(entry)
    try:
        return len(load_cases(config.data.path, config.evaluate.split))
    except (DataError, RemoteError):
        return 0
