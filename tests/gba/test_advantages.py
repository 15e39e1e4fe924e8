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
