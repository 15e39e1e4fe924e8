"""The merged update of a linear layer as LoRA factors: truncated SVD by a block Krylov space, with the energy kept."""

import numpy as np

_STEPS, _EXTRA, _TOLERANCE = 6, 8, 1e-7


def truncate(update: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """The best approximation of a matrix in squared error, split evenly between two factors.

    Block Krylov iteration (Musco and Musco 2015, arXiv 1504.05477): products with the matrix span a space in which a
    small SVD is solved; it grows until the energy of the leading values is settled to 1e-7 of the whole. Small
    matrices are decomposed outright.

    Args:
        update: [out, in] float32.
        rank: r.

    Returns:
        a [r, in], b [out, r] float32 with b @ a near the update (zero columns beyond its size), the squared norm that
        they keep, and that of the update.
    """
    rows, columns = update.shape
    total = float(np.sum(update.astype(np.float64) ** 2))
    width = rank + _EXTRA
    if min(rows, columns) <= 3 * width:
        left, values, right = np.linalg.svd(update, full_matrices=False)
    else:
        left, values, right = _krylov(update, rank, width, total)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept])
    a, b = np.zeros((rank, columns), np.float32), np.zeros((rows, rank), np.float32)
    a[:kept], b[:, :kept] = root[:, None] * right[:kept], left[:, :kept] * root
    return a, b, float(np.sum(values[:kept].astype(np.float64) ** 2)), total


def _krylov(matrix: np.ndarray, rank: int, width: int, total: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leading singular triples, from a space [in, width * steps] grown block by block."""
    block = np.random.default_rng(0).standard_normal((matrix.shape[1], width)).astype(np.float32)
    space = np.linalg.qr(matrix.T @ (matrix @ block))[0]
    images = matrix @ space  # [out, m]
    energy = -1.0
    while True:
        left, values, mixed = np.linalg.svd(images, full_matrices=False)
        found = float(np.sum(values[:rank].astype(np.float64) ** 2))
        if found - energy <= _TOLERANCE * total or space.shape[1] + width > min(matrix.shape):
            return left, values, mixed @ space.T
        energy = found
        new = matrix.T @ images[:, -width:]
        for _ in range(2):
            new -= space @ (space.T @ new)
        new = np.linalg.qr(new)[0]
        space, images = np.hstack([space, new]), np.hstack([images, matrix @ new])
