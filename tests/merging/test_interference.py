"""Who won, what survives, and what equal magnitudes change: by hand, and on the gap of norms that RL vectors have."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest

from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.merging import blockwise, merge, merge_with_report
from mmedexpert_jax.merging.merge_page import page
from mmedexpert_jax.models.tree import flatten, nest

F32 = np.float32


def report_of(vectors, **options):
    base = {"w.weight": np.zeros((1, len(vectors[0])), F32)}
    experts = {name: nest({"w.weight": np.array([row], F32)}) for name, row in zip("abc", vectors, strict=False)}
    return merge_with_report(nest(base), experts, density=1.0, **options)[1]


def test_elections_counted_by_hand():
    """Entries: a wins, b wins, both agree, only a, nobody (an exact cancellation: both are outvoted)."""
    rates = report_of([[3, 1, 2, 4, 1], [-1, -2, 2, 0, -1]]).rates()
    assert rates["contested"] == {"a": pytest.approx(3 / 5), "b": pytest.approx(3 / 4)}
    assert rates["won"] == {"a": pytest.approx(1 / 3), "b": pytest.approx(1 / 3)}
    assert rates["survives"] == {"a": pytest.approx(3 / 5), "b": pytest.approx(2 / 4)}
    merged = np.array([3, -2, 2, 4, 0])
    for name, row in (("a", [3, 1, 2, 4, 1]), ("b", [-1, -2, 2, 0, -1])):
        cosine = merged @ row / np.linalg.norm(merged) / np.linalg.norm(row)
        assert rates["along"][name] == pytest.approx(cosine)
    assert rates["length"]["a"] == pytest.approx(np.sqrt(31 / 10))


def gap(seed=0, size=20000, times=20.0):
    """Four SFT vectors and an RL vector that is `times` shorter."""
    rng = np.random.default_rng(seed)
    vectors = {name: rng.standard_normal(size).astype(F32) for name in ("AM", "CAH", "BS", "CSI", "RL")}
    vectors["RL"] /= F32(times)
    return {name: nest({"w.weight": row.reshape(100, -1)}) for name, row in vectors.items()}


def test_a_short_rl_vector_loses_every_election_and_the_report_says_so():
    base, experts = nest({"w.weight": np.zeros((100, 200), F32)}), gap()
    report = merge_with_report(base, experts, density=0.2)[1]
    rates = report.rates()
    # What it wins are elections where SFT experts are on both sides.
    assert rates["won"]["RL"] < 0.25 and rates["along"]["RL"] < 0.1
    assert rates["length"]["RL"] == pytest.approx(1 / 20, 0.1)
    assert "RL survives least: 2" in report.sentence() and "normalize_vectors=tensor" in report.sentence()
    text = page(report, {})
    assert text.index("RL survives least") < text.index("Who won where two disagreed") < text.index("Sign conflict")
    equal = merge_with_report(base, experts, density=0.2, normalize_vectors="tensor")[1]
    rates = equal.rates()
    assert rates["won"]["RL"] > 0.4 and rates["along"]["RL"] > 0.3
    assert rates["length"]["RL"] == pytest.approx(1 / 20, 0.1)  # of the vectors as they came
    assert "nearly lost" not in equal.sentence()
    alike = merge_with_report(base, gap(times=1.0), density=0.2)[1]
    assert "survives least: as long as the others' on average" in alike.sentence()


@pytest.mark.parametrize("kind", ["tensor", "module", "global", "median"])
def test_equal_magnitudes_by_hand(kind):
    rng = np.random.default_rng(1)
    names = ("a.weight", "a.bias", "b.weight")
    base = {name: np.zeros(6, F32) for name in names}
    experts = [{name: (rng.standard_normal(6) * size).astype(F32) for name in names} for size in (1, 5)]
    found = flatten(
        merge(nest(base), dict(zip("xy", map(nest, experts), strict=True)), "task_arithmetic", density=1.0,
              normalize_vectors=kind)
    )  # fmt: skip
    groups = {"module": [("a.weight", "a.bias"), ("b.weight",)], "global": [names]}.get(kind, [(n,) for n in names])
    for group in groups:
        vectors = [np.concatenate([expert[name] for name in group]) for expert in experts]
        size = [np.sort(np.abs(v))[3] if kind == "median" else np.linalg.norm(v) for v in vectors]
        expected = sum(v * np.mean(size) / s for v, s in zip(vectors, size, strict=True))
        np.testing.assert_allclose(np.concatenate([found[n] for n in group]), expected, rtol=1e-5, atol=1e-6)


def test_programs_and_numpy_give_equal_magnitudes_alike(monkeypatch):
    rng = np.random.default_rng(2)
    base = {"w.weight": rng.standard_normal((64, 64)).astype(ml_dtypes.bfloat16)}
    experts = {
        name: nest({"w.weight": (base["w.weight"].astype(F32) + s * rng.standard_normal((64, 64))).astype(F32)})
        for name, s in (("a", 0.1), ("b", 3.0))
    }
    whole = merge_with_report(nest(base), experts, density=0.3, normalize_vectors="tensor")
    monkeypatch.setattr(blockwise, "BLOCK", 4 * 64 * 64)  # a block that a program takes, measured as a whole
    blocks = merge_with_report(nest(base), experts, density=0.3, normalize_vectors="tensor")
    np.testing.assert_array_equal(flatten(whole[0])["w.weight"], flatten(blocks[0])["w.weight"])
    for key, value in whole[1].sums["w.weight"].items():
        np.testing.assert_allclose(blocks[1].sums["w.weight"][key], value, rtol=1e-4, err_msg=key)


@pytest.fixture
def many_blocks(monkeypatch):
    """Ten blocks, of which the report is measured on the first quarter of four: two experts over a base of ones."""
    monkeypatch.setattr(blockwise, "BLOCK", 2048)
    rng = np.random.default_rng(4)
    base = {"w.weight": np.ones((160, 128), F32)}
    return base, {name: base["w.weight"] + rng.standard_normal((160, 128)).astype(F32) for name in "ab"}


def test_a_large_tensor_is_measured_on_some_blocks(many_blocks, monkeypatch):
    base, experts = many_blocks
    run = partial(merge_with_report, nest(base), {n: nest({"w.weight": w}) for n, w in experts.items()}, density=0.4)
    merged, report = run()
    monkeypatch.setattr(blockwise, "BLOCK", 4 * base["w.weight"].size)  # its first quarter is the whole
    exact_merged, exact = run()
    np.testing.assert_array_equal(flatten(merged)["w.weight"], flatten(exact_merged)["w.weight"])
    rates, whole = report.rates(), exact.rates()
    assert rates["conflict"] != whole["conflict"]
    deviation = np.sqrt(0.25 / 2048)
    for name in ("conflict", "shared"):
        assert abs(rates[name] - whole[name]) < 4 * deviation
    for name in ("won", "survives", "along"):
        for expert in "ab":
            assert abs(rates[name][expert] - whole[name][expert]) < 4 * deviation
    assert rates["merged_norm"] == pytest.approx(whole["merged_norm"], rel=0.05)  # sums stand for the whole tensor


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_found_in_every_block(many_blocks, value):
    base, experts = many_blocks
    experts["b"][5, 100] = value  # of the first block, behind the quarter that the report is measured on
    with pytest.raises(DataError, match=r"expert b: w\.weight holds NaN or infinite values"):
        merge(nest(base), {name: nest({"w.weight": own}) for name, own in experts.items()}, density=0.4)


def test_an_overflow_is_found_in_every_block(many_blocks):
    base, experts = many_blocks
    for own in experts.values():
        own[5, 100] = 3e38
    with pytest.raises(ConfigError, match="overflow float32; lower the scale"):
        merge(nest(base), {name: nest({"w.weight": own}) for name, own in experts.items()}, density=0.4, scale=5.0)


def test_dots_keeps_the_norm():
    """DoTS: what the trim leaves is stretched to the norm before it, then added."""
    vectors = np.random.default_rng(3).standard_normal((2, 1, 50)).astype(F32)
    base = nest({"w.weight": np.zeros((1, 50), F32)})
    for row in vectors:
        found = flatten(merge(base, {"a": nest({"w.weight": row})}, "dots", density=0.3))["w.weight"]
        assert np.count_nonzero(found) == 15
        np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(row), rtol=1e-5)
