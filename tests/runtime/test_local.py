"""`--processes=N`: what the processes are started with."""

import subprocess

import pytest

from mmedexpert_jax.runtime import local


@pytest.fixture
def started(monkeypatch):
    """Environments of the processes that `local.run` starts, which are there in name only."""
    found = []

    class Ended:
        returncode = 0

        def __init__(self, command, env, start_new_session):
            found.append(env)

        def poll(self):
            return 0

    monkeypatch.setattr(subprocess, "Popen", Ended)
    monkeypatch.setattr(local.signal, "signal", lambda *_: None)
    return found


def test_the_processes_listen_on_loopback_unless_told(started, monkeypatch):
    assert local.run(2, []) == 0
    for index, environment in enumerate(started):
        address = environment["JAX_COORDINATOR_ADDRESS"]
        assert address.startswith("127.0.0.1:") and environment["JAX_COORDINATOR_BIND_ADDRESS"] == address
        assert environment["NCCL_SOCKET_IFNAME"] == "lo" and environment["JAX_PROCESS_ID"] == str(index)
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "[::]:1")
    assert local.run(1, []) == 0 and started[-1]["JAX_COORDINATOR_BIND_ADDRESS"] == "[::]:1"
