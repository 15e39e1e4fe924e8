"""Qwen2-VL and Qwen2.5-VL as Flax NNX modules; attribute paths are the tensor names of the checkpoints."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mmedexpert_jax.models.config import ModelConfig, TextConfig
from mmedexpert_jax.models.layers import GatedMLP, Linear, RMSNorm, contract, declare, finish_factors
from mmedexpert_jax.models.rotary import rotate, tables
from mmedexpert_jax.models.vision import VisionTower

# An attention over queries [..., H, T, D] and keys and values [..., Hkv, T, D], queries and keys rotated:
# -> mixed values [..., H, T, D], and the keys and values to keep
Attention = Callable[[Array, Array, Array], tuple[Array, Array, Array]]


class Embedding(nnx.Module):
    """Token embeddings [V, D]; the output layer too when tied."""

    def __init__(self, size: int, width: int):
        self.weight = declare(size, width)

    def __call__(self, tokens: Array) -> Array:
        """tokens [...] -> [..., D]."""
        return self.weight[...][tokens]


class TextAttention(nnx.Module):
    """Projections around an attention that the caller chooses: q, k and v have biases, o has none."""

    def __init__(self, config: TextConfig):
        width, kv_width = config.hidden_size, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(width, width, True)
        self.k_proj = Linear(width, kv_width, True)
        self.v_proj = Linear(width, kv_width, True)
        self.o_proj = Linear(width, width, False)
        self.head_dim = config.head_dim

    def __call__(self, x: Array, rope: tuple[Array, Array], attention: Attention) -> tuple[Array, Array, Array]:
        """x [..., T, D] -> [..., T, D], and the keys and values to keep."""
        cos, sin = rope
        queries = rotate(self._heads(self.q_proj(x)), cos, sin)
        keys = rotate(self._heads(self.k_proj(x)), cos, sin)
        mixed, keys, values = attention(queries, keys, self._heads(self.v_proj(x)))
        return self.o_proj(jnp.swapaxes(mixed, -2, -3).reshape(x.shape)), keys, values

    def _heads(self, x: Array) -> Array:
        """[..., T, H * D] -> [..., H, T, D]."""
        return jnp.swapaxes(x.reshape(*x.shape[:-1], -1, self.head_dim), -2, -3)


class DecoderLayer(nnx.Module):
    """Pre-norm: attention, then SwiGLU."""

    def __init__(self, config: TextConfig):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = TextAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, False)

    def __call__(self, x: Array, rope: tuple[Array, Array], attention: Attention) -> tuple[Array, Array, Array]:
        """x [..., T, D] -> [..., T, D], and the keys and values to keep."""
        mixed, keys, values = self.self_attn(self.input_layernorm(x), rope, attention)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class TextDecoder(nnx.Module):
    """The language model without its output layer."""

    def __init__(self, config: TextConfig):
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nnx.List([DecoderLayer(config) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.config = config

    def __call__(
        self, x: Array, positions: Array, attention: Callable[..., tuple[Array, Array, Array]], remat: bool = False
    ) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
        """Embeddings x [..., T, D] at positions [..., 3, T] -> normed hidden [..., T, D], keys and values by layer.

        `attention` is an `Attention` that takes the layer's index first.
        """
        rope = self.rope(positions, x.dtype)
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            x = finish_factors(layer, x) if index else x  # into the first layer there may be no gradient
            run = functools.partial(layer, attention=functools.partial(attention, index))
            x, layer_keys, layer_values = (jax.checkpoint(run) if remat else run)(x, rope)
            keys.append(layer_keys)
            values.append(layer_values)
        return self.norm(x), tuple(keys), tuple(values)

    def rope(self, positions: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
        """M-RoPE: cos and sin [..., 1, T, D / 2]; angles in float32, frequency by frequency from its section's row."""
        width = self.config.head_dim
        frequencies = self.config.rope_theta ** -(np.arange(0, width, 2, dtype=np.float32) / width)
        rows = np.repeat(np.arange(3), self.config.mrope_section)
        cos, sin = tables(positions, frequencies, rows)
        return cos.astype(dtype), sin.astype(dtype)


class Qwen2VL(nnx.Module):
    """The whole network."""

    def __init__(self, config: ModelConfig):
        text = config.text
        self.visual = VisionTower(config.vision)
        self.model = TextDecoder(text)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(text.hidden_size, text.vocab_size, False)

    def embed(self, batch: Any, remat: bool = False) -> Array:
        """Token embeddings [B, T, D] with the images' features in their places. No images: no vision tower."""
        x = self.model.embed_tokens(batch.tokens)
        if batch.patches.shape[0] == 0:
            return x
        features = self.visual(batch.patches, batch.patch_positions, batch.patch_counts, remat)
        features = features.reshape(-1, x.shape[-1])
        index = batch.vision_index
        return jnp.where((index >= 0)[..., None], features[jnp.maximum(index, 0)], x)

    def unembed(self, hidden: Array) -> Array:
        """Logits [..., V] in float32."""
        if self.lm_head is not None:
            return self.lm_head(hidden).astype(jnp.float32)
        return contract(hidden, self.model.embed_tokens.weight[...]).astype(jnp.float32)


@functools.lru_cache(maxsize=16)
def _skeleton(config: ModelConfig) -> tuple[nnx.GraphDef, dict[tuple, nnx.Variable]]:
    graphdef, state = nnx.split(Qwen2VL(config), nnx.Param)
    return graphdef, dict(nnx.to_flat_state(state))


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the checkpoint's tensors."""
    return {".".join(map(str, path)): variable.shape for path, variable in _skeleton(config)[1].items()}


def bind(config: ModelConfig, params: dict, lora: Any = None) -> Qwen2VL:
    """The network over a nested dict of arrays, with LoRA factors attached to the linear layers they name."""
    graphdef, variables = _skeleton(config)
    flat = [(path, variable.replace(jnp.asarray(_leaf(params, path)))) for path, variable in variables.items()]
    network = nnx.merge(graphdef, nnx.from_flat_state(flat))
    for name, factors in (lora.factors if lora is not None else {}).items():
        linear: Any = network
        for part in name.split("."):
            linear = linear[int(part)] if isinstance(linear, nnx.List) else _child(linear, part)
        linear.lora = nnx.data((factors["a"], factors["b"], lora.alpha / lora.rank))
    return network


def _leaf(params: Any, path: tuple) -> Array:
    for part in path:
        params = params[str(part)]
    return params


def _child(module: Any, name: str) -> Any:
    return module[name] if isinstance(module, nnx.Dict) else getattr(module, name)


def nest(flat: Mapping[str, Any]) -> dict:
    """{"a.b": x} -> {"a": {"b": x}}."""
    nested: dict = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return nested


def flatten(params: dict, prefix: str = "") -> dict[str, Array]:
    """{"a": {"b": x}} -> {"a.b": x}."""
    flat: dict[str, Array] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
