"""The valid tokens of padded rows side by side, so that what works token by token never sees padding."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from mmedexpert_jax.rounding import cdiv, round_up

MULTIPLE = 8  # of a capacity


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packing:
    """The places of the valid tokens of B prompts' G continuations among N packed ones, and back.

    Both ways are gathers: each is the other's transpose, so neither has a scatter in its gradient.
    """

    index: Array | np.ndarray  # [N] int32, place of each packed token in the flattened [B, G, R]; -1 on padding
    inverse: Array | np.ndarray  # [B, G, R] int32, packed place of each token; -1 behind the end

    @classmethod
    def of(cls, lengths: np.ndarray, size: int, capacity: int) -> "Packing":
        """For continuations [B, G, R = `size`] with so many valid tokens [B, G] each, at most `capacity` in all."""
        valid = np.arange(size) < lengths[..., None]
        index = np.full(capacity, -1, np.int32)
        inverse = np.full(valid.shape, -1, np.int32)
        places = np.flatnonzero(valid)
        index[: len(places)] = places
        inverse.ravel()[places] = np.arange(len(places))
        return cls(index, inverse)

    @classmethod
    def at(cls, places: Array, capacity: int) -> "Packing":
        """For rows [B, R], of whose tokens the packed place is known: below `capacity`, -1 behind the end."""
        flat = places.reshape(-1)
        index = jnp.full(capacity, -1, jnp.int32)
        index = index.at[jnp.where(flat < 0, capacity, flat)].set(jnp.arange(flat.size, dtype=jnp.int32), mode="drop")
        return cls(index, places[:, None])

    def pack(self, x: Array) -> Array:
        """[B, G, ..., R, D] -> [..., N, D]; zeros on padding."""
        x = rearrange(x, "batch samples ... length width -> ... (batch samples length) width")
        return gather(x, self.index, self.inverse.reshape(-1))

    def unpack(self, x: Array) -> Array:
        """[..., N, D] -> [B, G, ..., R, D]; zeros behind the end."""
        batch, samples, _ = self.inverse.shape
        axes = "... (batch samples length) width -> batch samples ... length width"
        return rearrange(gather(x, self.inverse.reshape(-1), self.index), axes, batch=batch, samples=samples)


def capacity(needed: int, full: int, sizes: int) -> int:
    """The least of `sizes` equal steps towards `full` tokens that holds `needed`: few values, so few programs."""
    step = max(1, cdiv(full, sizes))
    return round_up(max(step, round_up(needed, step)), MULTIPLE)


@jax.custom_vjp
def gather(x: Array, index: Array, inverse: Array) -> Array:
    """x [..., M, D] at index [N] -> [..., N, D], zeros where it is -1. `inverse` [M] undoes it."""
    found = jnp.take(x, jnp.maximum(index, 0), axis=-2, mode="clip")
    return jnp.where((index >= 0)[:, None], found, 0)


def _forward(x: Array, index: Array, inverse: Array) -> tuple[Array, tuple[Array, Array]]:
    return gather(x, index, inverse), (index, inverse)


def _backward(indices: tuple[Array, Array], slope: Array) -> tuple[Array, None, None]:
    index, inverse = indices
    return gather(slope, inverse, index), None, None


gather.defvjp(_forward, _backward)
