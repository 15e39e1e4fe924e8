"""The pieces both towers share: linear layers with a LoRA hook, norms, rotary embedding, attention."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

MASKED = -1e30  # a score of a key that may not be seen; finite, so that a row without keys gives no NaN


def declare(*shape: int) -> nnx.Param:
    """A parameter without a value: modules say what they hold, and `bind` puts the checkpoint's arrays in."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))


class Linear(nnx.Module):
    """y = x W^T + b with PyTorch's weight layout [out, in], plus the LoRA delta that `bind` may attach."""

    def __init__(self, in_features: int, out_features: int, bias: bool):
        self.weight = declare(out_features, in_features)
        self.bias = declare(out_features) if bias else None
        self.lora = nnx.data(None)

    def __call__(self, x: Array) -> Array:
        y = contract(x, self.weight[...])
        if self.bias is not None:
            y = y + self.bias[...]
        if self.lora is not None:
            a, b, scale = self.lora
            y = y + (scale * contract(contract(x.astype(jnp.float32), a), b)).astype(y.dtype)
        return y


class RMSNorm(nnx.Module):
    """Float32 inside, cast back before the weight, as transformers does."""

    def __init__(self, width: int, eps: float):
        self.weight = declare(width)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * self.weight[...]


class LayerNorm(nnx.Module):
    """Float32 inside, cast back once, as PyTorch does."""

    def __init__(self, width: int, eps: float):
        self.weight = declare(width)
        self.bias = declare(width)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * self.weight[...] + self.bias[...]).astype(x.dtype)


class GatedMLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int, bias: bool):
        self.gate_proj = Linear(width, hidden, bias)
        self.up_proj = Linear(width, hidden, bias)
        self.down_proj = Linear(hidden, width, bias)

    def __call__(self, x: Array) -> Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


def contract(x: Array, weight: Array) -> Array:
    """x [..., in] with weight [out, in] -> [..., out]; no transposed copy of the weight is made."""
    return jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding, half-split: x [..., D] with cos, sin [..., D / 2] that broadcast."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(
    queries: Array, keys: Array, values: Array, lengths: Array, *, causal: bool, segments: Array | None = None
) -> Array:
    """Self-attention of padded rows, softmax in float32. The place for a fused kernel.

    Args:
        queries: [B, H, T, D].
        keys, values: [B, Hkv, T, D]; query head h reads key head h // (H / Hkv).
        lengths: [B], valid keys of each row; rows of length 0 give finite values without meaning.
        causal: whether position t sees only keys up to t.
        segments: [B, T], ids of segments that do not see one another.

    Returns:
        [B, H, T, D] in the dtype of the values.
    """
    size = queries.shape[2]
    mask = jnp.arange(size) < lengths[:, None, None]  # [B, 1, T]
    if causal:
        mask = mask & jnp.tri(size, dtype=bool)
    if segments is not None:
        mask = mask & (segments[:, :, None] == segments[:, None, :])
    grouped = _group(queries, keys.shape[1])
    scores = jnp.einsum("bkntd,bksd->bknts", grouped, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bknts,bksd->bkntd", weights, values).reshape(queries.shape)


def attend_shared(
    queries: Array,
    prompt_keys: Array,
    prompt_values: Array,
    prompt_lengths: Array,
    keys: Array,
    values: Array,
    mask: Array,
) -> Array:
    """Attention of G continuations of each prompt to the prompt, which they share, and each to itself.

    One softmax over both parts: each part's exponentials are taken against the common maximum and the sum
    divides at the end, so that neither the prompt's keys are repeated G times nor the scores concatenated.

    Args:
        queries: [B, G, H, T, D].
        prompt_keys, prompt_values: [B, Hkv, S, D].
        prompt_lengths: [B], valid keys of each prompt, at least 1.
        keys, values: [B, G, Hkv, R, D], the continuations' own.
        mask: [T, R], the own keys that each query sees.

    Returns:
        [B, G, H, T, D] in the dtype of the values.
    """
    grouped = _group(queries, keys.shape[2])
    seen = (jnp.arange(prompt_keys.shape[2]) < prompt_lengths[:, None])[:, None, None, None, None]
    prompt = jnp.einsum("bgkntd,bksd->bgknts", grouped, prompt_keys, preferred_element_type=jnp.float32)
    prompt = jnp.where(seen, prompt, MASKED)
    own = jnp.einsum("bgkntd,bgkrd->bgkntr", grouped, keys, preferred_element_type=jnp.float32)
    own = jnp.where(mask, own, MASKED)
    top = jax.lax.stop_gradient(jnp.maximum(prompt.max(-1, keepdims=True), own.max(-1, keepdims=True)))
    prompt, own = jnp.exp(prompt - top), jnp.exp(own - top)
    total = prompt.sum(-1, keepdims=True) + own.sum(-1, keepdims=True)
    prompt, own = (prompt / total).astype(values.dtype), (own / total).astype(values.dtype)
    mixed = jnp.einsum("bgknts,bksd->bgkntd", prompt, prompt_values)
    mixed = mixed + jnp.einsum("bgkntr,bgkrd->bgkntd", own, values)
    return mixed.reshape(queries.shape)


def _group(queries: Array, kv_heads: int) -> Array:
    """Scales queries [..., H, T, D] by D^-1/2 and splits the heads: [..., Hkv, H / Hkv, T, D]."""
    *lead, heads, length, width = queries.shape
    return (queries * width**-0.5).reshape(*lead, kv_heads, heads // kv_heads, length, width)
