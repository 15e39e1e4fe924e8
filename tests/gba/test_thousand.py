"""The benchmarks of training run at tiny sizes and end in one line of JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ["--model", "64x1x512", "--dtype", "float32", "--prompt", "80", "--mean", "8", "--limit", "24"]


def figures(name, *arguments):
    command = [sys.executable, str(FOLDER / f"{name}.py"), *TINY, *arguments]
    path = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_gba_thousand():
    sizes = ["--prompts-per-step", "2", "--samples", "4", "--micro", "1", "--capacities", "2"]
    found = figures("gba_thousand", *sizes, "--steps", "3", "--warm", "2")
    assert found["projected_seconds"] > 0 and 2 < found["mean_length"] < 24
    programs = figures("gba_thousand", *sizes, "--memory")["gigabytes"]
    assert programs.keys() == {"prefill", "decode", "gradient"}
    assert all(program["all"] > program["temporary"] > 0 for program in programs.values())


@pytest.mark.slow
def test_dsa_thousand():
    found = figures("dsa_thousand", "--batch", "2", "--accumulation", "2", "--steps", "2", "--warm", "1")
    assert found["projected_seconds"] > 0
    gradient = figures("dsa_thousand", "--batch", "2", "--memory")["gigabytes"]["gradient"]
    assert gradient["all"] > gradient["temporary"] > 0


@pytest.mark.slow
def test_update_agrees_with_its_peer():
    rows = figures("update", "--repeats", "1")["rows"]
    norms = [rows[kind]["grad_norm"] for kind in ("plain", "shared", "packed", "trl")]
    assert norms == pytest.approx([norms[0]] * 4, rel=1e-3)
    assert rows["packed"]["tokens"] < rows["shared"]["tokens"] < rows["plain"]["tokens"]
