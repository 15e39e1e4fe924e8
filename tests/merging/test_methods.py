"""Methods on stacks of task vectors: by hand, by property, and the same on numpy and on JAX."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax.config import field_of
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging import METHODS, merge_stack, setting
from mmedexpert_jax.merging.methods import bernoulli, breadcrumb_ranks, by_rank, key_of, switches
from mmedexpert_jax.merging.settings import Switches

F32 = np.float32


def merged(vectors, method, base=None, **options):
    vectors = np.asarray(vectors, F32)
    return merge_stack(vectors, setting(method, len(vectors), **options), base)


def test_the_command_line_takes_every_method():
    assert set(field_of("method", "merge").choices) == set(METHODS)


def test_sum_and_mean():
    vectors = [[1, 2], [3, -4], [5, 6]]
    np.testing.assert_allclose(merged(vectors, "task_arithmetic", weights=(1, 0.5, 2)), [12.5, 12.0])
    np.testing.assert_allclose(merged(vectors, "average", weights=(1, 2, 1)), [3.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(merged(vectors, "task_arithmetic", scale=0.5), [4.5, 2.0])


def test_slerp_of_orthogonal_vectors_follows_the_circle():
    found = merged([[2, 0], [0, 2]], "slerp", weights=(3, 1))
    np.testing.assert_allclose(found, [2 * np.cos(np.pi / 8), 2 * np.sin(np.pi / 8)], rtol=1e-6)


def test_slerp_folds_in_order_with_equal_shares():
    fold = merged(np.eye(3)[:2], "slerp")
    expected = merged([fold, np.eye(3)[2]], "slerp", weights=(2, 1))
    found = merged(np.eye(3), "slerp")
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found), 1, rtol=1e-6)
    assert not np.allclose(found, merged(np.eye(3)[::-1], "slerp"))  # the order is part of the definition


def test_slerp_degenerates_to_the_line():
    np.testing.assert_allclose(merged([[1, 2], [2, 4]], "slerp"), [1.5, 3.0], rtol=1e-6)
    np.testing.assert_allclose(merged([[1, 2], [-1, -2]], "slerp"), [0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(merged([[0, 0], [2, 4]], "slerp"), [1.0, 2.0], rtol=1e-6)
    assert np.isfinite(merged(np.zeros((3, 4)), "slerp")).all()


def test_slerp_of_whole_weights_is_the_average():
    """Two experts of one base are so nearly parallel that SLERP of their weights falls back to the line."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((8, 9)).astype(F32)
    vectors = (0.02 * rng.standard_normal((2, 8, 9))).astype(F32)
    first, second = (base + vectors).reshape(2, -1)
    assert first @ second / np.linalg.norm(first) / np.linalg.norm(second) > 0.9995
    np.testing.assert_allclose(merged(vectors, "weight_slerp", base), merged(vectors, "average"), atol=1e-6)
    assert not np.allclose(merged(vectors, "slerp"), merged(vectors, "average"), atol=1e-3)


@pytest.mark.parametrize("method", ["slerp", "multislerp", "karcher"])
def test_spherical_means_keep_the_norm_of_equally_long_vectors(method):
    vectors = np.random.default_rng(1).standard_normal((2 if method == "slerp" else 4, 5))
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * 3
    np.testing.assert_allclose(np.linalg.norm(merged(vectors, method)), 3, rtol=1e-5)
    np.testing.assert_allclose(merged([vectors[0]] * 3, method), vectors[0], rtol=1e-5)


def test_model_stock_keeps_the_share_that_the_angle_says():
    np.testing.assert_allclose(merged([[1, 0], [0, 1]], "model_stock"), [0, 0], atol=1e-6)  # orthogonal: the base
    np.testing.assert_allclose(merged([[1, 2], [1, 2]], "model_stock"), [1, 2], rtol=1e-6)  # parallel: the average
    # at 60 degrees t = 2 cos / (1 + cos) = 2/3 of the average
    pair = np.array([[1, 0], [0.5, np.sqrt(0.75)]])
    np.testing.assert_allclose(merged(pair, "model_stock"), 2 / 3 * pair.mean(0), rtol=1e-5)


def test_ram_keeps_what_is_one_expert_s_and_averages_the_rest():
    vectors = [[1, 2, 0, 1e-6], [0, 4, 0, 0], [0, 0, 0, 5]]
    np.testing.assert_allclose(merged(vectors, "ram"), [1, 3, 0, 5])
    # RAM+: first expert has one entry of its own and one shared, 1 + 0.1 * min(1/1, 0.2)
    np.testing.assert_allclose(merged(vectors, "ramplus"), [1.02, 3, 0, 5])


def test_breadcrumbs_drop_outliers_and_dust():
    vector = np.array([[5, -4, 3, -2, 1, 0.5, 9, -8, 7, 6]])
    np.testing.assert_array_equal(
        merged(vector, "breadcrumbs", density=0.3, gamma=0.2), [0, 0, 0, 0, 0, 0, 0, 0, 7, 6] + 0 * vector[0]
        + np.array([5, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    )  # fmt: skip
    assert breadcrumb_ranks(10, 0.95, 0.2) == (1, 9) and breadcrumb_ranks(10, 1.0, 0.2) == (0, 10)


def test_random_methods_keep_about_as_many_as_asked_and_their_expectation():
    ones = np.ones((1, 40000), F32)
    for method in ("dare_linear", "dare_ties", "della_linear"):
        found = merged(ones if "dare" in method else ones.reshape(1, 200, 200), method, density=0.3)
        assert abs(np.count_nonzero(found) / found.size - 0.3) < 0.02
        assert method == "dare_ties" or abs(found.mean() - 1) < 0.05


def test_della_keeps_large_entries_more_often():
    vectors = np.tile(np.arange(1, 101, dtype=F32), (1, 400, 1))
    kept = by_rank(vectors, (0.5,), (0.3,), (key_of(0, "w", "a"),), 0, False)[0] != 0
    assert abs(kept[:, :10].mean() - 0.23) < 0.04 and abs(kept[:, -10:].mean() - 0.77) < 0.04
    assert by_rank(np.ones((1, 3, 1), F32), (0.5,), (0.1,), (0,), 0, True)[0].shape == (3, 1)


@given(st.integers(0, 99), st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_random_choices_do_not_depend_on_blocks(seed, cut):
    vectors = np.random.default_rng(seed).standard_normal((2, 61)).astype(F32)
    keys = (key_of(seed, "w", "a"), key_of(seed, "w", "b"))
    whole = bernoulli(vectors, (0.5, 0.5), keys, 0, True)
    parts = [bernoulli(vectors[:, a:b], (0.5, 0.5), keys, a, True) for a, b in ((0, cut), (cut, 61))]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert not np.array_equal(whole[0] != 0, whole[1] != 0) and keys[0] != key_of(seed, "v", "a")


def test_numpy_and_jax_agree():
    vectors = np.random.default_rng(3).integers(-6, 7, (3, 6, 8)).astype(F32) / 8
    base, fisher = np.ones((6, 8), F32), np.random.default_rng(4).uniform(0, 1, (3, 6, 8)).astype(F32)
    for method in METHODS:
        count = METHODS[method].experts or 3
        how = setting(method, count, "mergekit", density=0.5, gamma=0.1)
        ours = merge_stack(jnp.asarray(vectors[:count]), how, jnp.asarray(base), jnp.asarray(fisher[:count]))
        theirs = merge_stack(vectors[:count], how, base, fisher[:count])
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5, err_msg=method)


def test_settings_that_do_not_fit():
    for match, options in {
        "no merging method 'tie'": {"method": "tie"},
        "density is the fraction": {"density": 1.5},
        r"density 0.9 \+- epsilon 0.15": {"method": "della", "density": 0.9},
        "positive sum for karcher": {"method": "karcher", "weights": (1.0, -1.0)},
        "weights must be finite": {"weights": (1.0, np.nan)},
        "two experts or more": {"method": "model_stock", "count": 1},
        "gamma is the fraction": {"method": "breadcrumbs", "gamma": 2.0},
        "tol must be finite": {"method": "karcher", "tol": np.nan},
        "max_iter counts iterations": {"method": "karcher", "max_iter": 2.5},
        "switch scope='layer'": {"preset": Switches(scope="layer")},
    }.items():
        with pytest.raises(ConfigError, match=match):
            setting(**({"method": "ties", "count": 2} | options))
    assert switches("mergekit", "dare_ties").denominator == "none" and switches("paper", "della").rescale == "density"
