"""A token for each column of logits in XLA's own operations, which the kernel of GPUs is held to."""

import jax
import jax.numpy as jnp
from einops import rearrange

BLOCK = 128  # tokens of a block in the two-level search


def draw_plainly(uniform: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`sampling.draw` by uniform numbers [2, N], in XLA's own operations."""
    padded = jnp.pad(logits, [(0, -len(logits) % BLOCK), (0, 0)], constant_values=-jnp.inf)
    blocks = rearrange(padded, "(blocks tokens) rows -> blocks tokens rows", tokens=BLOCK)
    top = jnp.max(logits, axis=0)
    masses = jax.lax.optimization_barrier(jnp.exp(blocks - top).sum(axis=1))  # else all are summed a second time below
    block = _pick(uniform[0], masses)
    inside = jnp.take_along_axis(blocks, block[None, None], axis=0)[0]  # [BLOCK, N]
    place = _pick(uniform[1], jnp.exp(inside - top))
    chosen = jnp.take_along_axis(inside, place[None], axis=0)[0]
    return block * BLOCK + place, chosen - top - jnp.log(masses.sum(axis=0))


def _pick(uniform: jax.Array, weights: jax.Array) -> jax.Array:
    """Rows [N] int32 drawn in proportion to `weights` [M, N], never one of weight zero, by numbers [N] in [0, 1)."""
    cumulative = jnp.cumsum(weights, axis=0)
    positive = weights > 0
    level = uniform * jnp.max(cumulative, axis=0, where=positive, initial=0.0)
    return jnp.argmax(positive & (cumulative > level), axis=0).astype(jnp.int32)
