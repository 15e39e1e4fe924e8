"""The paper from data to table: DSA x 4, merge, GBA from the merged model, merge all five, evaluate every model.

Each stage is a run in a directory of its own, so that the same command goes on after the last finished stage, and
inside the one that was cut off.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mmedexpert_jax.config.presets import SHARED
from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.errors import stop_if
from mmedexpert_jax.launch.table3 import SCALES
from mmedexpert_jax.runtime import processes

if TYPE_CHECKING:
    from mmedexpert_jax.runtime import Run

FOLDERS = ("experts", "merged", "gba", "final", "final_sum", "evaluate")  # of the stages' runs


def run(config: ConfigDict, run: "Run", run_job: Callable[[ConfigDict], Any]) -> None:
    """Runs what is left of the pipeline, writes table.md and report.html (again, if nothing is), and finishes the run.

    Args:
        run_job: opens and carries out the run of one stage.
    """
    plan = stages(config)
    if run.done and processes.is_writer():
        print("it is already finished; its report is written anew", flush=True)
    for stage in () if run.done else plan:
        stop_if_asked(run, Path(stage.workdir).name)
        run_job(stage)
    if processes.is_writer():
        from mmedexpert_jax.launch import pipeline_result

        rows = (plan[-1].model.path, *plan[-1].compare)
        models = [row.partition("=")[0] for row in rows]
        pipeline_result.finish(run, [Path(stage.workdir) for stage in plan], models, config.price)


def stages(config: ConfigDict) -> list[ConfigDict]:
    """Configs of the stages in order, the evaluation last."""

    def add(job: str, folder: str, **fields: Any) -> str:
        found.append(stage_config(config, job, workdir=str(Path(config.workdir) / folder), **fields))
        return found[-1].workdir

    found: list[ConfigDict] = []
    experts = {name: add("dsa", f"experts/{name}", specialty=name) for name in SPECIALTIES}  # section 4.1
    merged = add("merge", "merged", experts=_named(experts), weights=())  # section 4.3, stage one
    policy = add("gba", "gba", model={"path": merged})  # section 4.2
    five = {"experts": _named(experts | {"RL": policy}), "weights": ()}
    final = add("merge", "final", **five)  # section 4.3, stage two
    rows = experts | {"merged experts": merged, "GBA": policy, "final": final}
    if config.merge.method != "task_arithmetic":  # in every comparison: arXiv 2511.21437
        scale = SCALES["task_arithmetic"]
        rows["task arithmetic"] = add("merge", "final_sum", method="task_arithmetic", scale=scale, **five)
    add("evaluate", "evaluate", model={"path": f"base={config.model.path}"}, compare=_named(rows))
    return found


def stage_config(config: ConfigDict, job: str, **fields: Any) -> ConfigDict:
    """Config of one stage: its group, the pipeline's shared fields, and `fields` that the pipeline alone knows."""
    stage = config[job].copy_and_resolve_references().unlock()
    for name in SHARED:
        value = config[name]
        stage[name] = value.copy_and_resolve_references() if isinstance(value, ConfigDict) else value
    if "keep_checkpoints" in stage:  # a run that trains; the pipeline's stages go on from their last checkpoint
        stage.resume_from = 0
    stage.update({"job": job, "fresh": False, **fields})
    return stage.lock()


def stop_if_asked(run: "Run", upcoming: str) -> None:
    """Raises Interrupted between two stages where a signal came."""
    stop_if(run.interrupted, f"stopped before {upcoming}; the same command resumes")


def _named(paths: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}={path}" for name, path in paths.items())
