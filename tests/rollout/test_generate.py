"""Generation against the plain forward pass, token by token."""

import dataclasses

import jax
import numpy as np
import pytest

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.rollout import generate
from mmedexpert_jax.rollout.sampling import distribution

STOP = tuple(range(300, 330))  # a twelfth of the vocabulary, so that rows end at different times
SETTINGS = {
    "num_samples": 4,
    "max_new_tokens": 12,
    "min_new_tokens": 2,
    "temperature": 0.7,
    "top_p": 0.9,
    "stop_ids": STOP,
    "ban": (398, 399, 7),
}


@pytest.fixture(scope="module")
def completions(tiny, batch):
    with jax.default_matmul_precision("highest"):
        return jax.device_get(generate(*tiny, batch, key=jax.random.key(0), **SETTINGS))


def test_rows_end_where_they_stop(completions):
    tokens, lengths = completions.tokens, completions.lengths
    assert len(np.unique(lengths)) > 2 and completions.truncated.any() and not completions.truncated.all()
    inside = np.arange(12) < lengths[..., None]
    stops = np.isin(tokens, STOP) & inside
    np.testing.assert_array_equal(stops.sum(-1), ~completions.truncated)
    np.testing.assert_array_equal(stops.argmax(-1)[~completions.truncated], lengths[~completions.truncated] - 1)
    assert (lengths[completions.truncated] == 12).all() and lengths.min() > SETTINGS["min_new_tokens"]
    assert (tokens[~inside] == 386).all() and (completions.logprobs[~inside] == 0).all()
    assert (completions.logprobs[inside] < 0).any() and not np.isin(tokens, SETTINGS["ban"]).any()


def test_logprobs_are_those_of_the_distribution_sampled_from(tiny, batch, completions, full_logits):
    ban = np.isin(np.arange(400), SETTINGS["ban"])
    with jax.default_matmul_precision("highest"):
        logits = full_logits(*tiny, batch, completions.tokens)
    early = ban | (np.isin(np.arange(400), STOP) & (np.arange(12)[:, None] < SETTINGS["min_new_tokens"]))
    expected = np.asarray(distribution(logits, 0.7, 0, 0.9, early))
    expected = np.take_along_axis(expected, completions.tokens[..., None], -1)[..., 0]
    inside = np.arange(12) < completions.lengths[..., None]
    np.testing.assert_allclose(completions.logprobs[inside], expected[inside], atol=1e-4)


def test_a_sample_does_not_depend_on_its_batch(tiny, processor, prompts, completions):
    alone = processor([prompts[1]], min_length=64, min_images=2, min_patches=40)
    with jax.default_matmul_precision("highest"):
        settings = SETTINGS | {"num_samples": 2}
        again = generate(*tiny, alone, key=jax.random.key(0), rows=np.array([1]), **settings)
    np.testing.assert_array_equal(again.tokens[0], completions.tokens[1, :2])
    np.testing.assert_allclose(again.logprobs[0], completions.logprobs[1, :2], atol=1e-4)


def test_samples_of_a_group_and_of_two_keys_differ(tiny, batch, completions):
    other = generate(*tiny, batch, key=jax.random.PRNGKey(1), **SETTINGS).tokens
    rows = [tuple(row) for row in np.concatenate([completions.tokens, other]).reshape(-1, 12)]
    assert len(set(rows)) == len(rows)


def test_greedy_follows_the_likeliest_token_with_folded_deltas(tiny, batch, full_logits):
    model, params = tiny
    lora = lora_module.init(jax.random.key(1), params, rank=2, alpha=4)
    lora = jax.tree.map(lambda f: f + 0.05, lora)
    with jax.default_matmul_precision("highest"):
        out = generate(
            model, params, batch, key=jax.random.key(0), num_samples=1, max_new_tokens=12, temperature=0, lora=lora
        )
        logits = np.asarray(full_logits(model, params, batch, np.asarray(out.tokens), lora))
    inside = np.arange(12) < np.asarray(out.lengths)[..., None]
    np.testing.assert_array_equal(np.asarray(out.tokens)[inside], logits.argmax(-1)[inside])


def test_bad_settings_are_refused(tiny, batch):
    for wrong in ({"num_samples": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            generate(*tiny, batch, key=jax.random.key(0), **wrong)


def test_completions_are_a_pytree(completions):
    assert len(jax.tree.leaves(completions)) == len(dataclasses.fields(completions))
