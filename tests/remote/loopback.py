"""A server on this machine that speaks OpenAI's protocol and misbehaves as asked.

For tests and benchmarks, and for trying a pipeline out with no key and no cost. What it answers and where it fails is
a function of the request and of how often it has been asked, so that two runs meet the same server.
"""

import asyncio
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tests.remote.loopback_batches import Batches

FAULTS = (
    *("429", "429-after", "500", "503-after", "stall", "truncated", "html", "no-choices", "drop", "drop-mid-body"),
)
_STALL = 3600.0  # seconds


@dataclass(frozen=True)
class Misbehaviour:
    """What goes wrong.

    Attributes:
        share: of the tries that fail.
        kinds: of failures, drawn evenly; of FAULTS.
        in_a_row: at most so many failures of one request, after which it is answered.
        filtered: share of requests that are refused by a content filter, always.
        rejected: share of requests that get a 400, always.
        quota_after: answers after which every request meets "insufficient_quota"; 0: never.
        retry_after: seconds that "429-after" and "503-after" ask for.
        per_second: answers a second beyond which requests get a 429 with Retry-After; 0: no limit.
        unknown_fields: fields of a body that are refused as unsupported.
    """

    share: float = 0.0
    kinds: tuple[str, ...] = FAULTS
    in_a_row: int = 3
    filtered: float = 0.0
    rejected: float = 0.0
    quota_after: int = 0
    retry_after: float = 0.05
    per_second: float = 0.0
    unknown_fields: tuple[str, ...] = ()


def echo(body: Mapping[str, Any]) -> str:
    """An answer that says what was asked."""
    content = body["messages"][-1]["content"]
    return f"answer to {content if isinstance(content, str) else content[-1]['text']} ({body.get('seed')})"


@dataclass
class Loopback:
    """The server; a context manager that serves from a thread of its own.

    Attributes:
        answer: body of a request -> text of the answer.
        misbehaviour: what goes wrong.
        latency: seconds that an answer takes.
        key: that a request must carry; "" for none.
        raw: body of a request -> (status, headers, content) that is sent as it is, in the place of an answer; None
            answers as usual.
        asked: content of a request (hash of messages, model and seed) -> times it was asked.
        answered: the same -> times it was answered in full.
        failed: of FAULTS, "filtered" or "rejected" -> times it happened.
        most_at_once: requests that were in flight at the same time, at most.
    """

    answer: Callable[[Mapping[str, Any]], str] = echo
    misbehaviour: Misbehaviour = field(default_factory=Misbehaviour)
    latency: float = 0.0
    key: str = ""
    raw: Callable[[Mapping[str, Any]], tuple[int, dict[str, str], bytes] | None] = lambda body: None
    asked: Counter = field(default_factory=Counter)
    answered: Counter = field(default_factory=Counter)
    failed: Counter = field(default_factory=Counter)
    most_at_once: int = 0
    port: int = 0
    embed: Callable[[Mapping[str, Any]], Any] = lambda body: [float(len(body["input"])), 1.0]  # a text's vector

    def __enter__(self) -> "Loopback":
        self._active, self._window = 0, 0.0
        self.batches = Batches(self._completion)
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """Base of the protocol's paths."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        self._connections: set[asyncio.Task] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=2**28, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._done.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connection(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = line.split(" ")
                writer.write(await self._respond(method, path.removeprefix("/v1"), headers, content))
                await writer.drain()
        except _Dropped as dropped:
            writer.write(dropped.part)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _respond(self, method: str, path: str, headers: Mapping[str, str], content: bytes) -> bytes:
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "Incorrect API key provided", "invalid_api_key")
        if path == "/embeddings":
            body = json.loads(content)
            self.asked[body["input"]] += 1
            tokens = len(body["input"].split())
            usage = {"prompt_tokens": tokens, "total_tokens": tokens}
            return _response(200, {"data": [{"embedding": self.embed(body)}], "usage": usage})
        if path != "/chat/completions":
            status, body = self.batches.respond(method, path, headers, content)
            return _response(status, body)
        self._active += 1
        self.most_at_once = max(self.most_at_once, self._active)
        try:
            return await self._chat(json.loads(content))
        finally:
            self._active -= 1

    async def _chat(self, body: dict[str, Any]) -> bytes:
        content, wrong = request_hash(body), self.misbehaviour
        self.asked[content] += 1
        if (raw := self.raw(body)) is not None:
            return _response(raw[0], raw[2], raw[1])
        if unknown := [name for name in wrong.unknown_fields if name in body]:
            return _error(400, f"Unsupported parameter: '{unknown[0]}'", "unsupported_parameter")
        if wrong.quota_after and self.answered.total() >= wrong.quota_after:
            return _error(429, "You exceeded your current quota", "insufficient_quota")
        if wrong.per_second and (late := self._too_fast()):
            return _error(429, "Rate limit reached", "rate_limit_exceeded", {"retry-after": f"{late:.3f}"})
        if _share(content, "filter") < wrong.filtered:
            self.failed["filtered"] += 1
            return _error(400, "flagged by the content filter", "content_filter")
        if _share(content, "reject") < wrong.rejected:
            self.failed["rejected"] += 1
            return _error(400, "the prompt is too long", "context_length_exceeded")
        await asyncio.sleep(self.latency)
        number = self.asked[content]
        if number <= wrong.in_a_row and _share(content, f"fault {number}") < wrong.share:
            kind = wrong.kinds[int(_share(content, f"kind {number}") * len(wrong.kinds))]
            return await self._fault(kind, body)
        self.answered[content] += 1
        return _response(200, self._completion(body))

    def _too_fast(self) -> float:
        """Seconds until the server would answer again; 0.0 where it does now."""
        now = time.monotonic()
        self._window = max(self._window, now - 0.5)
        self._window += 1 / self.misbehaviour.per_second
        if self._window <= now:
            return 0.0
        self._window -= 1 / self.misbehaviour.per_second
        return max(0.001, self._window + 1 / self.misbehaviour.per_second - now)

    async def _fault(self, kind: str, body: dict[str, Any]) -> bytes:
        self.failed[kind] += 1
        after = {"retry-after": str(self.misbehaviour.retry_after)}
        if kind == "stall":
            await asyncio.sleep(_STALL)
        if kind in ("drop", "drop-mid-body"):
            whole = _response(200, self._completion(body))
            raise _Dropped(whole[: len(whole) - 30] if kind == "drop-mid-body" else b"")
        return {
            "429": _error(429, "Rate limit reached", "rate_limit_exceeded"),
            "429-after": _error(429, "Rate limit reached", "rate_limit_exceeded", after),
            "500": _error(500, "The server had an error", "server_error"),
            "503-after": _error(503, "Overloaded", "overloaded", after),
            "truncated": _response(200, json.dumps(self._completion(body))[:-40]),
            "html": _response(200, "<html>gateway</html>", {"content-type": "text/html"}),
            "no-choices": _response(200, {"id": "x", "choices": []}),
        }[kind]

    def _completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        text = self.answer(body)
        prompt = len(json.dumps(body["messages"])) // 4
        content = request_hash(body)
        return {
            "id": f"chatcmpl-{content[:12]}",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": len(text) // 4 + 1},
        }


class _Dropped(Exception):
    """The connection ends after `part` of a response."""

    def __init__(self, part: bytes):
        self.part = part


def request_hash(body: Mapping[str, Any]) -> str:
    """What is asked: hash of model, messages and seed."""
    content = [body.get("model"), body.get("messages"), body.get("seed")]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _share(content: str, what: str) -> float:
    """A number in [0, 1) that is a function of its arguments."""
    return int.from_bytes(hashlib.sha256(f"{what} {content}".encode()).digest()[:8]) / 2**64


def _response(status: int, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
    content = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    fields = {"content-type": "application/json", "content-length": str(len(content))} | dict(headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} -\r\n{head}\r\n".encode() + content


def _error(status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> bytes:
    return _response(status, {"error": {"message": message, "type": code, "code": code}}, headers)
