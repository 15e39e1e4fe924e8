"""The learner's updates against torch and transformers, on a few numbers in the place of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mmedexpert_jax.launch import load_config
from mmedexpert_jax.train.optimizer import optimizer


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "ratio"), [(0, 0.0), (3, 0.0), (0, 0.25), (2, 0.9)])
def test_rates_are_those_of_transformers(kind, warmup, ratio):
    """Without its first update, which transformers makes at rate 0; `warmup_steps` goes before `warmup_ratio`."""
    updates, rises = 10, warmup or {0.0: 0, 0.25: 3}[ratio]
    settings = {"schedule": kind, "warmup_steps": warmup, "warmup_ratio": ratio, "lr": 0.5}
    rate = optimizer(load_config("configs/dsa.py:mini", settings), updates)[1]
    weight = torch.nn.Parameter(torch.zeros(1))
    peer = transformers.get_scheduler(
        "constant_with_warmup" if kind == "constant" else kind,
        torch.optim.SGD([weight], lr=0.5),
        num_warmup_steps=rises + 1 if rises else 0,
        num_training_steps=updates + 1 if rises else updates,
    )
    expected = []
    for _ in range(updates + bool(rises)):
        expected.append(peer.get_last_lr()[0])
        peer.optimizer.step()
        peer.step()
    found = [float(rate(jnp.int32(number))) for number in range(updates)]
    np.testing.assert_allclose(found, expected[bool(rises) :], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("clipped", [0.0, 1.0])
def test_updates_are_those_of_torch_with_betas_and_no_decay_on_norms_and_biases(make, drawn, clipped):
    settings = {"adam_betas": (0.8, 0.95), "weight_decay": 0.3, "max_grad_norm": clipped, "lr": 0.05}
    learner = make(schedule="cosine", **settings)
    state = learner.init(jax.random.key(0))
    mine = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in drawn(0).items()}
    groups = [
        {"params": [mine["weight"]], "weight_decay": 0.3},
        {"params": [mine["norm"], mine["bias"]], "weight_decay": 0},
    ]
    peer = torch.optim.AdamW(groups, lr=0.05, betas=(0.8, 0.95), eps=1e-8)
    schedule = transformers.get_scheduler("cosine", peer, 0, 6)
    for step in range(6):
        halves = [drawn(10 * step + 1), drawn(10 * step + 2)]  # two micro-batches, of one row and of three
        state, stats = learner.update(state, [[(halves[0], 1.0), (halves[1], 3.0)]])
        for name, weight in mine.items():
            weight.grad = torch.tensor((halves[0][name] + 3 * halves[1][name]) / 4)
        norm = torch.nn.utils.clip_grad_norm_(mine.values(), clipped or float("inf"))
        assert stats["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
        assert stats["learning_rate"] == pytest.approx(peer.param_groups[0]["lr"], rel=1e-5, abs=1e-8)
        peer.step()
        schedule.step()
    for name, weight in mine.items():
        np.testing.assert_allclose(state.trained[name], weight.detach(), rtol=2e-5, atol=1e-6)


def test_the_rate_that_is_logged_is_the_one_that_was_applied(make, drawn):
    """With four updates planned a step of which some are not made, since their groups were dropped. On a gradient that
    stays the same, Adam moves each weight by the rate."""
    learner = make(steps=3, updates=4, schedule="linear", max_grad_norm=0.0, lr=0.1)
    state = learner.init(jax.random.key(0))
    ones = jax.tree.map(np.ones_like, drawn(0))
    logged = []
    for made in (4, 1, 2):
        before = np.asarray(state.trained["weight"])
        state, stats = learner.update(state, [[(ones, 1.0)]] * made)
        moved = (before - np.asarray(state.trained["weight"])) / made
        np.testing.assert_allclose(moved, stats["learning_rate"], rtol=1e-4)
        logged.append(stats["learning_rate"])
    rates = 0.1 * (1 - np.arange(12) / 12)
    np.testing.assert_allclose(logged, [rates[:4].mean(), rates[4], rates[8:10].mean()], rtol=1e-5)
