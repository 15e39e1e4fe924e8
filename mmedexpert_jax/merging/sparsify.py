"""What the rivals of TIES keep of a task vector: DARE and DELLA at random, breadcrumbs without the outliers.

Random choices hash (seed, tensor's name, expert's name, index of the entry), so that neither the order of tensors and
experts nor blocks, shards and devices change them.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging.arrays import Array, Rows, namespace, random_bits
from mmedexpert_jax.merging.select import Bound


def key_of(seed: int, tensor: str, expert: str) -> int:
    """64-bit key of the random choices in one task vector."""
    text = f"{seed}/{tensor}/{expert}".encode()
    return zlib.crc32(text) << 32 | zlib.crc32(text[::-1], 0x9E3779B9)


def bernoulli(vectors: Rows, densities: Sequence[float], keys: Sequence[int], start: int, inverse: bool) -> list[Array]:
    """DARE (Yu et al. 2024, arXiv 2311.03099): keeps each entry with probability density.

    Args:
        vectors: K arrays [n] float32.
        densities: K probabilities.
        keys: K keys of `key_of`.
        start: index of the first column in the tensor.
        inverse: divide what is kept by its probability (the paper).
    """
    xp = namespace(vectors)
    rows = []
    for vector, density, key in zip(vectors, densities, keys, strict=True):
        if density >= 1:
            rows.append(vector)
            continue
        kept = random_bits(key, start, vector.shape, xp) < xp.uint32(int(density * 2**32))
        rows.append(xp.where(kept, vector / xp.float32(density) if inverse and density > 0 else vector, 0))
    return rows


def by_rank(
    vectors: Rows,
    densities: Sequence[float],
    epsilons: Sequence[float],
    keys: Sequence[int],
    start: int,
    inverse: bool,
) -> list[Array]:
    """DELLA's MagPrune (Deep et al. 2024, arXiv 2406.11617) on whole rows, K arrays [rows, columns], of a matrix.

    In each row the entries are ranked by magnitude (the later of equals ranks higher); the probability to keep one
    rises linearly with its rank from density - epsilon to density + epsilon.
    """
    xp = namespace(vectors)
    columns = vectors[0].shape[-1]
    rows = []
    for vector, density, epsilon, key in zip(vectors, densities, epsilons, keys, strict=True):
        if density >= 1 or density <= 0:
            rows.append(vector if density >= 1 else xp.zeros_like(vector))
            continue
        order = xp.argsort(xp.abs(vector), axis=-1, stable=True)
        ranks = xp.argsort(order, axis=-1).astype(xp.float32)
        share = ranks / xp.float32(max(columns - 1, 1)) if columns > 1 else xp.full_like(ranks, 0.5)
        probability = xp.float32(density - epsilon) + share * xp.float32(2 * epsilon)
        uniform = random_bits(key, start, vector.shape, xp).astype(xp.float32) * xp.float32(2**-32)
        kept = uniform < probability
        rows.append(xp.where(kept, vector / probability if inverse else vector, 0))
    return rows


def between(vectors: Rows, outer: Bound, inner: Bound, start: int) -> list[Array]:
    """Model breadcrumbs (Davari and Belilovsky 2023, arXiv 2312.06795): keeps what is inside `inner`, not `outer`."""
    xp = namespace(vectors)
    masks = zip(inner.keeps(vectors, start), outer.keeps(vectors, start), vectors, strict=True)
    return [xp.where(small & ~large, row, 0) for small, large, row in masks]


def breadcrumb_ranks(size: int, density: float, gamma: float) -> tuple[int, int]:
    """How many of the largest of `size` entries are dropped as outliers, and how many follow that are kept.

    int(gamma * size) and int(density * size); fewer outliers where both do not fit (mergekit 0.1.5).
    """
    if density >= 1:
        return 0, size
    target = int(density * size)
    return min(int(gamma * size), size - target), target


def check_densities(method: str, densities: Sequence[float], epsilons: Sequence[float]) -> None:
    """Raises ConfigError where a density (or DELLA's density +- epsilon) is no probability."""
    for density, epsilon in zip(densities, epsilons, strict=True):
        if not 0 <= density <= 1:
            raise ConfigError(f"density is the fraction of entries kept, between 0 and 1; got {density}")
        if method.startswith("della") and 0 < density < 1 and not 0 < density - epsilon < density + epsilon < 1:
            raise ConfigError(
                f"density {density} +- epsilon {epsilon} must lie between 0 and 1 for {method}: lower epsilon"
            )


def one_norms(vectors: Rows) -> Array:
    """Sums of magnitudes of K arrays -> [K]."""
    xp = namespace(vectors)
    wide = np.float64 if xp is np else xp.float32
    return xp.stack([xp.sum(xp.abs(row), dtype=wide) for row in vectors])
