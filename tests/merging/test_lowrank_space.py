"""Merges in the space of LoRA factors against the authors' formulas, written out by hand on dense matrices."""

import sys

import numpy as np
import pytest

from mmedexpert_jax.lora import Lora
from mmedexpert_jax.merging import lowrank, merge, merge_stack, merge_with_report, setting
from mmedexpert_jax.merging.blockwise import Merge
from mmedexpert_jax.merging.merge_page import page
from mmedexpert_jax.merging.parameters import Parameters
from mmedexpert_jax.merging.vectors import Adapter, Expert
from mmedexpert_jax.models.tree import flatten

OUT, IN, RANK, EXPERTS = 12, 10, 2, 3


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((OUT, RANK)), rng.standard_normal((RANK, IN))) for _ in range(EXPERTS)]


def svd(matrix):
    return np.linalg.svd(matrix, full_matrices=False)


def test_cores_are_the_experts_without_loss(pairs):
    left, cores, right = lowrank.core_space(pairs)
    np.testing.assert_allclose(left.T @ left, np.eye(EXPERTS * RANK), atol=1e-12)
    for (b, a), core in zip(pairs, cores, strict=True):
        np.testing.assert_allclose(left @ core @ right.T, b @ a, atol=1e-12)


def test_knots_is_the_decomposition_of_the_matrices_side_by_side(pairs):
    """U S [V_1 ... V_K]^T of [W_1 ... W_K], up to signs of singular vectors."""
    left, parts = lowrank.knots_space(pairs)
    u, s, vt = svd(np.concatenate([b @ a for b, a in pairs], axis=1))
    kept = s > 1e-5
    assert left.shape == (OUT, EXPERTS * RANK)
    signs = np.sign(np.sum(left * u[:, kept], axis=0))
    np.testing.assert_allclose(left * signs, u[:, kept], atol=1e-9)
    for k, part in enumerate(parts):
        expected = (np.diag(s) @ vt)[kept, k * IN : (k + 1) * IN]
        np.testing.assert_allclose(part * signs[:, None], expected, atol=1e-9)


def test_tsv_m_by_hand():
    """The authors' loop: each task's leading 1/K singular triples in its own columns, both sides orthogonalised."""
    matrices = np.random.default_rng(1).standard_normal((EXPERTS, 9, 6))
    count = 6 // EXPERTS
    left, values, right = np.zeros((9, 6)), np.zeros(6), np.zeros((6, 6))
    for k, matrix in enumerate(matrices):
        u, s, v = svd(matrix)
        place = slice(k * count, (k + 1) * count)
        left[:, place], values[place], right[place] = u[:, :count], s[:count], v[:count]
    (a, _, b), (c, _, d) = svd(left), svd(right)
    np.testing.assert_allclose(lowrank.tsv_merge(matrices), a @ b @ np.diag(values) @ c @ d, atol=1e-10)


def test_iso_c_by_hand():
    matrices = np.random.default_rng(2).standard_normal((EXPERTS, 5, 7))
    u, s, v = svd(matrices.sum(0))
    np.testing.assert_allclose(lowrank.iso_merge(matrices), u @ np.diag(np.full(5, s.mean())) @ v, atol=1e-10)


def assert_least_within_reach(found, start, gradient):
    """The loss is least in the ball that 300 steps of 1e-5 an entry reach: its gradient points to the start there."""
    radius = 3e-3 * np.sqrt(start.size)
    np.testing.assert_allclose(np.linalg.norm(found - start), radius, rtol=1e-6)
    slope = gradient(found)
    multiplier = np.linalg.norm(slope) / radius
    np.testing.assert_allclose(slope, -multiplier * (found - start), atol=1e-6 * np.linalg.norm(slope))


@pytest.mark.parametrize("alike", [0.0, 0.999])
def test_wudi_goes_down_the_authors_loss(alike):
    """From their start, as far as they go; experts that share a start of their factors do not blow it up."""
    rng = np.random.default_rng(3)
    shared = rng.standard_normal((2, 8))
    rows = [alike * shared + (1 - alike) * rng.standard_normal((2, 8)) for _ in range(EXPERTS)]
    matrices = 0.1 * np.stack([rng.standard_normal((6, 2)) @ row for row in rows])
    energies = np.sum(matrices**2, axis=(1, 2))

    def gradient(merged):
        return sum(2 * (merged - m) @ m.T @ m / e for m, e in zip(matrices, energies, strict=True))

    assert_least_within_reach(lowrank.wudi_merge(matrices), matrices.sum(0), gradient)
    if not alike:  # the minimiser of small ones is within reach
        np.testing.assert_allclose(gradient(1e4 * lowrank.wudi_merge(1e-4 * matrices)), 0, atol=1e-7)


def test_optmerge_goes_down_the_authors_loss():
    """SVD-cut targets and rows, from the mean; of full-rank experts of 6 x 8 the leading 6 // 3 triples."""
    matrices = np.random.default_rng(4).standard_normal((EXPERTS, 6, 8))
    targets, rows = [], []
    for matrix in matrices:
        u, s, v = svd(matrix)
        targets.append(u[:, :2] @ np.diag(s[:2]) @ v[:2])
        rows.append(np.diag(s[:2]) @ v[:2])
    energies = np.sum(matrices**2, axis=(1, 2))

    def gradient(merged):
        return sum(2 * (merged - t) @ r.T @ r / e for t, r, e in zip(targets, rows, energies, strict=True))

    assert_least_within_reach(lowrank.opt_merge(matrices), matrices.mean(0), gradient)


def lora(pair):
    b, a = pair
    return Lora({"q_proj": {"a": a.astype(np.float32), "b": b.astype(np.float32)}}, RANK, RANK)


def merged_update(pairs, **options):
    base = {"q_proj": {"weight": np.zeros((OUT, IN), np.float32)}}
    experts = {str(k): lora(pair) for k, pair in enumerate(pairs)}
    return flatten(merge(base, experts, **options))["q_proj.weight"]


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "wudi", "optmerge"])
def test_factors_and_matrices_merge_to_the_same(pairs, method):
    """From LoRA factors, no dense matrix: what the cores of the dense matrices give."""
    found = merged_update(pairs, method=method, density=1.0)
    left, cores, right = lowrank.core_space(pairs)
    formulas = {"tsv_m": lowrank.tsv_merge, "iso_c": lowrank.iso_merge, "wudi": lowrank.wudi_merge}
    formulas["optmerge"] = lowrank.opt_merge
    given = (cores, OUT * IN) if method in ("wudi", "optmerge") else (cores,)
    np.testing.assert_allclose(found, left @ formulas[method](*given) @ right.T, rtol=1e-4, atol=1e-4)
    if method in ("wudi", "optmerge"):  # which do not depend on the basis
        dense = formulas[method](np.stack([b @ a for b, a in pairs]))
        np.testing.assert_allclose(found, dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("space", ["core", "knots"])
def test_entries_are_merged_in_a_space(pairs, space):
    """TIES of cores (of S V^T), brought back by the common basis; a plain sum is the same in every space."""
    found = merged_update(pairs, method="ties", density=0.5, space=space)
    if space == "core":
        left, parts, right = lowrank.core_space(pairs)
    else:
        (left, parts), right = lowrank.knots_space(pairs), np.eye(IN)
    inner = merge_stack(parts.astype(np.float32), setting("ties", EXPERTS, density=0.5))
    np.testing.assert_allclose(found, left @ inner @ right.T, rtol=1e-4, atol=1e-4)
    total = merged_update(pairs, method="task_arithmetic", density=1.0, space=space)
    np.testing.assert_allclose(total, sum(b @ a for b, a in pairs), rtol=1e-4, atol=1e-4)


SUMS = {"task_arithmetic": (1.0, 2.0, 0.5), "average": np.array([1.0, 2.0, 0.5]) / 3.5}


@pytest.mark.parametrize("method", ["task_arithmetic", "average", "tsv_m", "ties in the core space"])
def test_a_rank_is_cut_from_factors(pairs, method, monkeypatch):
    """The best of rank 3 of the dense result, and its share of the energy; no dense matrix is decomposed or written."""
    monkeypatch.setattr(sys.modules["mmedexpert_jax.merging.merge"], "truncate", None)
    name, _, space = method.partition(" in the ")
    options = {"method": name, "density": 0.5, "space": space.removesuffix(" space"), "scale": 1.5}
    options |= {"weights": [1.0, 2.0, 0.5]} if name in SUMS else {}
    base = {"q_proj": {"weight": np.zeros((OUT, IN), np.float32)}}
    experts = {str(k): lora(pair) for k, pair in enumerate(pairs)}
    found, report = merge_with_report(base, experts, rank=3, **options)
    dense = merged_update(pairs, **options)
    if name in SUMS:
        by_hand = sum(c * b @ a for c, (b, a) in zip(SUMS[name], pairs, strict=True))
        np.testing.assert_allclose(dense, 1.5 * by_hand, rtol=1e-4, atol=1e-4)
    u, s, v = svd(dense)
    factors = found.factors["q_proj"]
    np.testing.assert_allclose(factors["b"] @ factors["a"], u[:, :3] * s[:3] @ v[:3], atol=1e-4)
    kept = (s[:3] ** 2).sum() / (s**2).sum()
    assert report.kept_energy == pytest.approx(kept, rel=1e-4)
    assert f"The adapter's rank keeps {100 * kept:.0f} % of the merged update's energy" in report.sentence()
    assert "Energy kept at the rank" in page(report, {})


@pytest.mark.parametrize("space", ["core", "knots"])
def test_an_expert_may_start_from_a_merge_in_factors(pairs, space):
    """As a recipe that was written with config.space: the same as if that merge's weights were formed first."""
    base = {"m.weight": np.zeros((OUT, IN), np.float32)}
    low = [Adapter({"m.weight": tuple(half.astype(np.float32) for half in pair)}, 0.5) for pair in pairs]
    experts = tuple(Expert(name, adapters=(one,)) for name, one in zip("abc", low, strict=True))
    halves = {"density": {"": 0.5}, "scale": {"": 0.7}}
    origin = Merge(base, experts[:2], Parameters("ties", ("a", "b"), numbers=halves, space=space))
    start = origin.entries("m.weight", None)[0] + low[2].delta("m.weight", 0, OUT * IN).reshape(OUT, IN)
    how = Parameters("ties", ("o", "a"), numbers={"density": {"": 0.3}})
    found, formed = (
        Merge(base, (first, experts[0]), how).entries("m.weight", None)[0]
        for first in (Expert("o", adapters=low[2:], origin=origin), Expert("o", weights={"m.weight": start}))
    )
    assert np.count_nonzero(formed)
    np.testing.assert_allclose(found, formed, atol=1e-6)
