"""A real run in a process of its own, killed with SIGKILL: it ends as one that was never killed, to the last bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.runtime.metrics import is_clock, read

STEPS = 4


@pytest.fixture(scope="module")
def arguments(tiny_checkpoint, tiny_cases):
    """`make(workdir)`: of a GBA run of four steps."""
    fields = {
        "model.path": tiny_checkpoint, "data.path": tiny_cases, "steps": STEPS, "checkpoint_every": 1, "lora.rank": 2,
        "num_samples": 2, "prompts_per_step": 2, "max_new_tokens": 8, "samples_every": 1, "eval.every": 2, "lr": 0.1,
    }  # fmt: skip

    def make(workdir: Path) -> list[str]:
        given = (fields | {"workdir": workdir}).items()
        return ["--config=configs/gba.py", *(f"--config.{name}={value}" for name, value in given)]

    return make


@pytest.fixture(scope="module")
def launch(arguments):
    """Starts the run in a folder and a process of its own; the runs share compiled programs on disk."""

    def start(workdir: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "mmedexpert_jax.launch", *arguments(workdir)]
        environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    return start


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """A run that was never killed, in this process."""
    workdir = tmp_path_factory.mktemp("whole")
    assert main(arguments(workdir)) == 0
    return workdir


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()


def kill_when(process: subprocess.Popen, ready) -> None:
    while not ready():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def logged(workdir: Path) -> int:
    """Last training step that has a whole row."""
    rows = read(workdir) if (workdir / "metrics.jsonl").exists() else []
    return max((row["step"] for row in rows if "reward" in row), default=0)


def outcome(workdir: Path) -> tuple:
    rows = [{name: value for name, value in row.items() if not is_clock(name)} for row in read(workdir)]
    files = [
        *workdir.glob("samples/*/*.jsonl"),
        *workdir.glob("export/rows/*.jsonl"),
        *workdir.glob("export/adapter/*"),
    ]
    return rows, {file.relative_to(workdir): file.read_bytes() for file in sorted(files) if file.is_file()}


def test_killed_between_steps_it_ends_bit_identical(launch, whole, tmp_path):
    kill_when(process := launch(tmp_path), lambda: logged(tmp_path) >= 2)
    assert not list(tmp_path.glob("export/adapter*"))
    finish(launch(tmp_path))
    assert outcome(tmp_path) == outcome(whole)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_again_and_again_at_any_moment(launch, whole, tmp_path, seed):
    rng = random.Random(seed)
    for step in sorted(rng.choices(range(STEPS), k=3)):
        process, pause = launch(tmp_path), rng.uniform(0, 0.5)
        seen = lambda: logged(tmp_path) >= step or process.poll() is not None  # noqa: E731, B023
        while not seen():
            time.sleep(0.002)
        time.sleep(pause)
        process.kill()
        process.communicate()
    finish(launch(tmp_path))
    assert outcome(tmp_path) == outcome(whole)
