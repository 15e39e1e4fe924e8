import pytest

from mmedexpert_jax.errors import Interrupted, RemoteError
from mmedexpert_jax.remote import Request, batches
from mmedexpert_jax.remote.batches import BatchClient
from mmedexpert_jax.remote.loopback import Loopback


def questions(count: int) -> list[Request]:
    return [Request([{"role": "user", "content": f"question {i}"}]) for i in range(count)]


@pytest.fixture
def batch_client(answers, endpoint):
    return lambda server, **fields: BatchClient(endpoint(server, **fields), answers, poll=0.0)


def test_a_batch_is_answered_at_half_the_price_and_not_submitted_again(batch_client):
    with Loopback() as server:
        replies = batch_client(server, price_output=8.0).ask(questions(7))
        again = batch_client(server, price_output=8.0).ask(questions(7))
    assert [r.text for r in replies] == [r.text for r in again] == [f"answer to question {i} (0)" for i in range(7)]
    assert len(server.batches.submitted) == 7
    assert replies[0].cost == pytest.approx(0.5 * replies[0].usage.completion * 8.0 / 1e6)


def test_what_an_expired_batch_lost_is_submitted_again_and_nothing_else(batch_client):
    with Loopback() as server:
        server.batches.lose = 3
        replies = batch_client(server).ask(questions(10))
    assert not [reply for reply in replies if reply.error]
    assert len(server.batches.submitted) == 10 + 3 + 1


def test_files_are_split_by_requests_and_by_bytes(monkeypatch):
    lines = [(str(i), b"x" * 10) for i in range(25)]
    monkeypatch.setattr(batches, "MOST_REQUESTS", 10)
    assert [len(shard) for shard in batches.shards(iter(lines))] == [10, 10, 5]
    monkeypatch.setattr(batches, "MOST_BYTES", 45)
    assert [len(shard) for shard in batches.shards(iter(lines))] == [4, 4, 4, 4, 4, 4, 1]


def test_a_kill_between_submitting_and_collecting_costs_nothing(batch_client, monkeypatch):
    with Loopback() as server:
        killed = batch_client(server)
        killed._interrupted = lambda: 15
        monkeypatch.setattr(server.batches, "_finish", lambda batch: batch)
        with pytest.raises(Interrupted, match="collects it"):
            killed.ask(questions(5))
        monkeypatch.undo()
        assert all(reply.text for reply in batch_client(server).ask(questions(5)))
    assert len(server.batches.submitted) == 5


def test_a_kill_before_the_batch_was_recorded_costs_nothing(batch_client, answers, monkeypatch):
    with Loopback() as server:
        monkeypatch.setattr(answers, "add_batch", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batch_client(server).ask(questions(5))
        monkeypatch.undo()
        assert all(reply.text for reply in batch_client(server).ask(questions(5)))
    assert len(server.batches.submitted) == 5


def test_an_endpoint_without_batches_is_named(batch_client):
    with Loopback() as server:
        server.batches.available = False
        with pytest.raises(RemoteError, match="has no Batch API"):
            batch_client(server).ask(questions(2))


def test_a_budget_that_cannot_bear_the_batch_stops_before_it_is_submitted(batch_client):
    with Loopback() as server, pytest.raises(RemoteError, match="more than the budget"):
        batch_client(server, price_output=1000.0, budget=0.1).ask(questions(2))
    assert not server.batches.submitted
