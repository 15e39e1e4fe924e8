"""Matrices as low-rank factors: merges in the space that the experts' factors span, and truncated SVD.

A matrix of rank r is b @ a. K experts' b stand beside each other in B = [b_1 ... b_K], their a under each other in A; R
is the sum of their ranks. With orthonormal U [out, R] of B and V [in, R] of A every expert is U M_k V^T with a core
M_k [R, R], exactly (Core Space, Panariello et al. 2025, arXiv 2509.17786). What a method does to matrices it does to
cores: no dense matrix is formed, and the result has rank R at most.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from mmedexpert_jax.merging.settings import Setting

_TOLERANCE = 1e-6  # of the whole energy, by which another block may still raise what is kept
_MOST = 0.6  # share of the matrix's smaller side beyond which a whole decomposition costs less


Pair = tuple[np.ndarray, np.ndarray]  # b [out, r], a [r, in]


def merged_factors(pairs: Sequence[Pair], how: Setting, merge_stack: Callable[..., np.ndarray]) -> Pair:
    """The merge of K matrices from their factors, as factors in float32.

    Args:
        pairs: of the experts.
        how: a method of this page ("tsv_m", "iso_c", "wudi", "optmerge"), or one of entries in a `space`.
        merge_stack: `fit.merge_stack`, which merges entries.
    """
    wide = [(b.astype(np.float64), a.astype(np.float64)) for b, a in pairs]
    plain = replace(how, space="", scale=1.0)  # of entries in a space; it weighs the experts itself, and scales later
    if how.kind.join == "factors":
        left, cores, right = core_space([(b * w, a) for (b, a), w in zip(wide, how.weights, strict=True)])
        entries = len(left) * len(right)
        methods = {"tsv_m": tsv_merge, "iso_c": iso_merge}
        methods |= {"wudi": partial(wudi_merge, entries=entries), "optmerge": partial(opt_merge, entries=entries)}
        b, a = left @ methods[how.method](cores), right.T
    elif how.space == "core":
        left, cores, right = core_space(wide)
        b, a = left @ merge_stack(cores.astype(np.float32), plain), right.T
    else:
        b, parts = knots_space(wide)
        a = merge_stack(parts.astype(np.float32), plain)
    return b.astype(np.float32), a.astype(np.float32)


def factors_of(matrix: np.ndarray, rank: int = 0) -> Pair:
    """A matrix's factors: exact, or the best of a rank."""
    if rank and rank < min(matrix.shape):
        a, b, *_ = truncate(matrix, rank)
        return b, a
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left * values, right


def core_space(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U [out, R], cores M [K, R, R'], V [in, R'] with b_k @ a_k = U M_k V^T."""
    left = np.linalg.svd(np.concatenate([b for b, _ in pairs], axis=1), full_matrices=False)[0]
    right = np.linalg.svd(np.concatenate([a for _, a in pairs]), full_matrices=False)[2].T
    return left, np.stack([(left.T @ b) @ (a @ right) for b, a in pairs]), right


def knots_space(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """KnOTS (Stoica et al. 2024, arXiv 2410.19735): U [out, R] and S V_k^T [K, R, in] of the matrices side by side.

    [W_1 ... W_K] = U S [V_1 ... V_K]^T is decomposed through QR of the factors; singular values of 1e-5 and less go.
    """
    outer, mixing = np.linalg.qr(np.concatenate([b for b, _ in pairs], axis=1))
    rows = [np.linalg.qr(a.T) for _, a in pairs]  # a_k = r_k^T q_k^T
    columns = np.split(mixing, np.cumsum([len(a) for _, a in pairs])[:-1], axis=1)
    small = [part @ r.T for part, (_, r) in zip(columns, rows, strict=True)]
    left, values, right = np.linalg.svd(np.concatenate(small, axis=1), full_matrices=False)
    kept = values > 1e-5
    edges = np.cumsum([part.shape[1] for part in small])[:-1]
    parts = np.split(values[kept, None] * right[kept], edges, axis=1)
    return outer @ left[:, kept], np.stack([part @ q.T for part, (q, _) in zip(parts, rows, strict=True)])


def tsv_merge(matrices: np.ndarray) -> np.ndarray:
    """TSV-M (Gargiulo et al. 2025, arXiv 2412.00081): [K, m, n] -> [m, n].

    Of each matrix the leading 1/K of the singular triples; their left and right vectors are made orthogonal, all of
    them together (the nearest orthonormal ones, u v^T of an SVD), then multiplied out.
    """
    count = int(min(matrices.shape[1:]) / len(matrices))
    triples = [np.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    left = _orthonormal(np.concatenate([u[:, :count] for u, _, _ in triples], axis=1))
    right = _orthonormal(np.concatenate([v[:count] for _, _, v in triples]))
    return (left * np.concatenate([s[:count] for _, s, _ in triples])) @ right


def iso_merge(matrices: np.ndarray) -> np.ndarray:
    """Iso-C (Marczak et al. 2025, arXiv 2502.04959): the sum with all singular values set to their mean."""
    left, values, right = np.linalg.svd(np.sum(matrices, axis=0), full_matrices=False)
    return values.mean() * left @ right


def wudi_merge(matrices: np.ndarray, entries: int = 0) -> np.ndarray:
    """WUDI (Cheng et al. 2025, arXiv 2503.08099): lowers sum_k |(M - M_k) M_k^T|^2 / |M_k|^2 from the sum of the M_k.

    The authors take 300 steps of Adam, whose path depends on the basis; `_descended` goes as far without one.

    Args:
        matrices: [K, m, n]; where they are cores, `entries` is the size of the matrices that they stand for.
        entries: 0: m n.
    """
    return _descended(matrices.sum(axis=0), [(matrix, matrix, np.sum(matrix**2)) for matrix in matrices], entries)


def opt_merge(matrices: np.ndarray, entries: int = 0) -> np.ndarray:
    """OptMerge (Wei et al. 2025, arXiv 2505.19892): WUDI's loss with M_k cut to its leading 1/K singular triples.

    sum_k |(M - T_k) R_k^T|^2 / |M_k|^2, where T_k is M_k cut and R_k its singular values times its right vectors; from
    the mean, which stays beyond R_k. Arguments as for `wudi_merge`.
    """
    count = int(min(matrices.shape[1:]) / len(matrices))
    terms = []
    for matrix in matrices:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        rows = values[:count, None] * right[:count]
        terms.append((left[:, :count] @ rows, rows, np.sum(values**2)))
    return _descended(matrices.mean(axis=0), terms, entries)


def _descended(start: np.ndarray, terms: Sequence[tuple[np.ndarray, np.ndarray, float]], entries: int) -> np.ndarray:
    """The least of sum_k |(M - T_k) R_k^T|^2 / e_k, no further from the start than the authors go.

    300 steps of Adam at 1e-5 move an entry by 3e-3 at most: |M - start| <= 3e-3 sqrt(entries). That bound is the merge.
    The minimiser without it is, where experts hardly reach, their noise divided by nearly nothing: of models merged so
    from trained experts no answer was right.

    Args:
        terms: T_k, R_k and e_k; one with e_k = 0 is of an expert that changed nothing.
    """
    pulled, curvature = np.zeros_like(start), np.zeros((start.shape[1],) * 2)  # its gradient: 2 (M curvature - pulled)
    for target, rows, energy in terms:
        if energy:
            pulled += target @ rows.T @ rows / energy
            curvature += rows.T @ rows / energy
    radius = 300 * 1e-5 * np.sqrt(entries or start.size)
    values, vectors = np.linalg.eigh(curvature)
    reached = values > 1e-12 * values[-1]  # beyond the experts' span nothing moves
    values, vectors = values[reached], vectors[:, reached]
    slope = (pulled - start @ curvature) @ vectors
    low, high = 0.0, float(np.linalg.norm(slope)) / radius  # of the multiplier: at `high` the move is within the ball
    if np.linalg.norm(slope / values) > radius:
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if np.linalg.norm(slope / (values + middle)) > radius else (low, middle)
    else:
        high = 0.0
    return start + slope / (values + high) @ vectors.T


def _orthonormal(matrix: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def truncate(update: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """The best approximation of a matrix in squared error, split evenly between two factors.

    Block Krylov iteration (Musco and Musco 2015, arXiv 1504.05477): products with the matrix span a space in which a
    small problem is solved; it grows until the energy of the leading values is settled to 1e-6 of the whole. Small
    matrices, and those with no leading values to speak of, are decomposed outright.

    Args:
        update: [out, in] float32.

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


def truncate_pair(b: np.ndarray, a: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """`truncate` of b @ a, exactly, from QR of the factors: b [out, r] = Q R, a^T [in, r] = P S, and R S^T is small."""
    outer, left = np.linalg.qr(b.astype(np.float64))
    inner, right = np.linalg.qr(a.T.astype(np.float64))
    u, values, v = np.linalg.svd(left @ right.T)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept])
    small_a, small_b = np.zeros((rank, a.shape[1]), np.float32), np.zeros((b.shape[0], rank), np.float32)
    small_a[:kept], small_b[:, :kept] = (root[:, None] * v[:kept]) @ inner.T, outer @ (u[:, :kept] * root)
    return small_a, small_b, float(np.sum(values[:kept] ** 2)), float(np.sum(values**2))


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
