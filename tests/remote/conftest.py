"""A store of answers and clients for the loopback server."""

from pathlib import Path

import pytest

from mmedexpert_jax.remote import Answers, Client, Endpoint
from tests.remote.loopback import Loopback


@pytest.fixture
def answers(tmp_path: Path):
    store = Answers(tmp_path / "answers.sqlite")
    yield store
    store.close()


@pytest.fixture
def endpoint():
    """Loopback server and fields -> Endpoint without a key and with short waits."""

    def make(server: Loopback, **fields) -> Endpoint:
        return Endpoint(server.url, "teacher", **{"key_env": "", "retry_wait": 0.01, "timeout": 5.0} | fields)

    return make


@pytest.fixture
def client(answers: Answers, endpoint):
    """Loopback server and fields -> Client."""
    return lambda server, **fields: Client(endpoint(server, **fields), answers)
