import json
import re
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax.remote.outcomes import _usage, retry_after
from mmedexpert_jax.remote.outcomes import classify as judge
from mmedexpert_jax.remote.protocol import Endpoint

FIELDS = st.sampled_from(
    *[["choices", "message", "content", "refusal", "usage", "error", "code", "prompt_tokens", "finish_reason", "model"]]
)
JSON = {"content-type": "application/json; charset=utf-8"}
ENDPOINT = Endpoint(url="http://localhost/v1", model="m", key_env="")


def body(**error) -> bytes:
    return json.dumps({"error": error}).encode()


def completion(**message) -> bytes:
    return json.dumps({"id": "x", "choices": [{"finish_reason": "stop", "message": message}]}).encode()


@pytest.mark.parametrize(
    ("status", "content", "outcome"),
    [
        (429, body(message="slow down", code="rate_limit_exceeded"), "rate-limit"),
        (
            429,
            body(message="Rate limit reached on tokens: Limit 3, Used 2, Requested 2. Try later"),
            "rate-limit",
        ),
        (429, body(message="This request would exceed your organization's rate limit of 40,000 tokens"), "rate-limit"),
        (
            429,
            body(message="Request too large for x: Limit 3, Requested 4", code="rate_limit_exceeded"),
            "rejected",
        ),
        (429, body(message="Limit 3, Requested 4. The input or output tokens must be reduced."), "rejected"),
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
        (403, body(message="Input stopped", type="guardrail"), "answered"),
        (400, body(message="The prompt was blocked due to safety."), "answered"),
        (451, b"blocked", "answered"),
        (400, body(message="temperature must be > 0"), "unsupported"),
        (400, body(message="`seed` must be null"), "unsupported"),
        (400, body(message="max_completion_tokens must be positive"), "rejected"),
        (422, json.dumps({"detail": "seed: extra fields not permitted"}).encode(), "unsupported"),
        (413, b"too large", "rejected"),
    ],
)
def test_errors_are_told_apart(status, content, outcome):
    assert judge(status, JSON, content).kind == outcome


ENDINGS = {"SAFETY": "content_filter", "content_filter: BLOCKLIST": "content_filter", "MAX_TOKENS": "length"}
ENDINGS |= {
    "model_length": "length",
    "end_turn": "stop",
    "STOP": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
}


ENDINGS |= dict.fromkeys(
    ("complete", "eos_token_id", "FinishReason.STOP", "stop_str", "normal", "no such", "OTHER"), "stop"
)
ENDINGS |= dict.fromkeys(("incomplete", "token_limit", "max_new_tokens", "timeout"), "length")
ENDINGS |= dict.fromkeys(("max_length", "limit", "max-tokens", "FinishReason.MAX_TOKENS"), "length")
ENDINGS |= dict.fromkeys(("content-filter", "FinishReason.SAFETY"), "content_filter")
ENDINGS |= {"function_call": "function_call", "refusal": "refusal"}


@pytest.mark.parametrize("said", ENDINGS)
def test_reasons_to_end_are_in_the_protocols_words(said):
    choice = {"finish_reason": said, "message": {"content": "x"}}
    assert judge(200, JSON, json.dumps({"choices": [choice]}).encode()).reply.finish == ENDINGS[said]


@pytest.mark.parametrize(
    ("status", "headers", "content", "outcome"),
    [
        (200, JSON, {"choices": [{"finish_reason": "safety"}]}, "answered"),  # without a message
        (200, JSON, {"choices": [{"finish_reason": "ERROR", "message": {"content": ""}}]}, "server"),
        (200, JSON, {"choices": [{"finish_reason": "stop"}]}, "malformed"),
        (201, JSON, {"choices": [{"message": {"content": "x"}}]}, "answered"),
        (200, JSON, {"choices": [{"message": {"content": ["x", {"text": "y"}]}}]}, "answered"),
        (202, JSON, {"id": "x"}, "malformed"),
        (204, JSON, "", "malformed"),
        (200, JSON, {"error": {"code": "429", "message": "slow"}}, "rate-limit"),
        (200, JSON, {"error": {"code": "rate_limit_exceeded"}}, "rate-limit"),
        (200, JSON, {"error": {"code": "12", "message": "?"}}, "server"),
        (200, JSON, {"object": "error", "message": "context length is 4096", "code": 400}, "rejected"),  # FastChat's
        (200, JSON, {"detail": "Not authenticated"}, "server"),
        (499, JSON, "", "server"),
        (400, JSON, {"error": {"message": "Your credit balance is too low"}}, "quota"),
        (429, JSON, {"error": {"message": "Insufficient balance"}}, "quota"),
        (400, JSON, {"code": "Arrearage", "message": "make sure your account is in good standing"}, "quota"),
        (429, JSON, {"error": {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}}, "quota"),
        (429, JSON, {"error": {"type": "exceeded_current_quota_error", "message": "see your plan"}}, "quota"),
        (400, JSON, {"error": {"message": "API key not valid. Please pass a valid one."}}, "refused"),
        (400, JSON, {"error": {"message": "Content Exists Risk"}}, "answered"),
        (400, JSON, {"error": {"message": "输入可能包含敏感内容"}}, "answered"),
        (400, JSON, {"error": {"message": "`temperature` is deprecated for this model."}}, "unsupported"),
        (400, JSON, {"error": {"message": "invalid temperature: only 1 is allowed"}}, "unsupported"),
        (400, JSON, {"error": {"message": "Additional properties are not allowed ('seed')"}}, "unsupported"),
        (400, JSON, {"error": {"message": "max_completion_tokens: only 4096 is allowed"}}, "rejected"),
        (400, JSON, {"error": {"message": "reasoning_effort must be one of low, high"}}, "rejected"),
    ],
)
def test_what_servers_say_in_words_of_their_own(status, headers, content, outcome):
    assert judge(status, headers, json.dumps(content).encode() if content else b"").kind == outcome


def judged(status, content, **headers):
    return judge(status, JSON | headers, json.dumps(content).encode())


QUOTED = {"message": "Provider returned error", "code": 400}


@pytest.mark.parametrize(
    ("raw", "kind", "words"),
    [
        ('{"error":{"message":"Content Exists Risk"}}', "answered", "Content Exists Risk"),
        ('{"error":{"message":"stopped","code":"content_filter"}}', "answered", "stopped"),
        ({"error": {"message": "context length is 4096"}}, "rejected", "context length is 4096"),
        ({"error": {"message": "Unsupported parameter: seed"}}, "unsupported", "seed"),
        ("x/y is temporarily rate-limited upstream", "rejected", "x/y is temporarily"),
        ('{"error":{"message":"pay","code":"insufficient_quota"}}', "rejected", "pay"),  # the router's account there
        ('{"error":{"fault":"odd"}}', "rejected", "odd"),
        (None, "rejected", "Provider returned error"),
        (3, "rejected", "Provider returned error"),
    ],
)
def test_what_a_router_quotes_of_the_provider_is_said_and_decides_on_filters(raw, kind, words):
    found = judged(400, {"error": QUOTED | {"metadata": {"raw": raw, "provider_name": "x"}}})
    assert found.kind == kind and words in found.detail


@pytest.mark.parametrize(
    "error",
    [
        {"message": "The content moderation service failed, try again", "code": 500},
        {"message": "Guardrail service timed out"},
        {"message": "moderation backend unavailable"},
    ],
)
def test_a_filter_that_is_down_itself_has_said_nothing_of_the_text(error):
    assert judged(200, {"error": error}).kind == "server"
    assert judged(200, {"detail": error["message"]}).kind == "server"


@pytest.mark.parametrize("words", ["API key not valid. Please pass a valid API key.", "Please retry after 1 hour"])
@pytest.mark.parametrize("status", [400, 429])
def test_the_key_and_the_rate_of_a_routers_provider_are_not_ours(status, words):
    quoted = {"raw": json.dumps({"error": {"message": words}})}
    found = judged(status, {"error": {"message": "Provider returned error", "code": status, "metadata": quoted}})
    assert found.kind == ("rejected" if status == 400 else "rate-limit") and not found.wait and words in found.detail
    assert judged(400, {"error": {"message": "API key not valid"}}).kind == "refused"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"completion_tokens_details": {"reasoning_tokens": 2000}, "total_tokens": 2600}, (100, 2500, 0, 2000)),
        ({"completion_tokens_details": {"reasoning_tokens": 200}, "total_tokens": 600}, (100, 500, 0, 200)),
        ({"total_tokens": 2600}, (100, 2500, 0, 2000)),
        ({"prompt_tokens_details": {"cached_tokens": 50}, "total_tokens": 600}, (100, 500, 50, 0)),
        ({"prompt_tokens_details": {"cached_tokens": 2000}, "total_tokens": 2600}, (2100, 500, 2000, 0)),
        ({"cache_read_input_tokens": 2000, "total_tokens": 2600}, (2100, 500, 2000, 0)),
    ],
)
def test_reasoning_and_what_was_cached_are_counted_once(counts, expected):
    usage = _usage({"prompt_tokens": 100, "completion_tokens": 500} | counts)
    assert (usage.prompt, usage.completion, usage.cached, usage.reasoning) == expected


OWN = {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}, "choices": None}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (OWN, "quota"),
        ({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, "server"),
        ({"base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}}, "answered"),
        ({"error_code": 336100, "error_msg": "model is overloaded"}, "server"),
        ({"Response": {"Error": {"Code": "InternalError", "Message": "try again"}}}, "server"),
        ({"code": 50505, "message": "TPM limit reached", "data": None}, "server"),
        ({"code": 401, "msg": "no such key"}, "refused"),
        ({"code": 50500, "message": "content filter overloaded, try again"}, "server"),
    ],
)
def test_errors_under_a_server_s_own_names_are_read_and_not_billed(content, kind):
    found = judged(200, content)
    assert found.kind == kind and found.cost(ENDPOINT, worst=1.0) == 0
    assert re.search("insufficient|limit|sensitive|overloaded|try again|no such key", found.detail)


def test_an_error_beside_an_empty_answer_is_no_answer_and_beside_a_text_none():
    choice = {"finish_reason": "stop", "message": {"content": ""}}
    sensitive = {"base_resp": {"status_code": 1027, "status_msg": "output new_sensitive"}, "choices": [choice]}
    found = judged(200, sensitive)
    assert found.reply.finish == "content_filter" and found.cost(ENDPOINT, worst=1.0) == 1.0  # it may be billed
    assert judged(200, sensitive | {"usage": {"prompt_tokens": 9, "completion_tokens": 1}}).usage.completion == 1
    busy = {"base_resp": {"status_code": 1000, "status_msg": "unknown"}, "choices": [choice]}
    assert judged(200, busy).kind == "server"
    fine = {"base_resp": {"status_code": 0, "status_msg": "success"}, "choices": [choice], "code": 0, "msg": "ok"}
    assert judged(200, fine).reply.finish == "stop"
    choice["message"]["content"] = "B"
    assert judged(200, sensitive).reply.text == "B"
    assert "a thing of its own" in judged(200, {"code": 0, "message": "a thing of its own"}).detail  # of no known form
    assert "sk-0123456789" not in judge(200, JSON, b'{"a": "sk-\\u00301' + b'23456789"}', "sk-0123456789").detail


@pytest.mark.parametrize(
    ("said", "wait"),
    [
        ("Please retry in 34.074824224s.", 34.074824224),
        ("Rate limit reached. Please try again in 7m12s. Need more?", 432),
        ("Please retry after 60 seconds.", 60),
        ("try again after 1 minute", 60),
        ("try again in 250ms", 0.25),
        ("Please try again in 5 months", None),
        ("retry after some time; limit 30s", None),
        ("Invalid content: 'try again in 20 s'", None),  # the question's words
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_is_asked_for_in_words_is_heeded(status, said, wait):
    assert judged(status, {"error": {"message": said}}).wait == (wait and pytest.approx(wait))
    assert judged(status, {"error": {"message": said}}, **{"retry-after": "3"}).wait == 3


def test_a_wait_in_the_details_of_an_error_is_heeded():
    details = [{"@type": "x.QuotaFailure", "violations": [{}]}, {"@type": "x.RetryInfo", "retryDelay": "34s"}]
    assert judged(429, [{"error": {"message": "slow", "details": details}}]).wait == 34
    assert judged(429, {"error": {"message": "slow", "details": {"retryDelay": "2s"}}}).wait == 2
    assert judged(429, {"error": {"message": "slow", "details": "none"}}).wait is None


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (
            429,
            {"message": "Your team has either used all available credits or reached its monthly spending limit."},
            "quota",
        ),
        (429, {"message": "Rate limit exceeded: free-models-per-day. Add 10 credits"}, "quota"),
        (429, {"code": "SetLimitExceeded", "message": "the model service has been paused"}, "quota"),
        (429, {"message": "You can raise your rate limit under spending limits."}, "rate-limit"),
        (400, {"code": "InputTextSensitiveContentDetected", "message": "stopped"}, "answered"),
        (400, {"message": "the input text may contain sensitive information"}, "answered"),
        (400, {"message": "content sensitive"}, "answered"),
        (400, {"message": "seed: Input should be greater than 0"}, "unsupported"),
        (400, {"message": "max_tokens: Input should be greater than 0"}, "rejected"),
    ],
)
def test_more_words_for_ends_of_money_filters_and_refused_values(status, error, kind):
    assert judged(status, {"error": error}).kind == kind


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": 2019}, (9, 2010, 0, 2000)),
        ({"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": 19}, (9, 10, 0, 0)),
        ({"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": 12}, (9, 10, 0, 0)),
        ({"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": "many"}, (9, 10, 0, 0)),
        ({"input_tokens": 9, "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 3}}, (9, 5, 0, 3)),
        ({"prompt_tokens": None, "completion_tokens": None, "input_tokens": 9, "output_tokens": 5}, (9, 5, 0, 0)),
        ({"input_tokens": 9, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 4}}, (9, 5, 4, 0)),
    ],
)
def test_tokens_are_counted_under_either_name_and_with_those_of_the_total_alone(usage, tokens):
    found = judge(200, JSON, json.dumps(json.loads(completion(content="B")) | {"usage": usage}).encode()).usage
    assert (found.prompt, found.completion, found.cached, found.reasoning) == tokens


@pytest.mark.parametrize(
    ("kind", "content", "text"),
    [
        (JSON["content-type"], b'{"choices":[{"message":{"content":"one\n\ttwo"}}]}', "one\n\ttwo"),
        ("application/json; charset=iso-8859-1", '{"choices":[{"message":{"content":"né"}}]}'.encode("latin-1"), "né"),
        ('application/json; charset="gb18030"', '{"choices":[{"message":{"content":"是"}}]}'.encode("gb18030"), "是"),
        ("application/json; charset=iso-8859-1", '{"choices":[{"message":{"content":"né"}}]}'.encode(), "né"),
        ("application/json; charset=none", b'{"choices":[{"message":{"content":"n\xe9"}}]}', "n\ufffd"),
        ("application/json", b'{"choices":[{"message":{"content":"n\xe9"}}]}', "n\ufffd"),
        ("application/json", '{"choices":[{"message":{"content":"é"}}]}'.encode("utf-16"), "é"),
        ("application/json", '\ufeff{"choices":[{"message":{"content":"é"}}]}'.encode(), "é"),
    ],
)
def test_an_answer_is_read_with_raw_breaks_and_in_its_charset(kind, content, text):
    assert judge(200, {"content-type": kind}, content).reply.text == text


HTML = {"content-type": "text/html; charset=utf-8"}
PAGES = (
    b"<html>Access to this site has been blocked by your organization's web policy</html>",
    b"<!DOCTYPE html><p>It was blocked due to company policy.",
    b"<html>Sorry, you have been blocked. We protect the safety of the site; content policy.</html>",
    b"<html>Your request violates the site's security policy</html>",
)
RULES = (
    "Organization Policy constraint constraints/gcp.x violated; the request is blocked by policy",
    "Blocked by the company's web policy",
    "Your request was flagged as automated",
    "Content from your region is not served under our content policy",
)


@pytest.mark.parametrize("status", [400, 403, 422, 451])
@pytest.mark.parametrize("headers", [HTML, JSON, {}])
def test_a_page_of_a_proxy_or_firewall_is_no_answer(status, headers):
    for page in PAGES:
        assert judge(status, headers, page).kind in ("refused", "rejected") and not judge(status, headers, page).reply


def test_a_rule_of_a_network_or_a_place_is_no_answer_and_a_verdict_on_the_prompt_is():
    for said in RULES:
        assert judge(403, JSON, body(message=said)).kind == "refused"
    for said in (RULES[0], RULES[1], RULES[3]):
        assert judge(400, JSON, body(message=said)).kind == "rejected"
    assert judge(451, JSON, body(message="your region is not served")).kind == "refused"
    assert judge(451, JSON, body(message="the prompt is not allowed")).kind == "answered"
    for said in ("Your input was flagged", "it did not pass moderation", "the prompt met a content filter", "敏感"):
        assert judge(403, JSON, body(message=said)).kind == "answered"
    for said in (
        "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO",
        "rejected by our safety system",
    ):
        assert judge(403, JSON, body(message=said)).kind == "answered"
    for said in ("inappropriate content. Location: input", "country of residence: input flagged by moderation"):
        assert judge(400, JSON, body(message=said)).kind == "answered"
    blocked = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
    for said in (blocked, "Output blocked by content filtering policy", "violates our usage policies"):
        assert judge(400, JSON, body(message=said)).kind == "answered"
    assert judge(400, JSON, body(message="stopped in your region", code="content_filter")).kind == "answered"


ECHOED = (
    "Invalid value for messages[0].content: 'An old woman with insufficient balance and falls'",
    'Invalid value: "On her account therapy was suspended; it is the patient\'s choice"',
    "Input should be a string [type=string_type, input_value=['He drinks alcohol in moderation.'], input_type=list]",
    "Cannot parse {'role': 'user', 'content': 'Sensitive words of an old man whose account was suspend",
)


@pytest.mark.parametrize("status", [400, 422, 500])
@pytest.mark.parametrize("said", ECHOED)
def test_the_words_of_a_question_that_a_server_quotes_decide_nothing(status, said):
    assert judge(status, JSON, body(message=said)).kind == ("server" if status == 500 else "rejected")
    detail = [{"type": "missing", "loc": ["body", "x"], "msg": "Field required", "input": {"content": said}}]
    found = judge(status, JSON, json.dumps({"detail": detail}).encode())
    assert found.kind == ("server" if status == 500 else "rejected")
    assert found.detail == f"{status}: body.x: Field required"  # which says what is wrong


def test_what_a_gateway_quotes_of_another_servers_error_still_decides():
    inner = "OpenAIException - Error code: {} - {{'error': {{'message': '{}', 'type': 'text', 'code': '{}'}}}}"
    quota = inner.format(429, "You exceeded your plan", "insufficient_quota")
    assert judge(429, JSON, body(message=quota)).kind == "quota"
    assert judge(400, JSON, body(message=inner.format(400, "Insufficient balance", "x"))).kind == "quota"
    assert judge(400, JSON, body(message=inner.format(400, "stopped", "content_filter"))).kind == "answered"
    extra = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 0}]
    assert judge(422, JSON, json.dumps({"detail": extra}).encode()).drop == "seed"


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


@pytest.mark.parametrize(
    "message",
    [
        {"content": "B", "reasoning": "why"},
        {"content": "B", "thinking": "why"},
        {"content": "B", "reasoning_details": [{"type": "reasoning.text", "text": "wh"}, {"summary": "y"}, 3]},
        {"content": [{"type": "thinking", "thinking": "why"}, {"type": "text", "text": "B"}]},
        {"content": [{"type": "reasoning", "text": "why"}, {"type": "output_text", "text": "B"}]},
    ],
)
def test_reasoning_is_kept_wherever_a_server_puts_it(message):
    reply = judge(200, JSON, json.dumps({"choices": [{"message": message}]}).encode()).reply
    assert (reply.text, reply.reasoning) == ("B", "why")


def test_a_refusal_and_parts_of_text_are_answers():
    assert judge(200, JSON, completion(content=None, refusal="no")).reply.finish == "refusal"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert judge(200, JSON, completion(content=parts)).reply.text == "ab"
    held = [{"type": "text", "text": {"value": "B", "annotations": []}}]
    assert judge(200, JSON, completion(content=held)).reply.text == "B"
    found = judge(200, JSON, completion(content=[{"type": "refusal", "refusal": "I can't"}])).reply
    assert (found.text, found.finish) == ("I can't", "refusal")
    found = judge(200, JSON, completion(content=[*parts, {"type": "refusal", "refusal": "but"}])).reply
    assert (found.text, found.finish) == ("ab", "stop")
    nested = [{"type": "thinking", "thinking": [{"type": "text", "text": "wh"}, {"type": "text", "text": "y"}, 3]}]
    found = judge(200, JSON, completion(content=[*nested, {"type": "text", "text": "B"}])).reply
    assert (found.text, found.reasoning) == ("B", "why")


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
    assert judge(200, headers, content).kind == "malformed"


@pytest.mark.parametrize("kind", ["text/plain; charset=utf-8", "application/octet-stream"])
def test_an_answer_is_read_under_the_types_of_gateways_that_know_none(kind):
    assert judge(200, {"content-type": kind}, completion(content="B")).reply.text == "B"
    assert judge(200, {"content-type": kind}, b"B").kind == "malformed"


@pytest.mark.parametrize("place", ["body", "choice"])
def test_an_error_beside_an_answer_without_text_is_no_answer(place):
    body = json.loads(completion(content=""))
    (body if place == "body" else body["choices"][0])["error"] = {"message": "upstream died"}
    outcome = judge(200, JSON, json.dumps(body).encode())
    assert outcome.kind == "server" and "upstream died" in outcome.detail


def test_a_redirect_names_where_it_leads():
    outcome = judge(301, {"location": "https://other.example/v1/chat/completions"}, b"")
    assert outcome.kind == "refused" and "other.example" in outcome.detail


def test_the_servers_wish_for_a_wait():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert 27 < retry_after({"retry-after": later}) <= 30
    assert retry_after({"retry-after": "soon"}) is None
    assert 27 < retry_after({"retry-after": f"{time.time() + 30:.0f}"}) <= 31
    assert retry_after({"retry-after": "1767225600"}) == 0 and retry_after({"retry-after": "86400"}) == 86400
    assert retry_after({"retry-after": "5, 120"}) == 120
    assert retry_after({"retry-after": "1m30s"}) == 90
    for date in (
        later.removesuffix(" GMT"),
        (datetime.now(UTC) + timedelta(seconds=30)).strftime("%Y-%m-%dT%H:%M:%SZ"),
    ):
        assert 27 < retry_after({"retry-after": date}) <= 30
    assert retry_after({"retry-after": "Mon, 30 Nov 2020 13:00:00 GMT"}) == 0
    reset = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2.5s"}
    assert retry_after(reset) == 62.5
    assert retry_after(reset | {"x-ratelimit-remaining-tokens": "10"}) is None
    assert retry_after({}) is None


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(10**40), 10**40) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS | st.text(max_size=5), inner, max_size=6),
    max_leaves=25,
)


@given(st.sampled_from([200, 400, 403, 404, 429, 500, 302]), JSON_VALUES, st.booleans())
@settings(max_examples=400)
def test_no_body_whatever_makes_an_outcome_fail_or_cannot_be_stored(status, value, wrapped):
    content = json.dumps({"choices": [value], "usage": value, "error": value} if wrapped else value).encode()
    found = judge(status, JSON, content, "sk-0123456789")
    reply = found.stored("key", 0.0)
    assert json.loads(json.dumps(reply and asdict(reply), allow_nan=False)) is None or reply.text is not None
    (found.detail + (reply.text + reply.model + reply.finish + reply.reasoning if reply else "")).encode()


@pytest.mark.parametrize("count", ["9", float("nan"), 1e30, -1, True, None, [], {}])
def test_a_count_that_is_none_leaves_the_answer_and_charges_the_most(count):
    content = json.loads(completion(content="B"))
    content["usage"] = {"prompt_tokens": count, "completion_tokens": 5}
    found = judge(200, JSON, json.dumps(content).encode())
    assert found.kind == "answered" and found.reply.text == "B" and found.usage is None and found.billed


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"choices": [{"finish_reason": "error", "message": {"content": ""}}]}, "server"),
        ({"choices": [{"finish_reason": "error", "error": {"message": "upstream"}, "message": {}}]}, "server"),
        ({"choices": [{"finish_reason": "abort", "message": {"content": None}}]}, "server"),
        ({"choices": [{"finish_reason": "insufficient_system_resource", "message": {"content": "half"}}]}, "server"),
        ({"choices": [{"finish_reason": "OTHER", "message": {"content": ""}}]}, "server"),
        ({"choices": [{"finish_reason": "load", "message": {"content": None}}]}, "server"),
        ({"choices": [{"finish_reason": "unknown", "message": {"content": "B"}}]}, "answered"),
        ({"choices": [{"finish_reason": "tool_calls", "message": {"content": None}}]}, "answered"),
        ({"choices": [{"finish_reason": None, "message": {"content": ""}}]}, "answered"),
        ({"choices": [{"finish_reason": ["error"], "message": {"content": "B"}}]}, "answered"),
        ({"error": {"code": 502, "message": "provider"}}, "server"),
        ({"error": {"code": 429, "message": "slow"}, "choices": []}, "rate-limit"),
        ({"error": {"code": 403, "message": "flagged input", "metadata": {"flagged_input": "x"}}}, "answered"),
        ({"choices": [{"message": {"content": None, "refusal": 5}}]}, "answered"),
        ({"choices": [{"message": {"content": 5}}]}, "malformed"),
        ([], "malformed"),
    ],
)
def test_what_comes_with_status_200_is_told_apart(content, kind):
    assert judge(200, JSON, json.dumps(content).encode()).kind == kind


def test_depth_is_no_traceback():
    assert judge(200, JSON, b"[" * 200_000).kind == "malformed"
    assert judge(400, JSON, b'{"error":' * 100_000).kind == "rejected"
