import asyncio
import dataclasses
import json
import platform
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from mmedexpert_jax.errors import ConfigError, Interrupted, RemoteError
from mmedexpert_jax.remote import Answers, Client, Endpoint, Request, Usage, connection
from mmedexpert_jax.remote.messages import request_key
from tests.remote.loopback import FAULTS, Loopback, Misbehaviour

KEY = "sk-very-secret-0123456789"


def questions(count: int, sample: int = 0) -> list[Request]:
    return [Request([{"role": "user", "content": f"question {i}"}], sample) for i in range(count)]


def test_replies_come_in_the_order_of_the_requests_and_are_asked_once(client, answers):
    with Loopback() as server:
        seen = []
        first = client(server).ask(questions(40), lambda index, reply: seen.append((index, reply.text)))
        again = client(server).ask(questions(40))
    assert [reply.text for reply in first] == [f"answer to question {i} (0)" for i in range(40)]
    assert sorted(seen) == [(i, f"answer to question {i} (0)") for i in range(40)]
    assert [reply.text for reply in again] == [reply.text for reply in first]
    assert all(reply.stored for reply in again) and not any(reply.stored for reply in first)
    assert server.asked.total() == 40


def test_samples_are_answers_of_their_own_and_equal_requests_are_asked_once(client):
    with Loopback() as server:
        replies = client(server).ask([*questions(2), *questions(2), *questions(2, sample=1)])
    assert [reply.text[-3:] for reply in replies] == ["(0)", "(0)", "(0)", "(0)", "(1)", "(1)"]
    assert server.asked.total() == 4


@pytest.mark.parametrize("kind", FAULTS)
def test_every_failure_is_retried_and_recorded(client, answers, kind):
    wrong = Misbehaviour(share=1.0, kinds=(kind,), in_a_row=2, retry_after=0.02)
    with Loopback(misbehaviour=wrong) as server:
        replies = client(server, timeout=0.7).ask(questions(2))
    assert [reply.text for reply in replies] == ["answer to question 0 (0)", "answer to question 1 (0)"]
    expected = {"429": "rate-limit", "429-after": "rate-limit", "500": "server", "503-after": "server"}
    expected |= {"stall": "timeout", "drop": "connection", "drop-mid-body": "connection"}
    outcomes = [attempt.outcome for attempt in answers.attempts(replies[0].key)]
    assert outcomes == [expected.get(kind, "malformed")] * 2 + ["answered"]


def test_no_request_is_asked_more_often_than_the_policy_allows(client):
    with Loopback(misbehaviour=Misbehaviour(share=1.0, kinds=("500",), in_a_row=99)) as server:
        replies = client(server, max_attempts=3).ask(questions(4))
    assert set(server.asked.values()) == {3}
    assert all(reply.error.startswith("server: 500") and not reply.text for reply in replies)


def test_that_a_silent_server_is_waited_for_is_said_once(client, capsys):
    silent = Misbehaviour(share=1.0, kinds=("500",), in_a_row=99)
    with Loopback(misbehaviour=silent) as server:
        asked = client(server, max_attempts=4, retry_wait=0.01)
        asked.ask(questions(3))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "has not answered yet (server: 500" in said
    assert "asking again, up to 2 times over 0 s" in said
    with Loopback(misbehaviour=dataclasses.replace(silent, in_a_row=1)) as server:
        client(server).ask(questions(6, sample=1))
    assert not capsys.readouterr().err  # each was answered at the second try


def test_a_request_given_up_is_tried_again_by_the_next_run(client):
    with Loopback(misbehaviour=Misbehaviour(share=1.0, kinds=("500",), in_a_row=3)) as server:
        assert client(server, max_attempts=3).ask(questions(1))[0].error
        assert client(server, max_attempts=3).ask(questions(1))[0].text == "answer to question 0 (0)"


def test_an_image_that_cannot_be_decoded_stops_no_other_request(client, answers):
    broken = Request([{"role": "user", "content": [{"type": "image", "image": b"no image"}]}])
    with Loopback(latency=0.01) as server:
        replies = client(server).ask([*questions(9), broken, *questions(9, sample=1)])
    assert replies[9].error.startswith("unreadable: an image: not an image") and not replies[9].text
    assert sum(bool(reply.text) for reply in replies) == 18 == answers.totals()["answered"]


def test_the_fields_of_sampling_are_sent(client):
    bodies = []
    with Loopback(lambda body: bodies.append(body) or "B") as server:
        client(server, temperature=0.7, top_p=0.9).ask(questions(1))
        client(server, temperature=0.7).ask(questions(1))
    assert [(body["temperature"], body.get("top_p")) for body in bodies] == [(0.7, 0.9), (0.7, None)]


def test_a_server_that_answers_nothing_stops_the_run(client):
    stop = pytest.raises(RemoteError, match="no answer to 8 requests in a row, last 400: the prompt is too long")
    with Loopback(misbehaviour=Misbehaviour(rejected=1.0)) as server, stop:
        client(server, concurrency=1).ask(questions(50))
    assert server.asked.total() == 8


def test_a_content_filter_is_an_answer_and_is_not_asked_again(client):
    with Loopback(misbehaviour=Misbehaviour(filtered=1.0)) as server:
        first = client(server).ask(questions(3))
        client(server).ask(questions(3))
    assert {reply.finish for reply in first} == {"content_filter"} and server.asked.total() == 3


def test_exhausted_quota_stops_the_run_and_keeps_what_came(client, answers):
    with Loopback(misbehaviour=Misbehaviour(quota_after=10)) as server:
        with pytest.raises(RemoteError, match="exceeded your current quota"):
            client(server, concurrency=2).ask(questions(50))
        assert answers.totals()["answered"] == server.answered.total() >= 10
        assert server.asked.total() <= server.answered.total() + 2
        server.misbehaviour = Misbehaviour()
        client(server).ask(questions(50))
    assert server.answered.total() == 50 and max(server.answered.values()) == 1


def test_retry_after_pauses_every_request(client, answers):
    wrong = Misbehaviour(share=0.2, kinds=("429-after",), in_a_row=1, retry_after=0.3)
    with Loopback(misbehaviour=wrong, latency=0.01) as server:
        client(server, concurrency=8).ask(questions(40))
    tries = sorted(answers._db.execute("SELECT started, started + seconds, outcome FROM attempts").fetchall())
    limits = [end for _, end, outcome in tries if outcome == "rate-limit"]
    assert limits
    for end in limits:  # those in flight come home; nothing new goes out until the time is over
        assert not [start for start, _, _ in tries if end + 0.05 < start < end + 0.28]


def test_a_wait_beyond_patience_stops_the_run(client):
    wrong = Misbehaviour(share=1.0, kinds=("429-after",), retry_after=3600)
    with Loopback(misbehaviour=wrong) as server, pytest.raises(RemoteError, match="asks to wait 3600 s"):
        client(server).ask(questions(3))


def test_unknown_fields_are_left_out_from_then_on(client):
    wrong = Misbehaviour(unknown_fields=("max_completion_tokens", "seed"))
    with Loopback(misbehaviour=wrong) as server:
        replies = client(server, concurrency=1).ask(questions(10))
    assert [reply.text for reply in replies] == [f"answer to question {i} (None)" for i in range(10)]
    assert server.asked.total() == 12


def test_the_budget_is_never_exceeded(client, answers):
    prices = {"price_input": 1000.0, "price_output": 1000.0, "max_tokens": 30}
    with Loopback() as server:
        whole = sum(reply.cost for reply in client(server, **prices).ask(questions(5)))
        with pytest.raises(RemoteError, match=r"budget of .* cannot bear another request"):
            client(server, **prices, budget=whole + 0.1).ask(questions(50))
    assert whole < answers.spent() <= whole + 0.1
    assert 5 < answers.totals()["answered"] < 50


def test_the_budget_counts_what_another_client_of_the_store_spent_in_between(client, answers):
    prices = {"price_input": 1000.0, "price_output": 1000.0, "max_tokens": 30}
    with Loopback() as server:
        waiting = client(server, **prices, budget=0.08)
        client(server, **prices).ask(questions(5))
        assert answers.spent() > 0.08
        with pytest.raises(RemoteError, match="cannot bear another request"):
            waiting.ask(questions(1, sample=1))
        assert waiting.figures(0)["dollars"] == pytest.approx(answers.spent())
    assert server.asked.total() == 5


def test_many_workers_at_the_end_of_a_budget_all_come_home(client, answers):
    prices = {"price_input": 0.7, "price_output": 9.1, "max_tokens": 333}
    with Loopback(latency=0.005) as server, pytest.raises(RemoteError, match="cannot bear"):
        client(server, **prices, budget=0.02, concurrency=16).ask(questions(400))
    assert 0.01 < answers.spent() <= 0.02


def test_costs_follow_the_prices(client):
    fields = {"price_input": 2.0, "price_cached": 0.5, "price_output": 8.0}
    end = Endpoint("http://localhost/v1", "m", **fields)
    assert end.cost(Usage(prompt=1000, completion=500, cached=400, reasoning=100)) == pytest.approx(
        (600 * 2.0 + 400 * 0.5 + 500 * 8.0) / 1e6
    )
    with Loopback() as server:
        asked = client(server, **fields)
        reply = asked.ask(questions(1))[0]
        assert reply.cost == pytest.approx((reply.usage.prompt * 2.0 + reply.usage.completion * 8.0) / 1e6)
        figures = asked.figures(left=9)
    assert figures["dollars"] == pytest.approx(reply.cost)
    assert figures["dollars_projected"] == pytest.approx(10 * reply.cost)


def test_requests_in_flight_are_bounded(client):
    with Loopback(latency=0.02) as server:
        client(server, concurrency=5).ask(questions(40))
    assert server.most_at_once == 5


def test_requests_per_minute_are_kept(client):
    with Loopback() as server:
        start = time.monotonic()
        client(server, requests_per_minute=1200, concurrency=32).ask(questions(30))
        assert time.monotonic() - start >= (30 - 20) / 20 - 0.05


def test_tokens_per_minute_are_kept_and_what_was_booked_too_much_shortens_the_wait(client):
    with Loopback() as server:
        start = time.monotonic()
        replies = client(server, tokens_per_minute=600, max_tokens=40, concurrency=8).ask(questions(2))
        seconds = time.monotonic() - start
    used, second = replies[0].usage.prompt + replies[0].usage.completion, 600 / 60
    assert used < 20 and seconds >= used / second - 0.05  # the first leaves a debt, the second waits for a full bucket
    assert seconds < (40 + 11) / second - 0.5  # but not for the debt of a completion at its longest


def test_a_signal_ends_the_run_with_what_came_stored(answers, endpoint):
    with Loopback() as server:
        asked = Client(endpoint(server, concurrency=1), answers, lambda: 15 if server.asked.total() >= 5 else None)
        with pytest.raises(Interrupted):
            asked.ask(questions(20))
    assert answers.totals()["answered"] == 5


def test_the_key_goes_to_the_server_and_nowhere_else(answers, endpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with Loopback(key=KEY) as server:
        asked = Client(endpoint(server, key_env="TEACHER_KEY"), answers)
        assert asked.ask(questions(1))[0].text
        server.key = "another"
        with pytest.raises(RemoteError) as error:
            asked.ask(questions(2))
    assert KEY not in str(error.value) and KEY not in repr(asked.endpoint)
    answers.close()
    assert not [file for file in tmp_path.iterdir() if KEY.encode() in file.read_bytes()]


@pytest.mark.parametrize("status", [200, 400, 404, 429, 500])
def test_a_key_that_the_server_repeats_is_masked_in_every_field(answers, endpoint, monkeypatch, tmp_path, status):
    """Also where it is escaped, or stands across the place where a message is cut."""
    monkeypatch.setenv("TEACHER_KEY", KEY)
    escaped = KEY.replace("-", "\\u002d")
    message = {"content": f"the key is {KEY}", "reasoning_content": KEY}
    whole = {"id": KEY, "model": KEY, "choices": [{"message": message, "finish_reason": KEY}]}
    whole |= {"error": {"message": "x" * 290 + KEY, "code": KEY, "param": KEY}} if status != 200 else {}
    content = json.dumps(whole).replace(KEY, escaped, 1).encode()
    with Loopback(raw=lambda body: (status, {"x-key": KEY}, content)) as server:
        asked = Client(endpoint(server, key_env="TEACHER_KEY", max_attempts=1, concurrency=1), answers)
        try:
            shown = repr(asked.ask(questions(2)))
        except RemoteError as error:
            shown = str(error)
    assert KEY not in shown and KEY[:12] not in shown
    answers.close()
    assert not [file for file in tmp_path.iterdir() if KEY[:12].encode() in file.read_bytes()]


def test_a_placeholder_in_the_place_of_a_key_is_no_secret(answers, endpoint, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "none")
    with Loopback(lambda body: "none of them", key="none") as server:
        assert Client(endpoint(server, key_env="TEACHER_KEY"), answers).ask(questions(1))[0].text == "none of them"


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_an_endless_body_is_not_read_to_its_end(client, monkeypatch, encoding):
    import gzip

    monkeypatch.setattr(connection, "MOST_BODY", 100_000)
    content = b" " * 2_000_000
    headers = {"content-encoding": encoding} if encoding else {}
    with Loopback(raw=lambda body: (200, headers, gzip.compress(content) if encoding else content)) as server:
        (reply,) = client(server, max_attempts=2).ask(questions(1))
    assert reply.error.startswith("connection: ReadError: a body of more than 100000 bytes")


def test_a_compressed_answer_is_read(client):
    import gzip

    with Loopback() as server:
        plain = server._completion
        server.raw = lambda body: (
            *(200, {"content-type": "application/json", "content-encoding": "gzip"}),
            gzip.compress(json.dumps(plain(body)).encode()),
        )
        assert client(server).ask(questions(1))[0].text == "answer to question 0 (0)"


def test_a_redirect_is_not_followed(client):
    headers = {"location": "http://127.0.0.1:1/v1/chat/completions"}
    with Loopback(raw=lambda body: (307, headers, b"")) as server, pytest.raises(RemoteError, match="refuses: 307"):
        client(server).ask(questions(1))


def test_a_moderated_prompt_is_filtered_and_another_403_ends_no_run_that_has_answers(client):
    def raw(body):
        text = body["messages"][-1]["content"]
        if text == "question 3":
            return 403, {}, json.dumps({"error": {"code": 403, "message": "Input was flagged by moderation"}}).encode()
        if text == "question 5":
            return 403, {}, b'{"error": "no"}'
        return None

    with Loopback(raw=raw) as server:
        replies = client(server, concurrency=1).ask(questions(8))
    assert replies[3].finish == "content_filter" and replies[5].error.startswith("rejected: 403")
    assert sum(bool(reply.text) for reply in replies) == 6


def test_geminis_list_of_errors_is_understood_and_the_answer_says_what_was_left_out(client, answers):
    def raw(body):
        if "seed" not in body:
            return None
        return (
            400,
            {},
            json.dumps([{"error": {"code": 400, "message": 'Unknown name "seed": Cannot find field.'}}]).encode(),
        )

    with Loopback(raw=raw) as server:
        replies = client(server, concurrency=1).ask(questions(3))
    assert [reply.left_out for reply in replies] == [("seed",)] * 3
    assert answers.served() == [("teacher", ("seed",), 3)]


def test_two_runs_on_one_store_pay_each_question_once(endpoint, tmp_path):
    """Each with a store of its own on the same file, as two processes have."""
    with Loopback(latency=0.01) as server, ThreadPoolExecutor(2) as pool:
        stores = [Answers(tmp_path / "shared.sqlite") for _ in range(2)]
        runs = [pool.submit(Client(endpoint(server, concurrency=4), store).ask, questions(60)) for store in stores]
        found = [[reply.text for reply in run.result()] for run in runs]
    assert found[0] == found[1] == [f"answer to question {i} (0)" for i in range(60)]
    assert server.asked.total() == 60


def test_answers_of_another_server_are_taken_and_told(client, answers, tmp_path, capsys):
    """A server that moved is not paid twice; the line is for one that has another model of the same name."""
    with Loopback() as one, Loopback() as other:
        client(one).ask(questions(3))
        client(one).ask(questions(3))
        client(other).ask([Request([{"role": "user", "content": "new"}])])
        assert "stand for" not in capsys.readouterr().out
        assert all(reply.stored for reply in client(other).ask(questions(3)))
        host = one.url.partition("//")[2].partition("/")[0]
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "stand for" in line]
        assert f"{answers.path}: answers of {host} stand for {client(other).endpoint.host} too" in line
        client(other).ask(questions(3))
        assert "stand for" not in capsys.readouterr().out


def test_a_dead_process_holds_no_question_back(client, answers):
    dead = subprocess.Popen(["true"])
    dead.wait()
    with Loopback() as server:
        asked = client(server)
        key = request_key(questions(1)[0], asked.endpoint)
        answers._owner, ours = f"{platform.node()} {dead.pid} 1 x", answers._owner
        assert answers.claim(key)
        answers._owner = ours
        assert asked.ask(questions(1))[0].text


def test_a_missing_key_and_a_broken_url_are_config_errors(answers, monkeypatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(ConfigError, match="TEACHER_KEY is not set"):
        Client(Endpoint("http://localhost/v1", "m", key_env="TEACHER_KEY"), answers)
    with pytest.raises(ConfigError, match="give http"):
        Endpoint("localhost/v1", "m")
    for url in ("http://[::1/v1", "http://host:99999/v1", "http://host:x/v1"):
        with pytest.raises(ConfigError, match="give http"):
            Endpoint(url, "m")
    for url in ("https://me:secret@host/v1", "https://secret@host:x/v1", "http://secret@[::1/v1"):
        with pytest.raises(ConfigError, match="holds a user name") as error:
            Endpoint(url, "m")
        assert "secret" not in str(error.value)
    with pytest.raises(ConfigError, match="give the base alone, without /chat/completions"):
        Endpoint("http://localhost/v1/chat/completions/", "m")
    with pytest.raises(ConfigError, match="prices"):
        Endpoint("http://localhost/v1", "m", budget=1.0)


@pytest.mark.parametrize(
    ("path", "asked", "own", "hint"),
    [
        ("/openai/deployments/m?api-version=1", "/openai/deployments/m/chat/completions?api-version=1", "k", ""),
        ("/v1/", "/v1/chat/completions", None, ""),
        ("", "/chat/completions", None, " (is the url http://{}/v1?)"),
    ],
)
def test_a_query_of_the_url_goes_behind_the_path_and_a_root_gets_a_hint(answers, monkeypatch, path, asked, own, hint):
    monkeypatch.setenv("TEACHER_KEY", "k")
    seen = []

    class Lost(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            seen.append((self.path, self.headers.get("api-key")))
            self.send_error(404)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Lost) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        asking = Client(Endpoint(f"http://{host}{path}", "m", key_env="TEACHER_KEY"), answers)
        with pytest.raises(RemoteError, match=r"refuses: 404") as error:
            asking.ask(questions(1))
        server.shutdown()
    assert seen == [(asked, own)]
    assert str(error.value).endswith(f"{hint.format(host)}; fix it, the same command goes on")


def test_it_works_inside_a_running_loop(client):
    async def notebook(server):
        return client(server).ask(questions(3))

    with Loopback() as server:
        assert len(asyncio.run(notebook(server))) == 3


def test_what_stands_in_the_store_is_plain_json(client, answers):
    with Loopback() as server:
        reply = client(server).ask(questions(1))[0]
    row = answers._db.execute("SELECT reply FROM answers").fetchone()
    assert json.loads(row[0])["text"] == reply.text
