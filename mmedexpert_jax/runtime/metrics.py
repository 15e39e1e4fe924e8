"""The metrics of a run: one line of strict JSON a step, TensorBoard beside it, a hosted tracker where asked for.

Names are TRL's (`reward`, `rewards/<function>/mean`, `completions/mean_length`, `kl`, `entropy`, `clip_ratio/*`), and
held-out figures begin with `eval/`. `time`, `step_time`, `tokens_per_second`, `compilations` and all that begins with
`time/` tell of the process, not of what is learned: they alone differ between a run that was killed and resumed and
one that never was.
"""

import importlib
import importlib.util
import json
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.runtime import files
from mmedexpert_jax.runtime.tfevents import EventWriter

TRACKERS = ("tensorboard", "wandb", "trackio")
CLOCKS = ("time", "step_time", "tokens_per_second", "compilations")


def check_tracker(tracker: str) -> list[str]:
    """The hosted trackers that a config names. Raises ConfigError for one that is unknown or not installed."""
    names = dict.fromkeys(name.strip() for name in tracker.split(",") if name.strip() not in ("", "tensorboard"))
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"tracker={name!r}: choose one of {', '.join(TRACKERS)}, or '' for none")
        if not sys.modules.get(name) and importlib.util.find_spec(name) is None:
            raise ConfigError(f"tracker={name!r} needs its package: pip install {name}")
    return list(names)


def is_clock(name: str) -> bool:
    """True for a metric that reads a clock or counts what the process did, and so differs from run to run."""
    return name in CLOCKS or name.startswith("time/")


def read(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, or of the one in a run directory; a last line that was cut short is left out."""
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    return [row for _, row in _lines(path)]


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """(line, row) pairs of the lines that are whole rows: JSON objects with a step.

    A last line that was cut short, by a kill, goes without a word; a line that is damaged otherwise is named.
    """
    found = []
    for number, line in border.read_lines(path) if path.exists() else ():
        if not line.strip():
            continue
        try:
            row = border.parse_json(line, f"{path} line {number}", dict[str, Any])
            if not line.endswith(b"\n"):
                break
            step = row.get("step")
            whole = int(step) if isinstance(step, float) and step.is_integer() else step  # as pandas may write it
            row["step"] = border.check(whole, int, f"{path} line {number}: key step")
        except DataError as error:
            if line.endswith(b"\n"):
                print(f"{border.cut(str(error), 200)}; the row is left out", file=sys.stderr, flush=True)
            continue
        found.append((line, row))
    return found


class Recent:
    """The rows of `folder` in the memory of a process that does not write them."""

    def __init__(self, folder: Path):
        self._rows = read(folder)

    def log(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps one row, and returns it."""
        self._rows.append({"step": int(step), "time": round(time.time(), 3), **files.plain(values)})
        return self._rows[-1]

    def rows(self) -> list[dict[str, Any]]:
        """The rows so far."""
        return list(self._rows)

    def rewind(self, step: int) -> None:
        """Drops the rows after `step`."""
        self._rows = [row for row in self._rows if row["step"] <= step]

    def close(self) -> None:
        """There is nothing to close."""


class Metrics:
    """Appends rows to `folder`/metrics.jsonl and scalars to `folder`/tb.

    Args:
        tracker: "" or some of TRACKERS, comma-separated; a package that is missing is a ConfigError at the start, not
            after hours. TensorBoard's files are written in any case.
        config: passed on to the tracker.
    """

    def __init__(self, folder: Path, tracker: str = "", config: Mapping | None = None):
        self.path = folder / "metrics.jsonl"
        self._folder = folder
        whole = b"".join(line for line, _ in _lines(self.path))
        if self.path.exists() and (content := self.path.read_bytes()) != whole:
            if len(content) - len(whole) > len(content.rpartition(b"\n")[2]):  # more is left out than a line cut short
                files.write_bytes(self.path.with_suffix(".damaged"), content)
            files.write_bytes(self.path, whole)
        with files.writing(self.path):
            self._file = self.path.open("ab", buffering=0)
        self._events: EventWriter | None = None
        self._purge_step: int | None = None
        self._trackers = [_tracker(name, folder, config) for name in check_tracker(tracker)]

    def log(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Writes one row at once; NaN and infinities become null. Returns the row."""
        row = {"step": int(step), "time": round(time.time(), 3), **files.plain(values)}
        line = json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"
        files.append(self._file, self.path, line.encode())
        scalars = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and k not in ("step", "time")}
        if self._events is None:
            self._events = EventWriter(self._folder / "tb", self._purge_step)
        self._events.scalars(row["step"], scalars)
        for tracker in list(self._trackers):
            try:
                tracker.log(scalars, step=row["step"])
            except Exception as error:  # a service that is down must not end a training
                self._trackers.remove(tracker)
                print(f"the tracker is left out from step {step} on: {border.message_of(error, 200)}", flush=True)
        return row

    def rows(self) -> list[dict[str, Any]]:
        """The rows so far."""
        return read(self._folder)

    def rewind(self, step: int) -> None:
        """Drops the rows after `step`; TensorBoard is told to forget them too."""
        lines = _lines(self.path)
        kept = b"".join(line for line, row in lines if row["step"] <= step)
        self.close(tracker=False)
        files.write_bytes(self.path, kept)
        with files.writing(self.path):
            self._file = self.path.open("ab", buffering=0)
        self._events, self._purge_step = None, step + 1

    def close(self, tracker: bool = True) -> None:
        """Closes the files, and the tracker's run unless told not to."""
        self._file.close()
        if self._events is not None:
            self._events.close()
        for hosted in self._trackers if tracker else ():
            try:
                hosted.finish()
            except Exception as error:  # nor may it end the trainings that come after this one
                print(f"the tracker could not be closed: {border.message_of(error, 200)}", flush=True)


def _tracker(name: str, folder: Path, config: Mapping | None) -> Any:
    """A wandb run, or trackio's, which has the same three calls; the one that this folder had before, if it had one.

    The file `tracker_id` tells which: wandb resumes by id, trackio, which takes none, by name.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"tracker={name!r} needs its package: pip install {name}") from error
    known = folder / "tracker_id"
    if not known.exists():
        files.write_text(known, uuid.uuid4().hex[:8])
    id = known.read_text(errors="replace").strip()
    own = {"name": folder.name, "id": id} if name == "wandb" else {"name": f"{folder.name}-{id}"}
    try:
        return module.init(project="mmedexpert-jax", config=files.plain(config or {}), resume="allow", **own)
    except Exception as error:  # no login, no network
        fix = "log in (wandb login), set WANDB_MODE=offline, or leave it out" if name == "wandb" else "leave it out"
        raise ConfigError(f"tracker={name!r} cannot begin: {border.message_of(error, 200)}; {fix}") from error
