"""The page: what it may load, comparisons whose models are unnamed until the vote, and connections that say nothing."""

import json
import re
import socket
import threading
import time
from collections import deque
from types import SimpleNamespace

import pytest
import uvicorn
from starlette.testclient import TestClient

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.intervals import wilson
from mmedexpert_jax.remote import guard
from mmedexpert_jax.rollout import server
from mmedexpert_jax.rollout.chat import Vote, Votes
from mmedexpert_jax.rollout.desk import ENOUGH, Desk

ORIGIN = "http://127.0.0.1"


@pytest.fixture
def client(tmp_path, echo):
    application = server.application(echo, "", tmp_path / "run" / "votes.jsonl")
    return TestClient(guard.Guard(application, True), base_url=ORIGIN)


BODY = {"messages": [{"role": "user", "content": "Who are you?"}]}


def test_the_page_loads_its_own_files_alone_and_runs_no_inline_script(client):
    page = client.get("/")
    rules = page.headers["content-security-policy"]
    assert "default-src 'none'" in rules and "script-src 'self'" in rules and "unsafe" not in rules
    assert not re.search(r"<script(?![^>]*src=)|<style| on\w+=| style=", page.text)
    for path, kind in (("/chat.js", "text/javascript"), ("/chat.css", "text/css")):
        assert f'"{path}"' in page.text and client.get(path).headers["content-type"].startswith(kind)
    script = client.get("/chat.js").text
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script
    assert "<option>alpha</option>" in page.text and "Key" not in page.text
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421  # DNS rebinding


def test_names_are_told_for_a_vote_and_votes_are_kept_with_intervals(client, tmp_path):
    assert client.get("/votes").json() == {"table": []}
    wins = {"alpha": 0, "beta": 0}
    for better in ("first", "first", "second", "tie"):
        said = client.post("/compare", json=BODY).json()
        assert said.keys() == {"id", "answers"} and sorted(said["answers"]) == ["alpha", "beta"]
        told = client.post("/votes", json={"id": said["id"], "better": better}).json()
        assert told["models"] == said["answers"]
        if better != "tie":
            wins[told["models"][better == "second"]] += 1
        assert client.post("/votes", json={"id": said["id"], "better": better}).status_code == 404  # one vote each
    (row,) = client.get("/votes").json()["table"]
    assert row["models"] == ["alpha", "beta"] and row["wins"] == [wins["alpha"], wins["beta"]] and row["ties"] == 1
    assert (row["low"], row["high"]) == wilson(wins["alpha"] + 0.5, 4)
    file = tmp_path / "run" / "votes.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 4 and rows[0].keys() == {"first", "second", "better", "time"}
    assert Votes(file).table() == [row]


@pytest.mark.parametrize("vote", [{}, {"id": "x", "better": "both"}, {"id": 5, "better": "tie"}, [], "x"])
def test_what_is_no_vote(client, vote):
    response = client.post("/votes", json=vote)
    assert response.status_code == 400 and "Traceback" not in response.text


def test_a_broken_file_of_votes_names_its_line(tmp_path):
    file = tmp_path / "votes.jsonl"
    file.write_text('{"first": "a", "second": "b", "better": "tie"}\n{"first": 1}\n')
    with pytest.raises(DataError, match="line 2"):
        Votes(file)


def test_comparisons_without_a_vote_are_forgotten(monkeypatch):
    monkeypatch.setattr("mmedexpert_jax.rollout.chat.OPEN", 2)
    votes = Votes(None)
    ids = [votes.open("a", "b") for _ in range(3)]
    assert votes.close(Vote(ids[0], "tie")) is None and votes.close(Vote(ids[2], "tie")) == ("a", "b")


def test_500_connections_that_say_nothing_are_hung_up_on(monkeypatch, echo):
    monkeypatch.setattr(guard, "HEAD_SECONDS", 1.0)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    application = guard.Guard(server.application(echo), True)
    settings = {"http": guard.PromptProtocol, "limit_concurrency": 320, "log_level": "critical"}
    running = uvicorn.Server(uvicorn.Config(application, **settings))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    address = listening.getsockname()
    held = [socket.create_connection(address) for _ in range(500)]
    for number, one in enumerate(held):
        one.sendall(b"" if number % 2 else b"GET / HTTP/1.1\r\nX-Slow: ")
    try:
        assert _status(address) in (503, 200)
        deadline = time.monotonic() + 60
        while _status(address) != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert all(map(_is_closed, held))
    finally:
        for one in held:
            one.close()
        running.should_exit = True
        thread.join()


def _is_closed(one):
    """True once the other side hangs up: a reset where bytes came in after it had closed."""
    try:
        return one.recv(1) == b""
    except ConnectionResetError:
        return True


def _status(address):
    with socket.create_connection(address, timeout=30) as one:
        one.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return int(one.recv(64).split()[1])


def test_the_warm_up_asks_each_name_what_its_processor_takes():
    asked = []

    def encode(conversation, max_length):
        if not isinstance(conversation[0]["content"], str):
            raise DataError("no images")
        return conversation

    def submit(choices):
        asked.append((choices[0].model, choices[0].limit, len(choices)))
        for choice in choices:
            choice.tell(None, False)
            choice.tell(None, True)

    processor = SimpleNamespace(encode=encode)
    loras = {"base": None, "expert": None}
    limits = {"max_prompt_length": 64, "max_new_tokens": 1}
    desk = SimpleNamespace(loras=loras, processor=processor, submit=submit, failure=None, queue=256, **limits)
    Desk.warm_up(desk)
    # a text, several of them, and one that is asked several choices
    assert asked == [(name, 1, count) for name in ("base", "expert") for count in (1, ENOUGH, 2)]


def test_a_pool_that_cannot_open_is_told_to_those_who_wait():
    """Such as a lack of memory: the thread must neither go round for ever nor leave its clients waiting."""

    def fail(name):
        raise MemoryError("no room for the caches")

    desk = object.__new__(Desk)
    desk._open, desk._news, desk._running, desk._pools = fail, threading.Condition(), set(), {}
    waiting = deque(["one", "two"])
    desk._waiting = {"base": waiting}
    with pytest.raises(MemoryError):
        desk._serve("base")
    assert desk._running == {"one", "two"} and not waiting
    desk.loras, desk.failure = {"base": None}, MemoryError("no room")
    desk.queue, desk.max_prompt_length, desk.max_new_tokens = 4, 64, 1
    desk.processor = SimpleNamespace(encode=lambda conversation, max_length: conversation)
    desk.submit = lambda choices: [choice.tell(None, True) for choice in choices]
    with pytest.raises(MemoryError, match="no room"):
        desk.warm_up()
