"""A learner of a few numbers in the place of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax.launch import load_config
from mmedexpert_jax.train import Learner, Policy, Sums

SHAPES = {"weight": (3, 4), "norm": (4,), "bias": (3,)}


def _drawn(seed):
    """Weights, or a gradient of them."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def _make(steps=6, updates=1, start=None, **overrides):
    """A learner of `sum(weights * gradients)`, whose gradient is the micro-batch that is given, times its rows."""
    config = load_config("configs/dsa.py:mini", {"trainable": "full", "lr": 0.1} | overrides)

    def loss(policy, _, micro):
        gradient, rows = micro
        values = jax.tree.map(lambda weight, by: jnp.sum(weight * by), policy.params, gradient)
        return Sums(rows * sum(jax.tree.leaves(values)), jnp.float32(rows))

    params = jax.tree.map(jnp.asarray, _drawn(0) if start is None else start)
    return Learner(config, Policy(params), loss, steps, updates, keeps_base=False)


@pytest.fixture(scope="session")
def drawn():
    return _drawn


@pytest.fixture(scope="session")
def make():
    return _make
