"""What a response means: an answer, a reason to try again, a reason to give the request up, or to stop the run."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmedexpert_jax.remote.protocol import Reply, Usage

RETRIED = frozenset({"rate-limit", "server", "timeout", "connection", "malformed", "unsupported"})
FATAL = frozenset({"quota", "refused"})  # no further request of the run would fare better
OPTIONAL = ("max_completion_tokens", "temperature", "seed", "reasoning_effort")  # fields that a server may not know
_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated")
_FILTERED = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Verdict:
    """What became of an attempt.

    Attributes:
        outcome: as in `protocol.Attempt`; "answered" comes with a `reply`.
        detail: what the server said.
        wait: seconds that the server asks us to wait; None where it says nothing.
        drop: field of the body that the server does not know; "" for none.
        reply: the answer, without key and cost.
        billed: the server may have billed the attempt.
        usage: tokens, where the server counts them.
        response_id: the server's id.
    """

    outcome: str
    detail: str = ""
    wait: float | None = None
    drop: str = ""
    reply: Reply | None = None
    billed: bool = False
    usage: Usage | None = None
    response_id: str = ""

    def stored(self, key: str, cost: float) -> Reply | None:
        """The reply as the store keeps it; None where there is none."""
        return self.reply and replace(self.reply, key=key, usage=self.usage or Usage(), cost=cost)


def judge(status: int, headers: Mapping[str, str], content: bytes) -> Verdict:
    """Classifies a response by status, headers (lower case) and body."""
    body = _object(content)
    if status == 200:
        return _answer(headers, body)
    error = _error(body)
    code, detail = f"{error.get('code')} {error.get('type')}", _detail(status, error, content)
    if any(word in code for word in _QUOTA) or status == 402:
        return Verdict("quota", detail)
    if any(word in code for word in _FILTERED):
        return Verdict("answered", detail, reply=Reply("", finish="content_filter"), usage=Usage())
    if status == 429:
        return Verdict("rate-limit", detail, retry_after(headers))
    if status in (408, 409, 425) or status >= 500:
        return Verdict("server", detail, retry_after(headers))
    if status in (401, 403, 404, 405) or 300 <= status < 400:
        return Verdict("refused", detail)
    if status in (400, 422) and (drop := _unknown_field(error)):
        return Verdict("unsupported", detail, drop=drop)
    return Verdict("rejected", detail)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks for: Retry-After (seconds, milliseconds or a date), else OpenAI's reset headers."""
    if (text := headers.get("retry-after-ms", "")) and text.isdigit():
        return int(text) / 1000
    if text := headers.get("retry-after", "").strip():
        return _seconds(text)
    resets = [
        _span(headers.get(f"x-ratelimit-reset-{kind}", ""))
        for kind in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{kind}") == "0"
    ]
    return max((reset for reset in resets if reset is not None), default=None)


def _seconds(text: str) -> float | None:
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _span(text: str) -> float | None:
    """Seconds of a duration such as "6m0s" or "120ms"."""
    parts = _DURATION.findall(text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts) if parts else None


def _answer(headers: Mapping[str, str], body: Mapping[str, Any]) -> Verdict:
    """The answer in a body of status 200; what is not JSON of the protocol's form is malformed."""
    kind = headers.get("content-type", "")
    if "json" not in kind:
        return Verdict("malformed", f"content type {kind!r}, not JSON", billed=True)
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content") or "", message.get("refusal") or ""
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        reply = Reply(
            "",
            text or refusal,
            "refusal" if refusal and not text else choice.get("finish_reason") or "stop",
            message.get("reasoning_content") or message.get("reasoning") or "",
            body.get("model") or "",
        )
    except (KeyError, IndexError, TypeError, AttributeError):
        return Verdict("malformed", "a body without choices[0].message, or cut short", billed=True)
    usage = _usage(body.get("usage"))
    return Verdict("answered", reply=reply, billed=True, usage=usage, response_id=str(body.get("id") or ""))


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return Usage(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0), cached, reasoning)


def _object(content: bytes) -> Mapping[str, Any]:
    """The object in a body, {} for anything else; half a surrogate pair, of an emoji cut in two, becomes U+FFFD."""
    try:
        text = json.dumps(json.loads(content), ensure_ascii=False)
        body = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _error(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The error object; some servers put its fields, or a bare text, in its place."""
    error = body.get("error", body)
    return error if isinstance(error, dict) else {"message": str(error)}


def _detail(status: int, error: Mapping[str, Any], content: bytes) -> str:
    text = error.get("message") or error.get("detail") or content[:200].decode("utf-8", "replace")
    return f"{status}: {' '.join(str(text).split())}"[:300]


def _unknown_field(error: Mapping[str, Any]) -> str:
    """The optional field of a body that a 400 complains about; "" for none."""
    text = f"{error.get('param')} {error.get('message')} {error.get('detail')}"
    if not re.search(r"unsupported|unrecognized|unknown|not support|extra|not permitted|invalid param", text, re.I):
        return ""
    return next((name for name in OPTIONAL if re.search(rf"\b{name}\b", text)), "")
