import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from mmedexpert_jax.remote.policy import judge, retry_after

JSON = {"content-type": "application/json; charset=utf-8"}


def body(**error) -> bytes:
    return json.dumps({"error": error}).encode()


def completion(**message) -> bytes:
    return json.dumps({"id": "x", "choices": [{"finish_reason": "stop", "message": message}]}).encode()


@pytest.mark.parametrize(
    ("status", "content", "outcome"),
    [
        (429, body(message="slow down", code="rate_limit_exceeded"), "rate-limit"),
        (429, body(message="pay", type="insufficient_quota"), "quota"),
        (402, b"payment required", "quota"),
        (401, body(message="wrong key", code="invalid_api_key"), "refused"),
        (404, body(message="no such model"), "refused"),
        (301, b"", "refused"),
        (500, b"", "server"),
        (503, b"<html>", "server"),
        (408, b"", "server"),
        (
            400,
            body(message="Unsupported value: 'temperature' does not support 0.2", param="temperature"),
            "unsupported",
        ),
        (400, body(message="maximum context length is 4096 tokens"), "rejected"),
        (400, body(message="temperature must be below 2", param="temperature"), "rejected"),
        (400, body(message="filtered", code="content_filter"), "answered"),
        (422, json.dumps({"detail": "seed: extra fields not permitted"}).encode(), "unsupported"),
        (413, b"too large", "rejected"),
    ],
)
def test_errors_are_told_apart(status, content, outcome):
    assert judge(status, JSON, content).outcome == outcome


def test_half_an_emoji_can_be_stored():
    found = judge(200, JSON, completion(content="B \ud83d", reasoning_content="\ude00 \ud83d\ude00 é"))
    assert (found.reply.text, found.reply.reasoning) == ("B \ufffd", "\ufffd \U0001f600 é")
    assert judge(500, JSON, body(message="cut \ud83d")).detail == "500: cut \ufffd"


def test_an_answer_has_text_finish_reasoning_and_usage():
    content = json.loads(completion(content="B", reasoning_content="hidden"))
    content["usage"] = {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    found = judge(200, JSON, json.dumps(content).encode())
    assert (found.reply.text, found.reply.finish, found.reply.reasoning) == ("B", "stop", "hidden")
    assert (found.usage.prompt, found.usage.completion, found.usage.cached, found.usage.reasoning) == (9, 5, 4, 3)


def test_a_refusal_and_parts_of_text_are_answers():
    assert judge(200, JSON, completion(content=None, refusal="no")).reply.finish == "refusal"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert judge(200, JSON, completion(content=parts)).reply.text == "ab"


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        (JSON, completion(content="B")[:-5]),
        (JSON, b'{"choices": []}'),
        (JSON, b'{"choices": [{"message": "B"}]}'),
        (JSON, b"[]"),
        (JSON, b"\xff\xfe"),
        ({"content-type": "text/html"}, completion(content="B")),
        ({}, completion(content="B")),
    ],
)
def test_what_is_not_the_protocol_is_malformed(headers, content):
    assert judge(200, headers, content).outcome == "malformed"


def test_the_servers_wish_for_a_wait():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert 27 < retry_after({"retry-after": later}) <= 30
    assert retry_after({"retry-after": "soon"}) is None
    reset = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2.5s"}
    assert retry_after(reset) == 62.5
    assert retry_after(reset | {"x-ratelimit-remaining-tokens": "10"}) is None
    assert retry_after({}) is None
