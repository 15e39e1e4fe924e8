"""Quantised bases: the quantisers against formulas by hand and bitsandbytes' table, products, steps, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.models import load_model, load_policy, load_processor
from mmedexpert_jax.models.quantised import (
    NF4,
    Quantised,
    contract_quantised,
    is_quantised,
    quantisable,
    quantise,
    quantise_params,
)
from mmedexpert_jax.models.tree import flatten, stack, unstack

# bitsandbytes/functional.py: get_4bit_type("nf4"), as published
BITSANDBYTES = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def test_the_table_is_that_of_bitsandbytes_and_of_the_paper():
    """Appendix E of QLoRA: quantiles of a normal distribution, eight from 0 up and seven below, over the largest."""
    from scipy.stats import norm

    assert NF4.tolist() == np.array(BITSANDBYTES, np.float32).tolist()
    offset = 0.9677083  # so that the two halves meet at 0
    above, below = norm.ppf(np.linspace(offset, 0.5, 9)[:-1]), -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    values = np.sort([*above, 0.0, *below])
    np.testing.assert_allclose(NF4, values / values.max(), atol=2e-4)


def test_nf4_by_hand():
    """Each value is the nearest of the table times its block's largest magnitude; two to a byte, the first one high."""
    weight = np.random.default_rng(0).standard_normal((6, 128)).astype(np.float32)
    weight[2, 64:] = 0
    found = quantise(jnp.asarray(weight), "nf4")
    assert found.codes.dtype == jnp.uint8 and found.codes.shape == (6, 64) and found.scale.shape == (6, 2)
    for row in range(6):
        for block in range(2):
            values = weight[row, 64 * block : 64 * block + 64]
            scale = np.abs(values).max()
            assert found.scale[row, block] == scale
            nearest = [int(np.abs(NF4 * scale - value).argmin()) for value in values] if scale else [7] * 64
            packed = [16 * high + low for high, low in zip(nearest[::2], nearest[1::2], strict=True)]
            assert found.codes[row, 32 * block : 32 * block + 32].tolist() == packed
            assert found.plain()[row, 64 * block : 64 * block + 64].tolist() == (NF4[nearest] * scale).tolist()


def test_int8_by_hand():
    weight = np.random.default_rng(0).standard_normal((5, 24)).astype(np.float32)
    weight[3] = 0
    found = quantise(jnp.asarray(weight, jnp.bfloat16), "int8")
    rounded = np.asarray(jnp.asarray(weight, jnp.bfloat16), np.float32)
    np.testing.assert_allclose(found.scale, np.abs(rounded).max(axis=1) / 127, rtol=1e-6)
    scale = np.asarray(found.scale)[:, None]
    assert np.array_equal(found.codes, np.round(rounded / np.where(scale, scale, 1)))
    assert found.codes.dtype == jnp.int8 and np.abs(found.codes).max() == 127
    assert found.plain().dtype == jnp.bfloat16
    assert np.array_equal(found.plain(), jnp.asarray(np.asarray(found.codes, np.float32) * scale, jnp.bfloat16))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_products_and_gradients_are_those_of_the_whole_weight(kind):
    rng = np.random.default_rng(0)
    weight = quantise(jnp.asarray(rng.standard_normal((3, 8, 64)), jnp.float32), kind)
    assert weight.shape == (3, 8, 64) and weight.plain().shape == (3, 8, 64)
    one = jax.tree.map(lambda part: part[1], weight)
    assert np.array_equal(one.plain(), weight.plain()[1])
    x = jnp.asarray(rng.standard_normal((5, 64)), jnp.float32)

    def loss(x, weight):
        y = contract_quantised(x, weight) if isinstance(weight, Quantised) else x @ weight.T
        return jnp.sum(jnp.sin(y))

    value, slope = jax.jit(jax.value_and_grad(loss))(x, one)
    expected, expected_slope = jax.value_and_grad(loss)(x, one.plain())
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4, atol=1e-5)


def test_a_whole_weight_is_not_kept_for_the_backward_pass():
    """Between forward and backward pass stand the codes, not the weights of all layers."""
    weights = [quantise(jnp.ones((256, 256), jnp.float32), "nf4") for _ in range(8)]
    x = jnp.ones((2, 256), jnp.float32)
    _, saved = jax.vjp(lambda x: functools.reduce(lambda x, w: jnp.tanh(contract_quantised(x, w)), weights, x), x)
    floats = [leaf for leaf in jax.tree.leaves(saved) if leaf.dtype == jnp.float32]
    assert max(leaf.size for leaf in floats) < 256 * 256


@pytest.fixture(scope="module")
def mini():
    """(model, parameters in float32, a batch of text and image)."""
    from mmedexpert_jax.data import load_cases, prompts

    model, params = load_model("mini")
    cases = load_cases("mini", "test")
    chosen = [next(case for case in cases if case.images), next(case for case in cases if not case.images)]
    batch = load_processor("mini")([prompts.conversation(case) for case in chosen])
    return model, params, batch


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.05), ("nf4", 0.4)])
def test_a_quantised_model_answers_nearly_as_the_plain_one(kind, bound, mini):
    """Logits' root mean square distance over their deviation; the same one by one, stacked, and from load_policy."""
    model, params, batch = mini
    small = quantise_params(params, kind)
    names = quantisable(params, kind)
    assert names and not any("embed" in name or "lm_head" in name for name in names)
    assert is_quantised(small) and not is_quantised(params)
    valid = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    expected = np.asarray(model.logits(params, batch))[valid]
    found = np.asarray(model.logits(small, batch))[valid]
    distance = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    assert 0 < distance < bound

    @jax.jit
    def whole_weights(small):
        return jax.tree.map(
            lambda leaf: leaf.plain() if isinstance(leaf, Quantised) else leaf,
            small,
            is_leaf=lambda node: isinstance(node, Quantised),
        )

    whole = whole_weights(small)
    np.testing.assert_allclose(found, np.asarray(model.logits(whole, batch))[valid], rtol=1e-3, atol=1e-3)
    scanned = np.asarray(model.logits(stack(small), batch))[valid]
    np.testing.assert_allclose(scanned, found, rtol=1e-3, atol=1e-3)
    for name, leaf in flatten(unstack(stack(small))).items():
        assert all(map(np.array_equal, jax.tree.leaves(leaf), jax.tree.leaves(flatten(small)[name]))), name
    _, loaded, _ = load_policy("mini", quantize=kind)
    same = jax.tree.map(np.array_equal, loaded, small)
    assert all(jax.tree.leaves(same))
    deltas = lora_module.init(jax.random.key(0), small, rank=2)
    plain = lora_module.init(jax.random.key(0), params, rank=2)
    assert jax.tree.all(jax.tree.map(np.array_equal, deltas, plain))
