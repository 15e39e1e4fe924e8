"""Rotary embedding of both towers: positions in several dimensions, the halves of a head rotated."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array


def tables(positions: Array, frequencies: np.ndarray, rows: np.ndarray) -> tuple[Array, Array]:
    """Cos and sin [..., 1, T, D / 2] in float32; the axis of 1 stands for the heads.

    XLA counts a cosine as cheap, fuses it into its uses and computes it for every layer and head; a sum it keeps.

    Args:
        positions: [..., N, T], integers.
        frequencies: [D / 2], radians a position.
        rows: [D / 2], which of the N positions turns each frequency.
    """
    angles = positions[..., None].astype(jnp.float32) * frequencies  # [..., N, T, D / 2]
    own = rows == np.arange(positions.shape[-2])[:, None, None]
    cos = jnp.sum(jnp.where(own, jnp.cos(angles), 0), axis=-3, keepdims=True)
    sin = jnp.sum(jnp.where(own, jnp.sin(angles), 0), axis=-3, keepdims=True)
    return cos, sin


def stretched(frequencies: np.ndarray, factor: float, low: float, high: float, length: int) -> np.ndarray:
    """Frequencies [D / 2] for contexts longer than the `length` that was trained (Llama 3.1, rope_type llama3).

    Waves that turn more than `high` times in `length` stay, those that turn less than `low` times become `factor` times
    as long, and between the two both are mixed.
    """
    turns = length * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (frequencies * (kept + (1 - kept) / factor)).astype(np.float32)


def axial(positions: Array, head_dim: int, theta: float = 10000.0) -> tuple[Array, Array]:
    """Cos and sin [I, 1, P, D / 2] of patches at [I, P, 2]: the first half of the angles follows rows, then columns."""
    half = head_dim // 2
    frequencies = theta ** -(np.arange(0, half, 2, dtype=np.float32) / half)
    positions = rearrange(positions, "images patches place -> images place patches")
    return tables(positions, np.tile(frequencies, 2), np.repeat([0, 1], half // 2))


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """x [..., D] turned by cos, sin [..., D / 2] that broadcast."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
