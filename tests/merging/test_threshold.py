"""Exact selection by counting: against sorting, in blocks, and sharded over eight devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging.blockwise import Merge
from mmedexpert_jax.merging.device_merge import merged_on_devices
from mmedexpert_jax.merging.interference import Interference
from mmedexpert_jax.merging.parameters import Parameters
from mmedexpert_jax.merging.threshold import SAMPLE, Blocks, _around, by_counting, largest
from mmedexpert_jax.merging.vectors import Adapter, Expert


def chosen(vectors, kept, rule):
    """By sorting: stable, so that of equals the first (or, from the end, the last) are taken."""
    masks = np.zeros(vectors.shape, bool)
    for row, k, mask in zip(np.abs(vectors), kept, masks, strict=True):
        order = np.argsort(-row, kind="stable")
        if rule == "higher_index":
            order = len(row) - 1 - np.argsort(-row[::-1], kind="stable")
        mask[order[:k]] = True
        if rule == "keep_all" and k:
            mask |= row >= row[order[k - 1]]
    return masks


def kept_entries(bound, vectors, start=0):
    """What is kept and not 0, whose fate does not matter."""
    return np.stack(bound.keeps(vectors, start)) & (np.asarray(vectors) != 0)


def blocks(vectors, step):
    return Blocks(
        *vectors.shape,
        range(0, vectors.shape[1], step),
        lambda start, some: vectors[some, start : start + step],
        lambda index: vectors[:, index],
        map,
    )


RULES = st.sampled_from(("lower_index", "higher_index", "keep_all"))
VALUES = st.one_of(st.integers(-3, 3).map(float), st.floats(-(2.0**99), 2.0**99, width=32))


@settings(max_examples=80, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=VALUES), st.data(), RULES)
def test_any_values_in_any_blocks(vectors, data, rule):
    size = vectors.shape[1]
    kept = [data.draw(st.integers(0, size)) for _ in vectors]
    expected = chosen(vectors, kept, rule) & (vectors != 0)
    for step in (size, 1, 7):
        bound = by_counting(blocks(vectors, step), kept, rule)
        assert np.array_equal(kept_entries(bound, vectors), expected)
        parts = [kept_entries(bound, vectors[:, i : i + 5], i) for i in range(0, size, 5)]
        assert np.array_equal(np.concatenate(parts, axis=1), expected)


def test_large_vectors_whatever_the_sample_says():
    rng = np.random.default_rng(0)
    size = 3 * SAMPLE
    smooth = rng.standard_normal(size)
    coarse = np.round(smooth * 20) / 20  # hundreds of equal magnitudes at the bound
    rare = np.where(rng.random(size) < 1e-4, smooth, 0)  # nearly all zero
    wide = smooth * 10.0 ** rng.integers(-30, 8, size)
    vectors = np.stack([smooth, coarse, rare, wide]).astype(np.float32)
    for share in (0.001, 0.2, 0.5, 0.99):
        kept = [int(share * size)] * 4
        bound = by_counting(blocks(vectors, 10000), kept)
        assert np.array_equal(kept_entries(bound, vectors), chosen(vectors, kept, "lower_index") & (vectors != 0))


def test_a_sample_that_misleads_costs_a_pass_and_no_exactness():
    vectors = np.random.default_rng(1).standard_normal((1, 2 * SAMPLE)).astype(np.float32)
    for lie in (0.0, 1e-3, 1e3):
        honest = blocks(vectors, 5000)
        misled = Blocks(
            1, honest.size, honest.starts, honest.read, lambda i, lie=lie: vectors[:, i] * np.float32(lie), map
        )
        found, expected = by_counting(misled, [12345]), by_counting(honest, [12345])
        assert found.value == expected.value and np.array_equal(found.cut, expected.cut)


def test_several_densities_from_one_pass():
    vectors = np.random.default_rng(2).integers(-50, 50, (2, 999)).astype(np.float32)
    kept = [10, 20, 300, 400]
    bound = by_counting(blocks(vectors, 100), kept)
    for number, k in enumerate(kept):
        alone = by_counting(blocks(vectors, 999), [k, k])
        assert bound.value[number] == alone.value[number % 2] and bound.cut[number] == alone.cut[number % 2]


def test_jax_finds_the_same():
    rng = np.random.default_rng(4)
    vectors = np.stack([np.round(rng.standard_normal(2000) * 8) / 8, rng.standard_normal(2000)]).astype(np.float32)
    for rule in ("lower_index", "higher_index", "keep_all"):
        for kept in ([400, 1], [0, 2000], [1999, 777]):
            found = kept_entries(largest(jnp.asarray(vectors), kept, rule), jnp.asarray(vectors))
            assert np.array_equal(found, chosen(vectors, kept, rule) & (vectors != 0)), (rule, kept)


@pytest.mark.parametrize("size", [600_000, 13_760_000, 2**31 - 1])
def test_the_sample_on_devices_brackets_the_bound_of_any_size(size):
    """Of evenly spread values 0 to 1 the bound at density d is 1 - d, and a bracket holds a sixteenth of the sample."""
    sample = jnp.tile(jnp.linspace(0, 1, 4096), (3, 1))
    densities = np.array([0.2, 0.5, 0.9])
    low, high = _around(sample, jnp.asarray((densities * size).astype(np.int32)), size)
    assert np.all(low < 1 - densities) and np.all(1 - densities < high)
    np.testing.assert_allclose(high - low, 1 / 16, rtol=0.01)


def on_devices(base, own, method, **more):
    job = Merge({"w": base}, (Expert("a", {"w": own}),), Parameters(method, ("a",), "paper", {}, names=("w",), **more))
    return dict(merged_on_devices(job, Interference(("a",))))


@pytest.mark.parametrize(("method", "more"), [("tsv_m", {}), ("ties", {"space": "knots"})])
def test_a_merge_in_factors_is_refused_on_devices(method, more):
    with pytest.raises(ConfigError, match=f"{method} as it is set for w is not merged on devices"):
        on_devices(jnp.zeros((4, 4)), jnp.ones((4, 4)), method, **more)


def test_a_rounded_copy_of_the_base_has_not_changed_on_devices():
    base = jnp.asarray(np.random.default_rng(0).standard_normal((8, 8)), jnp.float32)
    assert not on_devices(base, base.astype(jnp.bfloat16), "task_arithmetic")


def test_more_entries_than_int32_counts_are_refused_on_devices():
    names = ("one.weight", "other.weight")
    base = {name: jax.ShapeDtypeStruct((1 << 15, 1 << 15), jnp.float32) for name in names}
    adapter = Adapter({names[0]: (np.zeros((1 << 15, 1), np.float32), np.zeros((1, 1 << 15), np.float32))}, 1.0)
    for preset, width in (("official", 1 << 15), ("paper", 1 << 16)):
        shapes = base | {names[0]: jax.ShapeDtypeStruct((1 << 15, width), jnp.float32)}
        how = Parameters("ties", ("AM",), preset, {"density": {"": 0.2}}, names=names)
        job = Merge(shapes, (Expert("AM", adapters=(adapter,)),), how)
        what = "the whole model" if preset == "official" else "one.weight"
        with pytest.raises(ConfigError, match=f"{what} is trimmed as one vector of 2,147,483,648 entries"):
            next(merged_on_devices(job, Interference(("AM",))))


EIGHT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from mmedexpert_jax.merging import merge, merge_stack, setting, ties
from mmedexpert_jax.merging.threshold import largest
from mmedexpert_jax.runtime.mesh import make_mesh

mesh = make_mesh()
rng = np.random.default_rng(0)
vectors = (np.round(rng.standard_normal((3, 64, 24)) * 16) / 16).astype(np.float32)
sharded = jax.device_put(vectors, NamedSharding(mesh, PartitionSpec(None, "data")))
assert len(sharded.devices()) == 8
for preset in ("paper", "official"):
    here = ties(jnp.asarray(vectors), 0.2, preset=preset)
    np.testing.assert_array_equal(ties(sharded, 0.2, preset=preset), here)
    np.testing.assert_array_equal(here, ties(vectors, 0.2, preset=preset))
flat = jax.device_put(vectors.reshape(3, -1), NamedSharding(mesh, PartitionSpec(None, "data")))
many, one = largest(flat, [100, 200, 300]), largest(vectors.reshape(3, -1), [100, 200, 300])
np.testing.assert_array_equal(many.value, one.value)
np.testing.assert_array_equal(many.keeps(flat), one.keeps(vectors.reshape(3, -1)))
how = setting("dare_ties", 3, "paper", 0.5)
np.testing.assert_array_equal(jax.jit(merge_stack, static_argnums=1)(sharded, how), merge_stack(vectors, how))

base = {"w": {"weight": np.round(rng.standard_normal((64, 24)) * 16).astype(np.float32) / 16}}
experts = {str(i): {"w": {"weight": base["w"]["weight"] + vectors[i]}} for i in range(3)}
place = NamedSharding(mesh, PartitionSpec("data"))
put = lambda tree: jax.tree.map(lambda leaf: jax.device_put(leaf, place), tree)
whole = merge(base, experts)["w"]["weight"]
found = merge(put(base), {name: put(expert) for name, expert in experts.items()})["w"]["weight"]
assert len(found.devices()) == 8
np.testing.assert_array_equal(found, whole)
selected = merge(put(base), {name: put(expert) for name, expert in experts.items()}, "sce", density=0.3)
np.testing.assert_allclose(selected["w"]["weight"], merge(base, experts, "sce", density=0.3)["w"]["weight"], atol=1e-5)
print("ok")
"""


def test_eight_devices_give_what_one_gives():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run([sys.executable, "-c", EIGHT], env=environment, capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr
