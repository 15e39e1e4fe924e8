"""The kernel of a decode step, run by JAX itself, against `layers.attend_shared` over the same rings."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax.models import layers
from mmedexpert_jax.models.decode_attention import attend_ring


def plain(
    queries, prompt_keys, prompt_values, lengths, keys, values, own_keys, own_values, slots, steps, place, window
):
    """As `Model.decode` has it."""
    size = own_keys.shape[2]
    age = (place - jnp.arange(size)) % size
    seen = age <= steps[:, None, None, None]
    seen = seen if window is None else seen & (age < window)
    own_keys, own_values = (
        own_keys.at[:, :, place % size].set(keys[:, :, 0]),
        own_values.at[:, :, place % size].set(values[:, :, 0]),
    )
    prompt = prompt_keys, prompt_values, lengths
    mixed = layers.attend_shared(queries, *prompt, own_keys, own_values, seen, slots, steps=steps, window=window)
    return mixed, own_keys, own_values


@given(
    prompts=st.integers(1, 3),
    samples=st.integers(1, 3),
    key_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 6, 7, 16, 17]),
    width=st.sampled_from([16, 64, 256]),
    room=st.integers(16, 150),
    ring=st.integers(16, 150),
    window=st.none() | st.integers(1, 200),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_equals_the_plain_path(prompts, samples, key_heads, group, width, room, ring, window, dtype, seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    rows = rng.permutation(prompts * samples)[: rng.integers(1, prompts * samples + 1)]
    place, lengths = rng.integers(0, 3 * ring), rng.integers(1, room + 1, prompts)
    steps = rng.integers(0, min(place + 1, ring), len(rows))
    prompt, sample = np.divmod(rows, samples)
    row = np.zeros((prompts, samples), int)
    row[prompt, sample] = np.arange(len(rows))
    slots = layers.Slots(*map(jnp.asarray, (prompt, sample, row)))
    inputs = (
        draw(len(rows), key_heads * group, 1, width),
        *(draw(prompts, key_heads, room, width) for _ in range(2)),
        jnp.asarray(lengths),
        *(draw(len(rows), key_heads, 1, width) for _ in range(2)),
        *(draw(len(rows), key_heads, ring, width) for _ in range(2)),
    )
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(lambda *x: plain(*x, slots, jnp.asarray(steps), jnp.int32(place), window))(*inputs)
        found = attend_ring(*inputs, slots.prompt, jnp.asarray(steps), jnp.int32(place), window, interpret=True)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[2], expected[2])
    error = np.abs(np.asarray(found[0], np.float32) - np.asarray(expected[0], np.float32)).max()
    assert error <= (2e-6 if dtype == "float32" else 2e-2) * np.abs(np.asarray(expected[0], np.float32)).max()
