"""Pure functions of arrays give the same with and without jit, on a device or the host, and are traced once a shape.

The truths are formulas over NumPy's float64; `chex.all_variants` runs each in four ways; pmap is of the past.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax import gba
from mmedexpert_jax.gba import objective
from mmedexpert_jax.models import rotary
from mmedexpert_jax.models.packing import Packing
from mmedexpert_jax.rollout import sampling
from mmedexpert_jax.train.optimizer import schedule

RNG = np.random.default_rng(0)
LENGTHS = np.array([[3, 1], [4, 2]])
PACKING = Packing.of(LENGTHS, 4, 16)


class PureFunctions(chex.TestCase):
    def same(self, function, truth, *arrays):
        """The variant at hand of a function gives the truth."""
        np.testing.assert_allclose(np.squeeze(self.variant(function)(*arrays)), truth, rtol=2e-5, atol=1e-6)

    @chex.all_variants(with_pmap=False)
    def test_equation_4(self):
        rewards = RNG.normal(size=(3, 4)).astype(np.float32)
        centred = rewards - rewards.mean(1, keepdims=True)
        truth = centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
        self.same(lambda r: gba.group_advantages(r), truth, rewards)

    @chex.all_variants(with_pmap=False)
    def test_equation_5(self):
        """At ratio 1 and without a reference the loss is the mean of the rows' advantages, with the sign turned."""
        logprobs = -RNG.exponential(size=(3, 5)).astype(np.float32)
        mask = np.arange(5) < np.array([5, 1, 3])[:, None]
        advantages = RNG.normal(size=3).astype(np.float32)
        loss = lambda p, a: gba.policy_loss(p, None, None, a, mask, beta=0.0)[0]  # noqa: E731
        self.same(loss, -advantages.mean(), logprobs, advantages)

    @chex.all_variants(with_pmap=False)
    def test_k3_is_schulmans_estimate(self):
        other, own = (-RNG.exponential(size=(2, 3)).astype(np.float32) for _ in range(2))
        gap = other.astype(np.float64) - own
        self.same(objective.k3, np.exp(gap) - gap - 1, other, own)

    @chex.all_variants(with_pmap=False)
    def test_weights_of_another_sampler_are_cut(self):
        own, sampled = (-RNG.exponential(size=(2, 3)).astype(np.float32) for _ in range(2))
        cut = lambda p, q: objective.truncated_weights(p, q, 1.5)  # noqa: E731
        self.same(cut, np.minimum(np.exp(own.astype(np.float64) - sampled), 1.5), own, sampled)

    @chex.all_variants(with_pmap=False)
    def test_a_rotation_keeps_lengths_and_turns_by_its_angle(self):
        x, angle = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=(4, 3)).astype(np.float32)
        turned = (x[:, :3] + 1j * x[:, 3:]) * np.exp(1j * angle.astype(np.float64))
        self.same(rotary.rotate, np.concatenate([turned.real, turned.imag], 1), x, np.cos(angle), np.sin(angle))

    @chex.all_variants(with_pmap=False)
    def test_the_distribution_of_the_next_token(self):
        logits = RNG.normal(size=(2, 7)).astype(np.float32)
        scaled = np.exp(logits.astype(np.float64) / 0.7)
        own = lambda x: sampling.distribution(x, temperature=0.7)  # noqa: E731
        self.same(own, np.log(scaled / scaled.sum(1, keepdims=True)), logits)

    @chex.all_variants(with_pmap=False)
    def test_packed_tokens_come_back_to_their_rows(self):
        x = RNG.normal(size=(2, 2, 4, 3)).astype(np.float32)
        kept = np.where((np.arange(4) < LENGTHS[..., None])[..., None], x, 0)
        self.same(lambda x: PACKING.unpack(PACKING.pack(x)), kept, x)

    @chex.all_variants(with_pmap=False)
    def test_a_rate_rises_and_falls_in_lines(self):
        rate = schedule(1.0, "linear", 4, 12)
        truth = [(n + 1) / 5 if n < 4 else 1 - (n - 4) / 8 for n in range(12)]
        self.same(lambda n: jnp.vectorize(rate)(n), truth, np.arange(12))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: gba.group_advantages(x),
        lambda x: objective.k3(x, 2 * x),
        lambda x: sampling.distribution(x, temperature=0.7, top_k=2, top_p=0.9),
        lambda x: rotary.rotate(x, x[:, :2], x[:, 2:]),
        lambda x: PACKING.unpack(PACKING.pack(jnp.broadcast_to(x, (2, 2, 4, 4)))),
    ],
)
def test_a_shape_is_traced_once_whatever_its_values(function):
    run = jax.jit(chex.assert_max_traces(lambda x: function(x), n=1))
    for seed in range(3):
        run(np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float32))
    chex.clear_trace_counter()


def test_functions_of_rows_do_not_depend_on_how_rows_are_split():
    """The surrogate of two halves, added, is that of the whole."""
    logprobs, mask = -RNG.exponential(size=(4, 3)).astype(np.float32), np.ones((4, 3), bool)
    advantages = RNG.normal(size=4).astype(np.float32)

    def terms(rows):
        return objective.policy_terms(logprobs[rows], None, None, advantages[rows], mask[rows], beta=0.0)

    both = terms(slice(0, 2)) + terms(slice(2, 4))
    chex.assert_trees_all_close(jax.tree.leaves(both), jax.tree.leaves(terms(slice(0, 4))), rtol=1e-6)
