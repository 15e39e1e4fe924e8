"""Job dispatch: a validated config becomes an open run, a stage, and a summary of where things are."""

import shutil
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.launch import pipeline
from mmedexpert_jax.launch.plan import describe
from mmedexpert_jax.launch.validate import validate

COMMAND = "python -m mmedexpert_jax.launch"
INNER_RUNS = {"dsa": SPECIALTIES, "pipeline": pipeline.INNER}  # folders of runs inside a run, by job
ARTEFACTS = {
    "table": "table.md",
    "report": "report.html",
    "model": "export/model",
    "adapter": "export/adapter",
    "samples": "samples",
    "plots": "plots",
    "metrics": "metrics.jsonl",
}


def launch(config: ConfigDict) -> None:
    """Checks a config, then runs its job in its run directory, or prints the plan where that is asked."""
    config.workdir = config.workdir or default_workdir(config)
    validate(config)
    if config.plan:
        print(describe(config))
        return
    print(f"{config.job} (preset {config.preset}) in {config.workdir}", flush=True)
    run_stage(config)
    print(closing(config), flush=True)


def default_workdir(config: ConfigDict) -> str:
    """runs/<job>-<preset>; one DSA expert stands inside, where the job over all of them would put it."""
    folder = f"runs/{config.job}-{config.preset}"
    single = config.job == "dsa" and config.specialty != "all"
    return f"{folder}/{config.specialty}" if single else folder


def run_stage(config: ConfigDict, evaluate: bool = True) -> None:
    """Opens the run of one job and carries it out; a finished run is left alone.

    Args:
        config: of the job, workdir included.
        evaluate: whether training jobs get a held-out evaluation passed in.
    """
    from mmedexpert_jax.runtime import Run

    with Run.open(config.workdir, config, fresh=config.fresh) as run:
        if run.done:
            print(f"{config.workdir} is already finished; --config.fresh=True starts over", flush=True)
            return
        if config.fresh:
            for name in INNER_RUNS.get(config.job, ()):
                shutil.rmtree(run.path / name, ignore_errors=True)
        summary = JOBS[config.job](config, run, evaluate)
        if not run.done:
            run.finish(summary or {})


def closing(config: ConfigDict) -> str:
    """What the run left behind, and the commands that go on from there."""
    folder = Path(config.workdir)
    lines = [f"done: {folder}"]
    lines += [f"  {name:8} {folder / part}" for name, part in ARTEFACTS.items() if (folder / part).exists()]
    target = f"--config.model.path={folder}"
    evaluate = f"{COMMAND} --config=configs/evaluate.py:{config.preset} {target}"
    export = f"{COMMAND} --config=configs/export.py:{config.preset} {target}"
    if config.job == "dsa" and config.specialty == "all":
        experts = ",".join(f"{folder}/{name}" for name in SPECIALTIES)
        commands = [f"{COMMAND} --config=configs/merge.py:{config.preset} --config.experts={experts}"]
    elif config.job in ("dsa", "gba"):
        commands = [evaluate, export]
    elif config.job == "merge":
        commands = [f"{COMMAND} --config=configs/gba.py:{config.preset} {target}", evaluate]
    elif config.job == "pipeline":
        commands = [export.replace(target, f"--config.model.path={folder}/final")]
    else:
        commands = []
    return "\n".join([*lines, *(f"next: {command}" for command in commands)])


def _dsa(config: ConfigDict, run, evaluate: bool) -> dict:
    from mmedexpert_jax import sft

    if config.specialty != "all":
        sft.train(config, run, evaluate=evaluator(config) if evaluate else None)
        return run.summary
    for specialty in SPECIALTIES:
        expert = derive(config, workdir=f"{config.workdir}/{specialty}", specialty=specialty, fresh=False)
        run_stage(expert, evaluate)
    return {"experts": {name: f"{config.workdir}/{name}" for name in SPECIALTIES}}


def _gba(config: ConfigDict, run, evaluate: bool) -> dict:
    from mmedexpert_jax import gba

    gba.train(config, run, evaluate=evaluator(config) if evaluate else None)
    return run.summary


def _merge(config: ConfigDict, run, _: bool) -> dict:
    from mmedexpert_jax import merging

    merging.run(config, run)
    return run.summary


def _evaluate(config: ConfigDict, run, _: bool) -> dict:
    from mmedexpert_jax import medeval

    medeval.run(config, run)
    return run.summary


def _pipeline(config: ConfigDict, run, _: bool) -> dict:
    return pipeline.run(config, run, run_stage)


def _export(config: ConfigDict, run, _: bool) -> dict:
    """The model behind `model.path` with its adapters folded in, or the adapter alone."""
    output = Path(config.output or run.path / "export" / config.format)
    if config.format == "adapter":
        source = next(
            (
                p
                for p in (Path(config.model.path), Path(config.model.path) / "export" / "adapter")
                if (p / "adapter_config.json").is_file()
            ),
            None,
        )
        if source is None:
            raise DataError(f"{config.model.path} holds no adapter; export it with --config.format=model")
        if output.exists():
            raise ConfigError(f"config.output: {output} exists; choose a new directory")
        shutil.copytree(source, output)
    else:
        from mmedexpert_jax import models

        model, params = models.load_model(config.model.path, dtype=config.model.dtype)
        models.save_pretrained(output, model, params, models.load_processor(config.model.path))
    return {"output": str(output)}


def evaluator(config: ConfigDict) -> Callable[..., dict] | None:
    """The held-out evaluation that a training job calls; None where `eval.every` is -1."""
    return None if config.eval.every < 0 else lambda *args, **kwargs: {}


def derive(config: ConfigDict, **changes) -> ConfigDict:
    """A copy of a config with some fields changed."""
    copy = config.copy_and_resolve_references().unlock()
    copy.update(changes)
    return copy.lock()


JOBS: dict[str, Callable[..., dict]] = {
    "dsa": _dsa,
    "gba": _gba,
    "merge": _merge,
    "evaluate": _evaluate,
    "pipeline": _pipeline,
    "export": _export,
}
