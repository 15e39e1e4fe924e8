"""Kernels of ours are tried on the device before they decode: a wrong one would spoil every token without a word.

They are compiled by drivers and for chips on which no test has run them. A trial takes the model's own widths and a
second or two of a process; where it fails, decoding takes the plain path and says so once.
"""

import functools
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmedexpert_jax.border import message_of
from mmedexpert_jax.models import fused
from mmedexpert_jax.models.attention import Slots, attend_shared
from mmedexpert_jax.models.layers import HeadNorms
from mmedexpert_jax.models.rotary import rotate

Trial = Callable[..., tuple[Any, Any]]  # model's sizes -> the kernel's arrays, and those of the plain path
TOLERANCE = 0.03  # of an array's largest entry; bfloat16 rounds to 0.004 of each, here two or three times in a row
SIZE = 80  # keys of a prompt and of a ring: a whole block of the kernels and a part of one


def passes(kernel: str, *sizes: int, trial: Trial | None = None) -> bool:
    """True where the kernel gives on this device what the plain path does; taken on trust for devices not here.

    Args:
        kernel: its name.
        sizes: the model's, that the trial takes: of the attentions query heads of a key head, and the width of a head;
            of "attend_ring" then 1 where heads are normalised, else 0.
        trial: of a kernel that stands above this folder; None: "attend_ring", "attend_ragged" or "add_delta".
    """
    return fused.is_elsewhere() or _passes_here(kernel, trial or _TRIALS[kernel], *sizes)


@functools.cache
def _passes_here(kernel: str, trial: Trial, *sizes: int) -> bool:
    """The trial, once in a process."""
    why = "it gives other values"
    try:
        with ThreadPoolExecutor(1) as apart:  # this thread may be tracing a program, of which the trial is no part
            done = apart.submit(jax.jit(lambda: trial(*sizes)))
            found, expected = (jax.tree.map(lambda x: np.asarray(x, np.float32), tree) for tree in done.result())
        if all(jax.tree.leaves(jax.tree.map(_alike, found, expected))):
            return True
    except Exception as error:  # whatever a compiler or a driver makes of it
        why = message_of(error, 200)
    device = jax.devices()[0].device_kind
    warnings.warn(f"the kernel {kernel} is not used on this {device}: {why}; decoding is slower", stacklevel=3)
    return False


def _alike(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max())


def _drawing(dtype: str) -> Callable[..., Any]:
    rng = np.random.default_rng(0)
    return lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)


def _pair(draw: Callable[..., Any], *shape: int) -> tuple[Array, Array]:
    return draw(*shape), draw(*shape)


def _slots() -> Slots:
    """Of three rows, two of them of the first prompt."""
    return Slots(jnp.array([0, 1, 0]), jnp.array([0, 0, 1]), jnp.array([[0, 2], [1, 0]]))


def _ring(group: int, width: int, normed: int) -> tuple[Any, Any]:
    from mmedexpert_jax.models import decode_attention

    draw = _drawing("bfloat16")
    rows, key_heads = 3, 2
    queries, prompt = draw(rows, key_heads * group, 1, width), _pair(draw, 2, key_heads, SIZE, width)
    new, own = (_pair(draw, rows, key_heads, size, width) for size in (1, SIZE))
    angles = jnp.arange(rows * width // 2).reshape(rows, 1, 1, -1) / 7
    rope = jnp.cos(angles).astype("bfloat16"), jnp.sin(angles).astype("bfloat16")
    lengths, steps, place = jnp.array([SIZE, 5]), jnp.array([70, 3, 0]), jnp.int32(SIZE + 2)
    norms = HeadNorms(_pair(draw, width), 1e-6) if normed else HeadNorms()
    mixed, keys, values = decode_attention.attend_ring(
        queries, *prompt, lengths, *new, *own, rope, _slots().prompt, steps, place, None, norms
    )
    if normed:
        queries, new = _normed(queries, norms.weights[0]), (_normed(new[0], norms.weights[1]), new[1])
    own = own[0].at[:, :, 2].set(rotate(new[0], *rope)[:, :, 0]), own[1].at[:, :, 2].set(new[1][:, :, 0])
    expected = _plain(rotate(queries, *rope), prompt, lengths, own, steps)
    return (mixed, keys, values), (expected, *own)


def _normed(x: Array, weight: Array) -> Array:
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + 1e-6)).astype(x.dtype) * weight


def _ragged(group: int, width: int) -> tuple[Array, Array]:
    from mmedexpert_jax.models import ragged_attention

    draw = _drawing("bfloat16")
    queries, prompt, own = draw(3, 2 * group, 1, width), _pair(draw, 2, 2, SIZE, width), _pair(draw, 3, 2, SIZE, width)
    lengths, steps = jnp.array([SIZE, 5]), jnp.array([70, 3, 0])
    place = jnp.int32(SIZE + 2)
    found = ragged_attention.attend_ragged(queries, *prompt, lengths, *own, _slots().prompt, steps, place)
    return found, _plain(queries, prompt, lengths, own, steps)


def _plain(
    queries: Array, prompt: tuple[Array, Array], lengths: Array, own: tuple[Array, Array], steps: Array
) -> Array:
    """The plain path where the new token stands at place 2 of a ring."""
    seen = (2 - jnp.arange(SIZE)) % SIZE <= steps[:, None, None, None]
    return attend_shared(queries, *prompt, lengths, *own, seen, _slots(), steps=steps)


def _delta() -> tuple[Any, Any]:
    from mmedexpert_jax.models import delta_kernel

    draw = _drawing("float32")
    joined, b = draw(40, 200 + 64), draw(32, 200)
    inner = joined[:, 200:232] + joined[:, 232:]
    with jax.default_matmul_precision("highest"):
        expected = joined[:, :200] + 0.5 * inner @ b
    gated = jax.nn.silu(expected[:, :100]) * expected[:, 100:]
    add = functools.partial(delta_kernel.add_delta, joined, b, 0.5, jnp.dtype("float32"))
    return (add(), add(jax.nn.silu)), (expected, gated)


_TRIALS = {"attend_ring": _ring, "attend_ragged": _ragged, "add_delta": _delta}
