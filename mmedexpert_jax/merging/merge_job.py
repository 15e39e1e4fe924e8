"""The job `merge` (section 4.3): experts from their directories, one model, adapter or recipe, and where they fight."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mmedexpert_jax import lora as adapters
from mmedexpert_jax.config.fields import named_path
from mmedexpert_jax.config.job_config import given
from mmedexpert_jax.data import load_cases
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.merging.blockwise import Merge
from mmedexpert_jax.merging.fisher import with_fisher
from mmedexpert_jax.merging.interference import Interference
from mmedexpert_jax.merging.merge import as_lora, check_rank, merge_in_memory, updates_of
from mmedexpert_jax.merging.merge_page import write_page
from mmedexpert_jax.merging.merge_recipe import Recipe, ingredients, is_checkpoint, is_going_on, merge_to_disk, opened
from mmedexpert_jax.merging.mergekit import read_mergekit
from mmedexpert_jax.merging.methods import METHODS, switches
from mmedexpert_jax.merging.parameters import Parameters, parse
from mmedexpert_jax.merging.slices import Merges
from mmedexpert_jax.merging.sweep import Sweep, at, search, sentence, sweep, variant
from mmedexpert_jax.models import load_model, load_processor, save_pretrained
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
        evaluate: (parameters, number of the setting) -> named figures `eval/...`; scores the settings of a sweep.
    """
    recipe = recipe_of(config)
    check_together(config, recipe)
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
            values |= {"best": best, "chosen": sentence(best)}
            chosen = at(recipe.parameters, best["density"], best["scale"], best.get("weights"))
            recipe = replace(recipe, parameters=chosen)
    with naming(config):
        interference = _write(recipe, config, run)
    if interference is not None:
        values |= _report(recipe, interference, run)
        tables |= interference.tables()
    said = [values[key] for key in ("chosen", "sentence") if values.get(key)]
    text = "\n".join([*said, "", *(markdown(rows, 3) for rows in tables.values())]).lstrip()
    files.write_text(run.path / "table.md", text)
    run.finish(values)
    report.report_run(run.path, [report.Table(title, rows) for title, rows in tables.items()])
    print(text, flush=True)


@contextlib.contextmanager
def naming(config: ConfigDict) -> Iterator[None]:
    """Inside, a number of a mergekit file that fits no tensor is refused with the file's name."""
    try:
        yield
    except ConfigError as error:
        if config.get("mergekit") and config.mergekit not in str(error):
            raise ConfigError(f"{config.mergekit}: {error}") from error
        raise


def check_together(config: ConfigDict, recipe: Recipe) -> None:
    """Raises ConfigError, or prints a line, where fields would say nothing without others."""
    settings = config.get("sweep")
    if settings and not settings.densities and (settings.get("trials", 0) or settings.get("score")):
        raise ConfigError("config.sweep.trials and config.sweep.score are of a sweep: set config.sweep.densities too")
    method = recipe.parameters.method
    if settings and len(settings.densities) > 1 and not METHODS[method].has_density:
        raise ConfigError(f"config.sweep.densities: {method} has no density; give one value, and vary the scales")
    if settings and settings.densities:
        at(recipe.parameters, 1.0, 1.0)  # which refuses numbers that a sweep would pass over
    if settings and settings.get("trials", 0) and not METHODS[method].has_weights:
        raise ConfigError(f"config.sweep.trials: {method} has no weights to search; leave it out")
    if config.get("mergekit") and (beside := [key for key in ("weights", "parameters") if config.get(key)]):
        raise ConfigError(f"config.{beside[0]} says nothing beside config.mergekit: write its numbers into that file")
    if config.get("result") == "recipe" and (going := [path for path in recipe.experts.values() if is_going_on(path)]):
        raise ConfigError(
            f"config.result=recipe keeps the names of models, and {going[0]} is a run that is not over, whose weights "
            "still change: let it end, or merge it without result=recipe"
        )
    if config.get("rl_origin") == "start" and not recipe.start_only:
        print("merge: no expert is called RL, so that rl_origin=start says nothing", flush=True)


def check_numbers(config: ConfigDict) -> None:
    """Raises ConfigError where a number of the job is set that its method does not read."""
    kind = METHODS[config.method]
    reads = {"density": kind.has_density, "fisher_prompts": kind.by_fisher}
    for key in given(config):
        if not reads.get(key, True):
            raise ConfigError(f"config.{key} says nothing: {config.method} has no {key}; leave it out")


def recipe_of(config: ConfigDict) -> Recipe:
    """The merge that a config asks for. Raises ConfigError."""
    if config.get("mergekit"):
        recipe = read_mergekit(config.mergekit)
        return replace(recipe, dtype=recipe.dtype or config.model.dtype)
    experts = expert_paths(config)
    if config.weights and len(config.weights) != len(experts):
        raise ConfigError(f"{len(config.weights)} weights for {len(experts)} experts ({', '.join(experts)})")
    if config.weights and not METHODS[config.method].has_weights:
        raise ConfigError(f"config.weights says nothing: {config.method} has no weights; leave it out")
    numbers = parse(config.get("parameters", ()), config.method)
    _fall_back(numbers, "density", "", config.density)
    _fall_back(numbers, "scale", "", config.scale)
    for name, weight in zip(experts, config.weights, strict=False):
        _fall_back(numbers, "weight", name, float(weight))
    rule = replace(switches(config.rules, config.method), normalize=config.get("normalize_vectors", "none"))
    parameters = Parameters(
        config.method,
        tuple(experts),
        rule,
        numbers,
        config.get("seed", 0),
        space=config.get("space", ""),
        compress=int(config.get("rank") or 0),
    )
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
        name, path = named_path(entry)
        name = name or Path(path).name
        if name in paths:
            raise ConfigError(f"two experts are called {name}: give names as name=path")
        paths[name] = path
    return paths


def _write(recipe: Recipe, config: ConfigDict, run: Run) -> Interference | None:
    """The output that is asked for; None for a recipe, which is not applied here, and a stack, which has no report."""
    export, rank = run.path / "export", config.get("rank")
    if config.get("result") == "recipe":
        if rank:
            raise ConfigError("config.rank writes an adapter, config.result=recipe no weights: leave one of them out")
        _tell(recipe.open())  # so that what is wrong is said now
        recipe.write(export / "model")
        return None
    interference = Interference(tuple(recipe.experts))
    # A base whose weights are in another format than safetensors goes through memory.
    model, params = (None, {}) if is_checkpoint(recipe.base) else load_model(recipe.base, recipe.dtype or np.float32)
    job: Any = recipe.stack() if recipe.slices and not rank else opened(recipe, flatten(params))
    _tell(job)
    if recipe.template_of_experts() and not recipe.chat_template and not rank:
        print("merge: all experts have one chat template, which is not the base's: theirs comes along", flush=True)
    if rank:
        check_rank(job, rank)
        with run.progress(len(job.touched), label="merge") as progress:
            lora: Lora = as_lora(_counted(updates_of(job, interference), progress.update), rank, interference)
        _refuse_unchanged(interference)
        tower = any(name.startswith(adapters.TOWERS) for name in job.base)
        adapters.save_peft(export / "adapter", lora, recipe.base, decoder_only=not tower)
    elif model:
        merged, _ = merge_in_memory(job, report=interference)
        _refuse_unchanged(interference)
        save_pretrained(export / "model", model, nest(merged), load_processor(recipe.base))
    else:
        with run.progress(1, label="merge") as progress:
            interference = merge_to_disk(recipe, export / "model", lambda done, total: progress.update(done / total))
        if recipe.slices or (config.get("mergekit") and not interference.sums):  # one model may be written as it is
            return None
        _refuse_unchanged(interference)
    return interference


def _tell(job: Merge | Merges) -> None:
    """Prints what was done to lay the experts over the base, filters that fit no tensor, and whose numbers are 0."""
    lines = {f"expert {expert.name}: {note}": None for expert in job.experts for note in expert.notes}
    by_files: dict[Any, str] = {}
    for expert in job.experts:
        if (first := by_files.setdefault(expert.paths, expert.name)) != expert.name and expert.paths:
            lines[f"experts {first} and {expert.name} are the same files"] = None
    heard: dict[str, bool] = {}
    for part in job.parts if isinstance(job, Merges) else [job]:
        assert isinstance(part.how, Parameters)
        for name in part.touched:
            for expert, silent in zip(part.experts, part.how(name).silent, strict=True):
                if expert.touches(name, part.base[name]):
                    heard[expert.name] = heard.get(expert.name, False) or not silent
        lines |= {f"filter {name!r} fits no tensor and says nothing": None for name in part.how.unused_filters()}
    zero = "nothing of it comes in: its weight or density is 0, or the scale"
    lines |= {f"expert {name}: {zero}": None for name, comes_in in heard.items() if not comes_in}
    for line in lines:
        print(f"merge: {line}", flush=True)


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
    job = opened(recipe, loaded)
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
        over_all = (name for name in figures if name.startswith("eval/") and name.count("/") == 1)
        return {name.removeprefix("eval/"): figures[name] for name in over_all}

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
        weights = recipe.parameters.numbers.get("weight", {})
        if any(not isinstance(weight, int | float) for weight in weights.values()):
            raise ConfigError("config.sweep.trials search one weight an expert: leave out weights by tensor or layer")
        own = {name: float(weights.get(name, weights.get("", 1.0))) for name in recipe.experts}
        found.rows.extend(search(list(recipe.experts), start, trials, config.get("seed", 0), score, own))
    return found


def _scored(recipe: Recipe, job: Merge, run: Run) -> list[dict[str, Any]]:
    """Rows of the settings that this run scored before it was killed; none where what it merges has changed since."""
    mark, wanted = run.path / "export" / "sweep_sources.json", ingredients(recipe, job)
    rows = run.metrics() if files.json_or_none(mark) == wanted else []
    run.rewind(len(rows) - 1)
    files.write_json(mark, wanted)
    return rows
