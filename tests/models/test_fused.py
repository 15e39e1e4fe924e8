"""The rows that the fused kernel is handed, by the plain implementation of the same call, against `attention`."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax.models import attention, fused

PROMPT, SIZE = 5, 4
LENGTHS = np.array([5, 2, 3], np.int32)


@pytest.fixture(autouse=True)
def highest():
    with jax.default_matmul_precision("highest"):
        yield


def draws(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def assert_same(found, expected, inputs, weights):
    """Values, and gradients of their weighted sum."""

    def both(function):
        loss = lambda *x: jnp.sum(weights * function(*x))  # noqa: E731
        return jax.jit(lambda *x: (function(*x), jax.grad(loss, tuple(range(len(x))))(*x)))(*inputs)

    for one, other in zip(*map(jax.tree.leaves, (both(found), both(expected))), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_padded_rows(causal):
    inputs = draws((3, 4, PROMPT, 8), (3, 2, PROMPT, 8), (3, 2, PROMPT, 8))
    inside = (np.arange(PROMPT) < LENGTHS[:, None])[:, None, :, None]
    one = lambda *x: fused.attend(*x, LENGTHS, causal=causal, implementation="xla")  # noqa: E731
    other = lambda *x: inside * attention.attend(*x, LENGTHS, causal=causal)  # noqa: E731
    assert_same(one, other, inputs, draws((3, 4, PROMPT, 8))[0])


def test_rows_without_a_key_are_zeros():
    inputs = draws((3, 4, PROMPT, 8), (3, 2, PROMPT, 8), (3, 2, PROMPT, 8))
    lengths = np.array([0, 2, 0], np.int32)

    def total(queries):
        return fused.attend(queries, *inputs[1:], lengths, causal=False, implementation="xla")[::2].sum()

    output, slope = jax.jit(jax.value_and_grad(total))(inputs[0])
    assert output == 0 and not np.asarray(slope).any()


def test_continuations_joined_to_their_prompts():
    own, prompt = [(3, 3, heads, SIZE, 8) for heads in (4, 2, 2)], (3, 2, PROMPT, 8)
    *inputs, weights = draws(own[0], prompt, prompt, own[1], own[2], own[0])

    def by(function, **options):
        return lambda queries, k, v, keys, values: function(queries, k, v, LENGTHS, keys, values, **options)

    assert_same(by(fused.attend_extended, implementation="xla"), by(attention.attend_extended), inputs, weights)


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "expected"),
    [
        ("9.0", "bfloat16", 128, True),
        ("8.0", "float16", 80, True),
        ("7.5", "bfloat16", 128, False),
        ("gfx942", "bfloat16", 128, False),
        (None, "bfloat16", 128, False),
        ("9.0", "float32", 128, False),
        ("9.0", "bfloat16", 256, False),
        ("9.0", "bfloat16", 12, False),
    ],
)
def test_where_the_kernel_is_taken(monkeypatch, capability, dtype, width, expected):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability=capability)])
    assert fused.supported(jnp.zeros((1, 1, 1, width), dtype)) is expected


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "places", "expected"),
    [
        ("9.0", "bfloat16", 128, 128, True),
        ("8.0", "bfloat16", 256, 16, True),
        (None, "bfloat16", 128, 128, False),
        ("9.0", "float32", 128, 128, False),
        ("9.0", "bfloat16", 80, 128, False),
        ("9.0", "bfloat16", 128, 15, False),
    ],
)
def test_where_the_kernel_of_a_step_is_taken(monkeypatch, capability, dtype, width, places, expected):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability=capability)])
    assert fused.takes_rings(width, jnp.zeros((1, 1, places, width), dtype)) is expected


def test_heads_that_the_compiler_splits_are_not_the_kernels():
    mesh = jax.sharding.AbstractMesh((1, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows, taken = jax.sharding.PartitionSpec("data"), []

    def of_device(x):
        taken.append(fused.takes_rings(64, x))
        return x

    with fused.traced_for("9.0"):
        for names in ({"data"}, {"data", "tensor"}):
            split = jax.shard_map(
                of_device, mesh=mesh, in_specs=rows, out_specs=rows, axis_names=names, check_vma=False
            )
            jax.eval_shape(split, jnp.zeros((2, 1, 16, 64), jnp.bfloat16))
    assert taken == [False, True]
