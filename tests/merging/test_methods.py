import jax.numpy as jnp
import numpy as np

from mmedexpert_jax.merging import average, slerp, task_arithmetic

ONES = jnp.ones(3)


def test_sum_and_mean():
    vectors = jnp.array([[1.0, 2.0], [3.0, -4.0], [5.0, 6.0]])
    np.testing.assert_allclose(task_arithmetic(vectors, jnp.array([1.0, 0.5, 2.0])), [12.5, 12.0])
    np.testing.assert_allclose(average(vectors, jnp.array([1.0, 2.0, 1.0])), [3.0, 0.0], atol=1e-6)


def test_slerp_of_orthogonal_vectors_follows_the_circle():
    merged = slerp(jnp.array([[2.0, 0.0], [0.0, 2.0]]), jnp.array([3.0, 1.0]))
    np.testing.assert_allclose(merged, [2 * np.cos(np.pi / 8), 2 * np.sin(np.pi / 8)], rtol=1e-6)


def test_slerp_folds_in_order_with_equal_shares():
    first, second, third = jnp.eye(3)
    fold = slerp(jnp.stack([first, second]), ONES[:2])
    expected = slerp(jnp.stack([fold, third]), jnp.array([2.0, 1.0]))
    merged = slerp(jnp.eye(3), ONES)
    np.testing.assert_allclose(merged, expected, rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(merged), 1, rtol=1e-6)
    assert not np.allclose(merged, slerp(jnp.eye(3)[::-1], ONES))  # the order is part of the definition


def test_slerp_degenerates_to_the_line():
    parallel = jnp.array([[1.0, 2.0], [2.0, 4.0]])
    np.testing.assert_allclose(slerp(parallel, ONES[:2]), [1.5, 3.0], rtol=1e-6)
    np.testing.assert_allclose(slerp(jnp.array([[1.0, 2.0], [-1.0, -2.0]]), ONES[:2]), [0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(slerp(jnp.array([[0.0, 0.0], [2.0, 4.0]]), ONES[:2]), [1.0, 2.0], rtol=1e-6)
    assert np.isfinite(slerp(jnp.zeros((3, 4)), ONES)).all()
