"""The paper from data to table: DSA x 4, merge, GBA from the merged model, merge all five, evaluate every model.

Each stage is a run in a directory of its own, so that the same command goes on after the last finished stage, and
inside the one that was cut off.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.errors import Interrupted
from mmedexpert_jax.launch.presets import SHARED
from mmedexpert_jax.runtime import processes

if TYPE_CHECKING:
    from mmedexpert_jax.runtime import Run

FOLDERS = ("experts", "merged", "gba", "final", "evaluate")  # of the stages' runs


def run(config: ConfigDict, run: "Run", run_job: Callable[[ConfigDict], Any]) -> None:
    """Runs what is left of the pipeline, writes table.md and report.html, and finishes the run.

    Args:
        config: of the job, with the stages' configs as groups.
        run: the pipeline's own run.
        run_job: opens and carries out the run of one stage.
    """

    for stage in stages(config):
        stop_if_asked(run, Path(stage.workdir).name)
        run_job(stage)
    if processes.is_writer():
        rows = (stage.model.path, *stage.compare)
        _finish(run, stage.workdir, [row.partition("=")[0] for row in rows])


def stages(config: ConfigDict) -> list[ConfigDict]:
    """Configs of the stages in order, the evaluation last."""

    def add(job: str, folder: str, **fields: Any) -> str:
        found.append(stage_config(config, job, workdir=str(Path(config.workdir) / folder), **fields))
        return found[-1].workdir

    found: list[ConfigDict] = []
    experts = {name: add("dsa", f"experts/{name}", specialty=name) for name in SPECIALTIES}  # section 4.1
    merged = add("merge", "merged", experts=_named(experts), weights=())  # section 4.3, stage one
    policy = add("gba", "gba", model={"path": merged})  # section 4.2
    final = add("merge", "final", experts=_named(experts | {"RL": policy}), weights=())  # section 4.3, stage two
    rows = experts | {"merged experts": merged, "GBA": policy, "final": final}
    add("evaluate", "evaluate", model={"path": f"base={config.model.path}"}, compare=_named(rows))
    return found


def stage_config(config: ConfigDict, job: str, **fields: Any) -> ConfigDict:
    """Config of one stage: its group, the pipeline's shared fields, and `fields` that the pipeline alone knows."""
    stage = config[job].copy_and_resolve_references().unlock()
    for name in SHARED:
        value = config[name]
        stage[name] = value.copy_and_resolve_references() if isinstance(value, ConfigDict) else value
    stage.unlock().update({"job": job, "fresh": False, **fields})
    return stage.lock()


def stop_if_asked(run: "Run", upcoming: str) -> None:
    """Raises Interrupted between two stages where a signal came."""
    if signum := run.interrupted():
        raise Interrupted(f"stopped before {upcoming}; the same command resumes", signum)


def _named(paths: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}={path}" for name, path in paths.items())


def _finish(run: "Run", evaluation: str, names: list[str]) -> None:
    """One table: accuracy in all and by specialty with 95 % intervals, and the paired gain over the base."""
    from mmedexpert_jax.launch import stage_costs
    from mmedexpert_jax.medeval import tables
    from mmedexpert_jax.medeval.evaluate import Evaluation
    from mmedexpert_jax.medeval.finish import rows_path
    from mmedexpert_jax.medeval.run import MINI
    from mmedexpert_jax.runtime import files, report

    evaluations = {name: Evaluation.read(rows_path(Path(evaluation), MINI, name)) for name in names}
    summaries = {name: found.summary() for name, found in evaluations.items()}
    gains = {row.pop("model"): row for row in tables.comparison_table(evaluations)}
    table = [row | gains.get(row["model"], {}) for row in tables.models_table(summaries)]
    files.write_text(run.path / "table.md", tables.markdown(table))
    run.finish({"models": summaries})
    stages = [*(run.path / "experts").glob("*"), *(run.path / name for name in FOLDERS)]
    costs = report.Table("Cost of the stages", stage_costs.table(stages), stage_costs.NOTE)
    report.report_run(run.path, [report.Table(tables.HEADLINE, table, tables.INTERVALS), costs])
    print(tables.markdown(table), flush=True)
