"""Packing there and back, its gradients, and the bound on the number of capacities."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax.models.packing import Packing, capacity


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 9), st.integers(1, 8))
def test_there_and_back(seed, prompts, size, sizes):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, size + 1, (prompts, 3))
    room = capacity(int(lengths.sum()), 3 * prompts * size, sizes)
    packing = Packing.of(lengths, size, room)
    x = rng.normal(size=(prompts, 3, 2, size, 4)).astype(np.float32)
    valid = (np.arange(size) < lengths[..., None])[:, :, None, :, None]
    rows = np.asarray(jax.jit(Packing.pack)(packing, x))
    assert rows.shape == (2, room, 4)
    expected = np.moveaxis(x, 2, 0)[:, valid[:, :, 0, :, 0]]  # the valid tokens in order
    np.testing.assert_array_equal(rows[:, : lengths.sum()], expected)
    assert not rows[:, lengths.sum() :].any()
    np.testing.assert_array_equal(jax.jit(Packing.unpack)(packing, rows), np.where(valid, x, 0))


def test_the_gradient_of_one_way_is_the_other_way_and_holds_no_scatter():
    lengths = np.array([[2, 0, 3]])
    packing = Packing.of(lengths, 4, 8)
    weights = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    slope = jax.grad(lambda x: jnp.sum(packing.pack(x) * weights))
    np.testing.assert_array_equal(slope(jnp.ones((1, 3, 4, 5))), packing.unpack(jnp.asarray(weights)))
    assert "scatter" not in jax.jit(slope).lower(jnp.ones((1, 3, 4, 5))).as_text()


@given(st.integers(1, 5000), st.integers(1, 8), st.data())
def test_capacities_are_few_and_suffice(full, sizes, data):
    needed = data.draw(st.integers(0, full))
    rooms = {capacity(n, full, sizes) for n in range(full + 1)} if full < 300 else {capacity(needed, full, sizes)}
    assert capacity(needed, full, sizes) >= needed
    assert len(rooms) <= sizes
    assert max(rooms) < full + full / sizes + 16 + sizes
