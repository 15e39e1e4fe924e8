"""Equation 4 against hand-worked groups and numpy, with and without jit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.gba import group_advantages
from mmedexpert_jax.gba.advantages import ESTIMATORS, domain_weighted, estimate, new_counts


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_one_correct_of_eight(self):
        rewards = jnp.zeros((1, 8)).at[0, 3].set(1.0)
        advantages = self.variant(group_advantages)(rewards)
        np.testing.assert_allclose(advantages[0, 3], (1 - 1 / 8) / (0.125**0.5 + 1e-4), rtol=1e-6)
        np.testing.assert_allclose(advantages[0, 3], 2.474, atol=5e-4)
        np.testing.assert_allclose(np.delete(advantages[0], 3), -0.125 / (0.125**0.5 + 1e-4), rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_population_deviation(self):
        rewards = jnp.zeros((1, 8)).at[0, 0].set(1.0)
        advantages = self.variant(lambda r: group_advantages(r, ddof=0))(rewards)
        np.testing.assert_allclose(advantages[0, 0], 2.645, atol=5e-4)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(0.0, 0.1, 1.7, -3.3e7, 1e-8)
    def test_all_equal_gives_exact_zeros(self, value):
        rewards = jnp.full((3, 7), value)
        assert not np.any(self.variant(group_advantages)(rewards))

    @chex.variants(with_jit=True, without_jit=True)
    def test_groups_do_not_see_each_other(self):
        rewards = jnp.array([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
        both = self.variant(group_advantages)(rewards)
        np.testing.assert_array_equal(both[:1], group_advantages(rewards[:1]))
        assert not np.any(both[1])


def test_it_is_traced_once_for_a_shape():
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(lambda r: group_advantages(r), n=1))
    for seed in range(3):
        traced(jax.random.normal(jax.random.key(seed), (4, 8)))


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-4, 4, width=16)), st.sampled_from([0, 1]))
def test_equals_numpy(rewards, ddof):
    exact = rewards.astype(np.float64)
    deviation = exact.std(axis=1, ddof=ddof, keepdims=True)
    expected = (exact - exact.mean(axis=1, keepdims=True)) / (deviation + 1e-2)
    np.testing.assert_allclose(group_advantages(rewards, eps=1e-2, ddof=ddof), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rewards_that_are_not_finite_are_caught_on_the_host(bad):
    rewards = np.zeros((2, 4), np.float32)
    rewards[1, 2] = bad
    with pytest.raises(ConfigError, match=f"sample 2 in group 1 is {bad}"):
        group_advantages(rewards)


def test_a_group_of_one_is_refused():
    with pytest.raises(ConfigError, match="num_samples"):
        group_advantages(np.ones((4, 1)))


def test_without_the_deviation_a_group_keeps_its_scale():
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 2.5]])
    expected = [[0.5, -0.5, -0.5, 0.5], [-0.5, -0.5, -0.5, 1.5]]  # Dr. GRPO: r - mean
    np.testing.assert_allclose(group_advantages(rewards, scale=False), expected, rtol=1e-6)


# Estimators -----------------------------------------------------------------------------------------------------------


def _trl(values, weights, name):
    """TRL's lines for the same estimator (grpo_trainer, rloo_trainer of 1.16), in torch, NaN where a function
    returned None."""
    import torch
    from trl.trainer.utils import nanstd

    groups, samples, functions = values.shape
    per_function = torch.tensor(values).reshape(-1, functions)
    unscorable = torch.isnan(per_function).all(dim=1)
    rewards = (per_function * torch.tensor(weights)).nansum(dim=1)
    rewards[unscorable] = torch.nan
    grouped = rewards.view(-1, samples)
    centred = rewards - torch.nanmean(grouped, dim=1).repeat_interleave(samples)
    if name == "decoupled":
        each = per_function.view(-1, samples, functions)
        normal = (each - torch.nanmean(each, dim=1, keepdim=True)) / (nanstd(each, dim=1, keepdim=True) + 1e-4)
        summed = (normal.view(-1, functions) * torch.tensor(weights)).nansum(dim=1)
        summed[unscorable] = torch.nan
        advantages = (summed - torch.nanmean(summed)) / (nanstd(summed) + 1e-4)
    elif name == "leave_one_out":
        counts = (~torch.isnan(grouped)).sum(dim=1, keepdim=True)
        advantages = rewards - ((torch.nansum(grouped, dim=1, keepdim=True) - grouped) / (counts - 1)).view(-1)
    elif name == "group":
        advantages = centred / (nanstd(grouped, dim=1).repeat_interleave(samples) + 1e-4)
    elif name == "batch":
        advantages = centred / (nanstd(rewards) + 1e-4)
    else:
        advantages = centred
    return torch.nan_to_num(advantages, nan=0.0).view(groups, samples).numpy()


@pytest.mark.parametrize("name", ["group", "none", "batch", "leave_one_out", "decoupled"])
def test_estimators_are_trls_with_and_without_abstentions(name):
    rng = np.random.default_rng(3)
    weights = np.array([1.0, 0.5, 0.25], np.float32)
    for share in (0.0, 0.2):
        for _ in range(20):
            values = rng.integers(0, 3, (4, 6, 3)).astype(np.float32)
            values[rng.random(values.shape) < share] = np.nan
            values[0, 0] = np.nan if share else values[0, 0]  # a sample about which all abstain
            theirs = _trl(values, weights, name)
            np.testing.assert_allclose(estimate(values, weights, name), theirs, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_global_is_verls_whitening_over_tokens(share):
    """`compute_reinforce_plus_plus_baseline_outcome_advantage`: each reward less its group's mean stands at every token
    of its completion, and all of the step's tokens are normalised at once, by Bessel's deviation and 1e-8."""
    rng = np.random.default_rng(5)
    for _ in range(10):
        values, lengths = rng.integers(0, 3, (4, 6, 1)).astype(np.float32), rng.integers(1, 96, (4, 6))
        values[rng.random(values.shape) < share] = np.nan
        rewards = values[..., 0].astype(np.float64)
        tokens = [
            [reward - np.nanmean(group)] * length
            for group, several in zip(rewards, lengths, strict=True)
            for reward, length in zip(group, several, strict=True)
        ]
        every = np.array([value for some in tokens for value in some if not np.isnan(value)])
        truth = (np.array([some[0] for some in tokens]) - every.mean()) / np.sqrt(every.var(ddof=1) + 1e-8)
        found = estimate(values, np.ones(1), "global", lengths=lengths)
        np.testing.assert_allclose(found, np.nan_to_num(truth).reshape(4, 6), rtol=1e-5, atol=1e-6)
        samples = rewards - np.nanmean(rewards, axis=1, keepdims=True)  # of one length: over the samples
        alike = (samples - np.nanmean(samples)) / np.sqrt(np.nanvar(samples, ddof=1) + 1e-8)
        np.testing.assert_allclose(estimate(values, np.ones(1), "global"), np.nan_to_num(alike), rtol=1e-5, atol=1e-6)


def test_an_estimator_with_lengths_is_given_them(tmp_path):
    (tmp_path / "own.py").write_text("def f(values, weights, eps, ddof, lengths):\n    return lengths * 2.0\n")
    lengths = np.array([[1, 2], [3, 4]])
    given = np.ones((2, 2, 1), np.float32), np.ones(1, np.float32), f"{tmp_path}/own.py:f"
    np.testing.assert_array_equal(estimate(*given, lengths=lengths), lengths * 2)
    np.testing.assert_array_equal(estimate(*given), np.full((2, 2), 2.0))


@settings(deadline=None)
@given(hnp.arrays(np.float32, (3, 4, 2), elements=st.integers(0, 2).map(float)), st.sampled_from(sorted(ESTIMATORS)))
def test_every_estimator_is_finite_and_teaches_nothing_where_all_is_equal(values, name):
    weights = np.array([1.0, 0.5], np.float32)
    advantages = estimate(values, weights, name)
    assert advantages.shape == (3, 4) and advantages.dtype == np.float32 and np.isfinite(advantages).all()
    assert not estimate(np.ones_like(values), weights, name).any()
    shifted = estimate(values + 8.0, weights, name)
    np.testing.assert_allclose(advantages, shifted, atol=1e-4)  # no estimator depends on a constant


def test_a_sample_about_which_all_abstain_is_left_out_of_its_groups_statistics():
    values = np.array([[[1.0], [0.0], [np.nan], [1.0]]], np.float32)
    found = estimate(values, np.ones(1), "group")
    alone = group_advantages(np.array([[1.0, 0.0, 1.0]]))
    np.testing.assert_allclose(found[0, [0, 1, 3]], alone[0], rtol=1e-5)
    assert found[0, 2] == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("functions", [1, 3])
def test_a_step_of_which_all_abstain_is_zero_without_a_warning(name, functions):
    values = np.full((2, 4, functions), np.nan, np.float32)
    np.testing.assert_array_equal(estimate(values, np.ones(functions), name), np.zeros((2, 4)))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_function_without_weight_is_not_heard_where_all_others_abstain(name):
    """Accuracy stands among the functions with weight 0: an unreadable judge is no reward of 0."""
    judge = np.array([[0.9, np.nan, 0.8, np.nan], [0.1, 0.3, np.nan, 0.8]], np.float32)
    accuracy = np.array([[1, 0, 1, 1], [0, 1, 1, 0]], np.float32)
    watched = estimate(np.stack([accuracy, judge], axis=-1), np.array([0.0, 1.0]), name)
    np.testing.assert_array_equal(watched, estimate(judge[..., None], np.ones(1), name))
    assert (watched[np.isnan(judge)] == 0).all()


def test_decoupled_keeps_a_function_whose_variance_is_small():
    """Accuracy of 0 or 1 beside a form that differs by 0.01: lost where they are summed first, kept where not."""
    values = np.array([[[1.0, 0.0], [1.0, 0.01], [0.0, 0.0], [0.0, 0.01]]], np.float32)
    weights = np.ones(2, np.float32)
    summed, apart = estimate(values, weights, "group"), estimate(values, weights, "decoupled")
    assert (summed[0, 1] - summed[0, 0]) < 0.05 < 0.5 < (apart[0, 1] - apart[0, 0])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('mine')", "failed on 3 groups of 4: ValueError: mine"),
        ("return values", r"gives \(3, 4, 1\) for \(3, 4\)"),
        ("return values[..., 0] / 0", "numbers that are not finite"),
    ],
)
def test_an_own_estimator_that_fails_at_a_later_step_is_one_line(tmp_path, body, said):
    (tmp_path / "own.py").write_text(f"def f(values, weights, eps, ddof):\n    {body}\n")
    with pytest.raises(ConfigError, match=rf"config\.advantage_scale='.*own\.py:f' .*{said}.*; see docs/extend\.md"):
        estimate(np.ones((3, 4, 1), np.float32), np.ones(1, np.float32), f"{tmp_path}/own.py:f")


@pytest.mark.parametrize("kind", ["specialty", "drpo"])
def test_what_abstains_does_not_make_its_specialty_weigh_more(kind):
    nan = np.nan
    given = np.array([[1, -1, 1, -1]] * 2, np.float32), new_counts(2), np.array([0, 1])
    right = np.array([[1, 0, 1, 0]] * 2)
    weighed, counts = domain_weighted(*given, np.array([[1, 0.5, nan, nan], [1, 0.5, 1, 0.5]]), right, kind)
    np.testing.assert_allclose(weighed[0], weighed[1], rtol=1e-5)
    np.testing.assert_allclose(counts[..., 1].sum(axis=1), 0.75)
    _, counts = domain_weighted(*given, np.array([[nan] * 4, [1, 0.5, 1, 0.5]]), right, kind)
    assert counts[..., 0].sum(axis=1).tolist() == [0, 1]
