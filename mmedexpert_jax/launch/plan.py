"""`--config.plan=True`: what a job would read, do, need and write, without loading weights."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmedexpert_jax.data import SPECIALTIES, load_cases
from mmedexpert_jax.errors import DataError, RemoteError, ResourceError
from mmedexpert_jax.launch.config import fields
from mmedexpert_jax.launch.pipeline import stage_config
from mmedexpert_jax.launch.validate import ELSEWHERE

SPLITS = ("train", "dev", "test")
SWEEPS = ("pipeline", "ablation")  # jobs of several stages
COUNTED = ("dsa", "gba", "merge", "evaluate", "export")  # jobs of one model, whose memory and disk are counted


def describe(config: ConfigDict) -> str:
    """A text of a few lines on the model, its memory, the cases, the run directory and the settings."""
    if config.job == "dataset":
        from mmedexpert_jax.launch import teachers
        from mmedexpert_jax.mmedexpert import plan

        *lines, last = plan.describe(config, teachers.endpoint).splitlines()
        return "\n".join([*lines, *_needed(config, {"train": Counter()}), last])
    run = Path(config.workdir)
    state = "resumes what is there" if (run / "STATUS.json").is_file() and not config.fresh else "starts anew"
    lines = [f"job      {config.job} (preset {config.preset})"]
    if "data" in config:
        counts = _counts(config)
        if config.job == "evaluate":
            from mmedexpert_jax.medeval import plan as evaluation

            lines += evaluation.describe(config)
        else:
            lines += [f"model    {config.model.path}", *(f"cases    {line}" for line in _census(counts))]
        if config.job == "ablation":
            from mmedexpert_jax.launch import ablation

            lines += ablation.describe(config)
        lines += _needed(config, counts)
    elif config.job == "pretrain":
        lines += ["cases    generated as the steps go, none are read", *_needed(config, {"train": Counter()})]
    elif config.job == "contamination":
        from mmedexpert_jax.launch import contamination

        lines += contamination.describe(config)
    lines += [f"workdir  {run}: {state}", "fields"]
    lines += [f"  {key} = {value}" for key, (_, _, value) in fields(config).items() if key not in ("job", "preset")]
    return "\n".join([*lines, "nothing was run; leave out --config.plan to start"])


def brief(config: ConfigDict) -> str:
    """What a job needs on the devices that are here, for a notebook's first cell. Raises ResourceError as `check`."""
    check(config)
    return "\n".join(_needed(config, _counts(config)))


def check_devices(config: ConfigDict) -> None:
    """Refuses what the trainer of a GBA that is to run would refuse, before the stages that come first.

    Raises:
        ConfigError, ResourceError: a mesh that the devices do not make, a batch that cannot be split over it.
    """
    for prefix, stage in stages(config):
        if stage.job == "gba":
            from mmedexpert_jax.gba.split import micro_batch
            from mmedexpert_jax.launch import hardware

            mesh = hardware.find(config.plan_mesh).mesh(stage.mesh.data, stage.mesh.fsdp)
            micro_batch(stage, mesh.size, prefix)


def check(config: ConfigDict) -> None:
    """Raises ResourceError with the smallest change under which it fits, where a job does not fit the devices."""
    from mmedexpert_jax.launch import budget

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
    if config.job in SWEEPS:
        from mmedexpert_jax.launch import totals

        samples = max(config.evaluate.num_samples, config.diversity.num_samples if "diversity" in config else 1)
        largest: dict[str, dict[str, Any]] = {
            "dsa": {"specialty": "all"},
            "gba": {},
            "merge": {"experts": (*SPECIALTIES, "RL"), "weights": ()},
            "evaluate": {"compare": (), "num_samples": samples},
        }
        left = {stage.job for stage in totals.left(config)}
        for job, own in largest.items():
            if job in left:
                yield f"{job}.", stage_config(config, job, **own)
    elif _counted(config):
        yield "", config


def _counted(config: ConfigDict) -> bool:
    """Whether a job of one model has that model on devices of ours."""
    if config.job == "dataset":
        return config.teacher.kind == "local" and "trace" in config.stages
    if config.job == "pretrain":
        return True
    return config.job in COUNTED and not ELSEWHERE.match(config.model.path)


def _needed(config: ConfigDict, counts: dict[str, Counter | str]) -> Iterator[str]:
    """The lines of memory, steps, tokens and disk of the parts that are counted."""
    from mmedexpert_jax.launch import budget, totals

    train = counts["train"] if isinstance(counts["train"], Counter) else Counter()
    kinds = dict(stages(config))
    try:
        for prefix, stage in kinds.items():
            yield from budget.lines(stage, prefix, train)
        if config.job in SWEEPS:
            yield from totals.lines(config, {stage.job: stage for stage in kinds.values()}, train)
    except (DataError, RemoteError) as error:
        yield f"memory   not counted: {error}"


def _counts(config: ConfigDict) -> dict[str, Counter | str]:
    """Cases by specialty, and of those with images, for each split; the error's line where there are none."""
    found: dict[str, Counter | str] = {}
    for split in SPLITS:
        try:
            cases = load_cases(config.data.path, split, limit=config.limit, seed=config.seed)
        except (DataError, RemoteError) as error:
            found[split] = str(error)
            continue
        found[split] = Counter(case.specialty for case in cases)
        found[split]["image"] = sum(case.modality == "image" for case in cases)  # type: ignore[index]
    return found


def _census(counts: dict[str, Counter | str]) -> Iterator[str]:
    for split, found in counts.items():
        if isinstance(found, str):
            yield f"{split}: {found}"
            continue
        parts = ", ".join(f"{name} {found[name]}" for name in SPECIALTIES)
        total = sum(found[name] for name in SPECIALTIES)
        yield f"{split}: {total} ({parts}; {found['image']} with images)"
