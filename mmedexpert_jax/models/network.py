"""A family's network over a tree of parameters.

A family is: a config (config.py reads config.json into it), a class in NETWORKS, and tensor names, which are the
attribute paths of that class:

    class Network(nnx.Module):
        def __init__(self, config: ModelConfig, stacked: bool): ...  # `stacked` goes to `declare_layers`
        model: TextDecoder                                     # the decoder, of `DecoderLayer`s or the family's own
        # tokens and images -> embeddings, and what the first layers add (DeepStack; else ()); its towers are in here
        def embed(self, batch, remat) -> x [B, T, D], tuple of [B, T, D]
        def unembed(self, hidden [..., D]) -> logits [..., V] float32

Shared and below it: decoder.py (decoder, layers run in turn), layers.py (linear layers with LoRA, norms, MLP,
attention), rotary.py, tree.py (names, stacking). Above it: model.py, the pure functions that everyone else calls.
Layers that differ among themselves get their index, which is traced where layers are scanned: `table[index]` of a NumPy
array, or `jax.lax.cond`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from mmedexpert_jax.models.config import ModelConfig
from mmedexpert_jax.models.llava import LLaVA
from mmedexpert_jax.models.qwen2_vl import Qwen2VL
from mmedexpert_jax.models.qwen3_vl import Qwen3VL
from mmedexpert_jax.models.tree import is_stacked

# model_type -> class
NETWORKS: dict[str, Callable[..., Any]] = {
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen2VL,
    "qwen3_vl": Qwen3VL,
    "llava": LLaVA,
}


@functools.lru_cache(maxsize=16)
def _skeleton(config: ModelConfig, stacked: bool) -> tuple[nnx.GraphDef, dict[tuple, nnx.Variable]]:
    """The network without arrays, and the variables that wait for them, by path."""
    graphdef, state = nnx.split(NETWORKS[config.family](config, stacked), nnx.Param)
    return graphdef, dict(nnx.to_flat_state(state))


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the checkpoint's tensors."""
    return {".".join(map(str, path)): variable.shape for path, variable in _skeleton(config, False)[1].items()}


def bind(config: ModelConfig, params: dict, lora: Any = None) -> Any:
    """The network over a nested dict of arrays, stacked or not, with LoRA factors attached to the layers they name."""
    graphdef, variables = _skeleton(config, is_stacked(params))
    flat = [(path, variable.replace(jnp.asarray(_leaf(params, path)))) for path, variable in variables.items()]
    network = nnx.merge(graphdef, nnx.from_flat_state(flat))
    for name, factors in (lora.factors if lora is not None else {}).items():
        linear: Any = network
        for part in name.split("."):
            linear = linear[int(part)] if isinstance(linear, nnx.List) else _child(linear, part)
        linear.lora = nnx.data((factors["a"], factors["b"]))
        linear.scale = lora.alpha / lora.rank
    return network


def _leaf(params: Any, path: tuple) -> Array:
    for part in path:
        params = params[str(part)]
    return params


def _child(module: Any, name: str) -> Any:
    return module[name] if isinstance(module, nnx.Dict) else getattr(module, name)
