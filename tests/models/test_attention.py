"""Attention of rows that each have a prompt of their own, against a softmax by hand for every row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax.models import attention
from mmedexpert_jax.models.attention import Slots, attend_shared

HEADS, KEY_HEADS, WIDTH, OWN = 4, 2, 8, 6
_shared = jax.jit(attend_shared, static_argnames="window")


def inputs(seed, rows, prompts, size, lengths):
    """What a decode step of some rows over as many prompts as there are lengths has at hand."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    prompt = rng.permutation(prompts)[:rows].astype(np.int32)
    row = np.zeros((prompts, 1), np.int32)
    row[prompt, 0] = np.arange(rows)
    slots = Slots(jnp.asarray(prompt), jnp.zeros(rows, jnp.int32), jnp.asarray(row))
    seen = jnp.asarray(np.arange(OWN) <= rng.integers(0, OWN, rows)[:, None])[:, None, None]
    keys = [draw(prompts, KEY_HEADS, size, WIDTH) for _ in range(2)]
    own = [draw(rows, KEY_HEADS, OWN, WIDTH) for _ in range(2)]
    return draw(rows, HEADS, 1, WIDTH), *keys, jnp.asarray(lengths, jnp.int32), *own, seen, slots


def by_hand(queries, keys, values, lengths, own_keys, own_values, seen, slots, steps, window):
    """The same, row by row and head by head, in float64."""
    queries, keys, values, own_keys, own_values = map(np.asarray, (queries, keys, values, own_keys, own_values))
    lengths, seen, steps = map(np.asarray, (lengths, seen, steps))
    found = np.zeros(queries.shape)
    for row, prompt in enumerate(np.asarray(slots.prompt)):
        length = int(lengths[prompt])
        first = 0 if window is None else max(0, length + int(steps[row]) - window + 1)
        for head in range(HEADS):
            group, visible = head // (HEADS // KEY_HEADS), seen[row, 0, 0]
            at = [x[prompt, group, first:length].astype(np.float64) for x in (keys, values)]
            of = [x[row, group].astype(np.float64)[visible] for x in (own_keys, own_values)]
            joined = [np.concatenate(pair) for pair in zip(at, of, strict=True)]
            scores = joined[0] @ queries[row, head, 0].astype(np.float64) * WIDTH**-0.5
            weights = np.exp(scores - scores.max())
            found[row, head, 0] = weights @ joined[1] / weights.sum()
    return found


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 99),
    # fewer rows than half the prompts; as many in long places, whole and strip by strip; no multiple of a strip
    shape=st.sampled_from([(2, 5, 256), (1, 7, 128), (4, 5, 640), (4, 5, 256), (2, 5, 200)]),
    fill=st.sampled_from([(1, 20), (100, 200), (128, 128)]),
    window=st.sampled_from([None, 1, 70, 150]),
)
def test_rows_with_prompts_of_their_own(seed, shape, fill, window):
    rows, prompts, size = shape
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.integers(fill[0], fill[1] + 1, prompts), size)
    given_ = inputs(seed, rows, prompts, size, lengths)
    steps = jnp.asarray(rng.integers(0, OWN, rows), jnp.int32)
    found = _shared(*given_, steps=steps, window=window)
    np.testing.assert_allclose(found, by_hand(*given_, steps, window), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("rows, prompts", [(2, 5), (4, 5)])
def test_longer_prompts_beside_a_row_change_no_bit_of_it(rows, prompts):
    given_ = list(inputs(0, rows, prompts, 640, np.full(prompts, 30)))
    alone = _shared(*given_)
    others = np.asarray(given_[7].prompt)[1:]
    given_[3] = given_[3].at[others].set(600)
    np.testing.assert_array_equal(_shared(*given_)[0], alone[0])


def test_free_rows_read_no_strip():
    """Their prompt is none, whatever stands in the last place; what they give is finite."""
    given_ = list(inputs(0, 2, 5, 640, np.array([9, 9, 9, 9, 640])))
    slots = given_[7]
    given_[7] = Slots(slots.prompt.at[1].set(6), slots.sample, slots.row)
    assert np.isfinite(_shared(*given_)).all()
    given_[1] = given_[1].at[:, :, 128:].set(jnp.nan)  # a strip that is read would show
    given_[7] = Slots(jnp.array([0, 6], jnp.int32), slots.sample, slots.row)
    assert np.isfinite(_shared(*given_)).all()
    assert attention._by_row(slots, given_[1])
