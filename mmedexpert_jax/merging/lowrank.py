"""The merged update of a linear layer as LoRA factors: truncated SVD by a block Krylov space, with the energy kept."""

import numpy as np

_TOLERANCE = 1e-6  # of the whole energy, by which another block may still raise what is kept
_MOST = 0.6  # share of the matrix's smaller side beyond which a whole decomposition costs less


def truncate(update: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """The best approximation of a matrix in squared error, split evenly between two factors.

    Block Krylov iteration (Musco and Musco 2015, arXiv 1504.05477): products with the matrix span a space in which a
    small problem is solved; it grows until the energy of the leading values is settled to 1e-6 of the whole. Small
    matrices, and those with no leading values to speak of, are decomposed outright.

    Args:
        update: [out, in] float32.
        rank: r.

    Returns:
        a [r, in], b [out, r] float32 with b @ a near the update (zero columns beyond its size), the squared norm that
        they keep, and that of the update.
    """
    rows, columns = update.shape
    total = float(np.sum(update.astype(np.float64) ** 2))
    width = 2 * rank + 8
    if min(rows, columns) <= 3 * width:
        left, values, right = np.linalg.svd(update, full_matrices=False)
    else:
        left, values, right = _krylov(update, rank, width, total)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept]).astype(np.float32)
    a, b = np.zeros((rank, columns), np.float32), np.zeros((rows, rank), np.float32)
    a[:kept], b[:, :kept] = root[:, None] * right[:kept], left[:, :kept] * root
    return a, b, float(np.sum(values[:kept].astype(np.float64) ** 2)), total


def _krylov(matrix: np.ndarray, rank: int, width: int, total: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leading singular triples from a space [in, m] grown block by block, and its images [out, m]."""
    start = np.random.default_rng(0).standard_normal((matrix.shape[0], width)).astype(np.float32)
    space = np.linalg.qr(matrix.T @ start)[0]
    images = matrix @ space
    energy = -1.0
    while True:
        energies, mixing = np.linalg.eigh(images.T.astype(np.float64) @ images)
        found = float(np.sum(energies[-rank:]))
        if found - energy <= _TOLERANCE * total:
            break
        if space.shape[1] + width > _MOST * min(matrix.shape):
            return np.linalg.svd(matrix, full_matrices=False)
        energy = found
        new = matrix.T @ images[:, -width:]
        for _ in range(2):  # twice is enough to stay orthogonal in float32
            new -= space @ (space.T @ new)
            new = np.linalg.qr(new)[0]
        space, images = np.hstack([space, new]), np.hstack([images, matrix @ new])
    values = np.sqrt(energies[::-1][:rank])
    leading = mixing[:, ::-1][:, :rank].astype(np.float32)
    return images @ leading / np.maximum(values, 1e-30).astype(np.float32), values, (space @ leading).T
