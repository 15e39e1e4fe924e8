"""What lets one formula serve numpy on the host and JAX on devices."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # np.ndarray or jax.Array: the functions of this folder take either and give back the same


def namespace(array: Array) -> ModuleType:
    """jax.numpy for JAX arrays and tracers, numpy for everything else."""
    return jnp if isinstance(array, jax.Array) else np


def product(x: Array, factors: Array) -> Array:
    """`x * factors`, rounded once: in XLA a bare product may be contracted with a later sum to one rounding."""
    xp = namespace(x)
    return x * factors if xp is np else xp.where(x == 0, 0, x * factors)


def columns(values: Any, like: Array) -> Array:
    """K numbers as float32 [K, 1, ...] beside a stack `like` [K, ...]."""
    xp = namespace(like)
    return xp.asarray(values, xp.float32).reshape(-1, *[1] * (like.ndim - 1))


def count(mask: Array) -> Array:
    """How many of K (at most 127) are true, entry by entry: [K, ...] bool -> [...] float32."""
    return tally(mask).astype(namespace(mask).float32)


def tally(mask: Array) -> Array:
    """`count` in int8. On the host the mask's bytes are added as they are, which spares numpy a cast."""
    xp = namespace(mask)
    return xp.sum(mask.view(np.int8) if xp is np else mask, axis=0, dtype=xp.int8)


def random_bits(key: int, start: Any, shape: tuple[int, ...], xp: ModuleType) -> Array:
    """uint32 hashes of the indices start, start + 1, ...: the same whatever block, shard or device asks.

    Two rounds of the `lowbias32` finaliser (Wellons 2018) over a counter, keyed before each.
    """
    size = int(np.prod(shape))
    x = xp.arange(size, dtype=xp.uint32) + xp.uint32(start & 0xFFFFFFFF if isinstance(start, int) else start)
    for round_key in (key & 0xFFFFFFFF, key >> 32):
        x = x ^ xp.uint32(round_key)
        x = (x ^ (x >> xp.uint32(16))) * xp.uint32(0x7FEB352D)
        x = (x ^ (x >> xp.uint32(15))) * xp.uint32(0x846CA68B)
        x = x ^ (x >> xp.uint32(16))
    return x.reshape(shape)
