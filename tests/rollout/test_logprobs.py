"""Recomputed log-probabilities and their gradients against the plain forward pass and the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax.rollout import completion_logprobs
from mmedexpert_jax.rollout.logprobs import packed
from mmedexpert_jax.rollout.sampling import distribution


@pytest.fixture(scope="module")
def weights(completions):
    return np.random.default_rng(0).normal(size=completions.tokens.shape)


@pytest.fixture(scope="module", params=[0, 8], ids=["rows", "packed"])
def results(request, tiny, batch, completions, lora, settings, weights):
    """((logprobs, entropy), gradient) of a weighted sum, in chunks, layers recomputed."""
    packing = packed(completions.lengths, 12, request.param) if request.param else None
    if packing is not None:
        assert packing.index.size < 0.8 * packing.inverse.size

    def loss(lora):
        logprobs, entropy = completion_logprobs(
            *tiny,
            batch,
            completions.tokens,
            completions.lengths,
            lora=lora,
            chunk=60,
            remat=True,
            entropy=True,
            packing=packing,
            **settings,
        )
        return jnp.sum(weights * logprobs), (logprobs, entropy)

    (_, values), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(lora)
    return values, gradient


def test_equal_to_what_the_sampler_reports(completions, results):
    logprobs, entropy = map(np.asarray, results[0])
    np.testing.assert_allclose(logprobs, completions.logprobs, atol=1e-4)
    behind = np.arange(12) >= completions.lengths[..., None]
    assert behind.any() and (entropy[behind] == 0).all() and (entropy[~behind] > 0).any()


@pytest.fixture(scope="module")
def expected(tiny, batch, completions, lora, settings, full_logits, weights):
    """The same from the plain forward pass over whole rows."""
    inside = np.arange(12) < completions.lengths[..., None]
    ban = jnp.isin(jnp.arange(400), jnp.array(settings["ban"]))

    def plain(lora):
        logits = full_logits(*tiny, batch, completions.tokens, lora)
        logprobs = distribution(logits, settings["temperature"], 0, settings["top_p"], ban)
        entropy = -jnp.sum(jnp.exp(logprobs) * jnp.where(jnp.isinf(logprobs), 0, logprobs), -1)
        chosen = jnp.take_along_axis(logprobs, completions.tokens[..., None], -1)[..., 0]
        values = jnp.where(inside, chosen, 0), jnp.where(inside, entropy, 0)
        return jnp.sum(weights * values[0]), values

    (_, values), gradient = jax.jit(jax.value_and_grad(plain, has_aux=True))(lora)
    return values, gradient


def test_values_and_gradient_equal_the_plain_forward(results, expected):
    for value, reference in zip(results[0], expected[0], strict=True):
        np.testing.assert_allclose(value, reference, atol=1e-4)
    for value, reference in zip(jax.tree.leaves(results[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(value, reference, atol=1e-5 * max(1.0, float(jnp.abs(reference).max())))


def test_a_completion_of_one_token(tiny, batch):
    tokens, lengths = np.ones((3, 2, 1), np.int32), np.ones((3, 2), np.int32)
    shape = jax.eval_shape(lambda params: completion_logprobs(tiny[0], params, batch, tokens, lengths), tiny[1])
    assert shape.shape == (3, 2, 1)


def test_logits_of_all_tokens_never_stand_in_memory(tiny, batch):
    tokens, lengths = np.ones((3, 8, 80), np.int32), np.full((3, 8), 80, np.int32)
    score = lambda params: completion_logprobs(tiny[0], params, batch, tokens, lengths, chunk=200).sum()  # noqa: E731
    program = jax.jit(jax.grad(score)).lower(tiny[1]).as_text()
    assert "3x8x80x400x" not in program and "3x8x8x400x" in program
