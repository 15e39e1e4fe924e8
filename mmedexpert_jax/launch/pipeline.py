"""The paper from data to table: DSA x 4, merge, GBA from the merged model, merge all five, evaluate every model.

Each stage is a run in a directory of its own, so that the same command goes on after the last finished stage, and
inside the one that was cut off.
"""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.errors import Interrupted
from mmedexpert_jax.launch.presets import SHARED

INNER = ("experts", "merged", "gba", "final", "evaluate")  # folders of the stages' runs


def run(config: ConfigDict, run, run_stage: Callable[[ConfigDict], dict]) -> dict:
    """Runs what is left of the pipeline and returns the table's rows.

    Args:
        config: of the job, with the stages' configs as groups.
        run: the pipeline's own run.
        run_stage: opens and carries out one stage's run.
    """

    def do(job: str, folder: str, **fields) -> str:
        if signum := run.interrupted():
            raise Interrupted(f"stopped before {folder}; the same command resumes", signum)
        stage = stage_config(config, job, workdir=str(run.path / folder), **fields)
        print(f"{job} in {stage.workdir}", flush=True)
        run_stage(stage)
        return stage.workdir

    experts = {name: do("dsa", f"experts/{name}", specialty=name) for name in SPECIALTIES}  # section 4.1
    merged = do("merge", "merged", experts=_named(experts))  # section 4.3, stage one
    policy = do("gba", "gba", start=merged)  # section 4.2
    final = do("merge", "final", experts=_named(experts | {"RL": policy}))  # section 4.3, stage two

    models = {"base": config.model.path, **experts, "merged experts": merged, "GBA": policy, "final": final}
    evaluations = {name: do("evaluate", f"evaluate/{_slug(name)}", start=path) for name, path in models.items()}
    return write_table(run, evaluations)


def stage_config(config: ConfigDict, job: str, workdir: str, start: str = "", **fields) -> ConfigDict:
    """Config of one stage: its group, the pipeline's shared fields, and what the pipeline alone knows.

    Args:
        config: of the pipeline.
        job: group that holds the stage's fields.
        workdir: of the stage's run.
        start: model to start from; empty: the pipeline's base.
        **fields: further fields of the stage.
    """
    stage = ConfigDict(config[job].copy_and_resolve_references())
    shared = config.copy_and_resolve_references()
    with stage.unlocked():
        for name in SHARED:
            stage[name] = shared[name]
        stage.update(job=job, workdir=workdir, fresh=False, **fields)
        stage.model.path = start or config.model.path
    return stage.lock()


def _named(experts: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}={path}" for name, path in experts.items())


def _slug(name: str) -> str:
    return Path(name.replace(" ", "-").lower()).name
