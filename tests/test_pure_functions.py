"""Pure functions of arrays give the same with and without jit, on a device or the host, and are traced once a shape.

The truths are formulas over NumPy's float64; `chex.all_variants` runs each in four ways; pmap is of the past.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from scipy import special

from mmedexpert_jax import gba, lora
from mmedexpert_jax.gba import objective
from mmedexpert_jax.merging import methods, spherical
from mmedexpert_jax.models import attention, layers, quantised, rotary
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
    def test_the_surrogates(self):
        """PPO's clip, CISPO's cut ratio, SAPO's gate, at the range 0.8 to 1.3."""
        ratio = np.exp(RNG.normal(size=(3, 4))).astype(np.float32)
        logprobs = -RNG.exponential(size=(3, 4)).astype(np.float32)
        advantage = RNG.normal(size=(3, 1)).astype(np.float32)
        heat = np.where(advantage > 0, 1.0, 1.05)
        truths = {
            "clip": -np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.3) * advantage),
            "cispo": -np.minimum(ratio, 1.3) * advantage * logprobs,
            "sapo": -4 / heat / (1 + np.exp(-heat * (ratio - 1))) * advantage,
        }
        for name, truth in truths.items():
            loss = lambda *arrays, one=objective.SURROGATES[name]: one(*arrays, 0.8, 1.3)[0]  # noqa: E731
            self.same(loss, truth, ratio, logprobs, advantage)

    @chex.all_variants(with_pmap=False)
    def test_a_fold_adds_the_scaled_product(self):
        weight, a, b = (RNG.normal(size=shape).astype(np.float32) for shape in ((5, 6), (2, 6), (5, 2)))
        deltas = lambda a, b: lora.Lora({"x": {"a": a, "b": b}}, 2, 8.0)  # noqa: E731
        fold = lambda w, a, b: lora.fold({"x": {"weight": w}}, deltas(a, b))["x"]["weight"]  # noqa: E731
        self.same(fold, weight + 4 * b.astype(np.float64) @ a, weight, a, b)

    @chex.all_variants(with_pmap=False)
    def test_slerp_of_rows_goes_along_the_arc(self):
        first, second = RNG.normal(size=(2, 3, 5)).astype(np.float32)
        products = np.einsum("knd,lnd->kln", *[np.stack([first, second])] * 2)
        angle = np.arccos(products[0, 1] / np.sqrt(products[0, 0] * products[1, 1]))
        truth = np.stack([np.sin(0.7 * angle), np.sin(0.3 * angle)]) / np.sin(angle)
        self.same(lambda p: spherical.pair_coefficients(p, 0.3), truth, products)

    @chex.all_variants(with_pmap=False)
    def test_a_quantised_weight_is_the_nearest_of_its_levels(self):
        weight = RNG.normal(size=(3, 128)).astype(np.float32)
        step = np.abs(weight).max(axis=1, keepdims=True) / 127
        self.same(lambda w: quantised.quantise(w, "int8").plain(), step * np.round(weight / step), weight)
        blocks = rearrange(weight, "o (b n) -> o b n", n=quantised.BLOCK)
        largest = np.abs(blocks).max(axis=-1, keepdims=True)
        nearest = np.abs((blocks / largest)[..., None] - quantised.NF4).argmin(-1)
        truth = rearrange(largest * quantised.NF4[nearest], "o b n -> o (b n)")
        self.same(lambda w: quantised.quantise(w, "nf4").plain(), truth, weight)

    @chex.all_variants(with_pmap=False)
    def test_a_draw_has_the_probability_that_its_distribution_gives_it(self):
        logits = RNG.normal(size=(6, 9)).astype(np.float32)
        how = {"temperature": 0.7, "top_k": 5, "top_p": 0.9}

        def gap(logits):
            tokens, drawn = sampling.sample(jax.random.key(1), logits, **how)
            return drawn - jnp.take_along_axis(sampling.distribution(logits, **how), tokens[:, None], -1)[:, 0]

        self.same(gap, np.zeros(6), logits)

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

    @chex.all_variants(with_pmap=False)
    def test_equation_7(self):
        """TIES: the largest fifth of each vector, the sign of the larger sum, the mean of what has it."""
        vectors = RNG.normal(size=(3, 50)).astype(np.float32)
        kept = np.where(np.abs(vectors) >= np.sort(np.abs(vectors), axis=1)[:, -10:-9], vectors, 0)
        agree = (kept != 0) & (np.sign(kept) == np.sign(kept.sum(0)))
        truth = np.where(agree, kept, 0).sum(0) / np.maximum(agree.sum(0), 1)
        self.same(lambda v: methods.ties(v, density=0.2), truth, vectors)

    @chex.all_variants(with_pmap=False)
    def test_spreads_and_sizes_of_experts(self):
        vectors = RNG.normal(size=(3, 7)).astype(np.float32)
        self.same(lambda v: methods.variance(list(v)), vectors.astype(np.float64).var(0), vectors)
        self.same(lambda v: methods.norms(list(v), 1), np.abs(vectors).sum(1), vectors)
        self.same(lambda v: methods.norms(list(v), 2), np.square(vectors.astype(np.float64)).sum(1), vectors)

    @chex.all_variants(with_pmap=False)
    def test_fisher_weighs_and_arbitrates(self):
        vectors, fisher = RNG.normal(size=(3, 9)).astype(np.float32), RNG.exponential(size=(3, 9)).astype(np.float32)
        mean = (vectors.astype(np.float64) * fisher).sum(0) / fisher.sum(0)
        self.same(lambda v, f: methods.weighed(list(v), list(f)), mean, vectors, fisher)
        best = np.take_along_axis(vectors, (vectors**2 * fisher).argmax(0)[None], 0)[0]
        self.same(lambda v, f: methods.arbitrated(list(v), list(f)), best, vectors, fisher)

    @chex.all_variants(with_pmap=False)
    def test_importance_is_change_times_divergence(self):
        base, change = RNG.normal(size=(2, 3, 5)).astype(np.float32)
        after, before = (special.softmax(x.astype(np.float64), -1) + 1e-8 for x in (base + change, base))
        divergence = (after * np.log(after / before)).sum(-1, keepdims=True)
        self.same(methods.importance, np.abs(change) * divergence, base, change)

    @chex.all_variants(with_pmap=False)
    def test_what_is_kept_by_chance_is_divided_by_its_probability(self):
        """DARE, and DELLA with a probability of 0.4 to 0.6 by rank; what is drawn is the host's."""
        vectors = RNG.normal(size=(1, 4, 50)).astype(np.float32)
        kept = methods.bernoulli(list(vectors), [0.5], [7], 0, False)[0] != 0
        chex.assert_trees_all_close(kept.mean(), 0.5, atol=0.15)
        dare = lambda v: methods.bernoulli(list(v), [0.5], [7], 0, True)[0]  # noqa: E731
        self.same(dare, np.where(kept, vectors[0] / 0.5, 0), vectors)
        kept = methods.by_rank(list(vectors), [0.5], [0.1], [7], 0, False)[0] != 0
        ranks = np.abs(vectors[0]).argsort(-1).argsort(-1)
        della = lambda v: methods.by_rank(list(v), [0.5], [0.1], [7], 0, True)[0]  # noqa: E731
        self.same(della, np.where(kept, vectors[0] / (0.4 + 0.2 * ranks / 49), 0), vectors)

    @chex.all_variants(with_pmap=False)
    def test_attention_of_rows_is_a_softmax_over_what_is_seen(self):
        """Two heads to a key head; causal, and no more than three keys back."""
        queries, keys, values = (RNG.normal(size=(2, heads, 6, 4)).astype(np.float32) for heads in (4, 2, 2))
        lengths, place = np.array([6, 3]), np.arange(6)
        seen = (place < lengths[:, None])[:, None, None] & (place <= place[:, None]) & (place > place[:, None] - 3)
        scores = np.einsum("bhtd,bhsd->bhts", queries, np.repeat(keys, 2, 1)).astype(np.float64) / 2
        truth = special.softmax(np.where(seen, scores, -np.inf), -1) @ np.repeat(values, 2, 1)
        valid = (place < lengths[:, None])[:, None, :, None]
        attend = lambda *a: attention.attend(*a, causal=True, window=3) * valid  # noqa: E731
        self.same(attend, np.where(valid, truth, 0), queries, keys, values, lengths)

    @chex.all_variants(with_pmap=False)
    def test_a_product_with_a_weight_is_over_its_inputs(self):
        """Of few rows the weight stands first, of many last."""
        weight = RNG.normal(size=(5, 6)).astype(np.float32)
        for rows in (3, 200):
            x = RNG.normal(size=(rows, 6)).astype(np.float32)
            self.same(layers.contract, x.astype(np.float64) @ weight.T, x, weight)

    @chex.all_variants(with_pmap=False)
    def test_attention_over_parts_of_the_keys_is_joined(self):
        top, total = RNG.normal(size=(2, 3, 1)).astype(np.float32), RNG.exponential(size=(2, 3, 1)).astype(np.float32)
        mixed = RNG.normal(size=(2, 3, 4)).astype(np.float32)
        weights = np.exp(top.astype(np.float64))
        truth = (mixed * weights).sum(0) / (total * weights).sum(0)

        def joined(mixed, top, total):
            one, other = (attention.PartialSoftmax(*part) for part in zip(mixed, top, total, strict=True))
            return one.joined(other).whole(mixed[0], mixed)

        self.same(joined, truth, mixed, top, total)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: methods.ties(x, density=0.5),
        lambda x: methods.variance(list(x)),
        lambda x: attention.attend(*[x[None, None]] * 3, jnp.array([4]), causal=True),
        lambda x: gba.group_advantages(x),
        lambda x: objective.k3(x, 2 * x),
        lambda x: sampling.distribution(x, temperature=0.7, top_k=2, top_p=0.9),
        lambda x: rotary.rotate(x, x[:, :2], x[:, 2:]),
        lambda x: objective.sapo(x, x, x[:, :1], 0.8, 1.2)[0],
        lambda x: quantised.quantise(x, "int8").plain(),
        lambda x: sampling.sample(jax.random.key(0), x, top_k=2)[1],
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
        tokens = objective.Tokens(logprobs[rows])
        return objective.policy_terms(tokens, advantages[rows], mask[rows], objective.Objective())

    both = terms(slice(0, 2)) + terms(slice(2, 4))
    chex.assert_trees_all_close(jax.tree.leaves(both), jax.tree.leaves(terms(slice(0, 4))), rtol=1e-6)
