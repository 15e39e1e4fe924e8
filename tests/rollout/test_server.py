"""The server over the embedded model, by a plain client, the product's own client, and clients that misbehave."""

import base64
import io
import json
import socket
import threading
import time

import httpx2 as httpx
import pytest
import uvicorn
from PIL import Image

from mmedexpert_jax.models import load_policy, load_processor
from mmedexpert_jax.rollout import Engine, Settings, server
from mmedexpert_jax.rollout.decode import programs
from mmedexpert_jax.rollout.desk import Choice, Desk

LIMIT = 24


@pytest.fixture(scope="module")
def model():
    return load_policy("mini")[:2]


@pytest.fixture(scope="module")
def desk(model):
    desk = Desk(*model, {"mini": None}, load_processor("mini"), 4, 6, 256, LIMIT)
    yield desk
    desk.close()


@pytest.fixture(scope="module")
def address(desk):
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(server.application(desk, "secret"), log_level="critical"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    running.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def ask(address):
    def post(content="Is a score of 7 high?", key="secret", **fields):
        body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": LIMIT} | fields
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=300)

    return post


def picture():
    data = io.BytesIO()
    Image.new("RGB", (56, 56), (200, 30, 30)).save(data, "png")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()},
    }


def test_answers_are_the_engines(ask, model):
    conversation = [{"role": "user", "content": "Is a score of 7 high?"}]
    engine = Engine(*model, load_processor("mini"), Settings(max_new_tokens=LIMIT))
    expected = dict(engine.answer([conversation]))[0][0]
    found = ask(logprobs=True).json()
    choice = found["choices"][0]
    assert choice["message"]["content"] == expected.text
    assert choice["finish_reason"] == ("length" if expected.truncated else "stop")
    assert found["usage"]["completion_tokens"] == expected.tokens == len(choice["logprobs"]["content"])
    assert sum(token["logprob"] for token in choice["logprobs"]["content"]) == pytest.approx(expected.logprob, abs=1e-3)


def test_after_the_warm_up_a_request_compiles_nothing(ask, desk):
    desk.warm_up()
    before = len(programs)
    assert ask().status_code == ask([picture(), {"type": "text", "text": "What is it?"}]).status_code == 200
    assert len(programs) == before


def test_choices_of_a_seed_are_the_same_again_and_differ_from_each_other(ask):
    settings = {"n": 3, "temperature": 1.0, "seed": 5, "content": [picture(), {"type": "text", "text": "Describe it."}]}
    first, second = (ask(**settings).json()["choices"] for _ in range(2))
    assert first == second and len({choice["message"]["content"] for choice in first}) == 3


def test_a_stream_is_the_answer_and_stops_where_it_is_told(ask):
    question = "A man of 61 has a respiratory rate of 32. What is his score?"  # answered in several words
    whole = ask(question).json()["choices"][0]["message"]["content"]
    word = whole.split()[2]
    events = [line[6:] for line in ask(question, stream=True).text.splitlines() if line]
    assert events[-1] == "[DONE]"
    parts = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert "".join(part["delta"]["content"] for part in parts) == whole and parts[-1]["finish_reason"]
    cut = ask(question, stop=[word]).json()["choices"][0]
    assert cut["message"]["content"] == whole[: whole.find(word)] and cut["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"n": 0}, 400, "n"),
        ({"n": 7}, 429, "wait"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"max_tokens": 10**9}, 400, "max_tokens"),
        ({"model": "other" * 99}, 404, "not served"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "role"),
        ({"content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}, 400, "data:image"),
        ({"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}, 400, "content"),
        ({"content": "word " * 5000}, 400, "over the limit"),
        ({"key": "wrong"}, 401, "key"),
    ],
)
def test_what_cannot_be_answered_gets_its_status_and_one_line(ask, fields, status, says):
    response = ask(**fields)
    message = response.json()["error"]["message"]
    assert response.status_code == status and says in message and len(message) < 400 and "Traceback" not in message


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"messages": NaN}', b"[" * 100_000, b"\xff\xfe", b"null"])
def test_a_body_that_is_no_request(address, body):
    headers = {"authorization": "Bearer secret"}
    response = httpx.post(f"{address}/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400 and response.json()["error"]["message"]


def test_long_and_slow_bodies_and_clients_that_leave(address, ask, monkeypatch):
    monkeypatch.setattr(server, "BODY", 1000)
    assert ask("x" * 2000).status_code == 413
    monkeypatch.undo()
    monkeypatch.setattr(server, "PATIENCE", 0.5)

    def slowly():
        yield b"{"
        time.sleep(1.5)
        yield b"}"

    headers = {"authorization": "Bearer secret"}
    assert httpx.post(f"{address}/v1/chat/completions", content=slowly(), headers=headers).status_code == 408
    monkeypatch.undo()
    with pytest.raises(httpx.ReadTimeout):
        body = {"messages": [{"role": "user", "content": "x"}]}
        httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=0.01)
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    assert ask().status_code == 200


def test_the_place_of_a_choice_that_was_dropped_is_the_next_one_s_alone(desk):
    """The next prompt is admitted before another step is made: rows of the dropped one must not go on in its place."""

    def choice(text, tell, watched=False):
        encoded = desk.processor.encode([{"role": "user", "content": text}])
        return Choice("mini", encoded, 0, 0.0, 1.0, 0, LIMIT, tell, watched)

    def answer(submit):
        over, found = threading.Event(), []
        submit(choice("Is a score of 7 high?", lambda done, ended: (found.append(done), over.set())))
        assert over.wait(60)
        return found[0].tokens.tolist(), found[0].lengths.tolist()

    alone = answer(lambda one: desk.submit([one]))
    told = []

    def beside(next_one):
        def tell(done, ended):
            told.append(ended)
            if len(told) == 1:
                dropped.dropped = True
            elif len(told) == 2:  # the desk has just let go of the dropped one
                desk.submit([next_one])

        dropped = choice("What is a fever?", lambda done, ended: None)
        desk.submit([dropped, choice("What is gout?", tell, watched=True)])

    assert answer(beside) == alone and told[:2] == [False, False]
