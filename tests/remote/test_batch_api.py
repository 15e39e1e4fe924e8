import json

import pytest

from mmedexpert_jax.errors import Interrupted, RemoteError
from mmedexpert_jax.remote import Request, batch_api
from mmedexpert_jax.remote.batch_api import BatchClient
from mmedexpert_jax.remote.messages import estimate_tokens
from tests.remote.loopback import Loopback


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
    monkeypatch.setattr(batch_api, "MOST_REQUESTS", 10)
    assert [len(shard) for shard in batch_api.shards(iter(lines))] == [10, 10, 5]
    monkeypatch.setattr(batch_api, "MOST_BYTES", 45)
    assert [len(shard) for shard in batch_api.shards(iter(lines))] == [4, 4, 4, 4, 4, 4, 1]


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


def test_a_kill_between_lines_and_the_end_of_a_batch_charges_none_twice(batch_client, answers, monkeypatch):
    with Loopback() as server:
        monkeypatch.setattr(answers, "close_batch", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batch_client(server, price_output=8.0).ask(questions(5))
        spent, attempts = answers.spent(), answers.totals()["attempts"]
        monkeypatch.undo()
        replies = batch_client(server, price_output=8.0).ask(questions(5))
    assert (answers.spent(), answers.totals()["attempts"]) == (spent, attempts)
    assert attempts == 5 and spent == pytest.approx(sum(reply.cost for reply in replies))


def test_a_line_that_counts_no_tokens_is_charged_the_most_it_can_have_cost(batch_client, answers, monkeypatch):
    prices = {"price_input": 3.0, "price_output": 8.0, "max_tokens": 100}
    with Loopback() as server:
        complete = server.batches._complete
        monkeypatch.setattr(server.batches, "_complete", lambda body: complete(body) | {"usage": None})
        (reply,) = batch_client(server, **prices).ask(questions(1))
    words = estimate_tokens(questions(1)[0])
    assert reply.text and reply.cost == answers.spent() == pytest.approx(0.5 * (words * 3.0 + 100 * 8.0) / 1e6)


def test_an_endpoint_without_batches_is_named(batch_client):
    with Loopback() as server:
        server.batches.available = False
        with pytest.raises(RemoteError, match="has no Batch API"):
            batch_client(server).ask(questions(2))


def test_a_budget_that_cannot_bear_the_batch_stops_before_it_is_submitted(batch_client):
    with Loopback() as server, pytest.raises(RemoteError, match="more than the budget"):
        batch_client(server, price_output=1000.0, budget=0.1).ask(questions(2))
    assert not server.batches.submitted


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("failed", "failed: Enqueued token limit"),
        ("FAILED", "failed: Enqueued token limit"),
        ("cancelled", "was cancelled"),
        ("canceled", "was cancelled"),
        ("paused_by_admin", "is in no known state \\(paused_by_admin\\); look at it there"),
    ],
)
def test_a_batch_that_failed_says_why_and_is_not_submitted_again_at_once(batch_client, status, said):
    with Loopback() as server:
        server.batches.fails = (status, [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}])
        with pytest.raises(RemoteError, match=said):
            batch_client(server).ask(questions(3))
        assert len(server.batches.submitted) == 3
        server.batches.fails = None
        assert all(reply.text for reply in batch_client(server).ask(questions(3)))
    assert len(server.batches.submitted) == (3 if "known" in said else 6)


@pytest.mark.parametrize("errors", ["limit reached", ["limit reached"], {"message": "limit reached"}, 5, None, [None]])
def test_errors_of_a_batch_may_have_any_form(batch_client, errors):
    with Loopback() as server:
        server.batches.fails = ("failed", errors)
        with pytest.raises(RemoteError, match=r"limit reached|5|no reason"):
            batch_client(server).ask(questions(2))


def test_a_batch_that_the_server_forgot_is_submitted_again(batch_client, answers):
    with Loopback() as server:
        answers.add_batch("batch-99", batch_client(server).endpoint.host)
        assert all(reply.text for reply in batch_client(server).ask(questions(2)))
        assert not answers.open_batches(batch_client(server).endpoint.host)


def test_a_cut_line_loses_its_own_answer_alone(batch_client):
    with Loopback() as server:
        server.batches.cut = 30
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server.batches, "_submit", _cut_once(server.batches))
            replies = batch_client(server).ask(questions(5))
    assert all(reply.text for reply in replies)
    assert len(server.batches.submitted) == 6


def _cut_once(batches):
    submit = type(batches)._submit

    def submitted(body):
        batches.cut = 30 if not batches.submitted else 0
        return submit(batches, body)

    return submitted


def test_a_key_in_an_error_of_the_batch_address_is_masked(answers, endpoint, monkeypatch):
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("TEACHER_KEY", key)
    with Loopback() as server:
        respond = lambda *_: (404, {"error": {"message": "x" * 290 + key}})  # noqa: E731
        monkeypatch.setattr(server.batches, "respond", respond)
        with pytest.raises(RemoteError, match="has no Batch API") as error:
            BatchClient(endpoint(server, key_env="TEACHER_KEY"), answers, poll=0.0).ask(questions(1))
    assert key[:8] not in str(error.value)


def test_a_batch_whose_making_was_not_told_is_not_made_twice(batch_client, monkeypatch):
    """The server makes the batch, and its reply is lost."""
    with Loopback() as server:
        made = server.batches._submit

        def lost(body):
            made(body)
            monkeypatch.setattr(server.batches, "_submit", made)
            raise OSError("the connection broke")

        respond = server.batches.respond

        def answering(*request):
            try:
                return respond(*request)
            except OSError:
                return 503, {"error": {"message": "overloaded"}}

        monkeypatch.setattr(server.batches, "_submit", lost)
        monkeypatch.setattr(server.batches, "respond", answering)
        replies = batch_client(server, retry_wait=0.01).ask(questions(5))
    assert all(reply.text for reply in replies) and len(server.batches.submitted) == 5


def altered(batches, monkeypatch, change):
    """Lets `change` (method, path, status, body) give another status and body for a response of the batch address."""
    respond = batches.respond
    monkeypatch.setattr(batches, "respond", lambda m, p, *rest: change(m, p, *respond(m, p, *rest)))


@pytest.mark.parametrize(
    ("counts", "first"),
    [
        (None, {}),
        ({"total": 3, "completed": 3, "failed": 0}, {}),
        ({"total": 3, "completed": 3, "failed": 0}, {"error_file_id": "file-9"}),
        ({"total": 3, "succeeded": 3}, {}),
        ({"total": 3, "completed": 0, "failed": 0}, {}),
    ],
)
def test_a_batch_that_is_completed_before_it_names_its_files_is_looked_at_again(
    batch_client, monkeypatch, counts, first
):
    looks = []

    def late(method, path, status, body):
        if isinstance(body, dict) and body.get("status") == "completed":
            looks.append(path)
            early = {"output_file_id": None} if len(looks) < 3 else {}
            return status, body | {"request_counts": counts} | first | early
        return status, body

    with Loopback() as server:
        server.batches._files["file-9"] = b""
        altered(server.batches, monkeypatch, late)
        assert all(reply.text for reply in batch_client(server).ask(questions(3)))
        assert len(server.batches.submitted) == 3 and len(looks) == 3


def test_a_batch_that_answered_none_is_looked_at_once(batch_client, monkeypatch):
    looks = []

    def empty(method, path, status, body):
        if isinstance(body, dict) and body.get("status") == "completed":
            looks.append(path)
            return status, body | {"output_file_id": None, "request_counts": {"completed": 0, "failed": 0}}
        return status, body

    with Loopback() as server:
        altered(server.batches, monkeypatch, empty)
        with pytest.raises(RemoteError, match="answered none of 3 requests"):
            batch_client(server).ask(questions(3))
    assert len(looks) == 1


@pytest.mark.parametrize("status", [404, 410])
def test_an_output_that_is_gone_is_said_and_asked_again_by_the_next_run(batch_client, monkeypatch, capsys, status):
    gone = []

    def lost(method, path, known, body):
        if method == "GET" and "/files/" in path and (not gone or path in gone):
            gone.append(path)
            return status, {"error": {"message": "No such File object"}}
        return known, body

    with Loopback() as server:
        altered(server.batches, monkeypatch, lost)
        with pytest.raises(RemoteError, match=r"does not know the file file-1 of batch batch-0 any more.*submits them"):
            batch_client(server, max_attempts=3).ask(questions(3))
        assert len(gone) == 3  # it may have been too early
        assert all(reply.text for reply in batch_client(server).ask(questions(3)))
        assert len(server.batches.submitted) == 6
    assert "does not know the file file-1" in capsys.readouterr().err


def test_a_page_of_a_proxy_in_the_place_of_a_file_closes_no_batch(batch_client, monkeypatch):
    down = [True]
    with Loopback() as server:
        respond = server.batches.respond

        def page(method, path, *rest):
            return (404, b"<html>nginx</html>") if down and path.endswith("/content") else respond(method, path, *rest)

        monkeypatch.setattr(server.batches, "respond", page)
        with pytest.raises(RemoteError, match=r"cannot read a file.*the same command goes on"):
            batch_client(server, max_attempts=2).ask(questions(3))
        down.clear()
        assert all(reply.text for reply in batch_client(server).ask(questions(3)))
        assert len(server.batches.submitted) == 3


def test_a_file_of_errors_that_is_gone_costs_no_answer(batch_client, monkeypatch):
    def more(method, path, status, body):
        named = isinstance(body, dict) and body.get("status") == "completed"
        return status, body | {"error_file_id": "file-9"} if named else body

    with Loopback() as server:
        server.batches._files["file-9"] = b""
        altered(server.batches, monkeypatch, more)
        respond = server.batches.respond
        monkeypatch.setattr(
            server.batches, "respond", lambda m, p, *rest: (404, {}) if "file-9" in p else respond(m, p, *rest)
        )
        for _ in range(2):
            assert all(reply.text for reply in batch_client(server, max_attempts=2).ask(questions(3)))
        assert len(server.batches.submitted) == 3


@pytest.mark.parametrize(
    "form",
    [
        lambda response: {"body": response["body"]},
        lambda response: response | {"status_code": "200"},
        lambda response: response | {"status_code": None},
        lambda response: response | {"body": json.dumps(response["body"])},
        lambda response: response["body"],
    ],
)
def test_a_line_of_a_form_of_its_own_is_an_answer(batch_client, monkeypatch, form):
    def other(lines):
        return b"\n".join(json.dumps(line | {"response": form(line["response"])}).encode() for line in lines)

    with Loopback() as server:
        monkeypatch.setattr(server.batches, "_output", other)
        replies = batch_client(server).ask(questions(3))
        assert [reply.text for reply in replies] == [f"answer to question {i} (0)" for i in range(3)]
        assert len(server.batches.submitted) == 3


@pytest.mark.parametrize("response", [{}, {"body": "no"}, {"status_code": "ok", "body": {}}, {"status_code": "5²"}])
def test_a_line_without_an_answer_is_none(batch_client, monkeypatch, response):
    with Loopback() as server:
        monkeypatch.setattr(
            server.batches,
            "_output",
            lambda lines: b"\n".join(json.dumps(line | {"response": response}).encode() for line in lines),
        )
        with pytest.raises(RemoteError, match=r"answered none of 3 requests .*server: 500"):
            batch_client(server).ask(questions(3))
