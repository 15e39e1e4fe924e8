"""The pieces both towers share: linear layers with a LoRA hook, norms, attention."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mmedexpert_jax.models import fused
from mmedexpert_jax.models.parts import InParts, features_of_all
from mmedexpert_jax.models.quantised import Quantised, contract_quantised

MASKED = -1e30  # a score of a key that may not be seen; finite, so that a row without keys gives no NaN
# By the names that config.json gives them.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "linear": lambda x: x,
}
_ROWS = 1024  # queries that see all keys are attended in blocks of so many: Gemma 3's images have 4,096 patches
# Rows of a product that a CPU spends on reading the weight, as in decoding: where W x^T is faster than x W^T.
_FEW = {jnp.dtype(jnp.float32): range(1, 65), jnp.dtype(jnp.bfloat16): range(16, 65)}
_FEW_QUERIES = 8  # of a key head in attention, as in decoding
_LONG = 128  # rows from this length on are attended causally in so many blocks of queries, each with the keys up to its
_BLOCKS = 4  # end: 5/8 of the products, and of the memory a quarter


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """The places of N rows among the G continuations of each of B prompts."""

    prompt: Array  # [N] int32
    sample: Array  # [N] int32, number in the prompt's group
    row: Array  # [B, G] int32, the row of each continuation; any row where it has none


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["eps", "shift", "scale"])
@dataclass(frozen=True)
class HeadNorms:
    """Norms of queries and keys by head, for an attention that applies them itself, and the scale of the queries."""

    weights: tuple[Array, ...] = ()  # [D] of queries, [D] of keys; (): heads are not normalised
    eps: float = 0.0
    shift: float = 0.0  # added to the weights
    scale: float = 1.0  # of the queries, beside D^-1/2


def declare(*shape: int) -> nnx.Param:
    """A parameter without a value: modules say what they hold, and `bind` puts the checkpoint's arrays in."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))


class Linear(nnx.Module):
    """y = x W^T + b with PyTorch's weight layout [out, in], plus the LoRA delta that `bind` may attach."""

    def __init__(self, in_features: int, out_features: int, bias: bool):
        self.weight = declare(out_features, in_features)
        self.bias = declare(out_features) if bias else None
        self.lora: Any = nnx.data(None)  # (a [rank, in], b [out, rank])
        self.scale = 1.0

    def __call__(self, x: Array) -> Array:
        """x [..., in] -> [..., out]; the delta is computed in float32 and cast back."""
        return _with_delta([self], x, self.lora, self.scale)[0]

    def base(self, x: Array, dtype: jnp.dtype | None = None) -> Array:
        """The same without the delta, in a dtype; None: that of x."""
        weight = self.weight.get_value()
        y = contract_quantised(x, weight) if isinstance(weight, Quantised) else contract(x, weight, dtype)
        return y if self.bias is None else y + self.bias[...]


class PatchConv(nnx.Module):
    """A convolution whose kernel is its stride, which is one product with the flattened kernel."""

    def __init__(self, out_features: int, *kernel: int, bias: bool = False):
        self.weight = declare(out_features, *kernel)
        self.bias = declare(out_features) if bias else None
        self.lora: Any = nnx.data(None)  # (a [rank, *kernel], b [D, rank])
        self.scale = 1.0

    def __call__(self, patches: Array) -> Array:
        """patches [..., C] -> [..., D] in the dtype of the parameters."""
        weight = self.weight[...]
        y = contract(patches.astype(weight.dtype), weight.reshape(weight.shape[0], -1))
        if self.bias is not None:
            y = y + self.bias[...]
        if self.lora is not None:
            a, b = self.lora
            low = contract(patches.astype(jnp.float32), a.reshape(a.shape[0], -1))
            y = y + (self.scale * contract(low, b)).astype(y.dtype)
        return y


class RMSNorm(nnx.Module):
    """Float32 inside, cast back before the weight, as transformers does."""

    shift = 0.0  # that a family adds to the weight

    def __init__(self, width: int, eps: float):
        self.weight = declare(width)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        """Normalises the last axis."""
        return self.normalised(x).astype(x.dtype) * self.weight[...]

    def normalised(self, x: Array) -> Array:
        """The last axis divided by its root mean square, float32, without the weight."""
        x32 = x.astype(jnp.float32)
        return x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)


class LayerNorm(nnx.Module):
    """Float32 inside, cast back once, as PyTorch does."""

    def __init__(self, width: int, eps: float):
        self.weight = declare(width)
        self.bias = declare(width)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        """Normalises the last axis."""
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * self.weight[...] + self.bias[...]).astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) * up(x)): SwiGLU, or with a GELU GeGLU (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, bias: bool, activation: str = "silu"):
        self.gate_proj = Linear(width, hidden, bias)
        self.up_proj = Linear(width, hidden, bias)
        self.down_proj = Linear(hidden, width, bias)
        self.activation = ACTIVATIONS[activation]
        self.lora: Any = nnx.data(None)  # of gate_proj and up_proj, joined
        self.scale = 1.0

    def __call__(self, x: Array) -> Array:
        """x [..., D] -> [..., D]."""
        if _in_halves(self.lora):
            from mmedexpert_jax.models.delta_kernel import add_delta

            joined = jnp.concatenate(_products([self.gate_proj, self.up_proj], x, self.lora[0]), axis=-1)
            hidden = add_delta(joined, self.lora[1], self.scale, x.dtype, self.activation)
            return self.down_proj(hidden.reshape(*x.shape[:-1], -1))
        gate, up = project(self, x, "gate_proj", "up_proj")
        return self.down_proj(self.activation(gate) * up)


def project(module: Any, x: Array, *names: str) -> list[Array]:
    """x [..., in] through the module's linear layers of these names, and through their deltas where these are joined.

    A decode step is as slow as it has kernels: joined (`network.join_factors`), the deltas of all names take two.
    """
    linears = [getattr(module, name) for name in names]
    if module.lora is None:
        return [linear(x) for linear in linears]
    return _with_delta(linears, x, module.lora, module.scale)


def _with_delta(linears: list[Linear], x: Array, lora: tuple[Array, Array] | None, scale: float) -> list[Array]:
    """x [..., in] through linear layers, whose deltas stand in one pair of factors."""
    if lora is None:
        return [linear.base(x) for linear in linears]
    a, b = lora
    if _in_halves(lora):
        from mmedexpert_jax.models.delta_kernel import add_delta

        products = _products(linears, x, a)
        whole = add_delta(jnp.concatenate(products, axis=-1), b, scale, x.dtype)
        parts = jnp.split(whole, np.cumsum([y.shape[-1] for y in products[:-2]]), axis=-1)
        return [y.reshape(*x.shape[:-1], -1) for y in parts]
    outputs, whole = [linear.base(x) for linear in linears], scale * contract(contract(x.astype(jnp.float32), a), b)
    deltas = jnp.split(whole, np.cumsum([y.shape[-1] for y in outputs])[:-1], axis=-1)
    return [y + delta.astype(y.dtype) for y, delta in zip(outputs, deltas, strict=True)]


def _in_halves(lora: tuple[Array, Array] | None) -> bool:
    """True for factors in the form for GPUs, of `network.join_factors`: A's halves [2 M, in] and B [M, out]."""
    return lora is not None and lora[0].dtype == jnp.bfloat16 and lora[0].shape[-2] == 2 * lora[1].shape[-2]


def _products(linears: list[Linear], x: Array, halves: Array) -> list[Array]:
    """The outputs [N, out] of linear layers and, last, x A^T, in float32: one product for XLA, which sees through
    slices of a result that are joined again, but not through their reshapes."""
    rows = x.reshape(-1, x.shape[-1])
    return [*(linear.base(rows, jnp.float32) for linear in linears), contract(rows, halves, jnp.float32)]


def finish_factors(module: nnx.Module, x: Any) -> Any:
    """x, a tree of [..., D] on its way into a module, with a gradient that waits for those of its LoRA factors.

    XLA for GPUs would put their products off, and join them to sums that they are added to; what they read, as large as
    the MLP inside, would stand in memory for all layers at the end of a backward pass.
    """
    linears = [part for _, part in nnx.iter_modules(module) if isinstance(part, Linear) and part.lora is not None]
    x, factors = _together((x, [linear.lora for linear in linears]))
    for linear, pair in zip(linears, factors, strict=True):
        linear.lora = nnx.data(pair)
    return x


@jax.custom_vjp
def _together(tree: Any) -> Any:
    return tree


_together.defvjp(lambda tree: (tree, None), lambda _, slopes: (jax.lax.optimization_barrier(slopes),))


def contract(x: Array, weight: Array | InParts, dtype: jnp.dtype | None = None) -> Array:
    """x [..., in] with weight [out, in] -> [..., out] in a dtype, None: theirs; the weight is never copied transposed.

    On a CPU, XLA takes three to nine times as long for a product of bfloat16 with a result of bfloat16, or of a single
    row, as for float32: it is asked for float32, rounded once, and for two rows at least. Few rows, [N, in] or
    [N, 1, in] as in decoding, are asked for as W x^T: that reads W as it lies, where x W^T packs it anew each time.
    """
    if isinstance(weight, InParts):
        return weight.product(x, contract)
    one_token = x.ndim == 2 or (x.ndim == 3 and x.shape[1] == 1)
    if fused.on_cpu() and one_token and x.dtype == weight.dtype and len(x) in _FEW.get(x.dtype, ()):
        rows = x.reshape(len(x), -1)
        product = jax.lax.dot_general(weight, rows, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        # XLA takes the transpose of a product for the product the other way round, unless a barrier stands between.
        product = jax.lax.optimization_barrier(product).T
        return product.astype(dtype or x.dtype).reshape(*x.shape[:-1], -1)
    if x.dtype != jnp.bfloat16 or weight.dtype != jnp.bfloat16 or not fused.on_cpu():
        return jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=dtype)
    rows = x.reshape(-1, x.shape[-1])
    two = jnp.repeat(rows, 2, axis=0) if len(rows) == 1 else rows
    product = jax.lax.dot_general(two, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return product[: len(rows)].astype(dtype or x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def attend(
    queries: Array,
    keys: Array,
    values: Array,
    lengths: Array,
    *,
    causal: bool,
    window: Any = None,
    images: Array | None = None,
) -> Array:
    """Self-attention of padded rows.

    Args:
        queries: [B, H, T, D].
        keys, values: [B, Hkv, T, D]; query head h reads key head h // (H / Hkv).
        lengths: [B], valid keys of each row; rows of length 0 give finite values without meaning.
        causal: whether position t sees only keys up to t.
        window: so many keys up to t at most, where that is causal; a number or a traced one; None: all.
        images: [B, T], the number of the image in its row that a token is of, -1 on text: in spite of `causal` the
            tokens of an image see one another, as far as the window reaches. None: no such thing.

    Returns:
        [B, H, T, D] in the dtype of the values.
    """
    size = queries.shape[2]
    window = None if isinstance(window, int) and window >= size else window
    if window is None and images is None and fused.supported(queries):
        return fused.attend(queries, keys, values, lengths, causal=causal)
    step = -(-size // _BLOCKS) if causal and size >= _LONG else min(size, _ROWS)
    parts = []
    for start in range(0, size, step):
        block = queries[:, :, start : start + step]
        seen = min(start + step, size) if causal and images is None else size
        mask = jnp.arange(seen) < lengths[:, None, None]  # [B, rows, seen]
        if causal:
            mask = mask & _behind(start + _query_rows(block, keys), seen, window, images)
        mixed, _, total = _softmax_part(_group(block, keys), keys[:, :, :seen], values[:, :, :seen], mask[:, None])
        parts.append((mixed / total).astype(values.dtype).reshape(block.shape))
    return jnp.concatenate(parts, axis=2)


def _behind(rows: Array, seen: int, window: Any, images: Array | None) -> Array:
    """[B or 1, N, K]: of the first K = `seen` keys those that queries at places `rows` [N] see, as `attend` has it."""
    age = rows[:, None] - jnp.arange(seen)
    mask = (age >= 0)[None]
    if images is not None:
        own = images[:, rows, None]
        mask = mask | ((own == images[:, None, :seen]) & (own >= 0))
    return mask if window is None else mask & (age < window)


def place_features(features: Array, index: Array, elsewhere: Array) -> Array:
    """Images' features [I, P, D] where a batch's `vision_index` [B, T] says, `elsewhere` [B, T, D] where it is -1."""
    rows = features_of_all(features).reshape(-1, features.shape[-1])[jnp.maximum(index, 0)]
    return jnp.where((index >= 0)[..., None], rows.astype(elsewhere.dtype), elsewhere)


def image_numbers(vision_index: Array) -> Array:
    """[B, T] int32 of a batch's `vision_index`: the number of the image in its row that a token is of; -1 on text."""
    inside = vision_index >= 0
    first = inside & ~jnp.pad(inside, [(0, 0), (1, 0)])[:, :-1]
    return jnp.where(inside, jnp.cumsum(first, axis=1) - 1, -1)


def attend_windows(queries: Array, keys: Array, values: Array, windows: Array, size: int) -> Array:
    """Self-attention inside windows.

    A window is at most `size` neighbours, so a block of `size` queries meets its keys in its own block and the two
    beside it.

    Args:
        queries, keys, values: [B, H, T, D].
        windows: [B, T], ids from 0; equal ones are neighbours.
        size: the most positions of a window.

    Returns:
        [B, H, T, D] in the dtype of the values.
    """
    batch, heads, length, width = queries.shape
    size = min(size, length)  # a window larger than the row would be padded to three windows of keys
    count = -(-length // size)
    padding = count * size - length

    def blocks(x: Array, before: int, after: int, fill: int = 0) -> Array:
        x = jnp.pad(x, [(0, 0), (0, 0), (before, after + padding), (0, 0)], constant_values=fill)
        return x.reshape(*x.shape[:2], -1, size, x.shape[-1])

    def beside(x: Array, fill: int = 0) -> Array:
        x = blocks(x, size, size, fill)
        return jnp.concatenate([x[:, :, :-2], x[:, :, 1:-1], x[:, :, 2:]], axis=3)

    ids = windows[:, None, :, None]
    mask = blocks(ids, 0, 0, -1) == jnp.swapaxes(beside(ids, -2), -1, -2)
    mixed, _, total = _softmax_part(blocks(queries * width**-0.5, 0, 0), beside(keys), beside(values), mask)
    mixed = (mixed / total).astype(values.dtype)
    return mixed.reshape(batch, heads, count * size, width)[:, :, :length]


def attend_extended(
    queries: Array,
    prompt_keys: Array,
    prompt_values: Array,
    prompt_lengths: Array,
    keys: Array,
    values: Array,
    window: Any = None,
) -> Array:
    """`attend_shared` of whole continuations, each of which sees itself causally: [B, G, H, R, D]."""
    size, prompt = queries.shape[-2], (prompt_keys, prompt_values, prompt_lengths)
    window = None if isinstance(window, int) and window >= prompt_keys.shape[2] + size else window
    if window is None and fused.supported(queries):
        return fused.attend_extended(queries, *prompt, keys, values)
    own = _behind(jnp.arange(size), size, window, None)[0]
    return attend_shared(queries, *prompt, keys, values, own, steps=jnp.arange(size), window=window)


def attend_shared(
    queries: Array,
    prompt_keys: Array,
    prompt_values: Array,
    prompt_lengths: Array,
    keys: Array,
    values: Array,
    mask: Array,
    slots: Slots | None = None,
    *,
    steps: Array | None = None,
    window: Any = None,
) -> Array:
    """Attention of G continuations of each prompt to the prompt, which they share, and each to itself.

    One softmax over both parts, merged as in flash decoding: the prompt's keys are never repeated G times.

    Args:
        queries: [B, G, H, T, D]; with `slots`, here and below, [N, ...] for [B, G, ...].
        prompt_keys, prompt_values: [B, Hkv, S, D].
        prompt_lengths: [B], valid keys of each prompt.
        keys, values: [B, G, Hkv, R, D], the continuations' own.
        mask: [..., T, R], the own keys that each query sees, at least one each; leading axes, if any, as those of the
            scores [B, G, Hkv].
        slots: where only N of the continuations are left: which ones.
        steps: own tokens before each query, for a window: [T] or [], with `slots` [N].
        window: tokens that a query sees, prompt and own together, which `mask` has taken into account; None: all.

    Returns:
        [B, G, H, T, D] in the dtype of the values.
    """
    grouped = _group(queries, keys)
    spread = grouped if slots is None else grouped[slots.row]  # [B, G, Hkv, H / Hkv * T, D]
    batch, samples, kv_heads, rows, width = spread.shape
    together = jnp.swapaxes(spread, 1, 2).reshape(batch, kv_heads, samples * rows, width)
    seen = jnp.arange(prompt_keys.shape[2]) < prompt_lengths[:, None, None, None]
    if window is not None:
        steps = jnp.asarray(steps) if slots is None else jnp.asarray(steps)[slots.row][..., None]
        place = jnp.broadcast_to(prompt_lengths[:, None, None] + steps, (batch, samples, queries.shape[-2]))
        place = place[..., _query_rows(queries, keys)].reshape(batch, 1, -1, 1)
        seen = seen & (place - jnp.arange(prompt_keys.shape[2]) < window)
    prompt = _softmax_part(together, prompt_keys, prompt_values, seen)
    parts = (jnp.swapaxes(x.reshape(batch, kv_heads, samples, rows, -1), 1, 2) for x in prompt)
    mixed_prompt, top_prompt, total_prompt = (x if slots is None else x[slots.prompt, slots.sample] for x in parts)
    own = mask if mask.shape[-2] == 1 else mask[..., _query_rows(queries, keys), :]
    mixed, top, total = _softmax_part(grouped, keys, values, own)
    highest = jnp.maximum(top_prompt, top)
    of_prompt, of_own = jnp.exp(top_prompt - highest), jnp.exp(top - highest)
    mixed = (mixed_prompt * of_prompt + mixed * of_own) / (total_prompt * of_prompt + total * of_own)
    return mixed.astype(values.dtype).reshape(queries.shape)


def _softmax_part(queries: Array, keys: Array, values: Array, mask: Array) -> tuple[Array, Array, Array]:
    """A softmax's share of some keys, in float32.

    queries [..., Q, D], keys and values [..., S, D], mask [..., Q, S] -> the values weighted by exp(score - top)
    [..., Q, D], top [..., Q, 1] and the sum of those weights [..., Q, 1].
    """
    axes = tuple(range(queries.ndim - 2))
    last, before = queries.ndim - 1, queries.ndim - 2
    few = fused.on_cpu() and queries.shape[before] <= _FEW_QUERIES and queries.dtype == keys.dtype == jnp.float32
    left, right = (keys, queries) if few else (queries, keys)
    scores = jax.lax.dot_general(left, right, (((last,), (last,)), (axes, axes)), preferred_element_type=jnp.float32)
    if few:  # as in `contract`, XLA packs what stands on the right: better the queries than a whole window of keys
        scores = jnp.swapaxes(jax.lax.optimization_barrier(scores), -1, -2)
    scores = scores + jnp.where(mask, 0, MASKED)  # a sum, which XLA fuses with the rest on CPU, where it does no choice
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))  # cancels out
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jax.lax.dot_general(
        weights.astype(values.dtype), values, (((last,), (before,)), (axes, axes)), preferred_element_type=jnp.float32
    )
    return mixed, top, total


def _group(queries: Array, keys: Array) -> Array:
    """Scales queries [..., H, T, D] by D^-1/2 and joins those of a key head: [..., Hkv, H / Hkv * T, D]."""
    *lead, _, _, width = queries.shape
    return (queries * width**-0.5).reshape(*lead, keys.shape[-3], -1, width)


def _query_rows(queries: Array, keys: Array) -> Array:
    """Position of each row of `_group`'s result: 0 .. T - 1, once for every query head of a key head."""
    heads, size, _ = queries.shape[-3:]
    return jnp.tile(jnp.arange(size), heads // keys.shape[-3])
