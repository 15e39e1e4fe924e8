"""The rivals of TIES on one stack of task vectors [K, ...]: task arithmetic, the linear average, SLERP."""

import jax
import jax.numpy as jnp
from jax import Array

PARALLEL = 0.9995  # |cosine| beyond which SLERP is linear interpolation (mergekit's bound)


@jax.jit
def task_arithmetic(vectors: Array, weights: Array) -> Array:
    """Weighted sum of the task vectors (Ilharco et al. 2023): [K, ...], [K] -> [...]."""
    return jnp.tensordot(weights, vectors, 1, precision="highest")


@jax.jit
def average(vectors: Array, weights: Array) -> Array:
    """Weighted mean of the task vectors, the same as that of the full weights: [K, ...], [K] -> [...]."""
    return jnp.tensordot(weights / jnp.sum(weights), vectors, 1, precision="highest")


@jax.jit
def slerp(vectors: Array, weights: Array) -> Array:
    """Spherical interpolation of the task vectors, folded pairwise in their order: [K, ...], [K] -> [...].

    The k-th vector joins the fold of those before it at t = w_k / (w_1 + ... + w_k), so that equal weights give
    equal shares. SLERP of full weights would be no rival: two experts of one base are so nearly parallel that it
    is their average. Pairs with |cosine| > 0.9995, or with a zero vector, are interpolated linearly.
    """
    merged, total = vectors[0], weights[0]
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        total = total + weight
        merged = _slerp(merged, vector, weight / total)
    return merged


def _slerp(start: Array, end: Array, t: Array) -> Array:
    norms = jnp.sqrt(jnp.sum(start * start) * jnp.sum(end * end))
    cosine = jnp.sum(start * end) / jnp.where(norms > 0, norms, 1)
    linear = (norms == 0) | (jnp.abs(cosine) > PARALLEL)
    angle = jnp.arccos(jnp.where(linear, 0, cosine))
    first = jnp.where(linear, 1 - t, jnp.sin((1 - t) * angle) / jnp.sin(angle))
    second = jnp.where(linear, t, jnp.sin(t * angle) / jnp.sin(angle))
    return first * start + second * end


METHODS = {"task_arithmetic": task_arithmetic, "average": average, "slerp": slerp}
