"""Job dispatch: a validated config becomes an open run, a stage, and a summary of where things are."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from ml_collections import ConfigDict

from mmedexpert_jax import border
from mmedexpert_jax.config.job_config import fields
from mmedexpert_jax.config.validate import check_fields, validate
from mmedexpert_jax.data import load_cases
from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.launch import ablation, pipeline
from mmedexpert_jax.launch.job_plan import (
    COUNTED,
    REPEATABLE,
    STAGED,
    beyond_positions,
    check_devices,
    check_memory,
    check_models,
    describe,
    overruled,
    preflight,
)
from mmedexpert_jax.launch.output import say
from mmedexpert_jax.launch.sources import note_sources, tell_changed
from mmedexpert_jax.runtime import costs, files, processes
from mmedexpert_jax.runtime.run import delete_runs, refuse_drift, refuse_folder, refuse_in_use, settled

if TYPE_CHECKING:
    from mmedexpert_jax.runtime import Run

# what only the stage collect of a dataset run writes
COLLECTED = tuple(f"export/{name}" for name in ("rejected.jsonl", "duplicates.csv", "contamination.csv"))
DRIFTING = ("evaluate", "ablation")  # what they store is named by all that it depends on: any config may go on
_HOME = re.compile(r"(?<![^=,+:])~[\w.-]*(?=/|$)")  # where a path begins, also one behind "name="
_PROSE = ("question", "rubric")  # texts that are no paths
# Several processes share the work of these; one does all of any other.
TOGETHER = ("dsa", "gba", "evaluate", "pipeline", "ablation")
# Folders of runs inside a run, by job.
INNER_RUNS = {"dsa": SPECIALTIES, "pipeline": pipeline.FOLDERS, "ablation": ("stages",)}


def launch(config: ConfigDict) -> None:
    """Checks a config, then runs its job in its run directory, or prints the plan where that is asked."""
    check_fields(config)
    with config.unlocked():
        config.workdir = config.workdir or default_workdir(config)
        config.update_from_flattened_dict(dict(_written_out(config)))
    validate(config, _mergekit_models(config))
    if config.job == "review":  # people work in it as long as they like: no run that is done once
        _review(config)
        return
    from mmedexpert_jax.models.load import chosen
    from mmedexpert_jax.runtime.devices import device_errors, in_32_bits

    in_32_bits()
    model = config.get("model", {})
    how = model.get("vision_tower", ""), model.get("quantize", "none"), bool(model.get("pan_and_scan"))
    with device_errors(), chosen(model.get("base", ""), model.get("max_pixels", 0), *how):
        _carry_out(config)


def _written_out(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Fields whose paths begin at home, with it written out: of field=~/path shells leave the "~" as it is.

    Raises ConfigError where nobody is called as a "~name" says.
    """

    def out(key: str, text: Any) -> Any:
        return _HOME.sub(partial(_home, key), text) if isinstance(text, str) else text

    for key, (_, _, value) in fields(config).items():
        if key.rpartition(".")[2] not in _PROSE:
            written = tuple(out(key, text) for text in value) if isinstance(value, tuple) else out(key, value)
            if written != value:
                yield key, written


def _home(key: str, found: re.Match) -> str:
    home = os.path.expanduser(found[0])
    if home == found[0]:
        raise ConfigError(f"config.{key}: nobody here is called {home[1:]}; write ./{home} for a folder of that name")
    return home


def _mergekit_models(config: ConfigDict) -> Iterator[str]:
    """Paths of the models that a mergekit file names; the file is read when they are asked for."""
    if config.get("mergekit"):
        from mmedexpert_jax.merging.mergekit import read_mergekit

        recipe = read_mergekit(config.mergekit)
        yield from (recipe.base, *recipe.experts.values())


def _carry_out(config: ConfigDict) -> None:
    """Answers, prints the plan, or runs the job."""
    if config.job in ("serve", "ask"):  # nothing is written, so there is no run
        _answer(config)
        return
    check_devices(config)
    if config.job in ("dsa", "gba", "pretrain", *STAGED):
        preflight(config)
    elif config.job == "merge":
        from mmedexpert_jax.merging.merge_job import check_numbers

        check_numbers(config)
    if config.plan:
        if config.job == "export":
            _check_export(config)
        refuse_folder(config.workdir, config.job)
        if not config.fresh and config.job not in DRIFTING:
            refuse_drift(config.workdir, config)
        if config.job in COUNTED:
            check_models(config)
        _say(describe(config))
        check_memory(config)
        return
    from mmedexpert_jax.launch.closing import closing
    from mmedexpert_jax.runtime.progress import COMPILING

    for line in (*beyond_positions(config), *overruled(config)):
        _say(f"hint: {line}")
    before = COMPILING.seconds  # of jobs that the same process ran earlier
    _say(closing(config, before) if run_job(config) else "--config.fresh=True starts over")


def _say(text: str) -> None:
    """Prints in the one process that reports."""
    if processes.is_writer():
        say(text)


def _review(config: ConfigDict) -> None:
    from mmedexpert_jax.mmedexpert import review

    if config.plan:
        print(review.describe(config))
    else:
        review.run(config)


def _answer(config: ConfigDict) -> None:
    from mmedexpert_jax.launch import serve

    if config.plan:
        print(serve.describe(config))
        return
    (serve.ask if config.job == "ask" else serve.run)(config)


def default_workdir(config: ConfigDict) -> str:
    """runs/<job>-<preset>; of one DSA expert, or one process of several of an evaluation, the folder inside it that the
    job over all of them uses; of an export that is written elsewhere, runs/export-<its folder's name>."""
    if config.job == "export" and config.output:
        return f"runs/export-{Path(config.output).expanduser().absolute().name.strip()}"
    folder = f"runs/{config.job}-{config.preset}"
    if config.job == "evaluate" and config.processes > 1:
        return f"{folder}/process-{config.process}"
    single = config.job == "dsa" and config.specialty != "all"
    return f"{folder}/{config.specialty}" if single else folder


def run_job(config: ConfigDict) -> bool:
    """Opens the run of one job and carries it out, or goes on with it; a finished one is left alone (False)."""
    from mmedexpert_jax.runtime import Run
    from mmedexpert_jax.runtime.devices import keep_programs

    keep_programs()
    keep, drift = config.get("keep_checkpoints", 2), config.job in DRIFTING
    inner = [Path(config.workdir) / name for name in INNER_RUNS.get(config.job, ()) if config.fresh]
    if processes.is_writer():
        for folder in inner:  # before anything of the run is deleted
            refuse_in_use(folder)
    spared = COLLECTED if config.job == "dataset" and "collect" not in config.stages else ()
    opened = Run.open(config.workdir, config, fresh=config.fresh, keep=keep, drift=drift, spared=spared)
    with opened as run, processes.log(run.path / "logs"):
        if run.done and config.job not in REPEATABLE:
            print(f"{config.job} in {config.workdir} is already finished", flush=True)
            tell_changed(config, run.path)
            return False
        print(f"{config.job} (preset {config.preset}) in {config.workdir}", flush=True)
        if processes.is_writer():
            for folder in inner:
                delete_runs(folder)
        if config.job in TOGETHER:
            JOBS[config.job](config, run)
        elif processes.is_writer():
            with processes.alone():
                JOBS[config.job](config, run)
    return True


def _run_part(config: ConfigDict) -> None:
    """Carries out a part of a job; one that is finished stays as it was made, though others go on with other fields."""
    if kept := processes.agree(settled(config.workdir, config, part=True)):
        print(f"{config.workdir} is finished and stays as it is: {kept}", flush=True)
    else:
        run_job(config)


def _dsa(config: ConfigDict, run: "Run") -> None:
    """One expert, or all four, each in a run of its own inside this one."""
    if config.specialty != "all":
        from mmedexpert_jax import sft

        _train(sft.train, config, run)
        return
    for name in SPECIALTIES:  # a specialty without cases is an error now, not after hours on the others
        load_cases(config.data.path, "train", specialty=name, limit=config.limit, seed=config.seed)
    for name in SPECIALTIES:
        pipeline.stop_if_asked(run, name)
        _run_part(_with_changes(config, workdir=str(run.path / name), specialty=name, fresh=False))
    run.finish({"experts": {name: str(run.path / name) for name in SPECIALTIES}})


def _gba(config: ConfigDict, run: "Run") -> None:
    from mmedexpert_jax import gba

    _train(gba.train, config, run)


def _train(train: Callable[..., Any], config: ConfigDict, run: "Run") -> None:
    """Trains with a held-out evaluation, then draws the run's plots and report."""
    from mmedexpert_jax.launch.held_out import NOTE, evaluator, first_and_last, gain, table
    from mmedexpert_jax.runtime import report

    note_sources(config, run)
    train(config, run, evaluate=evaluator(config, run))
    if not processes.is_writer():
        return
    if figures := gain(run.path):
        run.finish(run.summary | figures)
    rows = table(first_and_last(run.path))
    report.report_run(run.path, [report.Table("Held-out accuracy", rows, NOTE)] if rows else [])


def _dataset(config: ConfigDict, run: "Run") -> None:
    from mmedexpert_jax import mmedexpert
    from mmedexpert_jax.launch import teachers

    mmedexpert.run(config, run, teachers.make_teacher(config, run))


def _merge(config: ConfigDict, run: "Run") -> None:
    from mmedexpert_jax import merging

    note_sources(config, run)
    if config.sweep.score:
        from mmedexpert_jax.launch.held_out import scorer

        merging.run(config, run, evaluate=scorer(config, run))
    else:
        merging.run(config, run)


def _evaluate(config: ConfigDict, run: "Run") -> None:
    """Several processes answer some of the questions each; then one, which finds all answers stored, goes on."""
    from mmedexpert_jax import medeval

    if processes.count() > 1:
        folder = config.answers or str(run.path / "answers")
        if config.fresh and not config.answers and processes.is_writer():
            shutil.rmtree(folder, ignore_errors=True)
        processes.barrier()
        split = {"process": processes.index(), "processes": processes.count()}
        with costs.shared(), processes.alone():
            medeval.answer(_with_changes(config, answers=folder, **split), run)
        processes.barrier()
        config = _with_changes(config, fresh=False)
    if processes.is_writer():
        with processes.alone():
            medeval.run(config, run)


def _export(config: ConfigDict, run: "Run") -> None:
    """The model behind `model.path` with its adapters folded in, or the adapter alone."""
    from mmedexpert_jax.models.save import push

    _check_export(config)
    note_sources(config, run)
    output = Path(config.output or run.path / "export" / config.format).expanduser()
    if config.format == "adapter":
        _copy_adapter(config.model.path, output, bool(config.push))
    else:
        from mmedexpert_jax import models
        from mmedexpert_jax.models.hub_card import training_of
        from mmedexpert_jax.models.load import load_folded

        source = config.model.path
        model, params, cost = load_folded(source, config.model.dtype or "checkpoint")
        if cost:
            print(f"{cost}; --config.model.dtype=float32 or --config.format=adapter keeps them", flush=True)
        origin = models.locate.origin(source)
        about = training_of(Path(source).expanduser()) + _place(origin, bool(config.push))
        models.save_pretrained(output, model, params, models.load_processor(source), origin=origin, about=about)
    print(f"exported {config.model.path} to {output}", flush=True)
    if config.push:
        print(f"uploaded: {push(output, config.push)}", flush=True)
    run.finish({"output": str(output)})


def _check_export(config: ConfigDict) -> None:
    """Raises what would keep an export from being written or uploaded, before a model is read."""
    from mmedexpert_jax.models.hub_card import on_the_hub
    from mmedexpert_jax.models.locate import CHOSEN, adapter_folder, base_under
    from mmedexpert_jax.models.save import check_repository

    if config.push:
        check_repository(config.push)
    if config.output:
        files.claim(Path(config.output).expanduser())
    if config.format != "adapter":
        return
    source = adapter_folder(config.model.path)
    base = base_under(source, CHOSEN["base"])
    if config.push and not on_the_hub(base):
        raise ConfigError(
            f"config.push: the base of {source} is {base}, which is on this machine alone; give the base's hub id as "
            "--config.model.base=owner/name, or --config.format=model"
        )


class _AdapterConfig(msgspec.Struct):
    """The field of adapter_config.json that is written into an adapter's card."""

    r: int


def _place(base: str, uploaded: bool) -> str:
    """A paragraph of a card on where its base lies on this machine; "" for one on the hub, and where others read it."""
    from mmedexpert_jax.models.hub_card import on_the_hub

    return "" if uploaded or on_the_hub(base) else f"\n\nOn the machine that wrote this, its base is `{base}`."


def _write_base(config: dict[str, Any], base: str, path: Path) -> None:
    """Writes adapter_config.json with a base that takes the place of the one that its trainer named."""
    from mmedexpert_jax.models.hub_card import on_the_hub

    name = on_the_hub(base) or base
    revision = base.removeprefix(name).removeprefix("@") or None
    border.write_settings(path, config | {"base_model_name_or_path": name, "revision": revision})


def _is_of_text(base: str) -> bool:
    """True where a base that is on this machine, in a folder or in the hub's cache, is a model of text alone."""
    from huggingface_hub import try_to_load_from_cache

    from mmedexpert_jax.config.fields import HUB_ID
    from mmedexpert_jax.processing.processor import CLASSES

    hub = HUB_ID.fullmatch(base)
    file: Any = Path(base).expanduser() / "config.json"
    if hub and not file.is_file():
        file = try_to_load_from_cache(hub["name"], "config.json", revision=hub["revision"])
    said = border.read_json(Path(file), dict[str, Any]) if isinstance(file, str | Path) and Path(file).is_file() else {}
    return CLASSES.get(str(said.get("model_type"))) == ""


def _copy_adapter(model_path: str, output: Path, uploaded: bool) -> None:
    """Copies an adapter and what it is asked with, but nothing else of its trainer's, such as optimizers."""
    from mmedexpert_jax.adapter_config import refuse_whole_weights
    from mmedexpert_jax.lora import base_of, finite
    from mmedexpert_jax.merging.checkpoint import copy_settings
    from mmedexpert_jax.models.hub_card import adapter_card, training_of
    from mmedexpert_jax.models.locate import CHOSEN, adapter_folder, base_under, is_adapter
    from mmedexpert_jax.models.stored_tensors import views

    source = adapter_folder(model_path)
    if not (source / "adapter_model.safetensors").is_file():
        raise DataError(f"{source}: no adapter_model.safetensors; save the adapter again with safetensors")
    refuse_whole_weights(source)
    settings = border.read_json(source / "adapter_config.json", _AdapterConfig)
    base = base_under(source, CHOSEN["base"])
    files.claim(output)
    about = training_of(Path(model_path).expanduser()) + _place(base, uploaded)
    card = adapter_card(base, settings.r, about, sees=not _is_of_text(base))
    with files.writing(output), files.replacing(output) as target:
        for name, factor in views(source / "adapter_model.safetensors").items():
            finite(f"{source}: {name}", factor)
        shutil.copyfile(source / "adapter_model.safetensors", target / "adapter_model.safetensors")
        config = border.read_json(source / "adapter_config.json", dict[str, Any])
        if base == base_of(config):
            shutil.copyfile(source / "adapter_config.json", target / "adapter_config.json")
        else:
            _write_base(config, base, target / "adapter_config.json")
        copy_settings(source, target)
        (target / "README.md").write_text(card, encoding="utf-8")
    if is_adapter(base):
        print(
            f"{output} holds the change over {base}, itself an adapter, and none of that one's: evaluate, merge and "
            "serve add both while it lies there, peft does not; --config.format=model has the whole",
            flush=True,
        )


def _contamination(config: ConfigDict, run: "Run") -> None:
    from mmedexpert_jax.data import contamination_job

    contamination_job.run(config, run)


def _pretrain(config: ConfigDict, run: "Run") -> None:
    from mmedexpert_jax.train import pretrain

    path = pretrain.run(config, run)
    run.finish({"model": str(path)})


def _with_changes(config: ConfigDict, **changes: Any) -> ConfigDict:
    copy = config.copy_and_resolve_references().unlock()
    copy.update(changes)
    return copy.lock()


JOBS: dict[str, Callable[[ConfigDict, "Run"], None]] = {
    "dataset": _dataset,
    "dsa": _dsa,
    "gba": _gba,
    "merge": _merge,
    "evaluate": _evaluate,
    "pipeline": lambda config, run: pipeline.run(config, run, _run_part),
    "ablation": lambda config, run: ablation.run(config, run, run_job),
    "export": _export,
    "pretrain": _pretrain,
    "contamination": _contamination,
}
