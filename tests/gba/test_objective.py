"""The loss against equation 5 by autodiff and hand-worked values; test_trl_parity.py holds it against TRL."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax.gba import policy_loss
from mmedexpert_jax.gba.objective import Objective, Tokens, policy_terms, truncated_weights
from mmedexpert_jax.train import learner

ROWS, TOKENS = 4, 5
LENGTHS = np.array([5, 1, 3, 2])
MASK = np.arange(TOKENS) < LENGTHS[:, None]


def _random(seed):
    rng = np.random.default_rng(seed)
    new, old, ref = (np.where(MASK, -rng.exponential(1, MASK.shape), 0).astype(np.float32) for _ in range(3))
    return new, old, ref, rng.normal(size=ROWS).astype(np.float32)


def _one(ratio, advantage, **kwargs):
    """Loss and gradient by the log-probability, of one token with this ratio."""

    def loss(logprob):
        return policy_loss(logprob, jnp.zeros((1, 1)), None, jnp.array([advantage]), jnp.ones((1, 1)), **kwargs)

    (value, stats), slope = jax.value_and_grad(loss, has_aux=True)(jnp.full((1, 1), np.log(ratio)))
    return float(value), float(slope[0, 0]), stats


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 1.0, -1.0, -1.0),
        (1.5, 1.0, -1.2, 0.0),  # clipped above
        (0.5, 1.0, -0.5, -0.5),  # the pessimistic bound keeps the gradient
        (1.5, -1.0, 1.5, 1.5),  # not 1.2: for a negative advantage the bound is the larger loss
        (0.5, -1.0, 0.8, 0.0),
    ],
)
def test_the_bound_of_ppo_on_both_sides(ratio, advantage, loss, slope):
    value, gradient, stats = _one(ratio, advantage, clip=0.2)
    np.testing.assert_allclose([value, gradient], [loss, slope], rtol=1e-6)
    assert float(stats["clip_ratio/low_mean"]) == (ratio < 0.8 and advantage < 0)
    assert float(stats["clip_ratio/high_mean"]) == (ratio > 1.2 and advantage > 0)
    assert float(stats["clip_ratio/region_mean"]) == (slope == 0.0)


def test_clip_high_moves_the_upper_side_alone():
    assert _one(1.25, 1.0, clip=0.2, clip_high=0.28)[0] == pytest.approx(-1.25)
    assert _one(1.5, 1.0, clip=0.2, clip_high=0.28)[0] == pytest.approx(-1.28)
    assert _one(0.5, -1.0, clip=0.2, clip_high=0.28)[0] == pytest.approx(0.8)


def test_at_beta_zero_the_gradient_is_that_of_equation_5():
    new, _, ref, advantages = _random(0)

    def equation_5(logprobs):  # as printed: 1/G sum_i A_i / |y_i| sum_t log pi(y_it)
        return sum(advantages[i] / LENGTHS[i] * logprobs[i, : LENGTHS[i]].sum() for i in range(ROWS)) / ROWS

    expected = jax.grad(equation_5)(jnp.asarray(new))
    got = jax.grad(lambda lp: policy_loss(lp, None, ref, advantages, MASK, beta=0.0)[0])(jnp.asarray(new))
    np.testing.assert_allclose(got, -expected, rtol=1e-6, atol=1e-8)


def test_the_kl_is_k3_and_is_not_clipped():
    new, old, ref, advantages = _random(1)
    without, _ = policy_loss(new, old, None, advantages, MASK)
    with_kl, stats = policy_loss(new, old, ref, advantages, MASK, beta=0.1)
    k3 = np.where(MASK, np.exp(ref - new) - (ref - new) - 1, 0)
    np.testing.assert_allclose(with_kl - without, 0.1 * (k3.sum(1) / LENGTHS).mean(), rtol=1e-5)
    np.testing.assert_allclose(stats["kl"], k3.sum() / LENGTHS.sum(), rtol=1e-5)
    slope = jax.grad(lambda lp: policy_loss(lp, None, ref, jnp.zeros(ROWS), MASK, beta=1.0)[0])(jnp.asarray(new))
    np.testing.assert_allclose(
        slope, np.where(MASK, 1 - np.exp(ref - new), 0) / LENGTHS[:, None] / ROWS, rtol=1e-4, atol=1e-7
    )


def test_beta_zero_or_no_reference_leaves_the_kl_out():
    new, old, ref, advantages = _random(2)
    assert "kl" not in policy_loss(new, old, ref, advantages, MASK, beta=0.0)[1]
    assert "kl" not in policy_loss(new, old, None, advantages, MASK)[1]


def test_what_stands_behind_the_mask_does_not_count():
    new, old, ref, advantages = _random(3)
    garbage = [np.where(MASK, x, y) for x, y in [(new, 1e4), (old, -1e4), (ref, np.inf)]]

    def loss(lp, old, ref):
        return policy_loss(lp, old, ref, advantages, MASK)[0]

    for x, y in zip(
        jax.value_and_grad(loss)(new, old, ref), jax.value_and_grad(loss)(*map(jnp.asarray, garbage)), strict=True
    ):
        np.testing.assert_array_equal(x, y)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["sequence", "token", "constant"]), st.integers(1, ROWS - 1), st.integers(0, 99))
def test_micro_batches_add_up_exactly(aggregation, cut, seed):
    new, old, ref, advantages = _random(seed)

    def terms(rows):
        tokens = Tokens(new[rows], old[rows], reference=ref[rows])
        objective = Objective(aggregation=aggregation, max_tokens=TOKENS, coefs={"beta": 0.1})
        return policy_terms(tokens, advantages[rows], MASK[rows], objective)

    whole, split = terms(slice(None)), terms(slice(cut)) + terms(slice(cut, None))
    for name, value in whole.stats().items():
        np.testing.assert_allclose(split.stats()[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_unknown_aggregations_are_refused():
    new, old, ref, advantages = _random(0)
    with pytest.raises(ValueError, match="aggregation"):
        policy_loss(new, old, ref, advantages, MASK, aggregation="mean")
    with pytest.raises(ValueError, match="max_tokens"):
        policy_loss(new, old, ref, advantages, MASK, aggregation="constant")


def test_gspo_clips_the_geometric_mean_of_a_sequence():
    new, old = np.log([[0.5, 0.3, 0.9]]).astype(np.float32), np.log([[0.4, 0.3, 0.6]]).astype(np.float32)
    ones, high = jnp.ones((1, 3)), (1.25 * 1.0 * 1.5) ** (1 / 3)  # 1.233
    free, _ = policy_loss(new, old, None, jnp.ones(1), ones, clip=0.3, ratio_level="sequence")
    bound, stats = policy_loss(new, old, None, jnp.ones(1), ones, clip=0.2, ratio_level="sequence")
    np.testing.assert_allclose([free, bound], [-high, -1.2], rtol=1e-5)
    assert float(stats["clip_ratio/high_mean"]) == 1
    # the gradient is that of the ratio, the same for every token: ratio / 3
    slope = jax.grad(lambda x: policy_loss(x, old, None, jnp.ones(1), ones, clip=0.3, ratio_level="sequence")[0])(
        jnp.asarray(new)
    )
    np.testing.assert_allclose(slope, np.full((1, 3), -high / 3), rtol=1e-5)


def test_importance_weights_are_truncated_and_spare_the_kl():
    new, sampled, ref = (np.log([row]).astype(np.float32) for row in ([0.5, 0.3], [0.5, 0.1], [0.4, 0.4]))
    weights = truncated_weights(new, sampled, 2.0)
    np.testing.assert_allclose(weights, [[1.0, 2.0]], rtol=1e-6)
    one, mask = jnp.ones(1), jnp.ones((1, 2))
    kl = policy_loss(new, None, ref, jnp.zeros(1), mask, beta=0.1)[0]
    loss = policy_loss(new, None, ref, one, mask, beta=0.1, weights=weights)[0]
    np.testing.assert_allclose(loss, -1.5 + kl, rtol=1e-6)


def test_rows_that_do_not_count_leave_the_mean():
    new, old, _, advantages = _random(4)
    mask = MASK & (np.arange(ROWS) != 2)[:, None]
    rest = [x[np.arange(ROWS) != 2] for x in (new, old, advantages, MASK)]
    for aggregation in ("sequence", "token", "constant"):
        options = {"aggregation": aggregation, "max_tokens": TOKENS}
        got = policy_terms(Tokens(new, old), advantages, mask, Objective(**options), ROWS - 1).stats()["loss"]
        expected, _ = policy_loss(rest[0], rest[1], None, rest[2], rest[3], **options)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_means_over_no_tokens_are_none():
    """So that a step whose completions were all left out has no entropy of 0."""
    logprobs = jnp.zeros((2, 3))
    terms = policy_terms(Tokens(logprobs), jnp.ones(2), jnp.zeros((2, 3), bool), Objective())
    terms = dataclasses.replace(terms, sums=terms.sums | {"entropy": jnp.float32(0)}, peaks={"gap/max": jnp.float32(0)})
    stats = terms.stats()
    assert stats.pop("loss") == 0 and all(np.isnan(value) for value in stats.values()) and "gap/max" in stats
    assert learner._joined("entropy", [np.float32(2), np.float32("nan")]) == 2.0
    assert np.isnan(learner._joined("loss", [np.float32(2), np.float32("nan")]))
