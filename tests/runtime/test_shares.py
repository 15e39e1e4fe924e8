"""Shares of several processes: together they are the whole, and alone there is one."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.runtime import processes


def in_each(count, function):
    """What a function gives in each of so many processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "_count", count)
        found = []
        for index in range(count):
            patch.setattr(processes, "_index", index)
            found.append(function())
    return found


@given(st.lists(st.integers()), st.integers(1, 5))
def test_own_shares_make_the_whole(things, count):
    shares = in_each(count, lambda: processes.own(things))
    assert [shares[i % count][i // count] for i in range(len(things))] == things


@given(st.integers(0, 6), st.integers(1, 5))
def test_blocks_follow_one_another(rows, count):
    blocks = in_each(count, lambda: processes.block(rows * count))
    assert [row for block in blocks for row in range(rows * count)[block]] == list(range(rows * count))


def test_alone_there_is_one(monkeypatch):
    monkeypatch.setattr(processes, "_count", 3)
    monkeypatch.setattr(processes, "_index", 2)
    assert (processes.index(), processes.count(), processes.is_writer()) == (2, 3, False)
    with processes.alone():
        assert (processes.index(), processes.count(), processes.is_writer()) == (0, 1, True)
        assert processes.agree([1]) == [1] and processes.gather("a") == ["a"] and processes.largest(15) == 15
        assert processes.total({"a": 1}) == {"a": 1}
        processes.barrier()
    assert processes.count() == 3


def test_a_signal_is_heard_of_without_waiting(monkeypatch):
    """Over a store that raises for a key that is there already, or not there yet, as the coordinator's does."""
    store = {}

    def set_once(key, value):
        if key in store:
            raise RuntimeError("ALREADY_EXISTS")
        store[key] = value

    client = SimpleNamespace(key_value_set=set_once, key_value_try_get=store.__getitem__)
    monkeypatch.setattr(processes, "_client", lambda: client)
    assert in_each(3, lambda: processes.heard(0)) == [0, 0, 0]
    assert in_each(3, lambda: processes.heard(15 if processes.index() == 1 else 0)) == [0, 15, 15]
    assert in_each(3, lambda: processes.heard(2 if processes.index() == 2 else 0)) == [15, 15, 2]
    assert processes.heard(15) == 15 and processes.heard(0) == 0  # alone


@pytest.mark.parametrize(
    ("variables", "scheduled"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "1"}, False),  # a shell of salloc
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}, True),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a notebook's pod
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_clusters_that_jax_detects(monkeypatch, variables, scheduled):
    for name in ("SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes._scheduled() is scheduled


def test_variables_name_a_process(monkeypatch):
    for name, value in zip(processes.VARIABLES, ("host:8476", "4", "3"), strict=True):
        monkeypatch.setenv(name, value)
    expected = {"coordinator_address": "host:8476", "num_processes": 4, "process_id": 3}
    assert processes._given() == expected
    monkeypatch.setenv("JAX_PROCESS_ID", "three")
    with pytest.raises(ConfigError, match="are to be set together"):
        processes._given()
