"""A family's network over a tree of parameters.

A family is: a config (config.py reads config.json into it), a class in NETWORKS, and tensor names, which are the
attribute paths of that class:

    class Network(NetworkBase):                                # the decoder and its output layer, with `unembed`
        def __init__(self, config: ModelConfig, stacked: bool): ...  # `stacked` goes to `declare_layers`
        # tokens and images -> embeddings, and what the first layers add (DeepStack; else ()); its towers are in here
        def embed(self, batch, remat) -> x [B, T, D], tuple of [B, T, D]

Shared and below it: decoder.py (decoder, layers run in turn), layers.py (linear layers with LoRA, norms, MLP,
attention), rotary.py, tree.py (names, stacking). Above it: model.py, the pure functions that everyone else calls.
Layers that differ among themselves get their index, which is traced where layers are scanned: `table[index]` of a NumPy
array, or `jax.lax.cond`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models.config import ModelConfig
from mmedexpert_jax.models.gemma3 import Gemma3
from mmedexpert_jax.models.llava import LLaVA
from mmedexpert_jax.models.quantised import Quantised
from mmedexpert_jax.models.qwen2_vl import Qwen2VL
from mmedexpert_jax.models.qwen3_vl import Qwen3VL
from mmedexpert_jax.models.sharded import Sharded
from mmedexpert_jax.models.tree import is_stacked

# model_type -> class
NETWORKS: dict[str, Callable[..., Any]] = {
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen2VL,
    "qwen3_vl": Qwen3VL,
    "llava": LLaVA,
    "gemma3": Gemma3,
    "gemma3_text": Gemma3,
}
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # linear layers that read one input
DECODER = "model.layers."  # beginning of the names of what a decode step runs once a layer


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
    flat = [(path, variable.replace(_leaf(params, path))) for path, variable in variables.items()]
    network = nnx.merge(graphdef, nnx.from_flat_state(flat))
    for name, factors in (lora.factors if lora is not None else {}).items():
        module = _module(network, name)
        module.lora = nnx.data((factors["a"], factors["b"]))
        module.scale = lora.scale
    return network


def join_factors(config: ModelConfig, lora: Lora | None, fuse: bool = False) -> Lora | None:
    """The deltas of layers that read one input, under the name of their module: what `layers.project` takes.

    The A's stand under one another, the B's along a diagonal. Layers stay apart where some of a module's have no delta,
    and where a family's module does not join. `fuse`: those of the decoder's layers take `layers`' form for GPUs.
    """
    if lora is None:
        return None
    network, factors = NETWORKS[config.family](config, is_stacked(lora.factors)), dict(lora.factors)
    for parents, names in itertools.product(sorted({path.rpartition(".")[0] for path in factors}), JOINED):
        paths = [f"{parents}.{name}" for name in names]
        if all(path in factors for path in paths) and hasattr(_module(network, parents), "lora"):
            pairs = [factors.pop(path) for path in paths]
            fused = fuse and parents.startswith(DECODER)
            factors[parents] = _for_gpus(pairs) if fused else _diagonal(pairs)
    if fuse:
        rest = [path for path in lora.factors if path in factors and path.startswith(DECODER)]
        factors |= {path: _for_gpus([factors[path]]) for path in rest}
    return dataclasses.replace(lora, factors=factors)


def _diagonal(pairs: list[dict[str, Array]]) -> dict[str, Array]:
    """The A's [..., rank, in] of some layers under one another, their B's [..., out, rank] along a diagonal."""
    ranks = np.cumsum([0, *(pair["a"].shape[-2] for pair in pairs)])
    pads, places = [(0, 0)] * (pairs[0]["b"].ndim - 1), itertools.pairwise(ranks)
    rows = [jnp.pad(pair["b"], [*pads, (at, ranks[-1] - end)]) for pair, (at, end) in zip(pairs, places, strict=True)]
    return {"a": jnp.concatenate([pair["a"] for pair in pairs], axis=-2), "b": jnp.concatenate(rows, axis=-2)}


def _for_gpus(pairs: list[dict[str, Array]]) -> dict[str, Array]:
    """The same with A as two in bfloat16, one under the other: what rounding makes of it, and what that loses. Both
    have 16 bits of a mantissa, where a GPU's product of float32 has 11. Each is filled up to a multiple of 32 rows,
    without which XLA copies the weight that they are joined to; B [..., rows of one, out] is transposed."""
    joined = _diagonal(pairs)
    pads = [*[(0, 0)] * (joined["a"].ndim - 2), (0, -joined["a"].shape[-2] % 32), (0, 0)]
    a, b = jnp.pad(joined["a"], pads), jnp.pad(rearrange(joined["b"], "... out rank -> ... rank out"), pads)
    rounded = a.astype(jnp.bfloat16)
    return {"a": jnp.concatenate([rounded, (a - rounded).astype(jnp.bfloat16)], axis=-2), "b": b}


def _module(network: Any, name: str) -> Any:
    for part in name.split("."):
        network = network[int(part)] if isinstance(network, nnx.List) else _child(network, part)
    return network


def _leaf(params: Any, path: tuple) -> Array | Quantised | Sharded:
    for name in path:
        params = params[str(name)]
    return params if isinstance(params, Quantised | Sharded) else jnp.asarray(params)


def _child(module: Any, name: str) -> Any:
    return module[name] if isinstance(module, nnx.Dict) else getattr(module, name)
