"""Stages shared by content: each is a run in a directory named by a hash of all that it depends on.

The hash covers the fields of the stage's config that a run may not change, the seed among them, and the hashes of the
stages that it is made from. Equal stages are one directory, whichever rows, seeds or sweeps ask for them; a changed
field leads to new directories for what depends on it, and leaves the others as they are.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmedexpert_jax import __version__
from mmedexpert_jax.config import field_of, flatten
from mmedexpert_jax.config.fields import LATER
from mmedexpert_jax.launch.pipeline import stage_config
from mmedexpert_jax.launch.table3 import Stage
from mmedexpert_jax.runtime import files, processes
from mmedexpert_jax.runtime.run import finished

_DIGITS = 12  # of a hash in a directory's name
_EVERY = 1.0  # seconds between two attempts to lock a stage
# Fields of the jobs that the groups of a sweep lack, since it sets them itself.
_ITS_OWN: dict[str, dict[str, Any]] = {
    "dsa": {"specialty": ""},
    "merge": {"experts": (), "weights": ()},
    "evaluate": {"compare": ()},
}
MODEL = "model"  # name of the one model of an evaluation


@dataclass(frozen=True)
class Task:
    """A stage under one seed."""

    stage: Stage
    seed: int
    config: ConfigDict  # of its run
    key: str  # SHA-256 of all that the stage depends on

    @property
    def folder(self) -> Path:
        """The directory of its run."""
        return Path(self.config.workdir)

    @property
    def done(self) -> bool:
        """True where it is finished: the run's status says so, and is written last."""
        return bool(finished(self.folder))

    @property
    def seconds(self) -> float | None:
        """Wall seconds that it took, once it is done."""
        return finished(self.folder).get("cost", {}).get("wall_seconds")


class Stages:
    """The tasks behind stages.

    Args:
        config: of the sweep, with the jobs' configs as groups.
        folder: of all stages' directories.
    """

    def __init__(self, config: ConfigDict, folder: str | Path):
        self._config, self._folder = config, Path(folder)
        self._tasks: dict[tuple[str, int], Task] = {}

    def task(self, stage: Stage, seed: int) -> Task:
        """A stage under a seed. An evaluation takes the sweep's own seed, so that all models answer the same items."""
        name = repr(stage), seed
        if name not in self._tasks:
            self._tasks[name] = self._task(stage, seed)
        return self._tasks[name]

    def _task(self, stage: Stage, seed: int) -> Task:
        inputs = {name: self.task(expert, seed) for name, expert in stage.experts.items()}
        start = self.task(stage.model, seed) if stage.model else None
        own = self._config.seed if stage.job == "evaluate" else seed
        fields = _ITS_OWN.get(stage.job, {}) | {"seed": own, "workdir": ""} | dict(stage.fields)
        config = stage_config(self._config, stage.job, **fields)
        made_from = [[name, task.key] for name, task in inputs.items()]
        model = start.key if start else self._config.model.path
        facts = json.dumps([__version__, hashed_fields(config), model, made_from], sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(facts.encode()).hexdigest()
        paths: dict[str, Any] = {"workdir": str(self._folder / f"{label(stage, own)}-{digest[:_DIGITS]}")}
        if start or stage.job == "evaluate":
            path = str(start.folder) if start else self._config.model.path
            paths["model"] = {"path": f"{MODEL}={path}" if stage.job == "evaluate" else path}
        if inputs:
            paths["experts"] = tuple(f"{name}={task.folder}" for name, task in inputs.items())
        config.unlock().update(paths)
        return Task(stage, own, config.lock(), digest)

    def order(self, wanted: Sequence[Stage], seed: int) -> Iterator[Task]:
        """The wanted stages and those they need, inputs first, each once."""
        seen: set[str] = set()

        def visit(stage: Stage | None) -> Iterator[Task]:
            if stage is None:
                return
            task = self.task(stage, seed)
            if task.key in seen:
                return
            seen.add(task.key)
            for needed in (stage.model, *stage.experts.values()):
                yield from visit(needed)
            yield task

        for stage in wanted:
            yield from visit(stage)


@contextlib.contextmanager
def stage_lock(task: Task, check: Callable[[], None]) -> Iterator[None]:
    """Locks a stage for this sweep; calls `check` every second while another sweep has it."""
    path = task.folder.parent / ".locks" / task.folder.name
    announced = False
    while True:
        file = files.lock(path) if processes.is_writer() else None
        if processes.agree(file is not None):
            break
        if not announced:
            print(f"waits for {task.folder.name}, which another sweep is making", flush=True)
        announced = True
        check()
        time.sleep(_EVERY)
    try:
        yield
    finally:
        if file is not None:
            file.close()


def hashed_fields(config: ConfigDict) -> dict[str, Any]:
    """The fields of a stage that its result depends on, as plain data; paths to other stages are not among them, nor
    fields that came later and leave what was done before as it was."""
    unset = ("", 0, False, None, "none")
    reading = {key: value for key, value in config.model.to_dict().items() if key != "path" and value not in unset}
    fields = files.plain(config.to_dict()) | {"model": reading | {"dtype": config.model.dtype}, "experts": None}
    kept = ((key, value) for key, value in flatten(fields) if key not in LATER or value != LATER[key])
    return {key: value for key, value in kept if field_of(key, config.job).resume != "free"}


def label(stage: Stage, seed: int) -> str:
    """The facts of a stage for a reader of the folder: job, specialty, method or objective, and seed."""
    fields = (stage.fields.get(name) for name in ("specialty", "method", "objective"))
    return "-".join([stage.job, *(str(field) for field in fields if field), f"s{seed}"])
