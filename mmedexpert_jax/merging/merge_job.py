"""The job `merge` (section 4.3): experts from their directories, one model, adapter or recipe, and where they fight."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mmedexpert_jax import lora as adapters
from mmedexpert_jax.data import load_cases
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.merging.blockwise import Merge
from mmedexpert_jax.merging.fisher import with_fisher
from mmedexpert_jax.merging.interference import Interference
from mmedexpert_jax.merging.merge import as_lora, merge_in_memory, updates_of
from mmedexpert_jax.merging.merge_page import write_page
from mmedexpert_jax.merging.merge_recipe import Loaded, Recipe, fingerprint, is_checkpoint, merge_to_disk
from mmedexpert_jax.merging.mergekit import read_mergekit
from mmedexpert_jax.merging.methods import METHODS, switches
from mmedexpert_jax.merging.parameters import Parameters, parse
from mmedexpert_jax.merging.sweep import Sweep, at, search, sweep, variant
from mmedexpert_jax.models import load_model, load_processor, save_pretrained
from mmedexpert_jax.models.locate import trace
from mmedexpert_jax.models.tree import flatten, nest
from mmedexpert_jax.report.text_tables import markdown
from mmedexpert_jax.runtime import Run, files, report

Evaluate = Callable[[dict, int], dict[str, float]]


def run(config: ConfigDict, run: Run, evaluate: Evaluate | None = None) -> None:
    """Merges `experts` over `model.path`, or what a mergekit file says.

    Writes export/model (with `rank` export/adapter; with result="recipe" the recipe and no weights), table.md,
    report.html, and of a merge that is applied export/interference.json and merge_report.html; of a sweep
    export/sweep.json.

    Args:
        config: of the job; `experts` are runs, adapters, models or recipes as "path" or "name=path".
        run: the open run.
        evaluate: (parameters, number of the setting) -> named figures `eval/...`; scores the settings of a sweep.
    """
    recipe = recipe_of(config)
    values: dict[str, Any] = {"experts": dict(recipe.experts)}
    tables = {}
    with files.writing(run.path):
        (run.path / "export").mkdir(exist_ok=True)
    recipe = _with_fisher(recipe, config, run)
    if config.get("sweep") and config.sweep.densities:
        found = _sweep(recipe, config, run, evaluate)
        files.write_json(run.path / "export" / "sweep.json", found.rows)
        tables["Sweep"] = found.rows
        if best := found.best():
            values["best"] = best
            chosen = at(recipe.parameters, best["density"], best["scale"], best.get("weights"))
            recipe = replace(recipe, parameters=chosen)
    interference = _write(recipe, config, run)
    if interference is not None:
        values |= _report(recipe, interference, run)
        tables |= {
            "Who won, and what survives": interference.election_rows(),
            "Cosine between the experts, and mass kept": interference.cosine_rows(),
            "Interference": interference.kind_rows(),
        }
    text = "\n".join(
        [values.get("sentence", ""), "", *(markdown(rows, 3) for rows in tables.values() if rows)]
    ).lstrip()
    files.write_text(run.path / "table.md", text)
    run.finish(values)
    report.report_run(run.path, [report.Table(title, rows) for title, rows in tables.items() if rows])
    print(text, flush=True)


def recipe_of(config: ConfigDict) -> Recipe:
    """The merge that a config asks for. Raises ConfigError."""
    if config.get("mergekit"):
        recipe = read_mergekit(config.mergekit)
        return replace(recipe, dtype=recipe.dtype or config.model.dtype)
    experts = expert_paths(config)
    if config.weights and len(config.weights) != len(experts):
        raise ConfigError(f"{len(config.weights)} weights for {len(experts)} experts ({', '.join(experts)})")
    own = parse(config.get("parameters", ()), config.method)
    numbers: dict[str, dict[str, Any]] = {which: dict(specs) for which, specs in own.items()}
    for which, value in {"density": config.density, "scale": config.scale}.items():
        _fall_back(numbers, which, "", value)
    for name, weight in zip(experts, config.weights, strict=False):
        _fall_back(numbers, "weight", name, float(weight))
    rule = replace(switches(config.rules, config.method), normalize=config.get("normalize_vectors", "none"))
    parameters = Parameters(
        config.method, tuple(experts), rule, numbers, config.get("seed", 0), space=config.get("space", "")
    )
    if config.get("rank"):
        parameters = replace(parameters, compress=int(config.rank))
    start_only = ("RL",) if config.get("rl_origin") == "start" and "RL" in experts else ()
    return Recipe(config.model.path, experts, parameters, start_only, config.model.dtype)


def _with_fisher(recipe: Recipe, config: ConfigDict, run: Run) -> Recipe:
    """The recipe with the experts' Fisher information, where the method asks for it: measured on prompts alone."""
    if not METHODS[recipe.parameters.method].by_fisher:
        return recipe
    cases = load_cases(config.data.path, config.eval.split, limit=config.fisher_prompts, seed=config.seed)
    with run.progress(len(cases) * len(recipe.experts), label="Fisher information") as progress:
        return with_fisher(recipe, run.path / "export" / "fisher", cases, config.seed, progress.update)


def _fall_back(numbers: dict[str, dict[str, Any]], which: str, owner: str, value: float) -> None:
    """Appends what counts where no filter of `parameters` fits."""
    specs = numbers.setdefault(which, {})
    specs[owner] = [*specs[owner], {"value": value}] if owner in specs else value


def expert_paths(config: ConfigDict) -> dict[str, str]:
    """Name -> path of the experts; a path without a name has that of its folder. Raises ConfigError on a name twice."""
    paths: dict[str, str] = {}
    for entry in config.experts:
        name, _, path = entry.rpartition("=")
        name = name or Path(path).name
        if name in paths:
            raise ConfigError(f"two experts are called {name}: give names as name=path")
        paths[name] = path
    return paths


def _write(recipe: Recipe, config: ConfigDict, run: Run) -> Interference | None:
    """The output that is asked for; None for a recipe, which is not applied here."""
    export = run.path / "export"
    if config.get("result") == "recipe" and config.get("rank"):
        raise ConfigError("config.rank writes an adapter, config.result=recipe no weights: leave one of them out")
    if config.get("result") == "recipe":
        recipe.open()  # so that what is wrong is said now
        recipe.write(export / "model")
        return None
    interference = Interference(tuple(recipe.experts))
    if not is_checkpoint(recipe.base):
        return _through_memory(recipe, config, export)
    _tell(recipe)
    if config.get("rank"):
        job = recipe.open()
        with run.progress(len(job.touched), label="merge") as progress:
            lora: Lora = as_lora(_counted(updates_of(job, interference), progress.update), config.rank, interference)
        _refuse_unchanged(interference)
        adapters.save_peft(export / "adapter", lora, recipe.base, decoder_only=not _has_tower(job))
        return interference
    with run.progress(1, label="merge") as progress:
        interference = merge_to_disk(recipe, export / "model", lambda done, total: progress.update(done / total))
    if recipe.slices or (config.get("mergekit") and not interference.sums):  # a model may be written as it is there
        return None
    _refuse_unchanged(interference)
    return interference


def _tell(recipe: Recipe) -> None:
    """Prints what was done to lay the experts over the base, and filters that fit no tensor."""
    job: Any = recipe.stack() if recipe.slices else recipe.open()
    lines = {f"expert {expert.name}: {note}": None for expert in job.experts for note in expert.notes}
    for part in job.parts if recipe.slices else [job]:
        lines |= {f"filter {name!r} fits no tensor and says nothing": None for name in part.how.unused_filters()}
    for line in lines:
        print(f"merge: {line}", flush=True)


def _has_tower(job: Merge) -> bool:
    return any(name.startswith(adapters.TOWERS) for name in job.base)


def _through_memory(recipe: Recipe, config: ConfigDict, export: Path) -> Interference:
    """For a base whose weights are in another format than safetensors."""
    model, params = load_model(recipe.base, dtype=recipe.dtype or np.float32)
    job = recipe.open(Loaded(flatten(params), trace(recipe.base)[0]))
    if config.get("rank"):
        interference = Interference(tuple(recipe.experts))
        lora = as_lora(updates_of(job, interference), config.rank, interference)
        adapters.save_peft(export / "adapter", lora, recipe.base)
        return interference
    merged, interference = merge_in_memory(job)
    _refuse_unchanged(interference)
    save_pretrained(export / "model", model, nest(merged), load_processor(recipe.base))
    return interference


def _counted(items: Any, tell: Callable[[int], Any]) -> Any:
    for number, item in enumerate(items, 1):
        yield item
        tell(number)


def _refuse_unchanged(interference: Interference) -> None:
    if not interference.sums:
        raise ConfigError("no expert differs from the base: name trained experts in experts")


def _report(recipe: Recipe, interference: Interference, run: Run) -> dict[str, Any]:
    overall = interference.rates()
    facts = {"method": recipe.parameters.method, "base": recipe.base, "experts": ", ".join(recipe.experts)}
    facts |= recipe.parameters.to_json()["switches"]
    files.write_json(run.path / "export" / "interference.json", interference.to_json())
    write_page(run.path / "merge_report.html", interference, facts)
    names = ("conflict", "shared", "cancellation", "kept_mass", "rounding_error", "vanished")
    found = {name: overall[name] for name in names} | {"kept_energy": interference.kept_energy}
    return found | {"sentence": interference.sentence()}


def _sweep(recipe: Recipe, config: ConfigDict, run: Run, evaluate: Evaluate | None) -> Sweep:
    settings = config.sweep
    loaded = {} if is_checkpoint(recipe.base) and not evaluate else flatten(load_model(recipe.base, np.float32)[1])
    job = recipe.open(None if is_checkpoint(recipe.base) else Loaded(loaded, trace(recipe.base)[0]))
    scored = _scored(recipe, job, run) if evaluate else []
    numbers = itertools.count()

    def score(density: float, scale: float, weights: dict[str, float] | None = None) -> dict[str, float]:
        assert evaluate is not None
        number = next(numbers)
        if number < len(scored):
            figures = scored[number]
        else:
            merged, _ = merge_in_memory(variant(job, density, scale, weights), loaded)
            figures = evaluate(nest(merged), number)
            tried = {f"weight/{name}": value for name, value in (weights or {}).items()}
            run.log(number, {"density": density, "scale": scale} | tried | figures)
        return {name.removeprefix("eval/"): value for name, value in figures.items() if _is_figure(name)}

    try:
        densities, scales = (tuple(map(float, grid)) for grid in (settings.densities, settings.scales))
    except ValueError as error:
        raise ConfigError(f"config.sweep: densities and scales are numbers ({error})") from error
    found = sweep(job, densities, scales, recipe.dtype, score if evaluate else None)
    if trials := settings.get("trials", 0):
        if evaluate is None:
            raise ConfigError("config.sweep.trials are scored on held-out cases: set config.sweep.score=True as well")
        start = found.best()
        assert start is not None
        found.rows.extend(search(list(recipe.experts), start, trials, config.get("seed", 0), score))
    return found


def _scored(recipe: Recipe, job: Merge, run: Run) -> list[dict[str, Any]]:
    """Rows of the settings that this run scored before it was killed; none where what it merges has changed since."""
    mark, wanted = run.path / "export" / "sweep_sources.json", fingerprint(recipe, job)
    rows = run.metrics() if files.read_json(mark) == wanted else []
    run.rewind(len(rows) - 1)
    files.write_json(mark, wanted)
    return rows


def _is_figure(name: str) -> bool:
    """True for figures over all cases, not for those of a specialty or the numbers that were tried."""
    return name.startswith("eval/") and name.count("/") == 1
