"""Qwen2-VL-2B at its real size, with random weights: memory of loading, and one forward against transformers.

About 4.5 GB of disk and, one process after the other, 10 GB of memory. Each step is a process of its own, so that its
peak is its own; it prints one line of JSON.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

PEAK = """
import threading, time

class Peak:
    "The largest anonymous resident memory of this process since the start, in bytes (RssAnon, every 5 ms)."

    def __init__(self):
        self.bytes, self.running = 0, True
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        while self.running:
            with open("/proc/self/status") as status:
                line = next(line for line in status if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, 1024 * int(line.split()[1]))
            time.sleep(0.005)
"""
WRITE = """
import json, sys, time
import jax
from mmedexpert_jax.models import load_model, save_pretrained

began = time.perf_counter()
model, params = load_model("random:qwen2_vl_2b", dtype="bfloat16")
seconds = time.perf_counter() - began
save_pretrained(sys.argv[1], model, params)
count = sum(leaf.size for leaf in jax.tree.leaves(params))
print(json.dumps({"parameters": count, "seconds": seconds}))
"""
LOAD = (
    PEAK
    + """
import json, sys
import jax
from mmedexpert_jax.models import load_model

jax.devices()
peak = Peak()
before = time.perf_counter()
params = jax.block_until_ready(load_model(sys.argv[1], dtype="bfloat16")[1])
leaves = jax.tree.leaves(params)
assert {leaf.dtype.name for leaf in leaves} == {"bfloat16"}
seconds = time.perf_counter() - before
print(json.dumps({"peak": peak.bytes, "checkpoint": sum(leaf.nbytes for leaf in leaves), "seconds": seconds}))
"""
)
OURS = """
import json, sys
import jax, numpy as np
from mmedexpert_jax.models import load_model
from mmedexpert_jax.processing.batch import Batch

jax.config.update("jax_default_matmul_precision", "highest")
folder = sys.argv[1]
model, params = load_model(folder, dtype="float32")
fields = dict(np.load(folder + "/batch.npz"))
np.save(folder + "/ours.npy", np.asarray(model.logits(params, Batch(**fields))))
print(json.dumps({}))
"""
THEIRS = """
import json, sys
import numpy as np, torch, transformers

folder = sys.argv[1]
model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
inputs = {name: torch.tensor(value) for name, value in np.load(folder + "/inputs.npz").items()}
with torch.inference_mode():
    np.save(folder + "/theirs.npy", model(**inputs).logits.numpy())
print(json.dumps({}))
"""


def run(code: str, folder) -> dict:
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def checkpoint_2b(tmp_path_factory):
    """A directory with the random 2B checkpoint in bfloat16, in the layout of the hub's files."""
    folder = tmp_path_factory.mktemp("full_size") / "model"
    written = run(WRITE, folder)
    print(f"\nrandom:qwen2_vl_2b initialised in {written['seconds']:.1f} s")
    assert written["parameters"] == 2_208_985_600
    yield folder
    for file in folder.glob("*.safetensors"):
        file.unlink()


def test_loading_bfloat16_takes_less_than_a_quarter_more_than_the_checkpoint(checkpoint_2b):
    measured = run(LOAD, checkpoint_2b)
    ratio = measured["peak"] / measured["checkpoint"]
    print(f"\npeak anonymous memory {ratio:.3f} x the checkpoint, loaded in {measured['seconds']:.1f} s")
    assert measured["checkpoint"] == 2 * 2_208_985_600
    assert ratio < 1.25


def test_one_forward_in_float32_equals_transformers(checkpoint_2b):
    """An image of 8 x 12 patches within text; weights are read as bfloat16 and computed in float32 in both."""
    inputs, batch = prompt(8, 12)
    np.savez(checkpoint_2b / "inputs.npz", **inputs)
    np.savez(checkpoint_2b / "batch.npz", **batch)
    run(OURS, checkpoint_2b)
    run(THEIRS, checkpoint_2b)
    ours, theirs = np.load(checkpoint_2b / "ours.npy"), np.load(checkpoint_2b / "theirs.npy")
    gap = np.abs(ours - theirs).max() / theirs.std()
    print(f"\nlargest difference of logits {gap:.2e} of their standard deviation")
    assert gap < 1e-4
    assert np.array_equal(ours.argmax(-1), theirs.argmax(-1))


def prompt(rows: int, columns: int) -> tuple[dict, dict]:
    """transformers' keyword arguments and our batch's fields."""
    from mmedexpert_jax.processing import mrope_positions, patch_positions

    draw = np.random.default_rng(0)
    merged = rows * columns // 4
    tokens = np.array(
        [*draw.integers(0, 150_000, 9), 151652, *[151655] * merged, 151653, *draw.integers(0, 150_000, 20)]
    )
    pads = tokens == 151655
    pixels = draw.standard_normal((rows * columns, 1176)).astype(np.float32)
    inputs = {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, len(tokens)), np.int64),
        "mm_token_type_ids": pads[None].astype(np.int32),
        "image_grid_thw": np.array([[1, rows, columns]]),
        "pixel_values": pixels,
    }
    positions, following = mrope_positions(tokens, 151655, [(rows, columns)])
    batch = {
        "tokens": tokens[None].astype(np.int32),
        "lengths": np.array([len(tokens)], np.int32),
        "positions": positions[None],
        "next_position": np.array([following], np.int32),
        "vision_index": np.where(pads, np.cumsum(pads) - 1, -1)[None].astype(np.int32),
        "patches": pixels[None],
        "patch_positions": patch_positions(rows, columns)[None],
        "patch_counts": np.array([rows * columns], np.int32),
    }
    return inputs, batch
