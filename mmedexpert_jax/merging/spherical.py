"""Merges that lie in the span of the vectors: SLERP and its kin, model stock, means. All follow from the Gram matrix.

A merge sum_k c_k v_k needs nothing but the inner products of the v_k to find its coefficients c, so that one pass
over the entries (or none, for LoRA factors) gives G, K x K arithmetic gives c, and a second pass the sum.
"""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from einops import rearrange

from mmedexpert_jax.merging.arrays import Array, namespace

PARALLEL = 0.9995  # |cosine| beyond which SLERP is linear interpolation (mergekit's bound)
_TINY = 1e-8


def gram_matrix(vectors: Array) -> Array:
    """Inner products of K vectors [K, ...] -> [K, K]; on the host float64, from pairwise sums of a block.

    Not BLAS there: its threads would fight with those that read the blocks.
    """
    flat = rearrange(vectors, "experts ... -> experts (...)")
    if namespace(vectors) is np:
        gram = np.empty((len(flat), len(flat)))
        for row in range(len(flat)):
            for column in range(row + 1):
                gram[row, column] = gram[column, row] = np.sum(flat[row] * flat[column])
        return gram
    return jax.numpy.matmul(flat, flat.T, precision="highest")


def slerp(gram: Array, weights: Array, parallel: float = PARALLEL, line_to_zero: bool = True) -> Array:
    """Spherical interpolation folded pairwise in the vectors' order: [K, K], [K] -> coefficients [K].

    The k-th vector joins the fold of those before it at t = w_k / (w_1 + ... + w_k), so that equal weights give
    equal weights. Pairs with |cosine| > `parallel` are interpolated linearly, and pairs with a zero vector too unless
    `line_to_zero` says otherwise: for mergekit, whose `slerp` takes two models' full weights and whose `nuslerp` takes
    task vectors as well, a zero vector stands at a right angle to all others.
    """
    xp = namespace(gram)
    basis = xp.eye(len(gram), dtype=gram.dtype)
    merged, total = basis[0], weights[0]
    for k in range(1, len(gram)):
        total = total + weights[k]
        t = weights[k] / xp.where(abs(total) < 1e-6, 1, total)
        t = xp.where(abs(total) < 1e-6, 0.5, t)
        norms = xp.sqrt(xp.maximum(merged @ gram @ merged, 0) * gram[k, k])
        cosine = xp.clip(merged @ gram[:, k] / xp.where(norms > 0, norms, 1), -1, 1)
        linear = abs(cosine) > parallel
        if line_to_zero:
            linear = linear | (norms == 0)
        angle = xp.arccos(xp.where(linear, 0, cosine))
        first = xp.where(linear, 1 - t, xp.sin((1 - t) * angle) / xp.sin(angle))
        merged = first * merged + xp.where(linear, t, xp.sin(t * angle) / xp.sin(angle)) * basis[k]
    return merged


def multislerp(gram: Array, weights: Array, normalize: bool = True) -> Array:
    """One logarithm-exponential step at the weighted mean of the unit vectors, times the weighted mean norm.

    Source: mergekit `multislerp`; `normalize` divides the weights by their sum. Where the mean vanishes, the weighted
    mean of the vectors.
    """
    xp = namespace(gram)
    fractions = weights / xp.sum(weights) if normalize else weights
    norms = xp.sqrt(xp.diagonal(gram))
    units = 1 / (norms + _TINY)
    mean = fractions * units  # coefficients
    length = xp.sqrt(xp.maximum(mean @ gram @ mean, 0))
    vanishes = length < _TINY
    mean = mean / xp.where(vanishes, 1, length)
    dots = units * (gram @ mean)
    tangent = fractions * units - (fractions @ dots) * mean
    size = xp.sqrt(xp.maximum(tangent @ gram @ tangent, 0)) + _TINY
    merged = (xp.cos(size) * mean + xp.sin(size) / size * tangent) * (fractions @ norms)
    return xp.where(vanishes, fractions, merged)


def karcher(gram: Array, weights: Array, max_iter: float = 10, tol: float = 1e-5) -> Array:
    """Riemannian centre of mass of the unit vectors by fixed-point iteration, times the weighted mean norm.

    Source: mergekit `karcher` (which knows equal weights alone); zero vectors count in the norm only.
    """
    xp = namespace(gram)
    fractions = weights / xp.sum(weights)
    norms = xp.sqrt(xp.diagonal(gram))
    valid = norms > tol
    units = xp.where(valid, 1 / xp.where(valid, norms, 1), 0)
    pull = xp.where(valid, fractions, 0)
    pull = pull / xp.where(xp.sum(pull) == 0, 1, xp.sum(pull))

    def unit(coefficients: Array) -> tuple[Array, Array]:
        length = xp.sqrt(xp.maximum(coefficients @ gram @ coefficients, 0))
        return coefficients / xp.where(length > tol, length, 1), length

    mean, length = unit(pull * units)
    first = xp.arange(len(gram)) == xp.argmax(valid)
    mean = xp.where(length < tol, units * first, mean)
    done = xp.asarray(False)
    for _ in range(int(max_iter)):
        dots = xp.clip(units * (gram @ mean), -1, 1)
        angles = xp.arccos(dots)
        near = (angles < tol) | ~valid
        rates = xp.where(near, 0, pull * angles / xp.where(near, 1, xp.sin(angles)))
        tangent = rates * units - (rates @ dots) * mean
        size = xp.sqrt(xp.maximum(tangent @ gram @ tangent, 0))
        done = done | (size < tol)
        step = xp.cos(size) * mean + xp.sin(size) * tangent / xp.where(size == 0, 1, size)
        mean = xp.where(done, mean, unit(step)[0])
    return mean * (fractions @ norms)


def pair_coefficients(products: Array, share: Array) -> Array:
    """SLERP of two vectors for each of n rows or columns: [2, 2, n] inner products -> [2, n] at t = `share`.

    Linear where a pair is parallel to rounding (mergekit `nuslerp` with nuslerp_flatten: false).
    """
    xp = namespace(products)
    first, second = (xp.maximum(xp.sqrt(products[k, k]), 1e-7) for k in (0, 1))
    cosine = xp.clip(products[0, 1] / (first * second), -1, 1)
    parallel = 1 - cosine * cosine <= _TINY**2
    angle = xp.arccos(xp.where(parallel, 0, cosine))
    spherical = xp.stack([xp.sin((1 - share) * angle), xp.sin(share * angle)]) / xp.sin(angle)
    return xp.where(parallel, xp.stack([xp.full_like(cosine, 1 - share), xp.full_like(cosine, share)]), spherical)


def stock_coefficients(products: Array) -> Array:
    """For each of n rows t / K, t = K cos / (1 + (K - 1) cos) with the mean cosine of all pairs: [K, K, n] -> [K, n].

    Source: equation 6 of Jang et al. 2024 (arXiv 2403.19522), as mergekit's `model_stock` with filter_wise; needs
    K >= 2 and knows no weights. Where the denominator vanishes, the base stays.
    """
    xp = namespace(products)
    size = len(products)
    norms = xp.sqrt(products[xp.arange(size), xp.arange(size)])
    cosines = xp.clip(products / xp.maximum(norms[:, None] * norms[None], 1e-6), -1, 1)
    rows, columns = np.triu_indices(size, 1)
    cosine = xp.mean(cosines[rows, columns], axis=0)
    denominator = 1 + (size - 1) * cosine
    singular = abs(denominator) < 1e-6
    share = xp.where(singular, 0, cosine / xp.where(singular, 1, denominator))
    return xp.broadcast_to(share, (size, *share.shape))


Coefficients = Callable[..., Array]
SPANS: dict[str, Coefficients] = {
    # The weighted mean of the vectors, the same as that of the full weights (mergekit `linear`), and with
    # normalize: false (or `passthrough` with a scale) their weighted sum.
    "average": lambda gram, weights: weights / namespace(gram).sum(weights),
    "sum": lambda gram, weights: weights,
    "slerp": slerp,
    # Below float32's step of a cosine no angle is left, which mergekit looks for in float32.
    "nuslerp": partial(slerp, parallel=1 - 2**-25, line_to_zero=False),
    "multislerp": multislerp,
    "karcher": karcher,
    "model_stock": lambda gram, weights: stock_coefficients(gram[..., None])[:, 0],  # of the whole tensor
}
