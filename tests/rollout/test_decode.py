"""The sampler's programs: rows that make room, what stands in the compiled loop, and devices that do not wait."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax.models import Cache, PromptCache
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout import completion_logprobs, generate
from mmedexpert_jax.rollout.decode import Sampling, advance, empty_state, prefill, programs

COLLECTIVES = re.compile("all-reduce|all-gather|all-to-all|collective|reduce-scatter|send|recv")
# what passes between a program and the host while it runs: queues, callbacks, buffers in the host's memory
HOST = re.compile(r"\b(?:infeed|outfeed|send|recv)(?:-done)?\(|callback|:S\(5\)|\)S\(5\)")
generate_module = sys.modules["mmedexpert_jax.rollout.generate"]
widths_module = sys.modules["mmedexpert_jax.rollout.widths"]


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
def refilled(tiny, batch, limits, lora):
    """(samples of 12 decoded in 4 rows over windows of 3, 6 and 12 tokens, programs of them, all 12 side by side)."""
    sample = lambda width: jax.device_get(  # noqa: E731
        generate(*tiny, batch, key=jax.random.key(5), lora=lora, width=width, **limits)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widths_module, "SMALLEST_CACHE", 16)
        patch.setattr(widths_module, "EIGHTHS_SHORT", (8,))
        side_by_side = sample(12)
    before = len(programs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widths_module, "SMALLEST_CACHE", 3)
        patch.setattr(widths_module, "SHORT", 2)
        return sample(4), programs[before:], side_by_side


def test_rows_that_take_the_next_sample_change_nothing(refilled):
    found, compiled, expected = refilled
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.truncated, expected.truncated)
    decode = [name.removeprefix("decode of ") for name in compiled if name.startswith("decode")]
    assert decode[0] == "4 rows, window 3" and decode[-1] == "1 rows, window 12" and len(decode) <= 6
    assert expected.truncated.any() and len(np.unique(expected.lengths)) > 3


def test_a_second_run_compiles_nothing(refilled, tiny, batch, limits, lora, monkeypatch):
    monkeypatch.setattr(widths_module, "SMALLEST_CACHE", 3)
    monkeypatch.setattr(widths_module, "SHORT", 2)
    before = len(programs)
    again = generate(*tiny, batch, key=jax.random.key(5), lora=lora, width=4, **limits)
    np.testing.assert_array_equal(again.tokens, refilled[0].tokens)
    assert len(programs) == before


def test_under_jit_the_caches_grow_and_the_samples_are_the_same(refilled, tiny, batch, lora, limits, monkeypatch):
    monkeypatch.setattr(widths_module, "SMALLEST_CACHE", 6)
    sample = jax.jit(lambda params, key: generate(tiny[0], params, batch, key=key, lora=lora, **limits))
    before = len(programs)
    found = sample(tiny[1], jax.random.key(5))
    np.testing.assert_array_equal(found.tokens, refilled[2].tokens)
    # the one with a window of 12 tokens is traced already
    assert [name for name in programs[before:] if "decode" in name] == ["decode of 12 rows, window 6"]


def test_log_probabilities_at_temperature_1_are_the_trainers(refilled, tiny, batch, lora):
    found = refilled[0]
    assert len(np.unique(found.lengths)) > 3
    score = jax.jit(lambda lora: completion_logprobs(*tiny, batch, found.tokens, found.lengths, lora=lora))
    np.testing.assert_allclose(score(lora), found.logprobs, atol=1e-4)


def test_widths_and_cache_lengths_are_few():
    assert widths_module.widths(96, 1000) == [96, 72, 48, 24, 12]
    assert widths_module.widths(96, 96) == [96, 36] and widths_module.widths(1, 96) == [1]
    assert widths_module.widths(64, 512, served=True) == [64, 24, 8]
    lengths = [widths_module.cache_length_for(length, 1000) for length in range(1, 1001)]
    assert set(lengths) == {256, 512, 1000} and all(w >= length for length, w in enumerate(lengths, 1))
    assert widths_module.cache_length_for(1, 96) == 96
    assert (
        widths_module.next_cache_length(256, 130, 1000, fewer=True) == 512
    )  # half full, and a program is met in any case
    assert widths_module.next_cache_length(256, 130, 1000, fewer=False) == widths_module.next_cache_length(
        256, 99, 1000, True
    )


def test_a_callback_would_be_seen():
    def asks(x):
        return jax.lax.fori_loop(0, 3, lambda i, x: jax.pure_callback(np.sin, x, x), x)

    assert HOST.search(jax.jit(asks).lower(jnp.ones(3)).compile().as_text())


class ImposedLengths:
    """A model of two tokens that says the second, its stop, when a prompt's sample has the prompt's own length."""

    config = SimpleNamespace(pad_token_id=0)

    def prefill(self, params, batch, lora):
        keys = (jnp.zeros((len(batch.tokens), 1, 1, 1)),)
        return PromptCache(
            (batch.tokens == 1)[..., None], keys, keys, jnp.ones(len(batch.tokens), int), batch.tokens[:, 0]
        )

    def init_cache(self, batch_size, num_samples, length, dtype):
        return Cache(*[(jnp.zeros((batch_size, num_samples, 1, length, 1)),)] * 2)

    def decode(self, params, prefix, cache, tokens, steps, lora, slots, place):
        return (steps + 2 == prefix.next_position[slots.prompt])[:, None], cache

    def unembed(self, params, hidden, lora):
        return hidden * jnp.array([-1.0, 1.0])


@pytest.mark.parametrize(("samples", "mean", "limit"), [(32, None, 64), (128, 48, 256), (64, 300, 1024)])
def test_few_row_steps_are_spent_on_padding(monkeypatch, samples, mean, limit):
    """Rows times steps over the tokens of the samples, in 32 rows."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(1 / mean, samples), limit) if mean else np.full(samples, limit)
    states = []
    monkeypatch.setattr(generate_module, "advance", lambda *a: states.append(advance(*a)) or states[-1])
    model, sampling = ImposedLengths(), Sampling(1, limit, 0, 0.0, 0, 1.0, (1,), ())
    keys = jax.random.split(jax.random.key(0), (samples, 1))
    batch = Batch(jnp.array(lengths[:, None]), *[None] * 7)
    done = generate_module._sample(model, sampling, {}, [batch], None, [keys], 32, 0)
    np.testing.assert_array_equal(done.lengths[:, 0], lengths)
    assert not done.truncated.any()
    assert 0.9 < int(states[-1][0].spent[0]) / lengths.sum() <= 1.15


def test_the_loop_holds_no_copy_of_a_cache(tiny, batch):
    """No copy, transpose or conversion as large as a layer's keys in the compiled decode loop."""
    model, params = tiny
    sampling = Sampling(4, 512, 0, 1.0, 0, 1.0, (5,), ())
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (3, 4)))
    prefix, done = jax.eval_shape(
        lambda params, keys: prefill(model, sampling, None, params, batch, None, keys), params, keys
    )
    state = jax.eval_shape(lambda done: empty_state(model, 12, 512, None, prefix.hidden.dtype, done), done)
    compiled = advance.lower(model, sampling, None, params, None, prefix, keys, state, 0, 0, 512).compile()
    assert not HOST.search(compiled.as_text())
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
from mmedexpert_jax.runtime.mesh import make_mesh, shard_batch

text = TextConfig(4000, 32, 48, 1, 4, 2, mrope_section=(2, 1, 1))
config = ModelConfig(text, VisionConfig("qwen2_vl", 1, 16, 32, 2, 32), True, pad_token_id=0)
model, params = Model(config), init_params(config, 0, "float32")
batch = load_processor("mini")([[{"role": "user", "content": f"Is {n} a score?"}] for n in range(8)])
module = __import__("sys").modules["mmedexpert_jax.rollout.generate"]
lowered = []
sizes = __import__("sys").modules["mmedexpert_jax.rollout.widths"]
sizes.SMALLEST_CACHE, sizes.SHORT, module.PATIENCE, sizes.EIGHTHS = 4, 4, 2, (8, 4)
module.advance = lambda *a: (lowered.append(advance.lower(*a)) if not lowered else None, advance(*a))[1]
sample = lambda params, batch: jax.device_get(
    generate(model, params, batch, key=jax.random.key(3), num_samples=2, max_new_tokens=8, stop_ids=range(600)))
alone = sample(params, batch)
lowered.clear()
mesh = make_mesh()
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
spread = sample(jax.device_put(params, whole), shard_batch(batch, mesh))
np.testing.assert_array_equal(spread.tokens, alone.tokens)
np.testing.assert_allclose(spread.logprobs, alone.logprobs, atol=1e-4)
assert len(np.unique(alone.lengths)) > 2
print(lowered[0].compile().as_text())
"""


def test_eight_devices_sample_as_one_and_talk_only_between_stretches():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
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
    assert not HOST.search(text.read_text())
    buffer = 64 * 2 * 1024 * 128  # elements of a layer's keys
    assert not [found for found in inside if found[0] in ("copy", "transpose", "convert") and found[2] >= buffer]
    assert figures["temporary_megabytes"] < figures["cache_megabytes"] / 4


@pytest.mark.slow
def test_kernels_of_a_step_do_not_grow():
    """Needs the CUDA plugin, as above; docs/benchmarks.md has the goals."""
    pytest.importorskip("jax_cuda12_plugin")
    script = Path(__file__).parents[2] / "benchmarks" / "deviceless.py"
    done = subprocess.run([sys.executable, script, "--kernels"], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["kernels"]
    most = {"h100, rank 0": 10, "h100, rank 16": 14, "a100, rank 0": 10, "a100, rank 16": 14}
    assert found.keys() == most.keys() and all(found[name]["of a layer"] <= most[name] for name in most)
    assert all(of["outside the layers"] <= 13 for of in found.values())


def test_prompts_that_are_read_apart_have_the_same_samples(tiny, batch, processor, prompts, lora, limits):
    """In another order, in shapes of their own, with room for more."""
    expected = jax.device_get(generate(*tiny, batch, key=jax.random.key(5), lora=lora, **limits))
    parts, rows = [processor(prompts[2:]), processor(prompts[:1]), processor(prompts[1:2])], [[2], [0], [1]]
    rows = [np.array(ids, np.int32) for ids in rows]
    options = {"key": jax.random.key(5), "lora": lora, "rows": rows, "prompt_length": 96}
    found = jax.device_get(generate(*tiny, parts, **options, **limits))
    order = [1, 2, 0]
    np.testing.assert_array_equal(found.tokens[order], expected.tokens)
    np.testing.assert_array_equal(found.lengths[order], expected.lengths)
    np.testing.assert_allclose(found.logprobs[order], expected.logprobs, atol=1e-5)
    numbered = jax.device_get(
        generate(*tiny, [parts[1], processor(prompts[1:])], key=jax.random.key(5), lora=lora, **limits)
    )
    np.testing.assert_array_equal(numbered.tokens, expected.tokens)


def test_prompts_far_wider_than_the_rows_are_read_in_turns(tiny, processor, prompts, lora, limits, monkeypatch):
    parts = [processor([prompts[number % 3]]) for number in range(6)]
    sample = lambda width: jax.device_get(  # noqa: E731
        generate(*tiny, parts, key=jax.random.key(5), lora=lora, width=width, **limits)
    )
    expected = sample(24)
    held, run = [], generate_module.Pool.run
    monkeypatch.setattr(generate_module.Pool, "run", lambda pool, **_: held.append(pool) or run(pool, **_))
    found = sample(1)
    assert len(held) > 2 and held[0]._prefix.keys[0].shape[0] == 2  # prompts on the device at a time
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)
