"""Attention over whole rows by one fused kernel, cuDNN's, which never writes the scores to memory.

Rows are padded on the right and masked by their lengths alone: the backward pass of cuDNN gives NaN for some lengths
when it is handed a mask as a tensor (pytorch#196678).
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from mmedexpert_jax.models.packing import gather

Implementation = Literal["cudnn", "xla"]
TILE = 16  # rows, columns and depth of the smallest product that tensor cores take in 16 bits


_target: ContextVar[str | None] = ContextVar("target", default=None)


@contextlib.contextmanager
def traced_for(capability: str) -> Iterator[None]:
    """Inside, programs are traced for a device of this compute capability that is not here; "": for no GPU."""
    token = _target.set(capability)
    try:
        yield
    finally:
        _target.reset(token)


def is_elsewhere() -> bool:
    """True where programs are traced for a device that is not here."""
    return _target.get() is not None


def on_cpu() -> bool:
    """True where programs are traced for this machine's processor."""
    return _target.get() is None and jax.default_backend() == "cpu"


def on_cuda() -> bool:
    """True where programs are traced for a CUDA device, Ampere or later."""
    target = _target.get()
    here = getattr(jax.devices()[0], "compute_capability", "") if target is None else target
    capability = str(here)  # "9.0"; of others "gfx942" or none
    return capability[:1].isdigit() and float(capability) >= 8


def on_tpu() -> bool:
    """True where programs are traced for a TPU."""
    target = _target.get()
    return jax.default_backend() == "tpu" if target is None else target == ""


def supported(queries: Array) -> bool:
    """True where the kernel takes such queries [..., D]: CUDA devices since Ampere, 16 bits, heads of at most 128."""
    return on_cuda() and queries.dtype.itemsize == 2 and queries.shape[-1] <= 128 and queries.shape[-1] % 8 == 0


def takes_rings(width: int, *buffers: Array) -> bool:
    """True where `decode_attention` takes heads of this width and all of these keys [..., T, D]: CUDA devices since
    Ampere, 16 bits, heads of a power of two, and none that the compiler splits."""
    fits = width >= TILE and width & (width - 1) == 0
    return fits and _whole() and on_cuda() and all(x.dtype.itemsize == 2 and x.shape[-2] >= TILE for x in buffers)


def takes_draws() -> bool:
    """True where `rollout.draw_kernel` is used: CUDA devices since Ampere, as above."""
    return _whole() and on_cuda()


def takes_ragged(width: int) -> bool:
    """True where `ragged_attention` takes heads of this width: TPUs, whose registers are 128 wide, and as above."""
    return width % 128 == 0 and _whole() and on_tpu()


def _whole() -> bool:
    """True unless an axis of several devices is left to the compiler, which can split nothing inside a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    return all(mesh.shape[name] == 1 for name in mesh.auto_axes)


def attend(
    queries: Array,
    keys: Array,
    values: Array,
    lengths: Array,
    *,
    causal: bool,
    implementation: Implementation = "cudnn",
) -> Array:
    """`attention.attend` in one kernel: queries [B, H, T, D], keys and values [B, Hkv, T, D], lengths [B].

    Zeros behind the end of a row. `implementation` is an argument for the tests, which have no such device.
    """
    size = queries.shape[2]
    even = [(0, 0), (0, size % 2), (0, 0), (0, 0)]  # the kernel's backward pass takes no odd lengths
    axes = "batch heads length head_dim -> batch length heads head_dim"
    queries, keys, values = (jnp.pad(rearrange(x, axes), even) for x in (queries, keys, values))
    lengths = jnp.asarray(lengths, jnp.int32)
    counts = jnp.maximum(lengths, 1)  # a row of no keys has no softmax
    mixed = jax.nn.dot_product_attention(
        queries,
        keys,
        values,
        is_causal=causal,
        query_seq_lengths=counts,
        key_value_seq_lengths=counts,
        implementation=implementation,
    )
    inside = jnp.arange(size) < lengths[:, None]
    mixed = jnp.where(inside[..., None, None], mixed[:, :size], 0)
    return rearrange(mixed, "batch length heads head_dim -> batch heads length head_dim")


def attend_extended(
    queries: Array,
    prompt_keys: Array,
    prompt_values: Array,
    prompt_lengths: Array,
    keys: Array,
    values: Array,
    implementation: Implementation = "cudnn",
) -> Array:
    """`attention.attend_extended` in one kernel: each continuation is joined to its prompt in a row of its own.

    The kernel aligns the first query with the first key, so the rows have queries of zero where the prompt stands. At
    a prompt of 700 tokens and answers of up to 1,024 that is a fifth more work than needed.

    Args:
        queries: [B, G, H, R, D].
        prompt_keys, prompt_values: [B, Hkv, S, D].
        prompt_lengths: [B].
        keys, values: [B, G, Hkv, R, D], the continuations' own.
        implementation: as above.

    Returns:
        [B, G, H, R, D].
    """
    batch, group, heads, size, width = queries.shape
    length = prompt_keys.shape[2]
    place = jnp.arange(length + size)
    first = jnp.asarray(prompt_lengths, jnp.int32)[:, None]  # [B, 1], place of a continuation's first token in its row
    index = jnp.where(place < first, place, jnp.where(place < first + size, place - first + length, place - size))
    inverse = jnp.where(place < first, place, jnp.where(place < length, place + size, place - length + first))
    order = jax.vmap(gather)  # over B: x [B, ..., M, D], index [B, M], inverse [B, M]

    def rows(prompt: Array, own: Array) -> Array:
        prompt = jnp.broadcast_to(prompt[:, None], (batch, group, *prompt.shape[1:]))
        joined = order(jnp.concatenate([prompt, own], axis=3), index, inverse)
        return rearrange(joined, "batch samples ... -> (batch samples) ...")

    blank = jnp.zeros((batch, heads, length, width), queries.dtype)
    lengths = jnp.repeat(prompt_lengths + size, group)
    mixed = attend(
        rows(blank, queries),
        rows(prompt_keys, keys),
        rows(prompt_values, values),
        lengths,
        causal=True,
        implementation=implementation,
    )
    mixed = rearrange(mixed, "(batch samples) ... -> batch samples ...", batch=batch)
    return order(mixed, inverse, index)[..., length:, :]
