import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from peft.utils import merge_utils

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging.methods import ties, trim
from mmedexpert_jax.merging.settings import PRESETS, Switches

SHAPES = ((3, 10), (2, 1))  # few shapes, few compilations
# Multiples of 1/8: sums and products by powers of two are exact, so references need no tolerance.
DYADIC = st.integers(-24, 24).map(lambda i: i / 8)


def stacks():
    return st.sampled_from(SHAPES).flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=DYADIC))


def algorithm_1(vectors, density):
    """Algorithm 1 of Yadav et al., entry by entry, in plain Python."""
    k = max(1, int(density * vectors.shape[1])) if density else 0
    trimmed = np.zeros_like(vectors)
    for row, kept in zip(vectors, trimmed, strict=True):
        for index in sorted(range(len(row)), key=lambda i: (-abs(row[i]), i))[:k]:
            kept[index] = row[index]
    merged = np.zeros(vectors.shape[1], np.float32)
    for entry in range(vectors.shape[1]):
        elected = np.sign(trimmed[:, entry].sum())
        agree = [value for value in trimmed[:, entry] if np.sign(value) == elected]
        merged[entry] = np.float32(sum(agree)) / np.float32(len(agree)) if agree else 0
    return merged


@settings(max_examples=40, deadline=None)
@given(stacks(), st.sampled_from((0.0, 0.2, 0.5, 1.0)))
def test_paper_is_algorithm_1(vectors, density):
    np.testing.assert_array_equal(ties(vectors, density), algorithm_1(vectors, density))


def test_worked_example():
    vectors = jnp.array([[3.0, -1.0, 0.5, 2.0], [1.0, 2.0, -4.0, -2.0], [-0.5, -3.0, 1.0, 0.25]])
    # half kept: [3 . . 2], [. 2 -4 .] (2 and -2 are equal: the lower index stays), [. -3 1 .]
    np.testing.assert_array_equal(ties(vectors, 0.5), [3.0, -3.0, -4.0, 2.0])


def test_an_exact_cancellation_follows_its_switch():
    vectors = jnp.array([[2.0, 1.0, 1.0], [-2.0, 1.0, -1.0]])
    merged = {rule: ties(vectors, 1.0, preset=Switches(cancellation=rule)) for rule in ("drop", "plus", "majority")}
    np.testing.assert_array_equal(merged["drop"], [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(merged["plus"], [2.0, 1.0, 1.0])
    np.testing.assert_array_equal(merged["majority"], [2.0, 1.0, 1.0])
    np.testing.assert_array_equal(ties(-vectors, 1.0, preset=Switches(cancellation="majority")), [-2.0, -1.0, -1.0])


def test_weights_before_and_after_the_election():
    vectors, weights = jnp.array([[3.0], [-1.0]]), jnp.array([0.1, 1.0])
    assert ties(vectors, 1.0, weights, "peft").item() == pytest.approx(0.3, rel=1e-6)
    assert ties(vectors, 1.0, weights, "mergekit").item() == -1.0
    assert ties(vectors, 1.0, weights, "paper").item() == pytest.approx(3.0, rel=1e-6)
    assert ties(vectors, 1.0, weights, Switches(denominator="none")).item() == pytest.approx(0.3, rel=1e-6)


def test_election_by_count():
    vectors = jnp.array([[5.0], [-1.0], [-2.0]])
    assert ties(vectors, 1.0).item() == 5.0
    assert ties(vectors, 1.0, preset=Switches(elect="count")).item() == -1.5


def distinct(vectors):
    """Makes the magnitudes of a row differ (zeros aside), where a peer leaves the choice among equals open."""
    return vectors + np.sign(vectors) * np.arange(vectors.shape[1], dtype=np.float32) / 1024


def weights_for(vectors, data):
    return data.draw(hnp.arrays(np.float32, len(vectors), elements=st.sampled_from((0.25, 0.5, 1, 2))))


@pytest.mark.filterwarnings("ignore:The density")
@settings(max_examples=40, deadline=None)
@given(stacks(), st.data(), st.sampled_from((0.0, 0.2, 0.5, 1.0)), st.sampled_from(("total", "frequency")))
def test_peft(vectors, data, density, elect):
    vectors, weights = distinct(vectors), weights_for(vectors, data)
    theirs = merge_utils.ties(list(torch.tensor(vectors)), torch.tensor(weights), density, elect)
    rule = dataclasses.replace(PRESETS["peft"], elect="mass" if elect == "total" else "count")
    np.testing.assert_array_equal(ties(vectors, density, weights, rule), theirs.numpy())


@settings(max_examples=40, deadline=None)
@given(stacks(), st.data(), st.sampled_from((0.2, 0.5, 1.0)))
def test_mergekit_formula(vectors, data, density):
    """mergekit 0.1.5, ties with normalize=true, from its rules: weighted values elect, >= 0 is plus, weights divide."""
    vectors, weights = distinct(vectors), weights_for(vectors, data)
    k = max(1, int(density * vectors.shape[1]))
    order = np.argsort(-np.abs(vectors), axis=1, kind="stable")[:, :k]
    trimmed = np.zeros_like(vectors)
    np.put_along_axis(trimmed, order, np.take_along_axis(vectors, order, 1), 1)
    weighted = weights[:, None] * trimmed
    agree = np.sign(weighted) == np.where(weighted.sum(0) >= 0, 1, -1)
    divisor = (weights[:, None] * agree).sum(0)
    expected = (weighted * agree).sum(0) / np.where(divisor == 0, 1, divisor)
    np.testing.assert_array_equal(ties(vectors, density, weights, "mergekit"), expected.astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(stacks(), st.sampled_from((0.2, 0.5)))
def test_official_formula(vectors, density):
    """The TIES authors' code on one vector per task, from its formulas (kthvalue, resolve_sign, disjoint_merge)."""
    size = vectors.shape[1]
    bound = np.sort(np.abs(vectors), axis=1)[:, [size - int(size * density) - 1]]
    trimmed = vectors * (np.abs(vectors) >= bound)
    sign = np.sign(trimmed.sum(0))
    sign = np.where(sign == 0, np.sign(sign.sum()), sign)
    selected = trimmed * np.where(sign > 0, trimmed > 0, trimmed < 0)
    expected = selected.sum(0) / np.maximum((selected != 0).sum(0), 1)
    np.testing.assert_array_equal(ties(vectors, density, preset="official"), expected.astype(np.float32))


def test_trim_keeps_exactly_the_largest():
    rng = np.random.default_rng(0)
    vectors = jnp.asarray(rng.standard_normal((2, 7, 11)) * 10.0 ** rng.integers(-30, 8, (2, 7, 11)), jnp.float32)
    for density in (0.01, 0.2, 0.99):
        kept = np.abs(trim(vectors, density, PRESETS["paper"])).reshape(2, -1)
        k = max(1, int(density * 77))
        expected = np.sort(np.abs(vectors).reshape(2, -1), axis=1)[:, -k:]
        np.testing.assert_array_equal(np.sort(kept, axis=1)[:, -k:], expected)
        assert np.count_nonzero(kept, axis=1).tolist() == [k, k]


def test_equal_magnitudes():
    vectors = jnp.array([[1.0, -1.0, 1.0, 0.5, -1.0]])
    keep_all = Switches(equal_magnitudes="keep_all")
    np.testing.assert_array_equal(trim(vectors, 0.4, Switches()), [[1.0, -1.0, 0, 0, 0]])
    np.testing.assert_array_equal(trim(vectors, 0.4, keep_all), [[1.0, -1.0, 1.0, 0, -1.0]])


def test_unknown_preset():
    with pytest.raises(ConfigError, match="paper, official, mergekit, peft"):
        ties(jnp.ones((1, 2)), preset="papr")
