"""The sampler's programs: rows that make room, what stands in the compiled loop, and devices that do not wait."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mmedexpert_jax.rollout import completion_logprobs, generate
from mmedexpert_jax.rollout.decode import Sampling, advance, begin, programs

COLLECTIVES = re.compile("all-reduce|all-gather|all-to-all|collective|reduce-scatter|send|recv")
generate_module = sys.modules["mmedexpert_jax.rollout.generate"]


def loop_instructions(text: str) -> list[tuple[str, str, int]]:
    """(operation, type, elements) of what the while loops of a compiled program reach, fusions included."""
    bodies = {m[1]: m[2] for m in re.finditer(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S)}
    reached = {name for body in bodies.values() for name in re.findall(r"(?:body|condition)=%?([\w.\-]+)", body)}
    waiting = list(reached)
    while waiting:
        called = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", bodies[waiting.pop()])
        waiting += [name for name in called if name not in reached and name in bodies]
        reached.update(called)
    found = []
    for name in reached & bodies.keys():
        for dtype, shape, operation in re.findall(r" = \(?([a-z0-9]+)\[([\d,]*)\]\S* ([\w\-]+)\(", bodies[name]):
            found.append((operation, f"{dtype}[{shape}]", int(np.prod([int(n) for n in shape.split(",") if n]))))
    return found


@pytest.fixture(scope="module")
def stretched(tiny, batch, limits, lora):
    """(samples decoded in stretches of 4 tokens, programs of them, the same in one) at temperature 1."""
    sample = lambda: jax.device_get(  # noqa: E731
        generate(*tiny, batch, key=jax.random.key(5), lora=lora, **limits)
    )
    one = sample()
    before = len(programs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_module, "STRETCH", 4)
        return sample(), programs[before:], one


def test_rows_that_ended_make_room_and_change_nothing(stretched):
    found, compiled, expected = stretched
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.truncated, expected.truncated)
    assert compiled[0] == "prefill of 3 rows, window 4" and len(compiled) == 4
    rows = [int(name.split()[2]) for name in compiled[1:]]
    assert rows[0] == 12 and rows[-1] < 12


def test_under_jit_the_caches_grow_and_the_samples_are_the_same(stretched, tiny, batch, lora, limits, monkeypatch):
    monkeypatch.setattr(generate_module, "STRETCH", 6)
    sample = jax.jit(lambda params, key: generate(tiny[0], params, batch, key=key, lora=lora, **limits))
    before = len(programs)
    found = sample(tiny[1], jax.random.key(5))
    np.testing.assert_array_equal(found.tokens, stretched[2].tokens)
    # the one with a window of 12 tokens is traced already
    assert programs[before:] == ["prefill of 3 rows, window 6", "decode of 12 rows, window 6"]


def test_log_probabilities_at_temperature_1_are_the_trainers(stretched, tiny, batch, lora):
    found = stretched[0]
    assert len(np.unique(found.lengths)) > 3
    score = jax.jit(lambda lora: completion_logprobs(*tiny, batch, found.tokens, found.lengths, lora=lora))
    np.testing.assert_allclose(score(lora), found.logprobs, atol=1e-4)


def test_widths_and_windows_are_few():
    widths = {generate_module._width(left, 96) for left in range(97)}
    assert widths == {96, 48, 24, 12, 6} and all(generate_module._width(n, 96) >= n for n in range(97))
    ends = generate_module._ends(1000)
    assert ends[:2] == [128, 256] and ends[-1] == 1000
    windows = [generate_module._window(end, 1000) for end in ends]
    assert set(windows) == {128, 256, 512, 1000} and all(w >= end for w, end in zip(windows, ends, strict=True))
    assert generate_module._ends(96) == [96] and generate_module._window(96, 96) == 96


def test_the_loop_holds_no_copy_of_a_cache(tiny, batch):
    """No copy, transpose or conversion as large as a layer's keys in the compiled decode loop."""
    model, params = tiny
    sampling = Sampling(4, 512, 0, 1.0, 0, 1.0, (5,), ())
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (3, 4)))
    prefix, state = jax.eval_shape(
        lambda params, keys: begin(model, sampling, 512, None, params, batch, None, keys), params, keys
    )
    compiled = advance.lower(model, sampling, None, params, None, prefix, keys, state, 1, 512).compile()
    inside = loop_instructions(compiled.as_text())
    buffer = state.cache.keys[0]
    assert any(operation == "dynamic-update-slice" and size == buffer.size for operation, _, size in inside)
    copies = [found for found in inside if found[0] in ("copy", "transpose", "convert") and found[2] >= buffer.size]
    assert not copies
    cache_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.cache))
    assert compiled.memory_analysis().temp_size_in_bytes < cache_bytes / 2


EIGHT = """
import jax, numpy as np
from mmedexpert_jax.models import Model, ModelConfig, load_processor
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.random import init_params
from mmedexpert_jax.rollout import generate
from mmedexpert_jax.rollout.decode import advance
from mmedexpert_jax.runtime.mesh import make_mesh, replicate, shard_batch

text = TextConfig(4000, 32, 48, 1, 4, 2, mrope_section=(2, 1, 1))
config = ModelConfig(text, VisionConfig("qwen2_vl", 1, 16, 32, 2, 32), True, pad_token_id=0)
model, params = Model(config), init_params(config, 0, "float32")
batch = load_processor("mini")([[{"role": "user", "content": f"Is {n} a score?"}] for n in range(8)])
module = __import__("sys").modules["mmedexpert_jax.rollout.generate"]
lowered = []
module.STRETCH = 4
module.advance = lambda *a: (lowered.append(advance.lower(*a)) if not lowered else None, advance(*a))[1]
sample = lambda params, batch: jax.device_get(
    generate(model, params, batch, key=jax.random.key(3), num_samples=2, max_new_tokens=8, stop_ids=range(600)))
alone = sample(params, batch)
lowered.clear()
mesh = make_mesh()
spread = sample(replicate(params, mesh), shard_batch(batch, mesh))
np.testing.assert_array_equal(spread.tokens, alone.tokens)
np.testing.assert_allclose(spread.logprobs, alone.logprobs, atol=1e-4)
assert len(np.unique(alone.lengths)) > 2
print(lowered[0].compile().as_text())
"""


def test_eight_devices_sample_as_one_and_talk_only_between_stretches():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", EIGHT], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert COLLECTIVES.search(done.stdout)  # the count between stretches
    assert not [found for found in loop_instructions(done.stdout) if COLLECTIVES.search(found[0])]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_the_loop_compiled_for_h100s(tmp_path, devices):
    """Needs the CUDA plugin, not a GPU: pip install "jax-cuda12-plugin[with-cuda]" of the installed JAX's version."""
    pytest.importorskip("jax_cuda12_plugin")
    script = Path(__file__).parents[2] / "benchmarks" / "deviceless.py"
    text = tmp_path / "program.hlo"
    command = [sys.executable, script, "--layers", "2", "--devices", str(devices), "--text", text]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    inside = loop_instructions(text.read_text())
    assert any(operation == "dynamic-update-slice" for operation, _, _ in inside)
    assert not [found for found in inside if COLLECTIVES.search(found[0])]
    buffer = 64 * 2 * 1024 * 128  # elements of a layer's keys
    assert not [found for found in inside if found[0] in ("copy", "transpose", "convert") and found[2] >= buffer]
    assert figures["temporary_megabytes"] < figures["cache_megabytes"] / 4
