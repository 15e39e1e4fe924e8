"""A job in several processes: stopped, killed and resumed in other numbers of them, it ends as in one undisturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmedexpert_jax.launch.ablation_result import MEASURES
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.runtime.files import lock
from mmedexpert_jax.runtime.metrics import is_clock, read

STEPS = 4
REWARD = """
def vowels(case, text, **_):
    return sum(letter in "aeiou" for letter in text) / (1 + len(text))

def picky(case, text, **_):
    if case.id == "train-7":
        raise ValueError("no such thing")
    return 1.0
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """With a module of rewards; every compiled program, however small, is kept for the next run."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "own_rewards_of_processes.py").write_text(REWARD)
    return {
        "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
    }


@pytest.fixture(scope="module")
def arguments(tiny_checkpoint, tiny_cases):
    """`make(workdir, **fields)`: of a GBA run of four steps."""

    def make(workdir: Path, job: str = "gba", **fields) -> list[str]:
        both = {"model.path": tiny_checkpoint, "data.path": tiny_cases, "workdir": workdir}
        training = {"steps": STEPS, "lora.rank": 2, "eval.every": -1, "checkpoint_every": 1, "lr": 0.01}
        gba = {
            "num_samples": 2, "prompts_per_step": 4, "max_new_tokens": 8, "samples_every": 1, "temperature": 0.7,
            "rewards.functions": "own_rewards_of_processes.vowels=2",
        }  # fmt: skip
        dsa = {"specialty": "mixed", "batch_size": 1, "accumulation": 4, "max_new_tokens": 40}
        own = {"gba": training | gba, "dsa": training | dsa, "evaluate": {"max_new_tokens": 8, "batch_size": 4}}
        values = both | own[job] | fields
        return [f"--config=configs/{job}.py", *(f"--config.{name}={value}" for name, value in values.items())]

    return make


@pytest.fixture(scope="module")
def start(environment):
    """`start(processes, arguments)`: the command, running."""

    def run(processes: int, arguments: list[str]) -> subprocess.Popen:
        command = [sys.executable, "-m", "mmedexpert_jax.launch", f"--processes={processes}", *arguments]
        return subprocess.Popen(
            command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return run


@pytest.fixture(scope="module")
def here(environment):
    """`here(arguments)`: the command in this process, alone."""

    def run(arguments: list[str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(environment["PYTHONPATH"].partition(":")[0])
            assert main(arguments) == 0

    return run


@pytest.fixture(scope="module")
def whole(here, arguments, tmp_path_factory) -> Path:
    """A run of one process that was never disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    here(arguments(workdir))
    return workdir


def end(process: subprocess.Popen, code: int) -> str:
    out, errors = process.communicate()
    assert process.returncode == code, errors
    return out + errors


def wait_for(step: int, workdir: Path, process: subprocess.Popen) -> None:
    while not any(row["step"] >= step for row in read(workdir)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def status(workdir: Path) -> dict:
    return json.loads((workdir / "STATUS.json").read_text())


def assert_same_run(got: Path, expected: Path) -> None:
    """The same samples; figures and weights but for the order in which float32 numbers are added up."""
    for row, reference in zip(read(got), read(expected), strict=True):
        assert row.keys() == reference.keys()
        for name, value in reference.items():
            if not is_clock(name):
                assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-5), (row["step"], name)
    files = sorted(file.relative_to(expected) for file in expected.glob("samples/*/*.jsonl"))
    assert files == sorted(file.relative_to(got) for file in got.glob("samples/*/*.jsonl"))
    for file in files:
        rows, references = ([json.loads(line) for line in (run / file).open()] for run in (got, expected))
        assert [row["completion"] for row in rows] == [row["completion"] for row in references]
    weights, references = (load_file(run / "export/adapter/adapter_model.safetensors") for run in (got, expected))
    for name, reference in references.items():
        np.testing.assert_allclose(weights[name], reference, atol=2e-5 * np.abs(reference).max() + 1e-9, err_msg=name)


def assert_same_work(got: Path, expected: Path) -> None:
    """However many processes shared it, the run says what all of them did."""
    cost, reference = (status(run)["cost"] for run in (got, expected))
    assert cost["tokens"] == reference["tokens"]
    assert cost["flops"] == pytest.approx(reference["flops"], rel=1e-6)


def test_stopped_in_two_processes_resumed_in_one(start, here, arguments, whole, tmp_path):
    process = start(2, arguments(tmp_path))
    wait_for(2, tmp_path, process)
    process.send_signal(signal.SIGTERM)
    assert "is saved; the same command resumes" in end(process, 143)
    assert status(tmp_path)["state"] == "interrupted"
    assert not (tmp_path / "export").exists() and (tmp_path / "logs" / "process-1.log").exists()
    here(arguments(tmp_path))
    assert_same_run(tmp_path, whole)
    assert not all(row["reward"] == 0 for row in read(whole)), "there was nothing to learn"


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_no_process_behind(start, arguments, tmp_path):
    process = start(2, arguments(tmp_path, steps=1000))
    wait_for(2, tmp_path, process)
    process.kill()
    process.communicate()  # ends when the last process closes its streams
    assert status(tmp_path)["state"] == "interrupted" and lock(tmp_path / ".lock") is not None


@pytest.mark.slow
def test_killed_and_resumed_across_four_two_and_one(start, here, arguments, tmp_path):
    reference, workdir = tmp_path / "reference", tmp_path / "run"
    here(arguments(reference, **{"eval.every": 2}))
    command = arguments(workdir, **{"eval.every": 2})

    process = start(4, command)
    wait_for(1, workdir, process)
    os.kill(status(workdir)["pid"], signal.SIGKILL)
    assert "was ended by SIGKILL" in end(process, 137)

    process = start(2, command)
    wait_for(2, workdir, process)
    process.send_signal(signal.SIGTERM)
    end(process, 143)
    assert status(workdir)["step"] < STEPS
    here(command)
    assert_same_run(workdir, reference)
    assert "already finished" in end(start(2, command), 0)


@pytest.mark.slow
def test_weights_in_parts_resume_on_another_mesh(start, here, arguments, whole, tmp_path):
    process = start(2, arguments(tmp_path, **{"shard": "full", "mesh.fsdp": 2, "packing": 2}))
    wait_for(2, tmp_path, process)
    process.send_signal(signal.SIGTERM)
    end(process, 143)
    here(arguments(tmp_path))
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"accumulation": 4}, {"accumulation": 3, "eval.every": 2}, {"accumulation": 1}])
def test_an_expert_is_the_same(start, here, arguments, tmp_path, fields):
    """Three micro-batches in two processes: an uneven share. One: the second process has nothing to do."""
    here(arguments(tmp_path / "one", "dsa", **fields))
    end(start(2, arguments(tmp_path / "two", "dsa", **fields)), 0)
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert_same_work(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_an_evaluation_is_the_same(start, here, arguments, tmp_path):
    here(arguments(tmp_path / "one", "evaluate"))
    end(start(2, arguments(tmp_path / "two", "evaluate")), 0)
    assert len(list((tmp_path / "two").glob("answers/*/*/*.jsonl"))) >= 2, "each process answers a share"
    assert status(tmp_path / "two")["summary"] == status(tmp_path / "one")["summary"]
    assert_same_work(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_a_sweep_is_the_same(start, here, tiny_checkpoint, tiny_cases, tmp_path):
    """Experts, merges, a policy and evaluations, one after the other in the same processes.

    Merged plainly: TIES chooses among the equally large entries that one step of AdamW leaves.
    """
    training = {"steps": 1, "lora.rank": 2, "lr": 0.01}
    groups = {
        "dsa": training | {"batch_size": 1, "accumulation": 4, "max_new_tokens": 40},
        "gba": training | {"num_samples": 2, "prompts_per_step": 4, "max_new_tokens": 8, "temperature": 0.7},
        "gba.rewards": {"functions": "own_rewards_of_processes.vowels=2"},
        "evaluate": {"max_new_tokens": 4, "batch_size": 4},
        "diversity": {"questions": 2, "num_samples": 2},
    }
    fields = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
    fields |= {"model.path": tiny_checkpoint, "data.path": tiny_cases, "questions": 4, "seeds": 0, "rows": "Base,Naive"}

    def command(name: str) -> list[str]:
        values = fields | {"workdir": tmp_path / name}
        return ["--config=configs/ablation.py", *(f"--config.{name}={value}" for name, value in values.items())]

    here(command("one"))
    end(start(2, command("two")), 0)
    for name in ("dsa-AM", "gba-s0"):
        (got,), (expected,) = (list((tmp_path / run / "stages").glob(f"{name}-*")) for run in ("two", "one"))
        assert_same_run(got, expected)
    results = [json.loads((tmp_path / run / "export/ablation.json").read_text()) for run in ("two", "one")]
    for got, expected in zip(*(result["rows"] for result in results), strict=True):
        same = MEASURES if got["name"] == "Base" else ("accuracy",)  # rounding of trained weights may flip a sample
        for name in same:
            assert got[name]["mean"] == pytest.approx(expected[name]["mean"], rel=1e-3), (got["name"], name)


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others(start, arguments, tmp_path):
    """A reward function fails on a case that one of two processes scores."""
    fields = {"rewards.functions": "own_rewards_of_processes.picky", "prompts_per_step": 8}
    said = end(start(2, arguments(tmp_path, **fields)), 2)
    assert "reward picky, case train-7 failed" in said and "ValueError: no such thing" in said
    assert "process 0: " in said and "process 1: " in said


def test_the_count_is_checked(capsys):
    assert main(["--config=configs/gba.py", "--processes=none"]) == 2
    assert capsys.readouterr().err == "error: --processes needs a number of processes from 1, e.g. --processes=2\n"


@pytest.mark.parametrize("job", ["ask", "serve", "review"])
def test_what_talks_to_people_takes_one_process(capsys, job):
    assert main([f"--config=configs/{job}.py", "--processes=2"]) == 2
    assert f"the job {job} answers in one process; leave out --processes=2" in capsys.readouterr().err


def test_incomplete_variables_are_refused(capsys, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert main(["--config=configs/gba.py"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID are to be set together" in line
