"""Initial weights of the embedded model's recipe: random, but for heads that copy.

Copying a finding out of the question takes an induction circuit: a head that looks at the previous token and, one
layer up, a head that looks for what followed the last time (Olsson et al. 2022, arXiv 2209.11895). Training finds it
late, and on two cores late is too late; so the first two layers start with one. Training is free to change it.
"""

import numpy as np

from mmedexpert_jax.models import ModelConfig
from mmedexpert_jax.models.config import TextConfig
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.tree import nest

_DEVIATION = 0.08  # of the embeddings, and the most for any matrix
_BRANCH = 0.05  # factor on what a layer adds to the residual stream
_LOOK = 6.3  # size of the biases that point a head at an earlier token
_FAST, _SLOW = 6, 6  # rotary frequencies that tell neighbours apart; from which on positions hardly matter
CIRCUIT = max(_FAST, _SLOW + 1)  # rotary frequencies that a head needs for both
_WRITE, _MATCH, _COPY = 0.3, 2.7, 3.0  # gains of the three steps


def initial_params(config: ModelConfig, seed: int) -> dict:
    """Parameters as a nested dict of float32 arrays."""
    rng = np.random.default_rng(seed)
    flat = {name: _draw(rng, name, shape) for name, shape in tensor_shapes(config).items()}
    _previous_token(flat, config.text, rng)
    return nest(flat)


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) < 2:
        return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
    fan_in = int(np.prod(shape[1:]))
    deviation = _DEVIATION if "embed_tokens" in name else min(_DEVIATION, fan_in**-0.5)
    if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")):
        deviation *= _BRANCH
    return rng.normal(0.0, deviation, shape).astype(np.float32)


def _previous_token(flat: dict[str, np.ndarray], text: TextConfig, rng: np.random.Generator) -> None:
    """Sets the heads of layers 0 and 1 that make the circuit.

    The residual stream is split into quarters: layer 0 writes a sketch of the previous token into the first and of the
    one before it into the second; the third and fourth are what sketches are made of and copied from.
    """
    width, head = text.hidden_size, text.head_dim
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0].astype(np.float32)
    before, earlier, sketch, rest = (basis[:, i * head : (i + 1) * head].T for i in range(4))  # [head_dim, width]
    queries_per_key = text.num_heads // text.num_kv_heads

    def part(layer: int, name: str) -> np.ndarray:
        return flat[f"model.layers.{layer}.self_attn.{name}"]

    def rows(number: int) -> slice:
        return slice(number * head, (number + 1) * head)

    for number, distance in enumerate((1, 2)):  # layer 0: two query heads of the first key head
        part(0, "q_proj.weight")[rows(number)] = 0
        part(0, "q_proj.bias")[rows(number)] = _pointer(text, distance)
    part(0, "k_proj.weight")[rows(0)] = 0
    part(0, "k_proj.bias")[rows(0)] = _pointer(text, 0)
    part(0, "v_proj.weight")[rows(0)] = sketch
    part(0, "o_proj.weight")[:, rows(0)] = _WRITE * before.T
    part(0, "o_proj.weight")[:, rows(1)] = _WRITE * earlier.T

    slow = np.zeros((head, 1), np.float32)
    slow[_SLOW : head // 2] = slow[head // 2 + _SLOW :] = _MATCH
    reads = ((sketch, before, sketch), (before, earlier, rest))  # query, key and value of each key head of layer 1
    for key_head, (query, key, value) in enumerate(reads):
        query_head = key_head * queries_per_key
        part(1, "q_proj.weight")[rows(query_head)] = slow * query
        part(1, "k_proj.weight")[rows(key_head)] = slow * key
        part(1, "v_proj.weight")[rows(key_head)] = value
        part(1, "o_proj.weight")[:, rows(query_head)] = _COPY * value.T


def _pointer(text: TextConfig, distance: int) -> np.ndarray:
    """Bias [head_dim] of a query that, after rotation, meets the key bias `_pointer(text, 0)` best at `distance`."""
    half = text.head_dim // 2
    angles = -distance * text.rope_theta ** -(np.arange(_FAST) / half)
    bias = np.zeros(text.head_dim, np.float32)
    bias[:_FAST], bias[half : half + _FAST] = _LOOK * np.cos(angles), _LOOK * np.sin(angles)
    return bias
