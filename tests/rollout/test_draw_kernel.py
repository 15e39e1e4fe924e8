"""The draw's kernels for GPUs, run by JAX itself, against the plain path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax.models import fused, kernel_trial
from mmedexpert_jax.rollout import draw_kernel
from mmedexpert_jax.rollout.plain_draw import draw_plainly
from mmedexpert_jax.rollout.sampling import draw


@settings(max_examples=6, deadline=None)
@given(rows=st.integers(1, 9), size=st.integers(1, 5000), seed=st.integers(0, 99), banned=st.floats(0, 0.9))
def test_tokens_and_their_probabilities_are_those_of_the_plain_path(rows, size, seed, banned):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (rows, size)).astype(np.float32)
    logits[rng.random((rows, size)) < banned] = -np.inf
    logits[:, : size // 2 // draw_kernel.BLOCK * draw_kernel.BLOCK] = -np.inf  # whole blocks of probability zero
    logits[:, -1] = 0
    uniform = rng.random((2, rows)).astype(np.float32)
    tokens, logprobs = draw_kernel.draw_tokens(uniform, logits, interpret=True)
    expected, their = jax.jit(draw_plainly)(uniform, logits.T)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(logprobs, their, atol=1e-5)


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(fused, "takes_draws", lambda: True)
    right = functools.partial(draw_kernel.draw_tokens, interpret=True)
    monkeypatch.setattr(draw_kernel, "draw_tokens", right)
    kernel_trial._passes_here.cache_clear()
    yield right
    kernel_trial._passes_here.cache_clear()


def test_a_sampler_on_a_gpu_draws_by_the_kernels_what_others_draw(on_a_gpu):
    keys = jax.random.split(jax.random.key(0), 40)
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, (1000, 40)), jnp.float32)
    program = jax.jit(draw)
    assert "draw_tokens" in str(jax.make_jaxpr(draw)(keys, logits))
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)), out_axes=1)(keys)
    np.testing.assert_array_equal(program(keys, logits)[0], jax.jit(draw_plainly)(uniform, logits)[0])


@pytest.mark.parametrize("fault", [0, 1])
def test_a_kernel_that_draws_otherwise_is_named_and_not_used(on_a_gpu, monkeypatch, fault):
    def broken(uniform, logits):
        right = list(on_a_gpu(uniform, logits))
        right[fault] = right[fault] + 1
        return right

    monkeypatch.setattr(draw_kernel, "draw_tokens", broken)
    with pytest.warns(UserWarning, match="the kernel draw_tokens is not used on this cpu: it gives other values"):
        assert not kernel_trial.passes("draw_tokens", 3000, trial=draw_kernel.trial)
