"""Random weights of any size, drawn on the host: the same on every backend, and nothing to compile."""

import threading

import jax.numpy as jnp
import numpy as np

from mmedexpert_jax.models.config import ModelConfig
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.stored_tensors import Index, Stored
from mmedexpert_jax.models.tree import nest

DEVIATION = 0.02  # transformers' initializer_range


def draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A tensor as transformers initialises it, float32: matrices N(0, 0.02), biases 0, norms 1."""
    if len(shape) < 2:
        return np.full(shape, 0 if name.endswith("bias") else 1, np.float32)
    key = np.random.SeedSequence([seed, *name.encode()])
    values = np.random.Generator(np.random.SFC64(key)).standard_normal(shape, np.float32)
    values *= np.float32(DEVIATION)
    return values


def random_tensors(config: ModelConfig, seed: int) -> dict[str, Stored]:
    """The tensors of a model, drawn when they are read; each thread keeps its last for the other devices' parts."""
    last = threading.local()

    def stored(name: str, shape: tuple[int, ...]) -> Stored:
        def read(index: Index) -> np.ndarray:
            if getattr(last, "name", "") != name:
                last.values = None  # freed before the next is drawn
                last.name, last.values = name, draw(name, shape, seed)
            return last.values[index]

        return Stored(shape, "bfloat16", read)

    return {name: stored(name, shape) for name, shape in tensor_shapes(config).items()}


def init_params(config: ModelConfig, seed: int, dtype: jnp.dtype) -> dict:
    """Random parameters on the default device."""
    shapes = tensor_shapes(config)
    return nest({name: jnp.asarray(draw(name, shape, seed), dtype) for name, shape in shapes.items()})
