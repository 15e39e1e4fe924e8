"""Presets against the peers themselves, element by element: mergekit 0.1.5, peft, the TIES authors' formulas.

Two things a peer leaves open are settled so that equality can be exact. The order of torch's sums over experts depends
on the shape: values and weights are multiples of powers of two whose sums need no rounding. Which of several equal
magnitudes torch's sort and topk take is arbitrary: they are made stable, which is a choice they might have made.
"""

import dataclasses
import functools
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mergekit.merge_methods import merge_tensors
from peft.utils import merge_utils

from mmedexpert_jax.merging.fit import merge_stack
from mmedexpert_jax.merging.methods import bernoulli, by_rank, ties
from mmedexpert_jax.merging.parameters import setting
from mmedexpert_jax.merging.settings import PRESETS

# Few values make equal magnitudes, zeros and exact cancellations; many make everything else. 5 experts x 19 bits x
# weights of 3 bits fit float32's 24.
COARSE = st.integers(-6, 6).map(lambda i: np.float32(i / 8))
FINE = st.integers(-(2**18), 2**18).map(lambda i: np.float32(i / 2**10))
DENSITY = st.sampled_from((0.0, 0.1, 0.2, 0.5, 0.77, 1.0))
WEIGHT = st.sampled_from((0.25, 0.5, 0.75, 1.0, 2.0))


@st.composite
def stacks(draw, least=1, least_entries=0):
    """Task vectors [K, rows, columns]."""
    shape = (draw(st.integers(least, 5)), draw(st.integers(1, 3)), draw(st.integers(least_entries, 13)))
    return draw(hnp.arrays(np.float32, shape, elements=draw(st.sampled_from((COARSE, FINE)))))


def mergekit(vectors, method, **parameters):
    """The merged vector as mergekit makes it, over a base of zeros, so that its sums are the vectors' alone."""
    tensors = [torch.zeros(vectors.shape[1:]), *map(torch.tensor, vectors)]
    stable = {name: functools.partial(getattr(torch, name), stable=True) for name in ("argsort", "sort")}
    with mock.patch.multiple("torch", **stable):
        return merge_tensors(tensors, method, base_index=0, parameters=parameters).numpy()


def per_expert(data, vectors, values):
    return data.draw(st.lists(values, min_size=len(vectors), max_size=len(vectors)))


def check_mergekit(vectors, data, method, **numbers):
    weights, density = per_expert(data, vectors, WEIGHT), per_expert(data, vectors, DENSITY)
    scale = data.draw(st.sampled_from((1.0, 0.7)))
    named = {"weight": weights, "density": density, "lambda": scale}
    theirs = mergekit(vectors, method, **named, **{k: [v] * len(vectors) for k, v in numbers.items()})
    how = setting(method, len(vectors), "mergekit", tuple(density), tuple(weights), scale=scale, **numbers)
    np.testing.assert_array_equal(merge_stack(vectors, how), theirs)


EXAMPLES = settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.generate))


@EXAMPLES
@given(stacks(), st.data())
def test_mergekit_ties(vectors, data):
    check_mergekit(vectors, data, "ties")


@EXAMPLES
@given(stacks(), st.data())
def test_mergekit_task_arithmetic(vectors, data):
    check_mergekit(vectors, data, "task_arithmetic")


@EXAMPLES
@given(stacks(), st.data(), st.sampled_from(("breadcrumbs", "breadcrumbs_ties")))
def test_mergekit_breadcrumbs(vectors, data, method):
    check_mergekit(vectors, data, method, gamma=data.draw(st.sampled_from((0.0, 0.1, 0.3))))


@EXAMPLES
@given(stacks(), st.data(), st.booleans())
def test_mergekit_normalize(vectors, data, normalize):
    weights = per_expert(data, vectors, WEIGHT)
    for method in ("ties", "task_arithmetic"):
        how = setting(method, len(vectors), "mergekit", 0.5, tuple(weights))
        rule = dataclasses.replace(how.rule, denominator="weights" if normalize else "none")
        theirs = mergekit(vectors, method, weight=weights, density=[0.5] * len(vectors), normalize=normalize)
        if method == "task_arithmetic":
            theirs = mergekit(vectors, method, weight=weights, normalize=normalize)
        np.testing.assert_array_equal(merge_stack(vectors, dataclasses.replace(how, rule=rule)), theirs)


@EXAMPLES
@given(stacks(least_entries=2), st.data(), st.sampled_from(("dare_linear", "dare_ties", "della", "della_linear")))
def test_mergekit_random_methods_given_the_same_draws(vectors, data, method):
    """What is drawn differs by definition, so mergekit gets our draws: then the rest must agree.

    Its 1-norms are float32 sums in an order of their own; the rescaled values agree to that.
    """
    weights, density = per_expert(data, vectors, WEIGHT), (0.4,) * len(vectors)
    how = setting(method, len(vectors), "mergekit", density, tuple(weights))
    ones = np.ones_like(vectors)
    if method.startswith("dare"):
        masks = np.stack(bernoulli(ones, density, how.keys, 0, False))
    else:
        masks = np.stack(by_rank(vectors, density, how.epsilon, how.keys, 0, False)) != 0
        masks |= vectors == 0
    draws = iter(masks)
    with mock.patch("torch.bernoulli", lambda *_, **__: torch.tensor(next(draws).astype(np.float32))):
        theirs = mergekit(vectors, method, weight=weights, density=list(density))
    np.testing.assert_allclose(merge_stack(vectors, how), theirs, rtol=2e-5, atol=1e-6 * (1 + np.abs(theirs).max()))


@EXAMPLES
@given(stacks(), st.data())
def test_mergekit_average_and_ram(vectors, data):
    weights = per_expert(data, vectors, WEIGHT)
    theirs = merge_tensors([torch.tensor(v) for v in vectors], "linear", parameters={"weight": weights}).numpy()
    ours = merge_stack(vectors, setting("average", len(vectors), weights=tuple(weights)))
    largest = 1 + np.abs(vectors).max(initial=0)  # what cancels leaves the rounding of its terms: 6e-8 of each
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * largest)
    for method, name in (("ram", "ram"), ("ramplus", "ramplus_tl")):
        ours = merge_stack(vectors, setting(method, len(vectors)))
        np.testing.assert_allclose(ours, mergekit(vectors, name), rtol=1e-6, atol=3e-7 * largest)


@pytest.mark.parametrize("method", ["slerp", "multislerp", "karcher", "model_stock"])
@EXAMPLES
@given(data=st.data(), seed=st.integers(0, 999))
def test_mergekit_spherical(method, data, seed):
    rng = np.random.default_rng(seed)
    count = 2 if method == "slerp" else data.draw(st.integers(2, 5))
    vectors = (rng.standard_normal((count, 3, 7)) + data.draw(st.sampled_from((0, 1, 5)))).astype(np.float32)
    weights = per_expert(data, vectors, WEIGHT) if method in ("slerp", "multislerp") else [1.0] * count
    ours = merge_stack(vectors, setting(method, count, weights=tuple(weights)))
    if method == "slerp":
        theirs = mergekit(vectors, "nuslerp", weight=weights)
    elif method == "multislerp":
        theirs = mergekit(vectors, method, weight=weights)
    elif method == "karcher":
        theirs = merge_tensors([torch.tensor(v) for v in vectors], method).numpy()
    else:
        theirs = mergekit(vectors, method)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@EXAMPLES
@given(st.integers(0, 999), st.sampled_from((0.0, 0.3, 0.5, 1.0)), st.booleans())
def test_mergekit_slerp_of_whole_weights(seed, t, near):
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((3, 7)).astype(np.float32)
    second = (first + 1e-3 if near else rng.standard_normal((3, 7))).astype(np.float32)
    theirs = merge_tensors([torch.tensor(first), torch.tensor(second)], "slerp", base_index=0, parameters={"t": t})
    base = rng.standard_normal((3, 7)).astype(np.float32)
    vectors = np.stack([first, second]) - base
    ours = base + merge_stack(vectors, setting("weight_slerp", 2, weights=(1 - t, t)), base)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


def stable_topk(values, k, largest):
    """torch.topk with its arbitrary choice among equals settled: the first ones."""
    order = torch.sort(values, descending=largest, stable=True)
    return order.values[:k], order.indices[:k]


@pytest.mark.filterwarnings("ignore:The density")
@EXAMPLES
@given(stacks(), st.data(), DENSITY, st.sampled_from(("total", "frequency")))
def test_peft_ties(vectors, data, density, elect):
    weights = np.array(per_expert(data, vectors, WEIGHT), np.float32)
    rule = dataclasses.replace(PRESETS["peft"], elect="mass" if elect == "total" else "count")
    tensors = list(torch.tensor(vectors))
    with mock.patch("torch.topk", stable_topk):
        theirs = merge_utils.ties(tensors, torch.tensor(weights), density, elect)
    np.testing.assert_array_equal(ties(vectors, density, weights, rule), theirs.numpy())
    magnitudes = np.sort(np.abs(vectors.reshape(len(vectors), -1)), axis=1)[:, ::-1]
    k = int(density * magnitudes.shape[1])
    if 0 < k < magnitudes.shape[1] and np.all(magnitudes[:, k - 1] > magnitudes[:, k]):  # nothing to choose: untouched
        theirs = merge_utils.ties(tensors, torch.tensor(weights), density, elect)
        np.testing.assert_array_equal(ties(vectors, density, weights, rule), theirs.numpy())


@pytest.mark.filterwarnings("ignore:The density")
@EXAMPLES
@given(stacks(), st.data(), DENSITY)
def test_peft_sums(vectors, data, density):
    weights = per_expert(data, vectors, WEIGHT)
    tensors, theirs_weights = list(torch.tensor(vectors)), torch.tensor(weights)
    with mock.patch("torch.topk", stable_topk):
        theirs = merge_utils.magnitude_prune(tensors, theirs_weights, density)
    how = setting("magnitude_prune", len(vectors), "peft", density, tuple(weights))
    np.testing.assert_array_equal(merge_stack(vectors, how), theirs.numpy())
    ours = merge_stack(vectors, setting("task_arithmetic", len(vectors), "peft", weights=tuple(weights)))
    np.testing.assert_array_equal(ours, merge_utils.task_arithmetic(tensors, theirs_weights).numpy())


@pytest.mark.filterwarnings("ignore:The density")
@EXAMPLES
@given(stacks(), st.data(), st.sampled_from((0.25, 0.5, 1.0)))
def test_peft_dare_given_the_same_draws(vectors, data, density):
    weights, many = per_expert(data, vectors, WEIGHT), (density,) * len(vectors)
    for method, peer in (("dare_linear", merge_utils.dare_linear), ("dare_ties", merge_utils.dare_ties)):
        how = setting(method, len(vectors), "peft", density, tuple(weights))
        draws = iter(bernoulli(np.ones_like(vectors), many, how.keys, 0, False))
        with mock.patch("torch.bernoulli", lambda *_, draws=draws, **__: torch.tensor(next(draws))):
            theirs = peer(list(torch.tensor(vectors)), torch.tensor(weights), density)
        np.testing.assert_array_equal(merge_stack(vectors, how), theirs.numpy())


def official(tasks, density):
    """The TIES authors' code (github.com/prateeky2806/ties-merging, src/ties_merging_utils.py), formula by formula:
    `topk_values_mask` with its kthvalue, `resolve_sign` with the majority sign for zeros, `disjoint_merge` "dis-mean".
    One vector [n] per task stands for a whole model: [K, n] -> [n]."""
    size = tasks.shape[1]
    bound = tasks.abs().kthvalue(size - int(size * density), dim=1, keepdim=True).values
    trimmed = tasks * (tasks.abs() >= bound)
    sign = torch.sign(trimmed.sum(dim=0))
    majority = torch.sign(sign.sum())
    sign[sign == 0] = majority
    selected = trimmed * torch.where(sign > 0, trimmed > 0, trimmed < 0)
    return selected.sum(dim=0) / (selected != 0).sum(dim=0).float().clamp(min=1)


@EXAMPLES
@given(stacks(least_entries=1), st.sampled_from((0.0, 0.2, 0.5, 0.8)))
def test_official(vectors, density):
    theirs = official(torch.tensor(vectors.reshape(len(vectors), -1)), density)
    np.testing.assert_array_equal(ties(vectors, density, preset="official").reshape(-1), theirs.numpy())


def test_official_keeps_everything_at_density_1():
    """There kthvalue has no 0-th value to give, and the authors' code stops."""
    vectors = np.array([[1.0, -2.0, 0.5], [3.0, 1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(ties(vectors, 1.0, preset="official"), [2.0, -2.0, 0.5])
