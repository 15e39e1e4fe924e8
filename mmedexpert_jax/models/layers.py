"""The pieces both towers share: linear layers with a LoRA hook, norms, products."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from mmedexpert_jax.models import fused
from mmedexpert_jax.models.quantised import Quantised, contract_quantised
from mmedexpert_jax.models.sharded import Sharded, features_of_all

# By the names that config.json gives them.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "linear": lambda x: x,
}
# Rows of a product that a CPU spends on reading the weight, as in decoding: where W x^T is faster than x W^T.
_FEW = {jnp.dtype(jnp.float32): range(1, 65), jnp.dtype(jnp.bfloat16): range(16, 65)}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["eps", "shift", "scale"])
@dataclass(frozen=True)
class HeadNorms:
    """Norms of queries and keys by head, for an attention that applies them itself, and the scale of the queries."""

    weights: tuple[Array, ...] = ()  # [D] of queries, [D] of keys; (): heads are not normalised
    eps: float = 0.0
    shift: float = 0.0  # added to the weights
    scale: float = 1.0  # of the queries, besides D^-1/2


def abstract_param(*shape: int) -> nnx.Param:
    """A parameter without a value: modules say what they hold, and `bind` puts the checkpoint's arrays in."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))


class Linear(nnx.Module):
    """y = x W^T + b with PyTorch's weight layout [out, in], plus the LoRA delta that `bind` may attach."""

    def __init__(self, in_features: int, out_features: int, bias: bool):
        self.weight = abstract_param(out_features, in_features)
        self.bias = abstract_param(out_features) if bias else None
        self.lora: Any = nnx.data(None)  # (a [rank, in], b [out, rank])
        self.scale = 1.0

    def __call__(self, x: Array, wide: bool = False) -> Array:
        """x [..., in] -> [..., out] in the dtype of x, or `wide`: float32; the delta is computed in float32."""
        return _with_delta([self], x, self.lora, self.scale, wide)[0]

    def base(self, x: Array, wide: bool = False) -> Array:
        """The same without the delta."""
        weight = self.weight.get_value()
        product = contract_wide if wide else contract
        y = contract_quantised(x, weight) if isinstance(weight, Quantised) else product(x, weight)
        return y if self.bias is None else y + self.bias[...]


class PatchConv(nnx.Module):
    """A convolution whose kernel is its stride, which is one product with the flattened kernel."""

    def __init__(self, out_features: int, *kernel: int, bias: bool = False):
        self.weight = abstract_param(out_features, *kernel)
        self.bias = abstract_param(out_features) if bias else None
        self.lora: Any = nnx.data(None)  # (a [rank, *kernel], b [D, rank])
        self.scale = 1.0

    def __call__(self, patches: Array) -> Array:
        """patches [..., C] -> [..., D] in the dtype of the parameters."""
        weight = self.weight[...]
        y = contract(patches.astype(weight.dtype), rearrange(weight, "out ... -> out (...)"))
        if self.bias is not None:
            y = y + self.bias[...]
        if self.lora is not None:
            a, b = self.lora
            low = contract(patches.astype(jnp.float32), rearrange(a, "rank ... -> rank (...)"))
            y = y + (self.scale * contract(low, b)).astype(y.dtype)
        return y


class RMSNorm(nnx.Module):
    """Float32 inside, cast back before the weight, as transformers does."""

    shift = 0.0  # that a family adds to the weight

    def __init__(self, width: int, eps: float):
        self.weight = abstract_param(width)
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
        self.weight = abstract_param(width)
        self.bias = abstract_param(width)
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


def _with_delta(
    linears: list[Linear], x: Array, lora: tuple[Array, Array] | None, scale: float, wide: bool = False
) -> list[Array]:
    """x [..., in] through linear layers, whose deltas stand in one pair of factors."""
    if lora is None:
        return [linear.base(x, wide) for linear in linears]
    a, b = lora
    if _in_halves(lora):
        from mmedexpert_jax.models.delta_kernel import add_delta

        products = _products(linears, x, a)
        whole = add_delta(jnp.concatenate(products, axis=-1), b, scale, jnp.float32 if wide else x.dtype)
        parts = jnp.split(whole, np.cumsum([y.shape[-1] for y in products[:-2]]), axis=-1)
        return [y.reshape(*x.shape[:-1], -1) for y in parts]
    outputs = [linear.base(x, wide) for linear in linears]
    whole = scale * contract(contract(x.astype(jnp.float32), a), b)
    deltas = jnp.split(whole, np.cumsum([y.shape[-1] for y in outputs])[:-1], axis=-1)
    # Rounded as peft does. One rounding behind the sum holds a float32 product of each layer for the gradient, or costs
    # a pass over it: 37 % more temporary memory on an H100.
    return [y + delta.astype(y.dtype) for y, delta in zip(outputs, deltas, strict=True)]


def _in_halves(lora: tuple[Array, Array] | None) -> bool:
    """True for factors in the form for GPUs, of `network.join_factors`: A's halves [2 M, in] and B [M, out]."""
    return lora is not None and lora[0].dtype == jnp.bfloat16 and lora[0].shape[-2] == 2 * lora[1].shape[-2]


def _products(linears: list[Linear], x: Array, halves: Array) -> list[Array]:
    """The outputs [N, out] of linear layers and, last, x A^T, in float32: one product for XLA, which sees through
    slices of a result that are joined again, but not through their reshapes."""
    rows = rearrange(x, "... width -> (...) width")
    return [*(linear.base(rows, wide=True) for linear in linears), contract_wide(rows, halves)]


def finish_factors(module: nnx.Module, x: Any) -> Any:
    """x, a tree of [..., D] on its way into a module, with a gradient that waits for those of its LoRA factors.

    XLA for GPUs would put their products off, and join them to sums that they are added to; what they read, as large as
    the MLP inside, would be in memory for all layers at the end of a backward pass.
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


def contract(x: Array, weight: Array | Sharded, dtype: jnp.dtype | None = None) -> Array:
    """x [..., in] with weight [out, in] -> [..., out] in a dtype, None: theirs; the weight is never copied transposed.

    On a CPU, XLA takes three to nine times as long for a product of bfloat16 with a result of bfloat16, or of a single
    row, as for float32: it is asked for float32, rounded once, and for two rows at least. Few rows, [N, in] or
    [N, 1, in] as in decoding, are asked for as W x^T: that reads W as it lies, where x W^T packs it anew each time.
    """
    if isinstance(weight, Sharded):
        return weight.product(x, contract, dtype)
    one_token = x.ndim == 2 or (x.ndim == 3 and x.shape[1] == 1)
    if fused.on_cpu() and one_token and x.dtype == weight.dtype and len(x) in _FEW.get(x.dtype, ()):
        rows = rearrange(x, "... width -> (...) width")
        product = jax.lax.dot_general(weight, rows, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        # XLA takes the transpose of a product for the product the other way round, unless a barrier stands between.
        product = jax.lax.optimization_barrier(product).T
        return product.astype(dtype or x.dtype).reshape(*x.shape[:-1], -1)
    if x.dtype != jnp.bfloat16 or weight.dtype != jnp.bfloat16 or not fused.on_cpu():
        return jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=dtype)
    rows = rearrange(x, "... width -> (...) width")
    two = jnp.repeat(rows, 2, axis=0) if len(rows) == 1 else rows
    product = jax.lax.dot_general(two, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return product[: len(rows)].astype(dtype or x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def contract_wide(x: Array, weight: Array | Sharded) -> Array:
    """x [..., in] with weight [out, in] -> [..., out] float32: sums of bfloat16 products that are never rounded to it.

    For logits, of which those from 16 to 32 lie 1/8 apart in bfloat16, up to 6 % of a probability.
    """
    return contract(x, weight) if x.dtype == jnp.float32 else _contract_wide(x, weight)


@jax.custom_vjp
def _contract_wide(x: Array, weight: Array | Sharded) -> Array:
    return contract(x, weight, jnp.float32)


def _contract_wide_back(inputs: tuple[Array, Array | Sharded], slope: Array) -> tuple[Array, Array | Sharded]:
    """Gradients of `contract`, from a slope of the dtype of x: XLA would multiply one of float32 by a float32 copy of
    the weight, 2 GB for the embeddings of a 7B."""
    return jax.vjp(contract, *inputs)[1](slope.astype(inputs[0].dtype))


_contract_wide.defvjp(lambda x, weight: (_contract_wide(x, weight), (x, weight)), _contract_wide_back)


def place_features(features: Array, index: Array, elsewhere: Array) -> Array:
    """Images' features [I, P, D] where a batch's `vision_index` [B, T] says, `elsewhere` [B, T, D] where it is -1."""
    rows = rearrange(features_of_all(features), "images tokens width -> (images tokens) width")[jnp.maximum(index, 0)]
    return jnp.where((index >= 0)[..., None], rows.astype(elsewhere.dtype), elsewhere)


def image_numbers(vision_index: Array) -> Array:
    """[B, T] int32 of a batch's `vision_index`: the number of the image in its row that a token is of; -1 on text."""
    inside = vision_index >= 0
    first = inside & ~jnp.pad(inside, [(0, 0), (1, 0)])[:, :-1]
    return jnp.where(inside, jnp.cumsum(first, axis=1) - 1, -1)
