"""Rollouts and updates on simulated devices, and in two processes, against one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("devices_script.py")


def start(model, cases, folder, name, devices, *extra):
    """devices_script.py in a process with so many simulated devices."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, str(SCRIPT), str(model), str(cases), str(folder / f"{name}.npz"), *extra]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def runs_of(process, folder, name):
    """What each of the process's meshes gave."""
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return [
        dict(np.load(folder / f"{name}-{i}.npz")) | {"stats": json.loads(line)}
        for i, line in enumerate(line for line in out.splitlines() if line.startswith("[{"))  # Gloo says something, too
    ]


def assert_same_run(got, expected):
    np.testing.assert_array_equal(got["tokens"], expected["tokens"])
    np.testing.assert_allclose(got["logprobs"], expected["logprobs"], atol=1e-5)
    for name in expected.keys() - {"tokens", "logprobs", "stats"}:
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(got[name], expected[name], atol=2e-5 * scale + 1e-9, err_msg=name)
    for step, reference in zip(got["stats"], expected["stats"], strict=True):
        assert step.keys() == reference.keys()
        for name, value in reference.items():
            assert step[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_any_number_of_devices_gives_the_run_of_one(tiny_model_dir, cases_file, tmp_path):
    layouts = ("1,1,none", "2,1,none", "8,1,none")
    one, *others = runs_of(start(tiny_model_dir, cases_file, tmp_path, "all", 8, *layouts), tmp_path, "all")
    assert len(others) == 2
    for run in others:
        assert_same_run(run, one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", ["4,1,none", "2,2,full", "1,8,optimizer", "2,4,full", "8,1,none,full", "2,2,full,full"]
)
def test_more_layouts(tiny_model_dir, cases_file, tmp_path, layout):
    one = "1,1,none,full" if layout.count(",") == 3 else "1,1,none"
    got = runs_of(start(tiny_model_dir, cases_file, tmp_path, "all", 8, one, layout), tmp_path, "all")
    assert_same_run(got[1], got[0])


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(tiny_model_dir, cases_file, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    pair = [
        start(tiny_model_dir, cases_file, tmp_path, f"process{i}", 1, "2,1,none", f"--process={i},2,{address}")
        for i in range(2)
    ]
    both = [runs_of(process, tmp_path, f"process{i}")[0] for i, process in enumerate(pair)]
    one = runs_of(start(tiny_model_dir, cases_file, tmp_path, "one", 1, "1,1,none"), tmp_path, "one")[0]
    for run in both:
        assert_same_run(run, one)
