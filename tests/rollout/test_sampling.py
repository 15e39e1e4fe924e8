"""Sampling against transformers' logits processors and the distributions themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmedexpert_jax.rollout.sampling import distribution, draw, sample, sample_each


# 80 million random numbers a call: here LLVM's optimizer, which conftest.py turns off, takes less than it saves
@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 2})
def draws_of(keys, logits):
    return draw(keys, jnp.broadcast_to(logits[:, None], (len(logits), len(keys))))[0]


VOCABULARY = 300


def logits(rows=16, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (rows, VOCABULARY)).astype(np.float32)


def ban_mask(*ids):
    return jnp.zeros(VOCABULARY, bool).at[jnp.array(ids)].set(True)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "banned"),
    [
        (1.0, 0, 1.0, []),
        (0.7, 0, 1.0, [3, 5]),
        (1.0, 7, 1.0, []),
        (1.0, 1000, 1.0, []),
        (1.0, 0, 0.9, []),
        (1.0, 0, 1e-6, []),
        (0.7, 20, 0.9, [3, 5, 299]),
    ],
)
def test_distribution_is_that_of_transformers(temperature, top_k, top_p, banned):
    processors = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if banned:
        processors.insert(0, SuppressTokensLogitsProcessor(banned))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    expected = torch.log_softmax(processors(torch.zeros(16, 1, dtype=torch.long), torch.tensor(logits())), -1).numpy()
    ban = ban_mask(*banned) if banned else None
    ours = jax.jit(distribution, static_argnums=(1, 2, 3))
    found = np.asarray(ours(logits(), temperature, top_k, top_p, ban))
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_top_k_keeps_ties_as_transformers_does():
    tied = np.array([[0.0, 2.0, 1.0, 2.0, 1.0, -1.0]], np.float32)
    expected = TopKLogitsWarper(3)(torch.zeros(1, 1, dtype=torch.long), torch.tensor(tied)).numpy()
    np.testing.assert_array_equal(np.isinf(distribution(tied, top_k=3)), np.isinf(expected))


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 0.9), (1.3, 5, 1.0)])
def test_draws_follow_the_distribution(temperature, top_k, top_p):
    scores = np.random.default_rng(1).normal(0, 1.5, 400).astype(np.float32)  # four blocks of the search
    logprobs = distribution(scores, temperature, top_k, top_p, jnp.zeros(400, bool).at[3].set(True))
    draws = 200_000
    tokens = np.asarray(draws_of(jax.random.split(jax.random.key(2), draws), logprobs))
    counts, expected = np.bincount(tokens, minlength=400), np.exp(np.asarray(logprobs, np.float64)) * draws
    assert counts[expected == 0].sum() == 0
    rare = (expected < 5) & (expected > 0)
    pool = lambda values: np.append(values[expected >= 5], values[rare].sum())  # noqa: E731
    counts, expected = pool(counts), pool(expected)
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert stats.chisquare(counts, expected * draws / expected.sum()).pvalue > 0.01


def test_tokens_of_probability_zero_are_never_drawn():
    logprobs = jnp.full(1000, -jnp.inf).at[jnp.array([200, 777])].set(jnp.log(jnp.array([1e-7, 1 - 1e-7])))
    tokens = draws_of(jax.random.split(jax.random.key(0), 20_000), logprobs)
    assert set(np.unique(tokens)) <= {200, 777}


def test_sample_reports_the_log_probability_it_drew_with():
    keys = jax.random.split(jax.random.key(0), (4, 4))
    scores = logits().reshape(4, 4, -1)
    drawn = jax.jit(lambda keys, scores: sample(keys, scores, 0.7, 20, 0.9, ban_mask(0)))
    tokens, logprobs = drawn(keys, scores)
    expected = np.take_along_axis(np.asarray(distribution(scores, 0.7, 20, 0.9, ban_mask(0))), tokens[..., None], -1)
    np.testing.assert_allclose(logprobs, expected[..., 0], atol=1e-5)
    one = drawn(keys[2, 1], scores[2, 1])
    assert one[0] == tokens[2, 1]  # a row's draw is its own
    np.testing.assert_allclose(one[1], logprobs[2, 1], rtol=1e-6)
    shared = drawn(keys, scores[:, :1])
    repeated = drawn(keys, np.repeat(scores[:, :1], 4, 1))
    np.testing.assert_array_equal(shared[0], repeated[0])


def test_greedy_takes_the_likeliest_token_allowed():
    best = int(logits(1).argmax())
    token, logprob = sample(jax.random.key(0), logits(1), 0.0, ban=ban_mask(best))
    expected = np.where(np.arange(VOCABULARY) == best, -np.inf, logits(1))
    assert token[0] == expected.argmax()
    np.testing.assert_allclose(logprob, jax.nn.log_softmax(expected)[0, token], rtol=1e-6)


def test_no_sort_without_truncation():
    program = jax.jit(lambda key, scores: sample(key, scores, 0.7)).lower(jax.random.key(0), logits(1)[0]).as_text()
    assert "stablehlo.sort" not in program


def test_settings_of_each_row_draw_as_the_same_settings_for_all():
    keys = jax.random.split(jax.random.key(0), 5)
    logits = jnp.array(np.random.default_rng(0).normal(0, 2, (5, 300)), jnp.float32)
    asked = [(0.0, 0, 1.0), (0.7, 0, 0.9), (1.0, 5, 1.0), (1.3, 20, 0.5), (1.0, 0, 1.0)]
    temperature, top_k, top_p = (jnp.array(values) for values in zip(*asked, strict=True))
    ban = jnp.arange(300) == 7
    tokens, logprobs = jax.jit(sample_each)(keys, logits, temperature, top_k, top_p, ban)
    for row, settings in enumerate(asked):
        token, logprob = sample(keys[row : row + 1], logits[row : row + 1], *settings, ban)
        assert int(tokens[row]) == int(token[0])
        np.testing.assert_allclose(logprobs[row], logprob[0], atol=1e-5)
