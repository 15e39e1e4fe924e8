"""The run directory: all that a job writes, and how the same command goes on where it stopped."""

import contextlib
import errno
import functools
import itertools
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from mmedexpert_jax import border
from mmedexpert_jax.config import field_of, flatten
from mmedexpert_jax.config.fields import LATER
from mmedexpert_jax.errors import ConfigError, DataError, Interrupted, ResourceError
from mmedexpert_jax.runtime import environment, files, processes
from mmedexpert_jax.runtime.costs import Meter
from mmedexpert_jax.runtime.metrics import Metrics, Recent
from mmedexpert_jax.runtime.progress import Progress
from mmedexpert_jax.runtime.signals import SIGNALS, Overdue

if TYPE_CHECKING:
    from mmedexpert_jax.runtime.checkpoints import Checkpoints

LAYOUT = (
    "config.json", "cmd.txt", "env.json", "metrics.jsonl", "tb", "plots", "samples", "ckpt", "export", "table.md",
    "report.html", "merge_report.html", "logs", "STATUS.json", "tracker_id", "sources.json",
)  # fmt: skip
# What a run has written before its first checkpoint, less which it may be started again with a corrected config.
EARLY = frozenset({*LAYOUT[:6], "plots", "samples", "STATUS.json", "tracker_id", "logs", "report.html", "sources.json"})
# Fields that a state has its form from, with what of a value that is: no checkpoint can be read with another
_FORM: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("lora.rank", "lora.targets", "trainable"), str),
    **dict.fromkeys(("ref_every", "rollout_ahead", "max_grad_norm"), bool),
    "advantage_weights": "equal".__eq__,
}
# Names in the folders of a run that are of its making, beside marked artefacts; what else is there is the user's
_OURS = {
    "tb": r"events\.out\.tfevents\..+",
    "plots": r"\.?[^/]+\.png(\.tmp)?",
    "samples": r"([^/]+/)?\.?(\d+|pass_rates)\.jsonl(\.tmp)?",
    "ckpt": r"\d+(\.[^/]*tmp)?",
    "logs": r"process-\d+\.log",
    "export": r"\.[^/]+\.(partial|old|tmp)|model|adapter|dataset|public|fisher|[^/]+\.(json|jsonl|csv)"
    r"|tables/[^/]+\.(md|tex|csv|json)|rows/([^/]+/)?[^/]+\.jsonl|report/[^/]+\.(jpg|png)|privacy/[^/]+\.csv",
}
_STATUS_EVERY = 10.0  # seconds between two writes of STATUS.json while steps are logged


class Run:
    """One job's directory, open for writing by one process; in the others of the job it looks the same, but writes
    nothing. All of them open it, ask it and leave it together.

    Use `Run.open`, as a context manager: an exception marks the run failed or interrupted, signal handlers are given
    back, and a full or read-only disk met anywhere inside becomes a ResourceError. Attributes: `path`, `config` (plain
    dict), `checkpoints`, `done`, `summary`, `resumed`.
    """

    def __init__(self, path: Path, config: Any, lock: Any, keep: int):
        self.path = path
        self.config = files.plain(config)
        self._lock = lock
        self._keep = keep
        self._writes = processes.is_writer()
        self._earlier = saved_config(path)
        status = read_status(path)
        back = _goes_back(path, self.config, status)
        done = status.get("state") == "done" and not _grown(path, self.config) and not back
        self.done, status = processes.agree((done, status))
        self.resumed = bool(status)
        self.summary: dict[str, Any] = status.get("summary") or {}
        now = _now()
        self._status = {"state": "running", "step": 0, "started": now, "summary": {}} | status | {"pid": os.getpid()}
        if back:
            self._status["resumed_from"] = 0  # until `last_checkpoint` has gone back, though config.json is new by then
        if not self.done:
            self._status["state"] = "running"
            self._status.pop("error", None)
        self._meter = Meter(status.get("cost"), float(self.config.get("price") or 0.0))
        if back and self._writes:  # trackers drop steps that a run has had: the new branch is a run of its own there
            (path / "tracker_id").unlink(missing_ok=True)
        try:
            self._write_start()
            tracker = "" if self.done else self.config.get("tracker") or ""
            self._metrics = Metrics(path, tracker, self.config) if self._writes else Recent(path)
        except BaseException:
            self._meter.close()
            raise
        self._closed = False
        SIGNALS.install()

    @classmethod
    def open(
        cls,
        workdir: str | os.PathLike,
        config: Any,
        fresh: bool = False,
        keep: int = 2,
        drift: bool = False,
        spared: tuple[str, ...] = (),
    ) -> "Run":
        """Creates a run, or resumes the one that is there.

        Args:
            workdir: the directory; parents are made.
            config: dict or ConfigDict of the job.
            fresh: delete an earlier run in it and start over. Files that are not a run's are never touched.
            keep: checkpoints to keep.
            drift: go on with another config than the run's; for jobs whose stored results name all they depend on.
            spared: files of its folders that `fresh` keeps, as "export/x".

        Raises:
            ConfigError: the run there was started with another config (unless `drift`), or the directory is something
                else's.
            ResourceError: it cannot be written, or another process has it open.
        """
        if not str(workdir):
            raise ConfigError("workdir is empty; give a directory, such as --config.workdir=runs/first")
        path = Path(workdir).expanduser()
        if not processes.is_writer():
            return cls(path, config, None, keep)
        with files.writing(path):
            path.mkdir(parents=True, exist_ok=True)
        plain = files.plain(config)
        _refuse_foreign(path, str(plain.get("job") or ""))
        lock = _lock(path)
        try:
            if fresh:
                _refuse_added(path)
                _wipe(path, keep=spared)
            elif not drift and (refusal := _drift_refusal(path, plain)):
                if not _failed_early(path):
                    raise ConfigError(refusal)
                print(f"{path} failed before its first checkpoint; it starts again with this config", flush=True)
                _wipe(path, keep=("cmd.txt", "logs"))
            _say_changes(path, plain)
            _refuse_absent(path, plain)
            return cls(path, config, lock, keep)
        except BaseException:
            lock.close()
            raise

    @functools.cached_property
    def checkpoints(self) -> "Checkpoints":
        """The run's checkpoints; the first use imports JAX."""
        from mmedexpert_jax.runtime.checkpoints import Checkpoints

        return Checkpoints(self.path / "ckpt", self._keep)

    @property
    def cost(self) -> dict[str, Any]:
        """The costs of the run so far; see `costs.Meter.values`."""
        return self._meter.values()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes a row of metrics for `step`. Log all of a step before its checkpoint is saved."""
        self._metrics.log(step, values)
        self._status["step"] = max(int(step), self._status["step"])
        if time.monotonic() - self._written >= _STATUS_EVERY:  # a wall clock may jump
            self._write_status()

    def metrics(self) -> list[dict[str, Any]]:
        """The rows logged so far."""
        return self._metrics.rows()

    def table(self, name: str, step: int, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Writes rows (completions, say) as samples/<name>/<step>.jsonl; images become small JPEG data URIs."""
        path = self.path / "samples" / name / f"{step:06d}.jsonl"
        return write_table(path, rows) if self._writes else path

    def last_checkpoint(self) -> int | None:
        """The step of the checkpoint from which the run goes on; None where there is none.

        Once, `resume_from` goes back to an earlier one: later ones are then deleted, so that the same command, given
        again after the run was stopped, goes on from where it was and not from there.
        """
        if processes.is_writer():
            self.checkpoints.recover()
        back = int(self.config.get("resume_from") or 0)
        if _goes_back(self.path, self.config, self._status):
            self.checkpoints.drop_after(back)
        self._status["resumed_from"] = back
        return self.checkpoints.latest()

    def keep_config(self) -> None:
        """Writes back the config that the run had before this command, which cannot go on from its checkpoint."""
        self._write("config.json", self._earlier or self.config)

    def rewind(self, step: int) -> None:
        """Drops metrics and samples after `step`, so that a resumed run writes them as if it had never stopped."""
        self._metrics.rewind(step)
        for path in self.path.glob("samples/*/*.jsonl") if self._writes else ():
            if path.stem.isdigit() and int(path.stem) > step:
                path.unlink()
        self._status["step"] = max(0, step)
        self._write_status()

    def progress(self, total: int, start: int = 0, label: str = "") -> Progress:
        """A progress display of `total` steps, `start` of which are done; see Progress."""
        return Progress(total, start, label or self.path.name)

    def interrupted(self) -> int | None:
        """The signal that asks the run to stop, or None. The trainer saves a checkpoint, then raises Interrupted.

        A signal to any process counts for all of them.
        """
        return processes.largest(SIGNALS.heed() or 0) or None

    def heard(self) -> int | None:
        """As `interrupted`, without waiting for the other processes, which hear of a signal to this one soon after: for
        places that each comes to in its own time."""
        return processes.heard(SIGNALS.heed() or 0) or None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Marks the run done, with the figures that stand for it."""
        self.summary = files.plain(summary)
        self.done = True
        self._status |= {"state": "done", "summary": self.summary}
        self._write_status()
        self._write("env.json", environment.describe())  # by now with the devices

    def close(self) -> None:
        """Closes files, gives back signal handlers and the lock. A run that was not finished counts as interrupted."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._status["state"] == "running":
                self._status["state"] = "interrupted"
            with contextlib.suppress(ResourceError):  # a full disk has had its own error by now
                self._write_status()
            self._metrics.close()
        finally:
            self._meter.close()
            SIGNALS.restore()
            if self._lock is not None:
                self._lock.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and not self.done:
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
            self._status |= {
                "state": "interrupted" if stopped else "failed",
                "error": f"{type(error).__name__}: {error}",
            }
        self.close()
        if error is None:
            processes.barrier()
        if isinstance(error, Overdue):
            text = "stopped where it was; the same command resumes from what is stored"
            raise Interrupted(text, error.args[0]) from None
        if isinstance(error, OSError) and error.errno in files.DISK_ERRORS:
            raise files.unwritable(error.filename or self.path, error.errno) from error

    def _write_start(self) -> None:
        if self._writes:  # the first of all: whatever a kill leaves behind is then known to be ours
            files.mark(self.path, "run", job=self.config.get("job", ""))
        self._write_status()
        self._write("config.json", self.config)
        self._write("env.json", environment.describe())
        if not self._writes:
            return
        cmd = self.path / "cmd.txt"
        earlier = cmd.read_text(encoding="utf-8", errors="replace") if cmd.exists() else ""
        files.write_text(cmd, f"{earlier}# {_now()}\n{shlex.join(sys.orig_argv)}\n")

    def _write_status(self) -> None:
        self._written = time.monotonic()
        self._write("STATUS.json", self._status | {"updated": _now(), "cost": self._meter.values()})

    def _write(self, name: str, value: Any) -> None:
        """Writes one of the run's JSON files, in the process that writes."""
        if self._writes:
            files.write_json(self.path / name, value)


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes rows as a JSON-lines file, whole."""
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    border.write_jsonl(path, map(files.plain, rows))
    return path


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _refuse_foreign(path: Path, job: str) -> None:
    """Raises ConfigError where a directory is not empty and not a run of this job: nothing in it is touched then.

    Files that a shell or a scheduler puts there before the job starts, such as logs, do not count.
    """
    if not files.is_run(path):
        found = sorted(entry.name for entry in path.iterdir() if not _is_bystander(entry))
        if found:
            raise ConfigError(
                f"{path} is no run directory but holds {border.cut(found[0])}; choose another workdir, such as "
                f"{path / (job or 'run')}"
            )
        return
    theirs = files.owner(path).get("job") or saved_config(path).get("job")
    if job and isinstance(theirs, str) and theirs and theirs != job:
        raise ConfigError(f"{path} is the run of a {border.cut(theirs)} job, this one is {job}; choose another workdir")


def _is_bystander(entry: Path) -> bool:
    """True for a file that is not of a run's names and is hidden, or ends like a log or a note."""
    return entry.name not in LAYOUT and (entry.name.startswith(".") or entry.suffix in (".log", ".out", ".err", ".txt"))


def read_status(path: Path) -> dict[str, Any]:
    """The STATUS.json of a run; empty where there is none. A damaged one counts as none, and a line says so."""
    if not (path / "STATUS.json").exists():
        return {}
    try:
        status = border.read_json(path / "STATUS.json", Status)
    except DataError as error:
        print(
            f"{border.cut(str(error), 200)}; the run goes on from its checkpoints, as if it had not ended", flush=True
        )
        return {}
    return {key: value for key, value in msgspec.to_builtins(status).items() if value is not None}


class Status(msgspec.Struct):
    """STATUS.json: state of the run, last step logged, times in ISO 8601, figures of a finished run, cost, error, the
    checkpoint that it was asked to go back to."""

    state: Literal["running", "done", "failed", "interrupted"]
    step: Annotated[int, msgspec.Meta(ge=0)] = 0
    started: str = ""
    updated: str = ""
    pid: int = 0
    resumed_from: int = 0
    summary: dict[str, Any] = {}
    cost: dict[str, int | float] | None = None
    error: str | None = None


def saved_config(path: Path) -> dict[str, Any]:
    """The config.json of a run; empty where it is missing or damaged."""
    saved = files.json_or_none(path / "config.json")
    return saved if isinstance(saved, dict) else {}


def _failed_early(path: Path) -> bool:
    """True for a run that failed and has no checkpoint, export or store: nothing is lost if it starts again."""
    if (files.json_or_none(path / "STATUS.json") or {}).get("state") != "failed":
        return False
    for entry in path.iterdir():
        ours = entry.name in EARLY or entry.name.startswith(".") or (entry.name == "ckpt" and not any(entry.iterdir()))
        inner = entry.is_dir() and files.is_run(entry) and _failed_early(entry)
        if not (ours or inner or _is_bystander(entry)):
            return False
    return True


def _lock(path: Path) -> Any:
    file = files.lock(path / ".lock")
    if file is None:
        holder = (path / ".lock").read_text(errors="replace").strip() or "unknown"
        raise ResourceError(f"{path} is in use by process {holder}; wait for it, stop it, or choose another workdir")
    return file


def _wipe(path: Path, keep: tuple[str, ...] = ()) -> None:
    """Deletes what is a run's but for the names in `keep`, which may be of files in a folder of it, as "export/x".

    What else its folders hold stays; a folder that is a link, to another disk, is emptied and linked further on.
    """
    with files.writing(path):
        for name in set(LAYOUT) - set(keep):
            place = path / name
            if name not in _OURS or not place.is_dir():
                _delete(place)
                continue
            for entry in [*place.glob("*"), *place.glob("*/*"), *place.glob("*/*/*")]:
                part = entry.relative_to(place).as_posix()
                made = re.fullmatch(_OURS[name], part) or files.owner(entry).get("kind") == "artefact"
                if made and f"{name}/{part}" not in keep:
                    _delete(entry)
            folders = [folder for folder in (*place.glob("*/*"), *place.glob("*"), place) if folder.is_dir()]
            for folder in folders:
                with contextlib.suppress(OSError):  # it holds something else, or is a link
                    folder.rmdir()


def _delete(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _refuse_added(path: Path) -> None:
    """Raises ConfigError where a file was added to a model, adapter or data set of a run, which the next would
    replace."""
    for folder in sorted(path.glob("export/*")):
        if files.owner(folder).get("kind") == "artefact" and not folder.is_symlink():
            files.claim(folder)


def refuse_in_use(folder: Path) -> None:
    """Raises ResourceError where a run in a folder, however deep, is open in another process, and ConfigError where
    something was added to what it made."""
    for lock in folder.rglob(".lock") if folder.is_dir() else ():
        if files.is_run(lock.parent):
            _lock(lock.parent).close()
            _refuse_added(lock.parent)


def delete_runs(folder: Path) -> None:
    """Deletes the runs in a folder, itself one or not, file by file that runs have; what else is there stays."""
    if folder.is_symlink() or not folder.is_dir():
        return
    if files.is_run(folder):
        _wipe(folder)
        for name in (files.MARKER, ".lock"):
            (folder / name).unlink(missing_ok=True)
    for inner in folder.iterdir():
        delete_runs(inner)
    with contextlib.suppress(OSError):  # it holds something that is not ours
        folder.rmdir()


def finished(folder: Path) -> dict[str, Any]:
    """The status of a run that is done; empty for any other folder."""
    status = read_status(folder)
    return status if status.get("state") == "done" else {}


def _drift(saved: dict, wanted: dict) -> dict[str, tuple[Any, Any]]:
    """{key: (saved, wanted)} of the fields that differ; "(absent)" stands for a field that one side lacks, of those
    that came later the value that says what was done before."""
    old, new = dict(flatten(saved)), dict(flatten(wanted))
    lacking = {key: LATER.get(key.removeprefix("gba.").removeprefix("evaluate."), "(absent)") for key in [*old, *new]}
    pairs = {key: (old.get(key, lack), new.get(key, lack)) for key, lack in lacking.items()}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _named(config: dict) -> set[str]:
    """Keys that `allow_changes` names, of a job or of a pipeline's stages."""
    groups = {key: value for key, value in flatten(config) if key.rpartition(".")[2] == "allow_changes"}
    return {f"{key.removesuffix('allow_changes')}{name}" for key, names in groups.items() for name in names}


def _grown(path: Path, config: dict) -> bool:
    """True where a run is to go on further than it was to, or to an end that is known only later (0), or with another
    patience; or to export once more what its checkpoints hold."""
    drift, flat = _drift(saved_config(path), config), dict(flatten(config))
    overruled = {key for key in drift if re.fullmatch(r"(.+\.)?epochs", key) and flat.get(f"{key[:-6]}steps")}
    pairs = (pair for key, pair in drift.items() if _resumes(key, config) == "grows" and key not in overruled)
    status = files.json_or_none(path / "STATUS.json") or {}
    early = "eval.patience" in drift and not 0 < (config.get("steps") or 0) <= status.get("step", 0)
    export = (status.get("summary") or {}).get("export")
    place = path / "export" / Path(str(export)).name  # the folder of the run may have been renamed
    lost = export and not files.is_whole(place) and any(path.glob("ckpt/*/manifest.json"))
    return bool(lost) or early or any(_allowed("grows", *pair) or 0 in pair for pair in pairs)


def _goes_back(path: Path, config: dict, status: dict) -> bool:
    """True where `resume_from` names a step to which the run has not gone back yet, or which a run that has ended is
    to try with other fields."""
    back = config.get("resume_from") or 0
    again = status.get("state") == "done" and bool(_changes(path, config))
    return bool(back) and (status.get("resumed_from") != back or again)


def _resumes(key: str, config: dict) -> str:
    return field_of(key, config.get("job", "")).resume


def _changes(path: Path, config: dict, every: bool = False) -> dict[str, tuple[Any, Any]]:
    """`_drift` of the fields that only `allow_changes` lets a run go on with: those that it names, or `every` one."""
    saved = saved_config(path)
    drift = _drift(saved, config).items() if saved else ()
    named = _named(config)
    strict = {key: pair for key, pair in drift if not _allowed(_resumes(key, config), *pair)}
    return {key: pair for key, pair in strict.items() if every or key in named}


def has_ended(workdir: str | os.PathLike, config: Any) -> bool:
    """True where a run has ended, of a job that is done once, and this config lets nothing go on."""
    path, plain = Path(workdir).expanduser(), files.plain(config)
    status = finished(path)
    return bool(status) and not _grown(path, plain) and not _goes_back(path, plain, status)


def settled(workdir: str | os.PathLike, config: Any, part: bool = False) -> str:
    """The fields that `allow_changes` names in vain, as the run has them, since it has ended and nothing is trained
    with others; of a `part` all that differ, as the run around it has refused what may not, maybe in an earlier
    command. Empty where there are none."""
    path, plain = Path(workdir).expanduser(), files.plain(config)
    changes = _changes(path, plain, every=part)
    return "; ".join(_differ(*item) for item in changes.items()) if has_ended(path, plain) else ""


def _differ(key: str, pair: tuple[Any, Any]) -> str:
    return f"{border.cut(key)} was {border.shown(pair[0])}, now {border.shown(pair[1])}"


def _refuse_absent(path: Path, config: dict) -> None:
    """Raises ConfigError where the checkpoint to go back to is not there, before any work."""
    if not config.get("resume_from") or not _goes_back(path, config, read_status(path)):
        return
    found = sorted(int(file.parent.name) for file in path.glob("ckpt/*/manifest.json") if file.parent.name.isdigit())
    if config["resume_from"] not in found:
        steps = ", ".join(map(str, found)) or "none"
        raise ConfigError(
            f"config.resume_from={config['resume_from']}: {path} has no checkpoint of that step; there are {steps} "
            "(config.keep_checkpoints says how many are kept)"
        )


def _say_changes(path: Path, config: dict) -> None:
    """Prints the fields that were changed by name, which stand in config.json from here on."""
    if files.is_run(path) and (changed := _changes(path, config)):
        parts = (f"{border.cut(key)} {border.shown(old)} -> {border.shown(new)}" for key, (old, new) in changed.items())
        print(f"{path} goes on with another {', '.join(parts)}", flush=True)


def _allowed(change: str, old: Any, new: Any) -> bool:
    """True where a resumed run may have another value of a field that allows this `change` (config/fields.py)."""
    if change == "grows":
        return isinstance(old, int | float) and isinstance(new, int | float) and 0 < old < new
    return change == "free"


def free_folder(path: Path) -> Path:
    """A folder beside a run's that is not there yet."""
    return next(free for number in itertools.count(2) if not (free := path.with_name(f"{path.name}-{number}")).exists())


def refuse_folder(workdir: str | os.PathLike, job: str) -> None:
    """Raises what `Run.open` would raise of a folder that is none, or not a run's of this job; touches nothing."""
    path = Path(workdir).expanduser()
    place = next(part for part in (path, *path.parents) if part.exists() or part.is_symlink())
    if not place.is_dir():
        raise files.unwritable(path, errno.EEXIST if place == path else errno.ENOTDIR)
    if not os.access(place, os.W_OK):
        raise files.unwritable(path, errno.EACCES)
    if place == path:
        _refuse_foreign(path, job)


def refuse_drift(workdir: str | os.PathLike, config: Any) -> None:
    """Raises the ConfigError with which `Run.open` would refuse to go on with a config; touches nothing."""
    path, plain = Path(workdir).expanduser(), files.plain(config)
    if (refusal := _drift_refusal(path, plain)) and not _failed_early(path):
        raise ConfigError(refusal)
    _refuse_absent(path, plain)


def _drift_refusal(path: Path, config: dict) -> str:
    """The refusal of a run to go on with `config`, by field; empty where it may."""
    saved = saved_config(path)
    if not saved:
        if (path / "config.json").exists():
            print(f"{path / 'config.json'} is damaged; the run goes on with the config of this command", flush=True)
        return ""
    drift, named, vain = _drift(saved, config), _named(config), settled(path, config)
    unfit = _unfit(path, drift, config)
    named -= {*unfit}
    refused = [key for key, pair in drift.items() if key not in named and not _allowed(_resumes(key, config), *pair)]
    if not refused:
        back = "go back by resume_from=STEP, " if "resume_from" in config else ""
        how = f"{back}train on by more steps, or start over with fresh=True"
        return f"{path} is finished, and nothing is trained with other fields: {vain}; {how}" if vain else ""
    parts = (_differ(key, drift[key]) for key in refused[:4])
    more = f" and {len(refused) - 4} more" if len(refused) > 4 else ""
    by_name = "" if unfit else _by_name(refused, config)
    free = f"{shlex.quote(str(free_folder(path)))}{by_name}"
    bound = f"; its checkpoints are read with the same {', '.join(unfit)} alone" if unfit else ""
    return (
        f"{path} holds a run with another config: {'; '.join(parts)}{more}{bound}; "
        f"start over with fresh=True, or choose another workdir: --config.workdir={free}"
    )


def _unfit(path: Path, drift: dict[str, tuple[Any, Any]], config: dict) -> list[str]:
    """The fields of a drift with which no checkpoint of the run can be read; none before the first."""
    if not any(path.glob("ckpt/*/manifest.json")):
        return []
    idle = "lora." if config.get("trainable") == "full" else None
    pairs = {key: pair for key, pair in drift.items() if key in _FORM and "(absent)" not in pair}
    changed = [key for key, (old, new) in pairs.items() if _FORM[key](old) != _FORM[key](new)]
    return [key for key in changed if not (idle and key.startswith(idle))]


def _by_name(refused: list[str], config: dict) -> str:
    """The override that lets a run go on with the fields that differ; empty for a job that has no such field."""
    prefix = refused[0].partition(".")[0] + "." if "allow_changes" not in config else ""
    if f"{prefix}allow_changes" not in dict(flatten(config)) or not all(key.startswith(prefix) for key in refused):
        return ""
    names = ",".join(key.removeprefix(prefix) for key in refused[:4])
    return f", or go on with what is named: --config.{prefix}allow_changes={names}"
