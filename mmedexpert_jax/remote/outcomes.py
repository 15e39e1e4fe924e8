"""The meaning of a response: an answer, a reason to try again, to give the request up, or to stop the run.

Nothing here raises, whatever a server sends: what was paid for must reach the store first.
"""

import contextlib
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmedexpert_jax.remote.protocol import Attempt, Endpoint, EndpointReply, Usage

RETRIED = frozenset({"rate-limit", "server", "timeout", "connection", "malformed", "unsupported"})
FATAL = frozenset({"quota", "refused"})  # no further request of the run would fare better
OPTIONAL = ("max_completion_tokens", "temperature", "top_p", "seed", "reasoning_effort")  # a server may not know them
_REASONING = ("reasoning_content", "reasoning", "thinking")  # fields of a message that servers keep it in
MASK = "***"
SECRET_LENGTH = 8  # shorter "keys" are placeholders ("EMPTY", "none"), which may well stand in an answer's text
MOST_TOKENS = 10**9  # of one attempt; a count above it is no count
EPOCH = 10**9  # seconds from which on a Retry-After counts from 1970
DETAIL = 300  # characters kept of what a server says
_QUOTA = re.compile(
    r"insufficient[_ ](?:quota|balance|funds|credits?)|billing_(?:hard_limit_reached|not_active)|access_terminated|"
    r"credit balance is too low|exceeded_current_quota|arrearage|account .{0,40}\b(?:suspended|overdue|in arrears)|"
    r"used all (?:available )?credits|reached (?:its|your|the) (?:monthly )?spending limit|SetLimitExceeded|"
    r"free-models-per-day|monthly included credits|余额不足|欠费",
    re.I,
)
_WRONG_KEY = re.compile(r"(?:invalid|incorrect|wrong) api[ _-]?key|api[ _-]?key (?:is )?(?:not valid|invalid)", re.I)
_TOO_LARGE = re.compile(r"request too large|must be reduced", re.I)  # which no wait makes smaller
_FILTERED = re.compile(
    r"content[ _-]?(?:filter|policy|management)|ResponsibleAIPolicyViolation|moderation|data_inspection_failed|"
    r"(?:inappropriate|sensitive)[ _]?(?:content|words?)|contains? sensitive information|content sensitive|"
    r"(?:in|out)put (?:new_)?sensitive|content exists risk|敏感|guardrail|"
    r"blocked\b.{0,60}\b(?:safety|polic)|safety\s+(?:system|filter|setting)|"
    r"(?:input|prompt|content|request|message)\b.{0,60}\bflagged|"
    r"flagged.{0,60}\b(?:input|prompt|content|safety)|violat\w+.{0,60}\b(?:usage|safety|content|polic)",
    re.I | re.S,
)
_DOWN = re.compile(r"service|server|backend|unavailable|timed?[ -]?out|overloaded|try again", re.I)
# In a 403 the words of a network's own rules are as likely; a verdict on the prompt names the prompt, or moderation.
_ON_THE_PROMPT = re.compile(
    r"content[ _-]?filter|ResponsibleAIPolicyViolation|moderation|data_inspection_failed|guardrail|敏感|"
    r"(?:inappropriate|sensitive) (?:content|words?)|(?:input|prompt|content|message)\b.{0,60}\bflagged|"
    r"flagged.{0,60}\b(?:input|prompt|content)|violat\w+.{0,60}\b(?:usage|content)\b|safety[ _](?:check|system|filter)",
    re.I | re.S,
)
# Rules of a network or of a place, which hold for every question alike.
_PLACE = r"(?:region|countr(?:y|ies)|territor(?:y|ies)|location|jurisdiction)"
_REFUSED_PLACE = r"(?:not|un)[ -]?(?:available|supported|served|allowed)\b"
_NETWORK = re.compile(
    r"(?:organi[sz]ation(?:al|'s)?|company|web|network|site|security|firewall|access)\b.{0,20}\bpolic|"
    rf"{_REFUSED_PLACE}.{{0,60}}\b{_PLACE}\b|\b{_PLACE}\b.{{0,40}}\b{_REFUSED_PLACE}|sanctions?\b",
    re.I,
)
# What a server quotes of the question: its words say nothing about the request.
_ECHO = re.compile(
    r"\b(?:content|input(?:_value)?|text|value|prompt|got|received)\b[\]'\"\s:=\[({]{0,8}?(?<!\w)"
    r"(?:'.*?(?:'(?!\w)|$)|\".*?(?:\"(?!\w)|$))",
    re.I | re.S,
)
_UNKNOWN_FIELD = re.compile(
    r"unsupported|unrecognized|unknown|not support|extra|not permitted|invalid param|cannot find field|"
    r"additional propert|unexpected (?:field|keyword|argument|propert)",
    re.I,
)
# A server that takes no greedy answers, or no seed, is asked without; any other wrong value is the user's to know.
_REFUSED_VALUE = re.compile(
    r"(?:must|should) be (?:null|none|unset|positive|strictly positive|> ?0|greater than 0)|deprecated|is not allowed|"
    r"cannot both be|\bonly\b.{0,40}\b(?:allowed|supported)",
    re.I,
)
# What servers call an answer that they broke off (OpenRouter; vLLM; Zhipu; DeepSeek): asked again, never stored.
_BROKEN_OFF = frozenset(
    {"error", "abort", "network_error", "insufficient_system_resource", "cancelled", "malformed_function_call"}
)
# Ends of answers that may well hold no text; an empty one that ends in any other way is no answer.
_ENDS = frozenset({"stop", "length", "content_filter", "refusal", "tool_calls", "function_call"})
_STOPPED = ("safety", "prohibited_content", "blocklist", "spii", "recitation", "sensitive", "guardrail")  # by a filter
_FINISH = dict.fromkeys(("max_tokens", "max_output_tokens", "model_length", "max_length", "limit"), "length")
_FINISH |= dict.fromkeys(("end_turn", "eos", "eos_token", "eos_token_id", "stop_sequence", "stop_str"), "stop")
_FINISH |= dict.fromkeys(("complete", "completed", "done", "normal"), "stop")
_NO_ERROR = ("0", "200", "none", "null", "", "ok", "success")  # codes of answers that are none
_UNTYPED = ("text/plain", "application/octet-stream")  # as gateways send what they do not know
_HIDDEN = re.compile("reasoning|thinking|redacted")  # types of parts that are no answer
_DURATION = re.compile(r"(?<![\d.])(\d{1,9}(?:\.\d{1,18})?) ?(ms|s|m|h)(?:(?:ec(?:ond)?|in(?:ute)?|our)?s?)(?![a-z])")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_ASKED_WAIT = re.compile(r"\b(?:try again|retry)(?: \w+)? (?:in|after) ((?:\d[\d.]* ?[a-z]+ ?)+)", re.I)


@dataclass(frozen=True)
class Outcome:
    """One attempt's outcome."""

    kind: str  # as `outcome` of `protocol.Attempt`; "answered" comes with a `reply`
    detail: str = ""  # the server's words, cut short and without the key
    wait: float | None = None  # seconds that the server asks us to wait; None where it says nothing
    drop: str = ""  # field of the body that the server does not know; "" for none
    reply: EndpointReply | None = None  # the answer, without key and cost
    billed: bool = False  # the server may have billed the attempt
    usage: Usage | None = None  # tokens, where the server counts them
    response_id: str = ""  # the server's id
    status: int = 0  # of HTTP; 0 where no response came

    def cost(self, endpoint: Endpoint, worst: float, factor: float = 1.0) -> float:
        """Dollars of the attempt, with the Batch API's discount as `factor`; `worst`, the most that it can be, where
        the server may have billed without a count."""
        if self.usage is not None:
            return endpoint.cost(self.usage, factor)
        return worst if self.billed else 0.0

    def attempt(self, key: str, started: float, seconds: float, cost: float, host: str) -> Attempt:
        """The attempt as history keeps it."""
        return Attempt(
            key,
            started,
            seconds,
            self.status,
            self.kind,
            self.detail,
            self.usage or Usage(),
            cost,
            self.response_id,
            host,
        )

    def stored(self, key: str, cost: float, left_out: tuple[str, ...] = ()) -> EndpointReply | None:
        """The reply as the store keeps it; None where there is none."""
        if self.reply is None:
            return None
        return replace(self.reply, key=key, usage=self.usage or Usage(), cost=cost, left_out=left_out)


def classify(status: int, headers: Mapping[str, str], content: bytes, secret: str = "") -> Outcome:
    """The outcome that a response stands for.

    Args:
        headers: in lower case.
        content: the body.
        secret: the key; masked in every text that is returned, before any text is cut.
    """
    charset = re.search(r"charset=[\"']?([\w-]+)", headers.get("content-type", ""), re.I)
    body = json_object(content, secret, charset[1] if charset else "")
    if 200 <= status < 300:
        return _answer(headers, body, content, secret)
    return _failure(status, headers, body, content, secret)


def masked(text: str, secret: str) -> str:
    """The text without the key."""
    return text.replace(secret, MASK) if secret else text


def shown(text: object, secret: str) -> str:
    """One line of a server's or library's words, masked and then cut."""
    return " ".join(masked(str(text), secret).split())[:DETAIL]


def json_object(content: bytes, secret: str = "", charset: str = "") -> Mapping[str, Any]:
    """The object in a body, the first one of a list, {} for anything else.

    The key is masked in the re-written text, where no escape hides it; half a surrogate pair, of an emoji cut in two,
    and bytes that are neither UTF nor of `charset` become U+FFFD. Line breaks in a text may stand as they are.
    """
    try:
        text = json.dumps(json.loads(_decoded(content, charset), strict=False), ensure_ascii=False)
        if len(secret) >= SECRET_LENGTH:
            text = text.replace(json.dumps(secret, ensure_ascii=False)[1:-1], MASK)
        body = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        return {}
    if isinstance(body, list) and body:  # Gemini's endpoint wraps its errors so
        body = body[0]
    return body if isinstance(body, dict) else {}


def _decoded(content: bytes, charset: str) -> str:
    for name in (json.detect_encoding(content), charset or "utf-8"):
        with contextlib.suppress(LookupError, UnicodeDecodeError):
            return content.decode(name)
    return content.decode("utf-8", "replace")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks for: Retry-After (seconds, milliseconds or a date), else OpenAI's reset headers."""
    milliseconds = _finite(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    if text := headers.get("retry-after", "").strip():
        return _seconds(text)
    resets = [
        _span(headers.get(f"x-ratelimit-reset-{kind}", ""))
        for kind in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{kind}") == "0"
    ]
    return max((reset for reset in resets if reset is not None), default=None)


def _wait(headers: Mapping[str, str], error: Mapping[str, Any], said: str) -> float | None:
    """Seconds that a server asks for in its headers, else in the details of its error (Google's), else in words."""
    wait = retry_after(headers)
    if wait is not None:
        return wait
    details = [one for one in _listed(error.get("details")) if isinstance(one, dict)]
    named = next(filter(None, (_text(one.get("retryDelay")) for one in details)), "")
    words = _ASKED_WAIT.search(said)
    return _span(named or (words[1] if words else ""))


def _failure(status: int, headers: Mapping[str, str], body: Mapping[str, Any], content: bytes, secret: str) -> Outcome:
    """The outcome of a status that is no success."""
    error = _error(body)
    code, said = f"{error.get('code')} {error.get('type')}", _said(error, content)
    own = _ECHO.sub(" ", said[:2000])
    if _QUOTA.search(f"{code} {own}") or status == 402:
        return Outcome("quota", shown(f"{status}: {said}", secret))
    wrong_key, wait = _WRONG_KEY.search(own), _wait(headers, error, own)
    if quoted := _quoted(error):  # whose quota, key and rate are not ours
        code = f"{code} {quoted.get('code')} {quoted.get('type')}"
        said = f"{said}: {_said(quoted, str(quoted).encode())}"
        own = _ECHO.sub(" ", said[:2000])
    detail = shown(f"{status}: {said}", secret)
    if _is_filtered(status, headers, code, own, error, content):
        return Outcome("answered", detail, reply=EndpointReply("", finish="content_filter"), usage=Usage())
    if status == 429 and _TOO_LARGE.search(own):
        return Outcome("rejected", detail)
    if status == 429:
        return Outcome("rate-limit", detail, wait)
    if status in (408, 409, 425, 499) or status >= 500:
        return Outcome("server", detail, wait)
    if 300 <= status < 400 and headers.get("location"):
        return Outcome("refused", shown(f"{status}: it sends on to {headers['location']}", secret))
    if status in (401, 403, 404, 405, 451) or 300 <= status < 400 or wrong_key:
        return Outcome("refused", detail)
    if status in (400, 422) and (drop := _unknown_field(error) or _unknown_field(quoted)):
        return Outcome("unsupported", detail, drop=drop)
    return Outcome("rejected", detail)


def _answer(headers: Mapping[str, str], body: Mapping[str, Any], content: bytes, secret: str) -> Outcome:
    """The outcome of a success; a body that is not JSON of the protocol's form is malformed."""
    kind = headers.get("content-type", "")
    if "json" not in kind and not (body and kind.startswith(_UNTYPED)):
        return Outcome("malformed", shown(f"content type {kind!r}, not JSON", secret), billed=True)
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    finish = _finish(choice) if isinstance(choice, dict) else ""
    if isinstance(choice, dict) and finish == "content_filter":
        choice = {"message": {}} | choice
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        return _without_choice(body, headers, content, secret)
    usage = _usage(body.get("usage"))
    if finish in _BROKEN_OFF:
        said = _said(_error(choice if "error" in choice else {}), b"no reason given")
        return Outcome("server", shown(f'finish_reason "{finish}": {said}', secret), billed=True, usage=usage)
    reply = _reply(choice, body)
    if reply is None:
        return Outcome("malformed", "a message whose content is no text", billed=True, usage=usage)
    broken = choice.get("error") or body.get("error")
    if not reply.text and not reply.reasoning and not broken and _own_error(body):
        return _without_choice(body, headers, content, secret)
    if not reply.text and not reply.reasoning and (broken or reply.finish not in _ENDS):
        said = f'no text, finish_reason "{finish}"'  # a fault that the server calls by a name of its own
        said += f": {_said(_error({'error': broken}), b'')}" if broken else ""
        return Outcome("server", shown(said, secret), billed=True, usage=usage)
    return Outcome("answered", reply=reply, billed=True, usage=usage, response_id=_text(body.get("id")))


def _without_choice(body: Mapping[str, Any], headers: Mapping[str, str], content: bytes, secret: str) -> Outcome:
    """A body without an answer: gateways send errors with status 200 too, the true status in `error.code`, FastChat
    and FastAPI without an object of that name, others under names of their own, which they do not bill."""
    own = _own_error(body)
    if not (own or body.get("error") or body.get("object") == "error" or body.get("detail")):
        found = json.dumps(body, ensure_ascii=False) if body else content.decode("utf-8", "replace")
        said = f"a body without choices[0].message, or cut short: {shown(found, secret)[:200]}"
        return Outcome("malformed", said, billed=True)
    code = str(_error(body).get("code"))
    status = int(code) if re.fullmatch("[45][0-9]{2}", code) else 500
    if "rate_limit" in code:
        status = 429
    outcome = _failure(status, headers, body, b"", secret)
    # a verdict on the text under no status, not a filter that is down itself
    if status == 500 and not code.startswith("5") and not _DOWN.search(json.dumps(body)):
        filtered = _failure(400, headers, body, b"", secret)
        outcome = filtered if filtered.reply else outcome
    usage, begun = _usage(body.get("usage")), bool(body.get("choices"))
    billed = begun or usage is not None or not own or bool(body.get("error"))
    return replace(outcome, billed=billed, usage=usage if begun else usage or outcome.usage)


def _reply(choice: Mapping[str, Any], body: Mapping[str, Any]) -> EndpointReply | None:
    """The answer in a choice; None where its content is neither text nor parts of text. One with text under a reason
    that nobody knows has ended as answers do."""
    message = choice["message"]
    content, refusal = message.get("content") or "", message.get("refusal") or ""
    reasoning = next(filter(None, (_text(message.get(key)) for key in _REASONING)), "")
    if isinstance(content, list):
        hidden = [part for part in content if isinstance(part, dict) and _HIDDEN.match(_text(part.get("type")))]
        reasoning = reasoning or _joined(hidden, "thinking", "reasoning", "text")
        refusal = refusal or _joined([part for part in content if isinstance(part, dict)], "refusal")
        content = _joined([part for part in content if part not in hidden], "text")
    if not isinstance(content, str):
        return None
    refusal = refusal if isinstance(refusal, str) else str(refusal)
    reasoning = reasoning or _joined(message.get("reasoning_details"), "text", "summary")
    refused = bool(refusal) and not content
    finish = "refusal" if refused else _finish(choice)
    finish = "stop" if finish not in _ENDS and content else finish
    return EndpointReply("", content or refusal, finish, reasoning, _text(body.get("model"))[:200])


def _finish(choice: Mapping[str, Any]) -> str:
    return ending(_text(choice.get("finish_reason")))


def ending(said: str) -> str:
    """The reason why an answer ends, in the protocol's words where servers have their own: Gemini's and Anthropic's are
    other words, some in capitals."""
    said = said.lower().removeprefix("finishreason.").replace("-", "_") or "stop"
    if said.startswith(("content_filter", *_STOPPED)):
        return "content_filter"
    if said not in _FINISH and re.search("length|max_|limit|incomplete|time_?out|truncat", said):
        return "length"
    return _FINISH.get(said, said[:40])


def _joined(parts: Any, *keys: str) -> str:
    """The texts under the first of `keys` that each part of a list has; a text may be an object with its value, or a
    list of parts of its own."""
    parts = parts if isinstance(parts, list) else []
    parts = [{"text": part} if isinstance(part, str) else part for part in parts if isinstance(part, str | dict)]
    return "".join(next(filter(None, (_held(part.get(key)) for key in keys)), "") for part in parts)


def _held(value: Any) -> str:
    """A text, that of an object under "value", or those of a list of parts."""
    if isinstance(value, dict):
        return _text(value.get("value"))
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in value if isinstance(part, dict))
    return _text(value)


def _usage(usage: Any) -> Usage | None:
    """Tokens of an attempt; None where the counts are missing or no counts, so that the most it can be is charged."""
    if not isinstance(usage, dict):
        return None
    own = usage.get("prompt_tokens") is not None
    sent, made = ("prompt", "completion") if own else ("input", "output")  # as OpenAI's Responses API has them
    prompt, completion = _count(usage.get(f"{sent}_tokens")), _count(usage.get(f"{made}_tokens"))
    if prompt is None or completion is None:
        return None
    cached = detail_count(usage, f"{sent}_tokens_details", "cached_tokens") or 0
    cached = cached or _count(usage.get("cache_read_input_tokens")) or 0
    total = _count(usage.get("total_tokens")) or 0
    if total == prompt + completion + cached:  # which some leave out of the prompt
        prompt += cached
    reasoning = detail_count(usage, f"{made}_tokens_details", "reasoning_tokens") or 0
    hidden = max(0, total - prompt - completion)  # where reasoning is in it alone
    completion, reasoning = completion + hidden, max(reasoning, hidden)
    return Usage(prompt, completion, min(cached, prompt), min(reasoning, completion))


def detail_count(body: Mapping[str, Any], group: str, name: str) -> int | None:
    """A number of tokens in a group of a body; None where there is none."""
    details = body.get(group)
    return _count(details.get(name)) if isinstance(details, dict) else None


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none (text, NaN, 1e30, a negative number, true)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if number and 0 <= value <= MOST_TOKENS else None


def _error(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The error object; some servers put its fields, a bare text or a list in its place, or have other names for it."""
    error = body.get("error") or _own_error(body) or body.get("error", body)
    if isinstance(error, list) and error:
        error = error[0]
    return error if isinstance(error, dict) else {"message": str(error)}


def _own_error(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The error of a body that has it under names of its server's: of MiniMax, Qianfan, Hunyuan, or code and message;
    {} for none."""
    base, response = body.get("base_resp"), body.get("Response")
    inner = response.get("Error") if isinstance(response, dict) else None
    forms = [(base, "status_code", "status_msg"), (body, "error_code", "error_msg"), (inner, "Code", "Message")]
    forms += [] if body.get("choices") else [(body, "code", "msg"), (body, "code", "message")]
    for part, code, words in forms:
        if isinstance(part, dict) and part.get(words) and str(part.get(code, 0)).lower() not in _NO_ERROR:
            return {**part, "code": part[code], "message": part[words]}
    return {}


def _quoted(error: Mapping[str, Any]) -> Mapping[str, Any]:
    """The error of the provider behind a router, as it quotes it (OpenRouter's metadata.raw); {} for none."""
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    if not isinstance(raw, str | dict) or not raw:
        return {}
    body = raw if isinstance(raw, dict) else json_object(raw.encode())
    return _error(body) if body else {"message": raw}


def _said(error: Mapping[str, Any], content: bytes) -> str:
    """The words of an error."""
    said = error.get("message") or _details(error.get("detail"))
    return str(said) if said else content.decode("utf-8", "replace")


def _details(detail: Any) -> Any:
    """The detail of an error; of a list of FastAPI's the place and the message of each, without the input that they
    quote."""
    if not isinstance(detail, list) or not all(isinstance(one, dict) and "msg" in one for one in detail):
        return detail
    return "; ".join(f"{'.'.join(map(str, _listed(one.get('loc'))))}: {one['msg']}" for one in detail)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_filtered(
    status: int, headers: Mapping[str, str], code: str, said: str, error: Mapping[str, Any], content: bytes
) -> bool:
    """True for a prompt that a moderation or content filter stopped: a verdict that is kept as the answer. A page of a
    proxy or firewall, and a rule of a network or a place, is none: it meets every question alike, until it is gone."""
    page = "html" in headers.get("content-type", "") or content.lstrip()[:1] == b"<"
    if page or status not in (400, 403, 422, 451):
        return False
    metadata = error.get("metadata")
    if (isinstance(metadata, dict) and "flagged_input" in metadata) or _FILTERED.search(code):
        return True
    if _NETWORK.search(said):
        return False
    words = _ON_THE_PROMPT if status == 403 else _FILTERED
    return status == 451 or (bool(error) and bool(words.search(said)))


def _unknown_field(error: Mapping[str, Any]) -> str:
    """The optional field of a body that a 400 does not know or takes in no form of ours; "" for none. A limit of tokens
    is never left out for its value."""
    text = f"{error.get('param')} {error.get('message')} {_details(error.get('detail'))}"
    known = OPTIONAL if _UNKNOWN_FIELD.search(text) else OPTIONAL[1:]
    if known is not OPTIONAL and not _REFUSED_VALUE.search(text):
        return ""
    return next((name for name in known if re.search(rf"\b{name}\b", text)), "")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _finite(text: str) -> float | None:
    """A number of seconds or milliseconds from 0; None for any other text, "nan" and "inf" among them."""
    try:
        value = float(text)
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None


def _seconds(text: str) -> float | None:
    """Seconds of a Retry-After: a number, of several that proxies joined the longest, a duration ("30s"), or a date of
    HTTP or ISO 8601, in UTC where it names no zone."""
    numbers = [_finite(part) for part in text.split(",")]
    if all(number is not None for number in numbers):
        longest = max(number for number in numbers if number is not None)
        return longest if longest < EPOCH else max(0.0, longest - time.time())
    if _DURATION.sub("", text).strip() == "":
        return _span(text)
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            date = parse(text)
            date = date if date.tzinfo else date.replace(tzinfo=UTC)
            return max(0.0, (date - datetime.now(UTC)).total_seconds())
    return None


def _span(text: str) -> float | None:
    """Seconds of a duration such as "6m0s" or "120ms"."""
    parts = _DURATION.findall(text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts) if parts else None
