"""Rollouts and updates on simulated devices, and in two processes, against one device."""

import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax import lora
from mmedexpert_jax.data import load_cases
from mmedexpert_jax.gba.batches import Batches
from mmedexpert_jax.gba.guidelines import Guidelines
from mmedexpert_jax.models import load_model, load_processor

SCRIPT = Path(__file__).with_name("devices_script.py")


def start(model, cases, folder, name, devices, *extra):
    """devices_script.py in a process with so many simulated devices."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
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


def assert_same_run(got, expected, rounded=False):
    """With `rounded`, sums inside a layer are taken in another order: all weights are trained, or weights are split."""
    np.testing.assert_array_equal(got["tokens"], expected["tokens"])
    np.testing.assert_allclose(got["logprobs"], expected["logprobs"], atol=1e-5)
    for name in expected.keys() - {"tokens", "logprobs", "stats"}:
        tolerance = 2e-5 * np.abs(expected[name]).max()
        if name.startswith("w"):
            tolerance = tolerance + 1e-9 + (adams_share(expected[f"v{name[1:]}"], expected["lr"]) if rounded else 0)
        assert np.all(np.abs(got[name] - expected[name]) <= tolerance), name
    for step, reference in zip(got["stats"], expected["stats"], strict=True):
        assert step.keys() == reference.keys()
        for name, value in reference.items():
            assert step[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def adams_share(second, lr):
    """How far Adam carries the rounding of a summed gradient, 2e-6 of its leaf's greatest, into each weight.

    Adam divides by the root of the second moment. The softmax does not see what all keys share, so where rotary
    positions hardly turn a key, the gradient of its bias is a thousandth of the leaf's, and its rounding a thousand
    times larger beside it. The moments themselves are compared in every entry.
    """
    steps = np.arange(1, len(second) + 1).reshape(-1, *[1] * (second.ndim - 1))
    root = np.sqrt(second / (1 - 0.999**steps))
    rounding = 2e-6 * root.max(axis=tuple(range(1, root.ndim)), keepdims=True)
    return (lr * rounding / (root + 1e-8)).sum(axis=0)


def test_any_number_of_devices_gives_the_run_of_one(tiny_model_dir, cases_file, tmp_path):
    layouts = ("1x1x1,none", "8x1x1,none", "2x2x2,full")
    one, *others = runs_of(start(tiny_model_dir, cases_file, tmp_path, "all", 8, *layouts), tmp_path, "all")
    assert len(others) == 2
    for run, layout in zip(others, layouts[1:], strict=True):
        assert_same_run(run, one, rounded="x1," not in layout)


def test_images_of_unlike_sizes_are_dealt_over_devices(tiny_model_dir, tmp_path):
    """They stand side by side, each device's in a strip of its own."""
    rng, rows = np.random.default_rng(0), []
    for i, sizes in enumerate([[], [84, 28], [56], [], [140, 28, 56], [112], [28], [84]]):
        names = [f"{i}-{place}.png" for place in range(len(sizes))]
        for name, size in zip(names, sizes, strict=True):
            Image.fromarray(rng.integers(0, 255, (size, 56, 3), np.uint8)).save(tmp_path / name)
        row = {"id": f"case-{i}", "question": "A rate of 32." + " Why?" * i, "options": ["1", "2"], "answer": "A"}
        rows.append(row | {"specialty": "AM", "task": "score", "images": names})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file, layouts = tmp_path / "train.jsonl", ("1x1x1,none", "2x2x2,full")
    one, split = runs_of(start(tiny_model_dir, file, tmp_path, "all", 8, *layouts), tmp_path, "all")
    assert_same_run(split, one, rounded=True)
    processor, guidelines = load_processor(tiny_model_dir), Guidelines(load_cases(str(file), "train"), 0, 8, 2)
    for shards in (1, 4):  # as in the script
        batches = Batches(processor, guidelines, 2, 8 // shards, 512, shards)
        ((_, batch),) = batches.prompt_batches(batches.encoded(0)[1])
        assert len(batch.patches) == shards and batch.patch_places.size


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        *("2x1x1,none", "4x1x1,none", "1x8x1,optimizer", "1x8x1,full", "1x4x2,full", "8x1x1,none,full"),
        *("1x8x1,full,full", "1x4x2,full,full", "2x2x2,full,full", "2x2x1,optimizer,full"),
    ],
)
def test_more_layouts(tiny_model_dir, cases_file, tmp_path, layout):
    full = layout.count(",") == 2
    one = "1x1x1,none,full" if full else "1x1x1,none"
    got = runs_of(start(tiny_model_dir, cases_file, tmp_path, "all", 8, one, layout), tmp_path, "all")
    assert_same_run(got[1], got[0], rounded="full" in layout or "x1," not in layout)


@pytest.mark.slow
def test_scanned_layers_in_parts_give_the_run_of_one_device(tiny_model_dir, cases_file, tmp_path):
    layouts = ("1x1x1,none", "1x8x1,full", "1x4x2,full")
    one, *others = runs_of(
        start(tiny_model_dir, cases_file, tmp_path, "all", 8, *layouts, "--scanned"), tmp_path, "all"
    )
    for run in others:
        assert_same_run(run, one, rounded=True)


@pytest.mark.slow
def test_an_update_passes_on_sums_of_what_is_trained_and_features_of_images(tiny_model_dir, cases_file, tmp_path):
    program, err = start(tiny_model_dir, cases_file, tmp_path, "all", 8, "8x1x1,none", "--program").communicate()
    passed = re.findall(r"= (.*) (all-\w+|reduce-scatter|collective-\w+|send|recv)(?:-start)?\(", program)
    by_kind = {kind: [types for types, one in passed if one == kind] for kind in {kind for _, kind in passed}}
    # Images are dealt over the devices: their features go to all, and the gradient of these back to who made them.
    assert by_kind.keys() == {"all-reduce", "all-gather", "reduce-scatter"}, err[-3000:]
    model, params = load_model(str(tiny_model_dir))
    for kind, images in (("all-gather", 8), ("reduce-scatter", 1)):
        features = {re.match(r"f32\[([\d,]*)\]", types)[1] for types in by_kind[kind]}
        assert features == {f"{images},4,{model.config.text.hidden_size}"}
    shapes = re.findall(r"f32\[([\d,]*)\]", " ".join(by_kind["all-reduce"]))
    sizes = [math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes]
    tree = lora.init(jax.random.key(0), params, 2)
    assert sum(size for size in sizes if size > 1) == sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert sizes.count(1) < 20  # the loss and its statistics


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(tiny_model_dir, cases_file, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    pair = [
        start(tiny_model_dir, cases_file, tmp_path, f"process{i}", 1, "2x1x1,none", f"--process={i},2,{address}")
        for i in range(2)
    ]
    both = [runs_of(process, tmp_path, f"process{i}")[0] for i, process in enumerate(pair)]
    one = runs_of(start(tiny_model_dir, cases_file, tmp_path, "one", 1, "1x1x1,none"), tmp_path, "one")[0]
    for run in both:
        assert_same_run(run, one)
