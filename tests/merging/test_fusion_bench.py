"""Beside fusion_bench's code on the same matrices; `pip install fusion-bench` (0.2.33), which the test extra lacks."""

import numpy as np
import pytest
import torch

from mmedexpert_jax.merging import lowrank, merge_stack, setting

F32 = np.float32
pytestmark = pytest.mark.slow  # needs fusion-bench


@pytest.fixture
def vectors():
    return np.random.default_rng(0).standard_normal((3, 9, 6)).astype(F32)


def states(vectors):
    return [{"w": torch.tensor(one)} for one in vectors]


def test_iso_c(vectors):
    theirs = pytest.importorskip("fusion_bench.method.isotropic_merging.iso_utils")
    found = theirs.iso_c(states(vectors), accelerator="cpu")["w"]
    np.testing.assert_allclose(lowrank.iso_merge(vectors.astype(float)), found, rtol=1e-4, atol=1e-5)


def test_tsv_m(vectors):
    theirs = pytest.importorskip("fusion_bench.method.task_singular_vector.utils.TSVM_utils")
    found = theirs.compute_and_sum_svd_mem_reduction(states(vectors), accelerator="cpu")["w"]
    np.testing.assert_allclose(lowrank.tsv_merge(vectors.astype(float)), found, rtol=1e-4, atol=1e-5)


def test_fisher_merging(vectors):
    theirs = pytest.importorskip("fusion_bench.method.fisher_merging.fisher_merging")
    fisher = np.random.default_rng(1).uniform(0.5, 2, vectors.shape).astype(F32)
    found = theirs.merging_with_fisher_weights(
        {"w": [one["w"] for one in states(vectors)]}, states(fisher), torch.ones(3), normalize_fisher_weight=False
    )["w"]
    ours = merge_stack(vectors, setting("fisher", 3), fisher=fisher)
    np.testing.assert_allclose(ours, found, rtol=1e-4, atol=1e-5)


def test_wudi_goes_where_their_descent_goes(vectors):
    """Their 300 steps of Adam lower the loss, and the least within as far as these can go is lower."""
    theirs = pytest.importorskip("fusion_bench.method.wudi.wudi")
    small = vectors * F32(1e-3)  # of the size of task vectors, which their step fits

    def loss(merged):
        return sum(np.sum(((merged - one) @ one.T) ** 2) / np.sum(one**2) for one in small.astype(float))

    found = theirs.wudi_merging(states(small), accelerator="cpu")["w"].detach().numpy()
    ours = lowrank.wudi_merge(small.astype(float))
    assert loss(ours) <= loss(found) < loss(small.sum(0))
