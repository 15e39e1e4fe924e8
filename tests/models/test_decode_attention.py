"""The kernels of a decode step on a GPU, run by JAX itself, against the plain path: alone, and in whole steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.models import (
    Cache,
    Model,
    ModelConfig,
    PromptCache,
    Slots,
    attention,
    decode_attention,
    delta_kernel,
    fused,
    kernel_trial,
    layers,
    ragged_attention,
)
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.network import _for_gpus, join_factors
from mmedexpert_jax.models.random import init_params
from mmedexpert_jax.models.rotary import rotate

TEXT = TextConfig(400, 32, 48, 2, 4, 2, mrope_section=(8, 4, 4), head_width=32)
FAMILIES = {
    "qwen2_vl": {},
    "qwen3_vl": {"bias": False, "qk_norm": True, "mrope_interleaved": True},
    "gemma3_text": {
        "bias": False, "qk_norm": True, "mrope_section": (16, 0, 0), "activation": "gelu_pytorch_tanh",
        "query_width": 24.0, "window": 13, "windowed": (True, False), "window_theta": 1e4,
    },
}  # fmt: skip

KERNELS = (
    (decode_attention, "attend_ring"),
    (delta_kernel, "add_delta"),
    (ragged_attention, "attend_ragged"),
)

TRIED = {"attend_ring": 3, "attend_ragged": 2, "add_delta": 0}  # sizes that a trial takes


def plain(
    queries, prompt_keys, prompt_values, lengths, keys, values, own_keys, own_values, rope, slots, steps, place, window
):
    """As `Model.decode` has it."""
    queries, keys = rotate(queries, *rope), rotate(keys, *rope)
    size = own_keys.shape[2]
    age = (place - jnp.arange(size)) % size
    seen = age <= steps[:, None, None, None]
    seen = seen if window is None else seen & (age < window)
    own_keys = own_keys.at[:, :, place % size].set(keys[:, :, 0])
    own_values = own_values.at[:, :, place % size].set(values[:, :, 0])
    prompt = prompt_keys, prompt_values, lengths
    mixed = attention.attend_shared(queries, *prompt, own_keys, own_values, seen, slots, steps=steps, window=window)
    return mixed, own_keys, own_values


def normed(x, weight, eps, shift):
    x32 = x.astype(jnp.float32)
    root = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * root * (weight.astype(jnp.float32) + shift)).astype(x.dtype)


def drawn_slots(rng, prompts, samples):
    """Some of the samples, in rows in any order."""
    rows = rng.permutation(prompts * samples)[: rng.integers(1, prompts * samples + 1)]
    prompt, sample = np.divmod(rows, samples)
    row = np.zeros((prompts, samples), int)
    row[prompt, sample] = np.arange(len(rows))
    return Slots(*map(jnp.asarray, (prompt, sample, row)))


@given(
    prompts=st.integers(1, 3),
    samples=st.integers(1, 3),
    key_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 6, 7, 16, 17]),
    width=st.sampled_from([16, 64, 256]),
    room=st.integers(16, 150),
    ring=st.integers(16, 150),
    window=st.none() | st.integers(1, 200),
    shift=st.none() | st.sampled_from([0.0, 1.0]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=8, deadline=None)
def test_equals_the_plain_path(prompts, samples, key_heads, group, width, room, ring, window, shift, dtype, seed):
    """Heads are normalised where there is a `shift` of the norms' weights."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    slots = drawn_slots(rng, prompts, samples)
    rows = len(slots.prompt)
    place, lengths = rng.integers(0, 3 * ring), rng.integers(1, room + 1, prompts)
    steps = jnp.asarray(rng.integers(0, min(place + 1, ring), rows))
    angles = jnp.asarray(rng.uniform(0, 6, (rows, 1, 1, width // 2)))
    inputs = (
        draw(rows, key_heads * group, 1, width),
        *(draw(prompts, key_heads, room, width) for _ in range(2)),
        jnp.asarray(lengths),
        *(draw(rows, key_heads, 1, width) for _ in range(2)),
        *(draw(rows, key_heads, ring, width) for _ in range(2)),
        (jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)),
    )
    norms = layers.HeadNorms() if shift is None else layers.HeadNorms((draw(width), draw(width)), 1e-3, shift, 0.5)

    def expect(queries, *others):
        others = list(others)
        if norms.weights:
            queries = normed(queries, norms.weights[0], norms.eps, shift)
            others[3] = normed(others[3], norms.weights[1], norms.eps, shift)
        return plain(queries * norms.scale, *others, slots, steps, jnp.int32(place), window)

    with jax.default_matmul_precision("highest"):
        expected = jax.jit(expect)(*inputs)
        attend = jax.jit(functools.partial(decode_attention.attend_ring, window=window, interpret=True))
        found = attend(*inputs, slots.prompt, steps, jnp.int32(place), norms=norms)
    for one, other in zip(found, expected, strict=True):
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        # a product of bfloat16 that is turned may be rounded once or twice
        np.testing.assert_allclose(one, other, atol=(2e-6 if dtype == "float32" else 2e-2) * np.abs(other).max())


@pytest.mark.parametrize(
    ("samples", "key_heads", "group", "room", "ring", "place", "window", "dtype"),
    [
        (3, 2, 6, 300, 40, 95, None, "float32"),
        (2, 1, 1, 20, 300, 280, 290, "float32"),
        (1, 2, 7, 530, 260, 300, 30, "bfloat16"),
    ],
)
def test_the_ragged_kernel_of_tpus_equals_the_plain_path(samples, key_heads, group, room, ring, place, window, dtype):
    prompts = 3
    rng, width = np.random.default_rng(0), 128
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    slots = drawn_slots(rng, prompts, samples)
    rows, lengths = len(slots.prompt), jnp.array([room, 1, room // 2])
    steps, still = jnp.asarray(rng.integers(0, min(place + 1, ring), rows)), jnp.zeros((rows, 1, 1, width // 2), dtype)
    queries, prompt = draw(rows, key_heads * group, 1, width), [draw(prompts, key_heads, room, width) for _ in range(2)]
    new, own = ([draw(rows, key_heads, size, width) for _ in range(2)] for size in (1, ring))
    with jax.default_matmul_precision("highest"):
        one = lambda: plain(queries, *prompt, lengths, *new, *own, (still + 1, still), slots, steps, place, window)  # noqa: E731
        expected, *own = jax.jit(one)()
        attend = jax.jit(functools.partial(ragged_attention.attend_ragged, window=window, interpret=True))
        found = attend(queries, *prompt, lengths, *own, slots.prompt, steps, jnp.int32(place))
    one, other = np.asarray(found, np.float32), np.asarray(expected, np.float32)
    np.testing.assert_allclose(one, other, atol=(2e-6 if dtype == "float32" else 2e-2) * np.abs(other).max())


def test_the_ring_kernel_lowers_for_a_gpu_that_is_not_here():
    """The 2B's heads; its twin for TPUs is in `test_tpu_lowering.py`."""
    array = lambda *shape: jax.ShapeDtypeStruct(shape, "bfloat16")  # noqa: E731
    number = lambda *shape: jax.ShapeDtypeStruct(shape, "int32")  # noqa: E731
    rows, prompts, new, own = 32, [array(4, 2, 1024, 128)] * 2, [array(32, 2, 1, 128)] * 2, [array(32, 2, 512, 128)] * 2
    rope, last = (array(rows, 1, 1, 64),) * 2, (number(rows), number(rows), number())
    target = "__gpu$xla.gpu.triton"
    program = export.export(
        jax.jit(lambda *a: decode_attention.attend_ring(*a)),
        platforms=["cuda"],
        disabled_checks=[export.DisabledSafetyCheck.custom_call(target)],
    )
    text = program(array(rows, 12, 1, 128), *prompts, number(4), *new, *own, rope, *last).mlir_module()
    assert text.count(target) == 1


@given(
    rows=st.integers(1, 150),
    sizes=st.sampled_from([(5,), (48, 48), (130, 20, 20), (300, 300)]),
    rank=st.integers(1, 40),
    gated=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=8, deadline=None)
def test_a_delta_is_its_two_products(rows, sizes, rank, gated, seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    sizes = (sizes[0],) * 2 if gated else sizes
    x, own = draw(rows, 24), draw(rows, sum(sizes))
    pairs = [{"a": draw(rank, 24), "b": draw(size, rank)} for size in sizes]
    gate = jax.nn.silu if gated else None

    @jax.jit
    def plainly(x, own, pairs):
        expected = own + 0.5 * jnp.concatenate([x @ p["a"].T @ p["b"].T for p in pairs], axis=-1)
        return jax.nn.silu(expected[:, : sizes[0]]) * expected[:, sizes[0] :] if gated else expected

    @jax.jit
    def by_kernel(x, own, pairs):
        fused_pair = _for_gpus(pairs)
        assert fused_pair["a"].dtype == jnp.bfloat16 and not len(fused_pair["a"]) % 64
        joined = jnp.concatenate([own, x @ fused_pair["a"].T.astype(jnp.float32)], axis=-1)
        return delta_kernel.add_delta(joined, fused_pair["b"], 0.5, jnp.float32, gate, interpret=True)

    with jax.default_matmul_precision("highest"):
        expected, found = plainly(x, own, pairs), by_kernel(x, own, pairs)
    np.testing.assert_allclose(found, expected, atol=3e-4 * np.abs(expected).max())  # 16 bits of A


@pytest.mark.parametrize(("device", "rank"), [("gpu", 0), ("gpu", 3), ("tpu", 0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_a_family_are_the_same(monkeypatch, family, device, rank):
    text = TextConfig(**(vars(TEXT) | FAMILIES[family]))
    vision = (
        VisionConfig(family, 0, 0, 0, 1, 0, image_size=1)
        if "gemma" in family
        else VisionConfig(family, 1, 16, 32, 2, 32)
    )
    config = ModelConfig(text, vision, True, pad_token_id=0)
    model, params, rng = Model(config), init_params(config, 0, "float32"), np.random.default_rng(0)
    slots, lora = drawn_slots(rng, 3, 4), None
    if rank:
        lora = lora_module.init(jax.random.key(1), params, rank, 2 * rank, "text")
        lora = jax.tree.map(lambda f: f + 0.05 * jax.random.normal(jax.random.key(2), f.shape), lora)
    draw = lambda *shape: tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))  # noqa: E731
    lengths, rows = jnp.array([20, 7, 18]), len(slots.prompt)
    prefix = PromptCache(jnp.zeros((3, 1, 32)), draw(3, 2, 20, 32), draw(3, 2, 20, 32), lengths, lengths + 2)
    cache = Cache(draw(rows, 2, 16, 32), draw(rows, 2, 16, 32))

    def run(lora):
        """Three steps, of which the last goes round the ring's end."""

        def step(kept, number):
            steps = jnp.arange(rows) % 7 + number
            hidden, kept = model.decode(params, prefix, kept, steps + 5, steps, lora, slots, 14 + number)
            return kept, hidden

        return jax.lax.scan(step, cache, jnp.arange(3))

    with jax.default_matmul_precision("highest"):
        expected = jax.jit(run)(join_factors(config, lora))
        for module, name in KERNELS:
            monkeypatch.setattr(module, name, functools.partial(getattr(module, name), interpret=True))
        monkeypatch.setattr(fused, "takes_rings" if device == "gpu" else "takes_ragged", lambda *_: True)
        found = jax.jit(lambda lora: run(lora))(join_factors(config, lora, fuse=device == "gpu"))
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, atol=(3e-4 if rank else 1e-5) * np.abs(other).max())


@pytest.fixture
def interpreted(monkeypatch):
    for module, name in KERNELS:
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), interpret=True))
    kernel_trial._passes_here.cache_clear()
    yield
    kernel_trial._passes_here.cache_clear()


@pytest.mark.parametrize(("module", "name"), KERNELS)
@pytest.mark.parametrize(("group", "width", "normed"), [(6, 128, 0), (1, 256, 1)])
def test_a_kernel_that_is_right_passes_its_trial_while_a_program_is_traced(
    interpreted, module, name, group, width, normed
):
    passed, sizes = [], (group, width, normed)[: TRIED[name]]
    jax.jit(lambda x: passed.append(kernel_trial.passes(name, *sizes)) or x)(jnp.ones(3))
    assert passed == [True]


@pytest.mark.parametrize(("module", "name"), KERNELS)
@pytest.mark.parametrize("fault", ["wrong", "nan", "raises"])
def test_a_kernel_that_is_wrong_is_named_once_and_not_used(interpreted, monkeypatch, module, name, fault):
    right = getattr(module, name)

    def broken(*arguments, **options):
        if fault == "raises":
            raise RuntimeError("ptxas:\n no kernel image for this device")
        factor = jnp.nan if fault == "nan" else 1.1
        return jax.tree.map(lambda x: (x * factor).astype(x.dtype), right(*arguments, **options))

    monkeypatch.setattr(module, name, broken)
    sizes = (2, 128, 0)[: TRIED[name]]
    why = "RuntimeError: ptxas: no kernel image" if fault == "raises" else "it gives other values"
    with pytest.warns(UserWarning, match=f"the kernel {name} is not used on this cpu: {why}") as said:
        assert not kernel_trial.passes(name, *sizes) and not kernel_trial.passes(name, *sizes)
    assert len(said) == 1


def test_a_kernel_is_trusted_for_a_device_that_is_not_here_and_tried_here_all_the_same(interpreted, monkeypatch):
    monkeypatch.setattr(decode_attention, "attend_ring", None)
    with fused.traced_for("9.0"):
        assert kernel_trial.passes("attend_ring", 6, 128, 0)
    with pytest.warns(UserWarning, match="attend_ring is not used"):
        assert not kernel_trial.passes("attend_ring", 6, 128, 0)
