"""The rows that decode together and the lengths of their caches: few of either, since each pair is a program."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from mmedexpert_jax.rounding import cdiv

SMALLEST_CACHE = 256  # tokens of the smallest caches; of 128, rows would rarely be fewer before they have to grow
EIGHTHS = (8, 6, 4, 2, 1)  # eighths of the rows that are kept as samples end and none waits
SHORT = 128  # tokens of samples whose tail is too short to repay more programs
EIGHTHS_SHORT = (8, 3)  # of the rows of such samples
EIGHTHS_SERVED = (8, 3, 1)  # of a server's rows, whose programs are compiled before the first request, each in its turn
PATIENCE = 64  # steps on a mesh, where devices with few rows left do not wait for those with many


def default_width() -> int:
    """Rows that decode at a time on each device: beyond them a step of a CPU takes as much longer as it has rows."""
    return 32 if jax.default_backend() == "cpu" else 256


def widths(rows: int, size: int, served: bool = False) -> list[int]:
    """Numbers of rows that programs are compiled for, from all `rows` down; samples have up to `size` tokens."""
    kept = EIGHTHS if size > SHORT else EIGHTHS_SHORT
    return sorted({cdiv(rows * eighths, 8) for eighths in (EIGHTHS_SERVED if served else kept)}, reverse=True)


def cache_length_for(length: int, size: int) -> int:
    """Tokens that the caches hold for samples of `length`: 256, 512, ..., of which the last is `size`."""
    return min(size, next(w for w in (SMALLEST_CACHE * 2**k for k in range(size)) if w >= length))


def next_cache_length(cache_length: int, oldest: int, size: int, fewer: bool) -> int:
    """The length of the caches with which samples go on, of which the oldest has so many tokens.

    Where rows become `fewer`, another program is needed in any case: if its caches are half full, it takes the longer
    ones at once, and no further program is compiled for that alone.
    """
    return max(cache_length, cache_length_for(oldest * (1 + fewer), size))


@functools.partial(jax.jit, static_argnums=2)
def sample_keys(key: Array, rows: Array, num_samples: int) -> Array:
    """[B, G] keys, of row ids [B] and numbers in the group."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(row_keys, jnp.arange(num_samples))
