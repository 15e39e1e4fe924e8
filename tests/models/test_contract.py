"""Products on a CPU: of bfloat16 those of float32, rounded once; of few rows as of many; in value and gradient."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax.models import attention, fused
from mmedexpert_jax.models.layers import contract, contract_wide


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (1, 1), (16, 1), (64,), (65,)])
def test_products_of_bfloat16(shape):
    x = jax.random.normal(jax.random.key(0), (*shape, 64)).astype(jnp.bfloat16)
    weight = jax.random.normal(jax.random.key(1), (32, 64)).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    found = jax.jit(contract)(x, weight)
    assert found.dtype == jnp.bfloat16 and found.shape == (*shape, 32)
    np.testing.assert_allclose(np.asarray(found, np.float64), wide, rtol=2**-8, atol=2**-8)
    slopes = jax.grad(lambda x, w: jnp.sum(contract(x, w).astype(jnp.float32)), (0, 1))(x, weight)
    assert [slope.dtype for slope in slopes] == [jnp.bfloat16] * 2
    of_x = np.broadcast_to(np.asarray(weight, np.float64).sum(0), x.shape)
    of_weight = np.broadcast_to(np.asarray(x, np.float64).reshape(-1, 64).sum(0), weight.shape)
    np.testing.assert_allclose(np.asarray(slopes[0], np.float64), of_x, rtol=2**-7, atol=2**-5)
    np.testing.assert_allclose(np.asarray(slopes[1], np.float64), of_weight, rtol=2**-7, atol=2**-5)


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (16, 1), (64,)])
def test_wide_products_of_bfloat16_are_not_rounded_and_their_gradient_is_that_of_narrow_ones(shape):
    x = jax.random.normal(jax.random.key(0), (*shape, 64)).astype(jnp.bfloat16)
    weight = jax.random.normal(jax.random.key(1), (32, 64)).astype(jnp.bfloat16)
    up = jax.random.normal(jax.random.key(2), (*shape, 32))
    found, back = jax.vjp(contract_wide, x, weight)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        found, np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T, rtol=1e-5, atol=1e-5
    )
    chex.assert_trees_all_equal(back(up), jax.vjp(contract, x, weight)[1](up.astype(jnp.bfloat16)))


@pytest.mark.parametrize("shape", [(1,), (3, 1), (64,), (65,)])
def test_products_of_float32(shape):
    x = jax.random.normal(jax.random.key(0), (*shape, 48))
    weight = jax.random.normal(jax.random.key(1), (32, 48))

    def plain(x, weight):
        return jnp.einsum("...i,oi->...o", x, weight)

    def slopes(product):
        return jax.grad(lambda x, w: jnp.sum(product(x, w) ** 2), (0, 1))(x, weight)

    chex.assert_trees_all_close(jax.jit(contract)(x, weight), plain(x, weight), rtol=1e-6, atol=1e-5)
    chex.assert_trees_all_close(slopes(contract), slopes(plain), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows, first", [((64,), "32,64"), ((65,), "65,32"), ((64, 1), "32,64"), ((8, 2), "16,32")])
def test_few_rows_are_multiplied_with_the_weight_first(rows, first):
    program = jax.jit(contract).lower(jnp.zeros((*rows, 48)), jnp.zeros((32, 48))).compile().as_text()
    assert re.findall(r"f32\[([\d,]+)\]\S* dot\(", program) == [first]


@pytest.mark.parametrize("rows, first", [(15, "15,32"), (16, "32,16"), (64, "32,64"), (65, "65,32")])
def test_few_rows_of_bfloat16_are_multiplied_with_the_weight_first(rows, first):
    arrays = jnp.zeros((rows, 48), jnp.bfloat16), jnp.zeros((32, 48), jnp.bfloat16)
    program = jax.jit(contract).lower(*arrays).compile().as_text()
    assert re.findall(r"f32\[([\d,]+)\]\S* dot\(", program) == [first]


@pytest.mark.parametrize("queries, first", [(8, "2,3,40,8"), (9, "2,3,9,40")])
def test_few_queries_are_multiplied_with_the_keys_first(queries, first):
    def scores(x, keys):
        return attention._softmax_part(x, keys, keys, jnp.ones((1, 40), bool))[1]

    arrays = jnp.zeros((2, 3, queries, 16)), jnp.zeros((2, 3, 40, 16))
    program = jax.jit(scores).lower(*arrays).compile().as_text()
    assert re.findall(r"f32\[([\d,]+)\]\S* dot\(", program) == [first]


def test_programs_for_other_devices_are_asked_for_no_more_than_bfloat16():
    x, weight = jnp.zeros((4, 8), jnp.bfloat16), jnp.zeros((6, 8), jnp.bfloat16)
    with fused.traced_for("9.0"):
        assert "f32" not in str(jax.make_jaxpr(lambda x, w: contract(x, w))(x, weight))
