"""The decoder that the families share: attention between projections, a gated MLP, rotary positions, layers in turn.

A caller chooses the attention of a pass (over a prompt, over continuations, over a cache); a layer hands it rotated
queries and keys and gets back what is mixed, and what is to be kept for later tokens:

    attention(index, queries [..., H, T, D], keys [..., Hkv, T, D], values, *of_layer)
        -> mixed [..., H, T, D], keys and values to keep

`of_layer` is the layer's share of what the pass got by layer (keys of the prompt, a cache). Layers are compiled one by
one, or once for all where their parameters are stacked (`models.tree`): `run_layers` is the one place that knows.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from mmedexpert_jax.models.config import ModelConfig, TextConfig
from mmedexpert_jax.models.layers import (
    GatedMLP,
    HeadNorms,
    Linear,
    RMSNorm,
    abstract_param,
    contract_wide,
    finish_factors,
    project,
)
from mmedexpert_jax.models.rotary import rotate, stretched, tables
from mmedexpert_jax.models.sharded import Sharded
from mmedexpert_jax.models.tree import STACKED

Attention = Callable[..., tuple[Array, Array, Array]]
ByLayer = tuple[Array, ...] | Array  # an array a layer, or one with the layers first; [i] gives a layer's
Rope = tuple[Array, Array]  # cos and sin


class Pass(NamedTuple):
    """Embeddings on their way through the layers, and how they attend."""

    x: Array  # [..., T, D], embeddings
    positions: Array  # [..., 3, T], rotary
    attention: Attention


class Embedding(nnx.Module):
    """Token embeddings [V, D]; the output layer too when tied."""

    def __init__(self, size: int, width: int):
        self.weight = abstract_param(size, width)
        self.lora: Any = nnx.data(None)  # (a [rank, D], b [V, rank])
        self.scale = 1.0

    def __call__(self, tokens: Array) -> Array:
        """tokens [...] -> [..., D]."""
        weight = self.weight.get_value()
        x = weight.rows(tokens) if isinstance(weight, Sharded) else weight[tokens]
        if self.lora is None:
            return x
        a, b = self.lora
        return x + (self.scale * (b[tokens] @ a)).astype(x.dtype)


class TextAttention(nnx.Module):
    """Projections around an attention that the caller chooses: q, k and v may have biases, o has none."""

    def __init__(self, config: TextConfig, norm: Callable[..., nnx.Module] = RMSNorm):
        width, kv_width = config.hidden_size, config.num_kv_heads * config.head_dim
        inner = config.num_heads * config.head_dim
        self.q_proj = Linear(width, inner, config.bias)
        self.k_proj = Linear(width, kv_width, config.bias)
        self.v_proj = Linear(width, kv_width, config.bias)
        self.o_proj = Linear(inner, width, False)
        self.q_norm: Any = norm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm: Any = norm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.lora: Any = nnx.data(None)  # of q_proj, k_proj and v_proj, joined
        self.scale = 1.0
        self.head_dim = config.head_dim
        self.query_scale = (config.head_dim / config.query_width) ** 0.5 if config.query_width else 1.0

    def __call__(self, x: Array, rope: Rope | None, attention: Attention) -> tuple[Array, Array, Array]:
        """x [..., T, D] -> [..., T, D], and the keys and values to keep; without a `rope` the attention normalises and
        rotates heads itself, and gets the norms last."""
        queries, keys, values = (
            rearrange(part, "... length (heads head_dim) -> ... heads length head_dim", head_dim=self.head_dim)
            for part in project(self, x, "q_proj", "k_proj", "v_proj")
        )
        if rope is None:
            mixed, keys, values = attention(queries, keys, values, self._norms())
        else:
            if self.q_norm is not None:
                queries, keys = self.q_norm(queries), self.k_norm(keys)
            queries, keys = rotate(queries, *rope), rotate(keys, *rope)
            if self.query_scale != 1:  # the attention divides by head_dim's root
                queries = queries * self.query_scale
            mixed, keys, values = attention(queries, keys, values)
        return self.o_proj(rearrange(mixed, "... heads length head_dim -> ... length (heads head_dim)")), keys, values

    def _norms(self) -> HeadNorms:
        if self.q_norm is None:
            return HeadNorms(scale=self.query_scale)
        weights = self.q_norm.weight[...], self.k_norm.weight[...]
        return HeadNorms(weights, self.q_norm.eps, self.q_norm.shift, self.query_scale)


class DecoderLayer(nnx.Module):
    """Pre-norm: attention, then the gated MLP."""

    def __init__(self, config: TextConfig):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = TextAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, False)

    def __call__(self, x: Array, rope: Rope | None, attention: Attention, index: Any = 0) -> tuple[Array, Array, Array]:
        """x [..., T, D] -> [..., T, D], and the keys and values to keep.

        `index` is the layer's number, a traced one where layers are scanned: for families whose layers differ.
        """
        mixed, keys, values = self.self_attn(self.input_layernorm(x), rope, attention)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class TextDecoder(nnx.Module):
    """The language model without its output layer; a family with other layers gives their class."""

    def __init__(self, config: TextConfig, stacked: bool = False, layer: Callable[..., nnx.Module] = DecoderLayer):
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = declare_layers(functools.partial(layer, config), config.num_layers, stacked)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.config = config

    def __call__(
        self,
        x: Array,
        positions: Array,
        attention: Attention,
        by_layer: tuple[ByLayer, ...] = (),
        *,
        added: tuple[Array, ...] = (),
        remat: bool = False,
        unroll: bool = False,
        rotates: bool = False,
    ) -> tuple[Array, ByLayer, ByLayer]:
        """Embeddings x [..., T, D] at positions [..., 3, T] -> normed hidden [..., T, D], keys and values by layer.

        Args:
            x: embeddings.
            positions: rotary positions.
            attention: as above.
            by_layer: what `attention` gets a layer's share of.
            added: what joins the hidden states after the first layers, [..., T, D] each (DeepStack).
            remat: whether each layer is computed again in the backward pass.
            unroll: whether stacked layers are compiled one by one: decoding, which updates a cache of each in place.
                Layers of a kind are then traced and lowered once.
            rotates: whether `attention` normalises and rotates queries and keys itself: it gets cos and sin, and
                `HeadNorms`, last.
        """
        ropes = self._ropes(positions, x.dtype)

        def run(layer: Any, index: Any, x: Array, *of_layer: Array) -> tuple[Array, tuple[Array, Array]]:
            x, keys, values = self._through(layer, index, x, ropes, attention, *of_layer, rotates=rotates)
            if rotates and layer.mlp.lora is None:  # else XLA adds up what layers left anew in each, by more kernels
                x = jax.lax.optimization_barrier(x)
            return _with_added(x, added, index), (keys, values)

        def as_its_kind(layer: Any, index: int, *others: Array) -> tuple[Array, tuple[Array, Array]]:
            return once(layer, flags.index(flags[index]) if flags else 0, *others)

        once, flags = jax.jit(run, static_argnums=1), self.config.windowed
        x, kept = run_layers(self.layers, as_its_kind if unroll else run, x, by_layer, remat=remat, unroll=unroll)
        return self.norm(x), *kept

    def extended(
        self, prompts: Pass, continuations: Pass, *, added: tuple[Array, ...] = (), remat: bool = False
    ) -> tuple[Array, Array]:
        """Prompts, and behind them in every layer their continuations, whose attention gets the layer's keys and values
        of the prompts -> normed hidden [..., T, D] of both.

        Layer by layer, and not one pass after the other, so that a backward pass holds one gradient of the layers and
        no keys and values of them all, and weights in parts are gathered once for both.
        """
        passes = [(one.attention, self._ropes(one.positions, one.x.dtype)) for one in (prompts, continuations)]
        (first, first_ropes), (then, then_ropes) = passes

        def run(layer: Any, index: Any, x: tuple[Array, Array]) -> tuple[tuple[Array, Array], tuple[()]]:
            before, keys, values = self._through(layer, index, x[0], first_ropes, first)
            after, *_ = self._through(layer, index, x[1], then_ropes, then, keys, values)
            return (_with_added(before, added, index), after), ()

        (before, after), _ = run_layers(self.layers, run, (prompts.x, continuations.x), remat=remat)
        return self.norm(before), self.norm(after)

    def _ropes(self, positions: Array, dtype: jnp.dtype) -> tuple[Rope, Rope]:
        """Of the layers with a window, and of the others."""
        rope = self.rope(positions, dtype)
        return self.rope(positions, dtype, windowed=True) if self.config.window_theta else rope, rope

    def _through(
        self,
        layer: Any,
        index: Any,
        x: Array,
        ropes: tuple[Rope, Rope],
        attention: Attention,
        *of_layer: Array,
        rotates: bool = False,
    ) -> tuple[Array, Array, Array]:
        """x [..., T, D] behind one layer, and the keys and values to keep."""
        near, far = ropes
        rope = choose(self.config.windowed, index, near, far) if near is not far else far

        rotary = (rope,) if rotates else ()

        def attend(queries: Array, keys: Array, values: Array, *norms: HeadNorms) -> tuple[Array, Array, Array]:
            return attention(index, queries, keys, values, *of_layer, *rotary, *norms)

        return layer(x, None if rotates else rope, attend, index)

    def rope(self, positions: Array, dtype: jnp.dtype, windowed: bool = False) -> Rope:
        """M-RoPE: cos and sin [..., 1, T, D / 2]; angles in float32, frequency by frequency from its section's row.

        `windowed`: of the layers with a window, which have frequencies of their own.
        """
        width = self.config.head_dim
        theta, factor = self.config.rope_theta, self.config.rope_factor
        if windowed:
            theta, factor = self.config.window_theta, 1.0
        frequencies = theta ** -(np.arange(0, width, 2, dtype=np.float32) / width) / np.float32(factor)
        if self.config.rope_llama3:
            frequencies = stretched(frequencies, *self.config.rope_llama3)
        rows = np.repeat(np.arange(3), self.config.mrope_section)
        if self.config.mrope_interleaved:  # time, height, width, time, ... while the sections of the latter two last
            rows = np.zeros(width // 2, int)
            for row, size in enumerate(self.config.mrope_section[1:], start=1):
                rows[row : 3 * size : 3] = row
        cos, sin = tables(positions, frequencies, rows)
        return cos.astype(dtype), sin.astype(dtype)


def choose(flags: tuple[bool, ...], index: Any, one: Any, other: Any) -> Any:
    """The tree `one` for layers that have the flag, `other` for the rest; `index` may be traced."""
    if not isinstance(index, jax.Array):
        return one if flags[index] else other
    return jax.tree.map(functools.partial(jnp.where, jnp.asarray(flags)[index]), one, other)


def window_of(config: TextConfig, index: Any) -> Any:
    """Tokens that a query of layer `index` sees, its own the last of them; None: all before it."""
    if not config.window or not any(config.windowed):
        return None
    if not isinstance(index, jax.Array):
        return config.window if config.windowed[index] else None
    if all(config.windowed):
        return config.window
    return choose(config.windowed, index, config.window, config.max_position_embeddings)


def _with_added(x: Array, added: tuple[Array, ...], index: Any) -> Array:
    """x after layer `index` with what joins it there."""
    if not added:
        return x
    if not isinstance(index, jax.Array):
        return x + added[index] if index < len(added) else x
    level = jnp.stack(added)[jnp.minimum(index, len(added) - 1)]
    return x + jnp.where(index < len(added), level, 0)


def declare_layers(layer: Callable[[], nnx.Module], count: int, stacked: bool) -> Any:
    """`count` layers under their numbers, or one under `*` whose parameters will have a first axis of `count`."""
    return nnx.Dict({STACKED: layer()}) if stacked else nnx.List([layer() for _ in range(count)])


class NetworkBase(nnx.Module):
    """The decoder and its output layer; a family's class adds the towers and `embed` (network.py)."""

    def __init__(self, config: ModelConfig, stacked: bool = False, layer: Callable[..., nnx.Module] = DecoderLayer):
        width, size = config.text.hidden_size, config.text.vocab_size
        self.model = TextDecoder(config.text, stacked, layer)
        self.lm_head = None if config.tie_word_embeddings else Linear(width, size, False)

    def unembed(self, hidden: Array) -> Array:
        """Hidden states [..., D] -> logits [..., V] in float32, by the embeddings where the output layer is tied."""
        if self.lm_head is None:
            return contract_wide(hidden, self.model.embed_tokens.weight.get_value())
        return self.lm_head(hidden, wide=True).astype(jnp.float32)


def run_layers(
    layers: Any,
    run: Callable[..., tuple[Any, Any]],
    x: Any,
    by_layer: tuple[ByLayer, ...] = (),
    *,
    remat: bool = False,
    unroll: bool = False,
) -> tuple[Any, Any]:
    """x through all layers, of `declare_layers`, in turn.

    Args:
        layers: unstacked, each is compiled by itself; stacked, one is compiled and scanned.
        run: run(layer, index, x, *of_layer) -> (x, what it keeps: a tree of arrays).
        x: what goes through: an array or a tree of them.
        by_layer: each gives a layer's share to `run`.
        remat: recompute a layer in the backward pass.
        unroll: compile stacked layers one by one, too, from slices of their parameters.

    Returns:
        x, and what was kept: a tree like a layer's of tuples over layers, of stacked arrays where they were scanned.
    """
    if isinstance(layers, nnx.List) or unroll:
        kept = []
        for index, layer in enumerate(_each(layers)):
            x = finish_factors(layer, x) if index else x  # into the first layer there may be no gradient
            one = functools.partial(run, layer, index)
            x, keep = (jax.checkpoint(one) if remat else one)(x, *(leaf[index] for leaf in by_layer))
            kept.append(keep)
        return x, jax.tree.map(lambda *leaves: leaves, *kept)
    step = jax.checkpoint(run, prevent_cse=False) if remat else run  # inside a loop nothing is shared with outside
    stacked = tuple(jnp.stack(leaf) if isinstance(leaf, tuple) else leaf for leaf in by_layer)
    layer = layers[STACKED]
    count = jax.tree.leaves(layer)[0].shape[0]
    return jax.lax.scan(lambda x, of: step(of[0], of[1], x, *of[2]), x, (layer, jnp.arange(count), stacked))


def _each(layers: Any) -> list[nnx.Module]:
    if isinstance(layers, nnx.List):
        return list(layers)
    stacked = layers[STACKED]
    count = jax.tree.leaves(stacked)[0].shape[0]
    return [jax.tree.map(operator.itemgetter(index), stacked) for index in range(count)]
