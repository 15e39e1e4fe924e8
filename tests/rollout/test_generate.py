"""Generation against the plain forward pass, token by token."""

import jax
import numpy as np
import pytest

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.rollout import generate


def test_rows_end_where_they_stop(completions, limits, settings):
    tokens, lengths = completions.tokens, completions.lengths
    assert len(np.unique(lengths)) > 2 and completions.truncated.any() and not completions.truncated.all()
    inside = np.arange(12) < lengths[..., None]
    stops = np.isin(tokens, limits["stop_ids"]) & inside
    np.testing.assert_array_equal(stops.sum(-1), ~completions.truncated)
    np.testing.assert_array_equal(stops.argmax(-1)[~completions.truncated], lengths[~completions.truncated] - 1)
    assert (lengths[completions.truncated] == 12).all()
    assert (tokens[~inside] == 386).all() and (completions.logprobs[~inside] == 0).all()
    assert not np.isin(tokens, settings["ban"]).any()


def test_a_sample_depends_on_its_row_and_key_alone(
    tiny, processor, prompts, batch, lora, limits, settings, completions
):
    others = [prompts[2], prompts[1], [{"role": "user", "content": "Another"}]]
    mixed = processor(others, min_length=batch.tokens.shape[1], min_images=3)
    sample = lambda key, batch, rows: generate(  # noqa: E731
        *tiny, batch, key=key, lora=lora, rows=rows, **limits, **settings
    )
    again = sample(jax.random.PRNGKey(0), mixed, np.array([2, 1, 7]))
    np.testing.assert_array_equal(again.tokens[:2], completions.tokens[[2, 1]])
    np.testing.assert_allclose(again.logprobs[:2], completions.logprobs[[2, 1]], atol=1e-4)
    other = sample(jax.random.key(1), batch, None)
    rows = [tuple(row) for row in np.concatenate([completions.tokens, other.tokens]).reshape(-1, 12)]
    assert len(set(rows)) > 20  # of 24; some end at once


def test_greedy_takes_the_likeliest_token_that_is_not_banned(tiny, batch, lora, limits, full_logits):
    out = generate(
        *tiny, batch, key=jax.random.key(0), lora=lora, min_new_tokens=3, temperature=0, ban=(7, 8), **limits
    )
    tokens, lengths = np.asarray(out.tokens), np.asarray(out.lengths)
    logits = np.array(full_logits(*tiny, batch, tokens, lora))
    logits[..., [7, 8]] = -np.inf
    logits[..., :3, limits["stop_ids"][0] : limits["stop_ids"][-1] + 1] = -np.inf
    inside = np.arange(12) < lengths[..., None]
    np.testing.assert_array_equal(tokens[inside], logits.argmax(-1)[inside])
    assert lengths.min() > 3
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(np.asarray(out.logprobs)[inside], expected[inside], atol=1e-4)


def test_bad_settings_are_refused(tiny, batch):
    for wrong in ({"num_samples": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            generate(*tiny, batch, key=jax.random.key(0), **wrong)
