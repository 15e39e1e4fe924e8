"""The rows that decode together and the lengths of their caches: few of either, since each pair is a program."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

WINDOW = 128  # tokens of the smallest caches
PARTS = (8, 6, 4, 2, 1)  # eighths of the rows that are kept as samples end and none waits
PARTS_SHORT = (8, 3)  # where samples have at most WINDOW tokens: a tail too short to repay more programs
PATIENCE = 64  # steps on a mesh, where devices with few rows left do not wait for those with many


def default_width() -> int:
    """Rows that decode at a time on each device: beyond them a step of a CPU takes as much longer as it has rows."""
    return 32 if jax.default_backend() == "cpu" else 256


def devices_of(mesh: Mesh | None) -> int:
    """Devices among which rows are split."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def widths(rows: int, size: int) -> list[int]:
    """Numbers of rows that programs are compiled for, from all `rows` down; samples have up to `size` tokens."""
    return sorted({-(-rows * part // 8) for part in (PARTS if size > WINDOW else PARTS_SHORT)}, reverse=True)


def window_for(length: int, size: int) -> int:
    """Tokens that the caches hold for samples of `length`: 128, 512, ..., of which the last is `size`."""
    return min(size, next(w for w in (WINDOW * 4**k for k in range(size)) if w >= length))


@functools.partial(jax.jit, static_argnums=2)
def sample_keys(key: Array, rows: Array, num_samples: int) -> Array:
    """[B, G] keys, of row ids [B] and numbers in the group."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(row_keys, jnp.arange(num_samples))
