"""Operations that let one formula serve numpy on the host and JAX on devices."""

import contextlib
from collections.abc import Sequence
from functools import cache, partial, reduce
from operator import add
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # np.ndarray or jax.Array: the functions of this folder take either and give back the same
Rows = Any  # K arrays of one shape: a sequence of them, or one array [K, ...]. Steps go row by row, so that XLA makes
# one loop of them all, and numpy's temporaries stay in a core's cache.
one_core = partial(jax.jit, compiler_options={"xla_cpu_multi_thread_eigen": False})  # blocks share the cores


@cache
def cpu() -> jax.Device | None:
    """The device that the host's cores are; None where JAX has been told to do without."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def on_host() -> contextlib.AbstractContextManager:
    """Programs inside run on the host; no context at all where JAX has no other device: that is entered faster."""
    return contextlib.nullcontext() if jax.default_backend() == "cpu" else jax.default_device(cpu())


def namespace(array: Array | Rows) -> ModuleType:
    """jax.numpy for JAX arrays and tracers, numpy for everything else."""
    one = array[0] if isinstance(array, (list, tuple)) else array
    return jnp if isinstance(one, jax.Array) else np


def product(x: Array, factors: Array) -> Array:
    """`x * factors`, rounded once: in XLA a bare product may be contracted with a later sum to one rounding."""
    xp = namespace(x)
    return x * factors if xp is np else xp.where(x == 0, 0, x * factors)


def rounded(x: Array, dtype: Any) -> Array:
    """float32 in another floating dtype, rounded for good: XLA may leave out a conversion there and back."""
    if namespace(x) is jnp and jnp.dtype(dtype) == jnp.bfloat16:  # half of the time of XLA's own two steps
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        even = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        found = jnp.where(x == x, even, 0x7FC0).astype(jnp.uint16)
        return jax.lax.bitcast_convert_type(found, jnp.bfloat16)
    if namespace(x) is jnp and jnp.dtype(dtype).itemsize == 2:
        x = jax.lax.reduce_precision(x, jnp.finfo(dtype).nexp, jnp.finfo(dtype).nmant)
    return x.astype(dtype)


def total(rows: Rows) -> Array:
    """Sum of K arrays in their order."""
    return reduce(add, rows)


def matrix_product(b: np.ndarray, a: np.ndarray, scale: float) -> np.ndarray:
    """`(b @ a) * scale` of host arrays in float32, on the core that asks: the same bits whatever else runs.

    numpy's BLAS has threads of its own, which wait for each other when several blocks are asked for at once.
    """
    if cpu() is None:
        return (b @ a) * np.float32(scale)
    with on_host():
        return np.asarray(_matrix_product(b, a, np.float32(scale)))


@one_core
def _matrix_product(b: jax.Array, a: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.matmul(b, a, precision="highest") * scale


def tally(masks: Sequence[Array]) -> Array:
    """The number of true ones of K (at most 127) by entry: int8 on the host, where bytes are added as they are."""
    if namespace(masks) is np:
        return total([mask.view(np.int8) for mask in masks])
    return total([mask.astype(jnp.int32) for mask in masks])


def count(masks: Sequence[Array]) -> Array:
    """`tally` in float32."""
    return tally(masks).astype(namespace(masks).float32)


_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF << 52}


def finite(entries: np.ndarray) -> bool:
    """True where no entry is NaN or infinite, told by the exponents' bits: one maximum; also true of integers."""
    if entries.dtype.name not in _EXPONENTS or not entries.size:
        return True
    bits = entries.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[entries.dtype.itemsize])
    return int(np.max(bits & bits.dtype.type((1 << 8 * bits.itemsize - 1) - 1))) < _EXPONENTS[entries.dtype.name]


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
