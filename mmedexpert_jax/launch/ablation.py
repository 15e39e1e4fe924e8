"""Table 3 over seeds: every row's stages, each once, then its evaluations, and a result after every seed.

The rows are in table3.py; stage_cache.py gives each stage its directory. What is done is left alone, what was cut off
goes on by its own job's resume, so that a sweep that was killed loses at most the steps since a checkpoint. Sweeps that
run at once over one folder of stages wait for each other's where they need the same.
"""

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mmedexpert_jax.data import load_cases
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.launch import table3
from mmedexpert_jax.launch.pipeline import stop_if_asked
from mmedexpert_jax.launch.stage_cache import Stages, Task, stage_lock
from mmedexpert_jax.launch.table3 import AblationRow

if TYPE_CHECKING:
    from mmedexpert_jax.runtime import Run


def run(config: ConfigDict, run: "Run", run_job: Callable[[ConfigDict], Any]) -> None:
    """Runs what is left of the sweep seed by seed; after each seed writes the result of those that are done.

    Args:
        run_job: opens and carries out the run of one stage.
    """
    from mmedexpert_jax.launch import ablation_result
    from mmedexpert_jax.launch.sources import tell_changed
    from mmedexpert_jax.runtime import processes
    from mmedexpert_jax.runtime.devices import compiled_programs

    chosen, stages = rows(config), Stages(config, folder(config))
    plan = [(seed, list(stages.order(table3.wanted(config, chosen), seed))) for seed in config.seeds]
    total = sum(len(tasks) for _, tasks in plan)
    numbers = itertools.count(1)
    summary: dict[str, Any] = {}
    with compiled_programs(run.path / "programs"):
        for place, (seed, tasks) in enumerate(plan, 1):
            for task, number in zip(tasks, numbers, strict=False):
                if processes.agree(task.done):
                    tell_changed(task.config, task.folder)
                    continue
                check = functools.partial(stop_if_asked, run, task.folder.name)
                check()
                with stage_lock(task, check):
                    if not processes.agree(task.done):
                        print(f"[{number}/{total}] seed {seed}:", end=" ", flush=True)
                        run_job(task.config)
            if processes.is_writer():
                summary = ablation_result.write(config, run.path, chosen, stages, config.seeds[:place])
    run.finish(summary)
    if processes.is_writer():
        ablation_result.report_run(run.path)


def folder(config: ConfigDict) -> Path:
    """The folder of the stages."""
    return Path(config.stages or f"{config.workdir}/stages").expanduser()


def rows(config: ConfigDict) -> tuple[AblationRow, ...]:
    """The rows that are asked for, in the table's order. Raises ConfigError on an unknown name."""
    known = table3.rows(config.rivals) if config.table == 3 else table3.rows_of_table_4()
    names = [row.name for row in known]
    if unknown := [name for name in config.rows if name not in names]:
        raise ConfigError(f"config.rows: no row {unknown[0]!r}; choose among {', '.join(names)}")
    return tuple(row for row in known if not config.rows or row.name in config.rows)


def tasks(config: ConfigDict) -> list[Task]:
    """All stages of the sweep, each once, seed by seed, inputs first."""
    chosen, stages = table3.wanted(config, rows(config)), Stages(config, folder(config))
    return list({task.key: task for seed in config.seeds for task in stages.order(chosen, seed)}.values())


def describe(config: ConfigDict) -> list[str]:
    """Lines of a plan: rows, stages by job, how many are done, and the time that the rest should take."""
    every = tasks(config)
    left = [task for task in every if not task.done]
    lines = [f"rows     {len(rows(config))}, over seeds {', '.join(map(str, config.seeds))}"]
    for job in ("dsa", "merge", "gba", "evaluate"):
        count = sum(task.stage.job == job for task in every)
        rest = sum(task.stage.job == job for task in left)
        lines.append(f"  {job:8} {count} stages, {count - rest} done")
    counts = functools.cache(lambda: _counts(config))
    known: dict[tuple, list[float]] = defaultdict(list)
    for task in every:
        if (seconds := task.seconds) is not None:
            known[_kind(task)].append(seconds)
    expected = [_expected(config, task, known, counts) for task in left]
    if None in expected:
        return [*lines, "time     not known: let one seed finish, or measure config.expected (docs/plan.md)"]
    total = sum(value for value in expected if value is not None)
    hours, minutes = divmod(int(total) // 60, 60)
    return [*lines, f"time     about {hours} h {minutes:02d} min for the {len(left)} stages left"]


def _expected(
    config: ConfigDict, task: Task, known: Mapping[tuple, list[float]], counts: Callable[[], Mapping[str, Counter]]
) -> float | None:
    """Seconds of a stage: the mean of the `known` ones of its kind, or from config.expected."""
    if like := known.get(_kind(task)):
        return sum(like) / len(like)
    each = config.expected["answer" if task.stage.job == "evaluate" else task.stage.job]
    return each * _size(task, counts()) + config.expected.start if each else None


def _kind(task: Task) -> tuple[Any, ...]:
    """Equal for stages that differ in seed or model only."""
    mixed = task.stage.fields.get("specialty") == "mixed"
    return task.stage.job, mixed, *(task.config.get(name) for name in ("steps", "num_samples", "limit"))


def _size(task: Task, counts: Mapping[str, Counter]) -> int:
    """Steps of a training, answers of an evaluation, 1 for a merge."""
    if task.stage.job == "merge":
        return 1
    if task.stage.job == "evaluate":
        items = counts["evaluated"].total()
        return min(task.config.limit or items, items) * task.config.num_samples
    from mmedexpert_jax.plan import budget

    return budget.training_steps(task.config, counts["train"])


def _counts(config: ConfigDict) -> dict[str, Counter]:
    """Cases by specialty that are trained on, and that are evaluated."""
    splits = {"train": ("train", config.limit), "evaluated": (config.evaluate.split, 0)}
    return {
        name: Counter(case.specialty for case in load_cases(config.data.path, split, limit=limit, seed=config.seed))
        for name, (split, limit) in splits.items()
    }
