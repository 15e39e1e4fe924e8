"""The run directory: resume, drift, locks, bad disks."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from mmedexpert_jax.errors import ConfigError, Interrupted, ResourceError
from mmedexpert_jax.runtime import Run, files, metrics, processes, signals
from mmedexpert_jax.runtime.run import refuse_folder
from mmedexpert_jax.runtime.signals import SIGNALS

CONFIG = {"seed": 0, "lr": 1e-3, "steps": 8, "lora": {"rank": 4}, "mesh": (1, 2), "samples_every": 2}


def status(folder: Path) -> dict:
    return json.loads((folder / "STATUS.json").read_text())


@contextlib.contextmanager
def disk_of(size: int):
    """No file may grow beyond `size` bytes: a real failed write, without a disk to fill."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def train(run: Run, steps: int, stop_after: int | None = None) -> dict:
    """A stand-in for a trainer: log, table, save every third step; stops without a word after `stop_after`."""
    state = {"weights": np.zeros((3, 4), np.float32), "step": 0}
    latest = run.checkpoints.latest()
    run.rewind(-1 if latest is None else latest)
    if latest is not None:
        state = run.checkpoints.restore(latest, state)
    for step in range(state["step"] + 1, steps + 1):
        noise = np.random.default_rng([0, step]).normal(size=(3, 4)).astype(np.float32)
        state = {"weights": state["weights"] * np.float32(0.9) + noise, "step": step}
        run.log(step, {"loss": state["weights"].sum(), "step_time": os.times().elapsed, "kl": float("nan")})
        if step % 2 == 0:
            run.table("completions", step, [{"completion": f"<think>{noise[0, 0]}</think>"}])
            run.log(step, {"eval/accuracy": state["weights"].mean()})
        if stop_after == step:
            return state
        if step % 3 == 0:
            run.checkpoints.save(step, state)
    return state


def seen(folder: Path) -> tuple:
    """What may not depend on interruptions: metrics less clocks, and samples."""
    rows = [{k: v for k, v in row.items() if not metrics.is_clock(k)} for row in metrics.read(folder)]
    return rows, {path.name: path.read_text() for path in folder.glob("samples/*/*")}


def test_a_stopped_run_ends_as_one_that_never_stopped(tmp_path):
    with Run.open(tmp_path / "whole", CONFIG) as run:
        whole = train(run, 8)
    for stop in range(1, 9):
        folder = tmp_path / str(stop)
        for stop_after in (stop, None):
            with Run.open(folder, CONFIG) as run:
                state = train(run, 8, stop_after)
        assert state["weights"].tobytes() == whole["weights"].tobytes()
        assert seen(folder) == seen(tmp_path / "whole")


def test_layout_and_states(tmp_path):
    folder = tmp_path / "runs" / "first"
    with Run.open(folder, ConfigDict(CONFIG)) as run:
        assert status(folder)["state"] == "running"
        assert not run.done and not run.resumed
        run.log(1, {"reward": 0.5})
        run.finish({"accuracy": 0.7})
    assert {path.name for path in folder.iterdir()} >= {"config.json", "cmd.txt", "env.json", "metrics.jsonl", "tb"}
    assert json.loads((folder / "config.json").read_text()) == CONFIG | {"mesh": [1, 2]}
    assert json.loads((folder / "env.json").read_text())["versions"]["numpy"] == np.__version__
    assert (status(folder)["state"], status(folder)["step"]) == ("done", 1)
    with Run.open(folder, CONFIG) as run:
        assert run.done and run.resumed and run.summary == {"accuracy": 0.7}
    assert status(folder)["state"] == "done"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ValueError("broken"), "failed"),
        (Interrupted("saved", 15), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (None, "interrupted"),
    ],
)
def test_status_after_an_exception(tmp_path, error, state):
    with contextlib.suppress(type(error) if error else ()), Run.open(tmp_path, CONFIG):
        if error:
            raise error
    assert status(tmp_path)["state"] == state
    assert status(tmp_path).get("error") == (f"{type(error).__name__}: {error}" if error else None)
    with Run.open(tmp_path, CONFIG):
        assert status(tmp_path)["state"] == "running" and "error" not in status(tmp_path)


def test_config_drift_is_refused_by_name(tmp_path):
    Run.open(tmp_path, CONFIG).close()
    changed = CONFIG | {"lr": 3e-6, "lora": {"rank": 8}, "new": 1}
    with pytest.raises(ConfigError, match=r"lr was 0\.001, now 3e-06; lora\.rank was 4, now 8; new was .*fresh=True"):
        Run.open(tmp_path, changed)
    assert json.loads((tmp_path / "config.json").read_text())["lr"] == 1e-3
    Run.open(tmp_path, CONFIG | {"samples_every": 5}).close()
    Run.open(tmp_path, CONFIG | {"lr": 3e-6}, fresh=True).close()


def test_steps_may_grow_but_not_shrink(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        run.finish({})
    with Run.open(tmp_path, CONFIG | {"steps": 20}) as run:
        assert not run.done
    assert status(tmp_path)["state"] == "interrupted"
    with pytest.raises(ConfigError, match="steps was 20, now 10"):
        Run.open(tmp_path, CONFIG | {"steps": 10})
    with Run.open(tmp_path, CONFIG | {"steps": 20}) as run:
        run.finish({})
    with pytest.raises(ConfigError, match="is finished, and nothing is trained with other fields: steps was 20, now 1"):
        Run.open(tmp_path, CONFIG | {"steps": 10, "allow_changes": ("steps",)})


def test_fresh_deletes_the_run_and_nothing_else(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        run.log(1, {"loss": 1.0})
        run.table("completions", 1, [{}])
    (tmp_path / "table.md").write_text("of the run")
    (tmp_path / "notes.txt").write_text("mine")
    with Run.open(tmp_path, CONFIG, fresh=True) as run:
        assert run.metrics() == []
    assert not [name for name in ("samples", "tb", "table.md") if (tmp_path / name).exists()]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_directory_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / "samples").mkdir()
    with pytest.raises(ConfigError, match="no run directory but holds samples"):
        Run.open(tmp_path, CONFIG, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def test_a_second_process_is_refused_and_a_killed_one_is_not_waited_for(tmp_path):
    script = f"""
import time
from mmedexpert_jax.runtime import Run
run = Run.open({str(tmp_path)!r}, {CONFIG!r})
print("open", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(ResourceError, match=f"in use by process {process.pid}"):
            Run.open(tmp_path, CONFIG, fresh=True)
        assert status(tmp_path)["state"] == "running"
        process.send_signal(signal.SIGKILL)
    with Run.open(tmp_path, CONFIG) as run:
        assert run.resumed
        with pytest.raises(ResourceError, match=f"in use by process {os.getpid()}"):
            Run.open(tmp_path, CONFIG)


def test_workdir_that_is_a_file_or_empty(tmp_path):
    (tmp_path / "file").write_text("text")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ResourceError, match=r"^cannot write .*; choose a workdir that is a directory") as caught:
            Run.open(workdir, CONFIG)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "text"
    with pytest.raises(ConfigError, match="workdir is empty"):
        Run.open("", CONFIG)


@pytest.mark.parametrize("made", ["file", "file/run", "link", "loop", "theirs", "new/run"])
def test_a_plan_refuses_the_folders_that_a_run_refuses(tmp_path, made):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").touch()
    before, said = sorted(tmp_path.rglob("*")), []
    for attempt in (lambda: refuse_folder(tmp_path / made, "gba"), lambda: Run.open(tmp_path / made, CONFIG).close()):
        try:
            attempt()
            said.append("")
        except (ConfigError, ResourceError) as error:
            said.append(str(error).partition("; choose another workdir")[0])
        if len(said) == 1:
            assert sorted(tmp_path.rglob("*")) == before
    assert said[0] == said[1] and bool(said[0]) == (made != "new/run")


def test_the_status_is_written_though_the_clock_jumps_back(tmp_path, monkeypatch):
    """Summer ends, or a machine learns the time: the wall clock goes back, and ten seconds pass all the same."""
    with Run.open(tmp_path, CONFIG) as run:
        began = time.monotonic()
        monkeypatch.setattr("mmedexpert_jax.runtime.run.time.monotonic", lambda: began + 60)
        monkeypatch.setattr(
            "mmedexpert_jax.runtime.run.datetime", SimpleNamespace(now=lambda zone: datetime(1999, 1, 1))
        )
        run.log(7, {"loss": 1.0})
        assert json.loads((tmp_path / "STATUS.json").read_text())["step"] == 7


def test_read_only_directory(tmp_path):
    """Root may write anywhere, so the attempt is made in a process that gives that right up."""
    script = f"""
import os, sys
from mmedexpert_jax.errors import ResourceError
from mmedexpert_jax.runtime import Run, environment
os.chdir({str(tmp_path)!r})
os.chmod(".", 0o555)
if os.geteuid() == 0:
    os.setuid(65534)
try:
    Run.open(".", {{}})
except ResourceError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    tmp_path.chmod(0o755)
    assert done.stdout == "cannot write .: permission denied; choose a workdir that this user may write\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads after a failed save
def test_full_disk_leaves_nothing_half_written(tmp_path):
    tree = {"weights": np.random.default_rng(0).normal(size=(100_000,)).astype(np.float32)}
    with Run.open(tmp_path, CONFIG) as run:
        run.log(1, {"loss": 1.0})
        run.checkpoints.save(1, tree)
        before = (tmp_path / "metrics.jsonl").read_bytes()
        for write in (
            lambda: run.log(2, {"text": "x" * 10_000}),
            lambda: run.table("completions", 2, [{"text": "x" * 10_000}]),
            lambda: run.checkpoints.save(2, tree),
            lambda: run.finish({"text": "x" * 10_000}),
        ):
            with disk_of(8000), pytest.raises(ResourceError, match=r"^cannot write .*: file too large; ") as caught:
                write()
            assert "\n" not in str(caught.value)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
        assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("000002.jsonl"))
        assert run.checkpoints.latest() == 1
        run.log(2, {"loss": 0.5})
        run.checkpoints.save(2, tree)
    assert [row["loss"] for row in metrics.read(tmp_path)] == [1.0, 0.5]


def test_a_full_disk_met_by_the_job_itself_is_one_line_too(tmp_path):
    wanted = r"^cannot write .*export: file too large; .* resume$"

    def export(run):
        try:
            (run.path / "export").write_bytes(bytes(9000))
        except OSError as error:  # safetensors and pyarrow name the file, open files do not
            raise OSError(error.errno, error.strerror, str(run.path / "export")) from None

    with pytest.raises(ResourceError, match=wanted), disk_of(8000), Run.open(tmp_path, CONFIG) as run:
        export(run)
    assert status(tmp_path)["state"] == "failed"


def test_what_takes_longer_than_the_grace_is_interrupted_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 0.05)
    with pytest.raises(Interrupted, match="the same command resumes") as caught, Run.open(tmp_path, CONFIG):
        os.kill(os.getpid(), signal.SIGTERM)
        with SIGNALS.held():  # an update in place, a save
            time.sleep(0.2)
        with contextlib.suppress(Exception):  # as of a loop that bears with a bad row
            time.sleep(60)
    assert caught.value.exit_code == 143 and status(tmp_path)["state"] == "interrupted"
    with Run.open(tmp_path, CONFIG) as run:
        os.kill(os.getpid(), signal.SIGTERM)
        assert run.interrupted() == signal.SIGTERM  # and acts on it, so that it is left alone
        time.sleep(0.2)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_terminal_that_closes_is_heeded_once_and_under_nohup_not_at_all(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with Run.open(tmp_path, CONFIG) as run:
            for _ in range(2):  # the shell's and the terminal's
                os.kill(os.getpid(), signal.SIGHUP)
                assert run.interrupted() == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Run.open(tmp_path, CONFIG) as run:
            os.kill(os.getpid(), signal.SIGHUP)
            assert run.interrupted() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_set_a_flag_and_a_second_one_aborts(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Run.open(tmp_path / "outer", CONFIG) as outer:
        with Run.open(tmp_path / "inner", CONFIG) as inner:
            assert inner.interrupted() is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.interrupted() == signal.SIGTERM
        assert outer.interrupted() == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with Run.open(tmp_path / "outer", CONFIG) as again:
        assert again.interrupted() is None


def test_a_signal_is_heeded_though_nobody_reads_along(tmp_path):
    """As `tee` ends on the Ctrl-C that the run hears too."""
    script = f"""
import os, signal
from mmedexpert_jax.runtime import Run
with Run.open({str(tmp_path / "run")!r}, {CONFIG!r}) as run:
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(run.interrupted())
"""
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as gone:
        done = subprocess.run([sys.executable, "-c", script], stderr=gone, check=False)
    assert done.returncode == signal.SIGINT


def test_a_process_that_does_not_write_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "is_writer", lambda: False)
    with Run.open(tmp_path / "run", CONFIG) as run:
        for step in (1, 2):
            run.log(step, {"loss": 1 / step})
            run.table("completions", step, [{"completion": "yes"}])
        run.rewind(1)
        assert [row["loss"] for row in run.metrics()] == [1.0]
        run.finish({"loss": 1.0})
    assert run.done and not list(tmp_path.iterdir())


def test_a_plan_refuses_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # who is root may write anywhere
    with pytest.raises(ResourceError, match="run"):
        refuse_folder(tmp_path / "run", "gba")


@pytest.mark.parametrize(
    ("job", "prefix", "later", "changed"),
    [
        ("gba", "", {"terms": [], "filter": {"online": False}}, {"terms": ["own.py:f"]}),
        ("pipeline", "gba.", {"terms": [], "filter": {"online": False}}, {"terms": ["own.py:f"]}),
        ("pipeline", "evaluate.", {"judge": {"effort": "", "max_tokens": 2048}}, {"judge": {"max_tokens": 9}}),
    ],
)
def test_a_run_from_before_a_field_came_goes_on_under_its_default(tmp_path, job, prefix, later, changed):
    def config(fields):
        group = {"limit": 3, **fields}
        return {"job": job, **({prefix.rstrip("."): group} if prefix else group)}

    with contextlib.suppress(Interrupted), Run.open(tmp_path, config({})):
        raise Interrupted("cut", 15)
    with Run.open(tmp_path, config(later)):
        pass
    with pytest.raises(
        ConfigError, match=rf"{prefix}(terms was \[\], now \['own.py:f'\]|judge.max_tokens was 2048, now 9)"
    ):
        Run.open(tmp_path, config(changed))


@pytest.mark.parametrize("gone", ["export", "export/adapter", "export/adapter/adapter_model.safetensors"])
def test_a_finished_run_exports_again_what_is_gone(tmp_path, gone):
    with Run.open(tmp_path / "first", CONFIG) as run:
        with files.replacing(run.path / "export" / "adapter") as new:
            for name in ("adapter_model.safetensors", "adapter_config.json"):
                (new / name).touch()
        run.checkpoints.save(8, {"a": np.ones(2)})
        run.finish({"export": str(run.path / "export" / "adapter")})
    (tmp_path / "first").rename(tmp_path / "run")
    with Run.open(tmp_path / "run", CONFIG) as run:
        assert run.done
    place = tmp_path / "run" / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with Run.open(tmp_path / "run", CONFIG) as run:
        assert not run.done and run.last_checkpoint() == 8


def test_epochs_that_steps_overrule_finish_no_run_anew(tmp_path):
    """docs/dsa.md: `steps` overrules them."""
    for steps, done in ((8, True), (0, False)):
        config = CONFIG | {"steps": steps, "epochs": 1.0}
        with Run.open(tmp_path / str(steps), config) as run:
            run.finish({})
        with Run.open(tmp_path / str(steps), config | {"epochs": 7.0}) as run:
            assert run.done == done


def test_a_branch_is_a_run_of_its_own_for_trackers(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        for step in (1, 2):
            run.checkpoints.save(step, {"a": np.ones(2)})
    (tmp_path / "tracker_id").write_text("first")
    Run.open(tmp_path, CONFIG).close()
    assert (tmp_path / "tracker_id").exists()
    with Run.open(tmp_path, CONFIG | {"resume_from": 1}) as run:
        assert run.last_checkpoint() == 1 and not (tmp_path / "tracker_id").exists()
