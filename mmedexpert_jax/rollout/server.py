"""OpenAI's chat completions over HTTP: what a desk answers, for any client of that protocol."""

import asyncio
import base64
import hashlib
import hmac
import json
import random
import re
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mmedexpert_jax.border import parse_json
from mmedexpert_jax.errors import DataError, ResourceError
from mmedexpert_jax.processing.images import open_image
from mmedexpert_jax.processing.processor import Conversation
from mmedexpert_jax.rollout.chat import Vote, Votes, pages
from mmedexpert_jax.rollout.decode import Completions
from mmedexpert_jax.rollout.desk import Busy, Choice, Desk

BODY = 64 * 2**20  # bytes of a request, images included
PATIENCE = 30.0  # seconds in which a request must have come in whole
CHOICES = 64  # of a request
IMAGES = 32  # of a request
_DATA = re.compile(r"data:image/[\w.+-]+;base64,")

Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Heat = Annotated[float, msgspec.Meta(ge=0, le=2)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class ChatRequest(msgspec.Struct):
    """The fields that are read of a request; other fields of the protocol are left alone."""

    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=1024)]
    model: str = ""
    n: Annotated[int, msgspec.Meta(ge=1, le=CHOICES)] | None = 1
    temperature: Heat | None = 1.0
    top_p: Share | None = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] | None = 0
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=16)] | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer and are not part of it."""
        return [text for text in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if text]


class Refusal(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def application(desk: Desk, key: str = "", votes: Path | None = None) -> Starlette:
    """The application over a desk, with a page to chat with it; with a `key`, requests must carry it.

    `votes` is a file for what people say of two models' answers; None: they are kept until the end.
    """
    server = _Server(desk, key, Votes(votes))
    return Starlette(
        routes=[
            *pages(list(desk.loras), bool(key)),
            Route("/health", server.health),
            Route("/v1/models", server.models),
            Route("/v1/chat/completions", server.complete, methods=["POST"]),
            Route("/compare", server.compare, methods=["POST"]),
            Route("/votes", server.votes, methods=["GET", "POST"]),
        ],
        exception_handlers={
            Refusal: _refused,
            ResourceError: lambda _, error: _error(503, str(error)),
            404: lambda request, _: _error(404, f"there is no {request.url.path[:80]}"),
            405: lambda request, _: _error(405, f"{request.url.path} does not take {request.method[:16]}"),
            500: lambda *_: _error(500, "the server failed; its log says more"),
        },
    )


class _Server:
    def __init__(self, desk: Desk, key: str, votes: Votes):
        self.desk, self.key, self.began, self._votes = desk, key, int(time.time()), votes

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        self._let_in(request)
        names = [{"id": n, "object": "model", "created": self.began, "owned_by": "local"} for n in self.desk.loras]
        return JSONResponse({"object": "list", "data": names})

    async def complete(self, request: Request) -> Response:
        self._let_in(request)
        question, encoded = await asyncio.to_thread(self._read, await _body(request))
        answer = self._submit(question, encoded)
        if question.stream:
            return StreamingResponse(answer.events(), media_type="text/event-stream")
        return await self._answered(request, answer.whole())

    async def compare(self, request: Request) -> Response:
        """The answers of two models that are served, drawn by lot and not named until `votes` has the vote."""
        self._let_in(request)
        if len(self.desk.loras) < 2:
            raise Refusal(400, "one model is served; name others under config.adapters to compare them")
        body = await _body(request)
        names = random.SystemRandom().sample(list(self.desk.loras), 2)
        question, encoded = await asyncio.to_thread(self._read, body)
        pair = [self._submit(msgspec.structs.replace(question, model=name, n=1), encoded) for name in names]

        async def both() -> dict[str, Any]:
            said = await asyncio.gather(*(answer.whole() for answer in pair))
            texts = [one["choices"][0]["message"]["content"] for one in said]
            return {"id": self._votes.open(*names), "answers": texts}

        return await self._answered(request, both())

    async def votes(self, request: Request) -> Response:
        """Takes a vote, by the comparison's id, and names its models; the counts so far."""
        self._let_in(request)
        named: dict[str, Any] = {}
        if request.method == "POST":
            try:
                vote = parse_json(await _body(request), "vote", Vote)
            except DataError as error:
                raise Refusal(400, str(error)) from None
            found = await asyncio.to_thread(self._votes.close, vote)
            if found is None:
                raise Refusal(404, "no comparison has this id, or it has its vote")
            named = {"models": found}
        return JSONResponse(named | {"table": self._votes.table()})

    def _submit(self, question: ChatRequest, encoded: Any) -> "_Answer":
        answer = _Answer(self.desk, question, encoded)
        try:
            self.desk.submit(answer.choices)
        except Busy:
            raise Refusal(429, "as many requests wait as the server takes; try again later") from None
        return answer

    async def _answered(self, request: Request, answer: Coroutine[Any, Any, dict[str, Any]]) -> Response:
        """The response to a request, whose choices are given up if the client leaves before."""
        whole = asyncio.create_task(answer)
        gone = asyncio.create_task(_gone(request))
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if whole.done():
            return JSONResponse(whole.result())
        whole.cancel()
        return Response(status_code=499)

    def _let_in(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self.key and not hmac.compare_digest(given, self.key.encode()):
            raise Refusal(401, "the server wants its key as Authorization: Bearer <key>")

    def _read(self, body: bytes) -> tuple[ChatRequest, Any]:
        """The question of a body, and its prompt encoded."""
        try:
            question = parse_json(body, "request", ChatRequest)
            question.model = question.model or next(iter(self.desk.loras))
            if question.model not in self.desk.loras:
                raise Refusal(404, f"model {question.model[:80]!r} is not served; /v1/models lists those that are")
            if question.top_logprobs:
                raise Refusal(400, "top_logprobs is not supported; logprobs gives the sampled tokens' own")
            asked = question.max_tokens or question.max_completion_tokens or self.desk.max_new_tokens
            if asked > self.desk.max_new_tokens:
                raise Refusal(400, f"max_tokens {asked} is over the server's {self.desk.max_new_tokens}")
            conversation = _conversation(question.messages)
            encoded = self.desk.processor.encode(conversation, max_length=self.desk.max_prompt_length)
        except DataError as error:
            raise Refusal(400, str(error)) from None
        return question, encoded


class _Answer:
    """The choices of one request as they come."""

    def __init__(self, desk: Desk, question: ChatRequest, encoded: Any):
        self.desk, self.question = desk, question
        self.prompt_tokens, self.id = len(encoded.tokens), f"chatcmpl-{secrets.token_hex(12)}"
        self.created, self.count = int(time.time()), 0
        loop, self.news = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Completions | None, bool]]()

        def teller(index: int) -> Any:
            return lambda done, over: loop.call_soon_threadsafe(self.news.put_nowait, (index, done, over))

        temperature = 1.0 if question.temperature is None else question.temperature
        self.choices = [
            Choice(
                question.model,
                encoded,
                secrets.randbits(32) if question.seed is None else _row(question.seed, index),
                temperature,
                question.top_p or 1.0,
                max(0, question.top_k or 0),
                question.max_tokens or question.max_completion_tokens or desk.max_new_tokens,
                teller(index),
                watched=bool(question.stream or question.stops),
            )
            for index in range(question.n or 1)
        ]

    async def parts(self) -> AsyncIterator[tuple[int, str, str | None, Completions]]:
        """(choice, its whole text so far, the reason why it has ended or None, its tokens), each ending once."""
        left = set(range(len(self.choices)))
        try:
            while left:
                index, done, over = await self.news.get()
                if done is None:
                    raise Refusal(500, "the server failed; its log says more")
                if index not in left:
                    continue
                length = int(done.lengths[0])
                text = self.desk.processor.decode(np.asarray(done.tokens[0, :length]))
                found = [place for stop in self.question.stops if (place := text.find(stop)) >= 0]
                reason = None
                if found:
                    text, reason = text[: min(found)], "stop"
                    self.desk.drop([self.choices[index]])
                elif over:
                    reason = "length" if done.truncated[0] else "stop"
                if reason:
                    left.discard(index)
                    self.count += length
                yield index, text, reason, done
        finally:
            self.desk.drop([self.choices[index] for index in left])

    async def whole(self) -> dict[str, Any]:
        """The response to a request that does not stream."""
        choices: dict[int, dict] = {}
        async for index, text, reason, done in self.parts():
            if reason:
                message = {"role": "assistant", "content": text}
                choices[index] = {"index": index, "message": message, "finish_reason": reason, "logprobs": None}
                if self.question.logprobs:
                    choices[index]["logprobs"] = {"content": self._logprobs(done, 0)}
        return self._framed("chat.completion", [choices[i] for i in sorted(choices)]) | {"usage": self._usage()}

    async def events(self) -> AsyncIterator[str]:
        """The response to a request that streams, as server-sent events."""
        sent: dict[int, int] = {}
        tokens: dict[int, int] = {}
        held = max((len(stop) - 1 for stop in self.question.stops), default=0)
        try:
            async for index, text, reason, done in self.parts():
                # A stop text may be half there, and a letter too, whose first bytes decode to U+FFFD: both wait.
                safe = len(text) if reason else len(text.rstrip("\ufffd")) - held
                delta: dict[str, Any] = {} if index in sent else {"role": "assistant"}
                start = sent.get(index, 0)
                sent[index] = max(start, safe)
                delta["content"] = text[start : sent[index]]
                choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
                if self.question.logprobs:
                    choice["logprobs"] = {"content": self._logprobs(done, tokens.get(index, 0))}
                    tokens[index] = int(done.lengths[0])
                yield _event(self._framed("chat.completion.chunk", [choice]))
            if (self.question.stream_options or {}).get("include_usage"):
                yield _event(self._framed("chat.completion.chunk", []) | {"usage": self._usage()})
        except Refusal as error:
            yield _event(_problem(error.status, str(error)))
        yield "data: [DONE]\n\n"

    def _framed(self, kind: str, choices: list[dict]) -> dict[str, Any]:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.question.model}
        return about | {"choices": choices}

    def _usage(self) -> dict[str, int]:
        prompt = self.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": self.count, "total_tokens": prompt + self.count}

    def _logprobs(self, done: Completions, start: int) -> list[dict]:
        pairs = zip(done.tokens[0], np.asarray(done.logprobs)[0], strict=True)
        rows = []
        for token, logprob in list(pairs)[start : int(done.lengths[0])]:
            text = self.desk.processor.decode([int(token)])
            value = {"token": text, "logprob": float(logprob), "bytes": list(text.encode("utf-8", "replace"))}
            rows.append(value | {"top_logprobs": []})
        return rows


def _conversation(messages: list[dict[str, Any]]) -> Conversation:
    """The processor's conversation, with images decoded. Raises Refusal."""
    turns, images = [], 0
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            raise Refusal(400, f"messages[{number}].role: give system, user or assistant")
        if isinstance(content, str):
            turns.append({"role": role, "content": content})
            continue
        if not isinstance(content, list) or not content:
            raise Refusal(400, f"messages[{number}].content: give a text or a list of parts")
        parts = [_part(part, f"messages[{number}].content[{place}]") for place, part in enumerate(content)]
        images += sum(part["type"] == "image" for part in parts)
        turns.append({"role": role, "content": parts})
    if images > IMAGES:
        raise Refusal(400, f"{images} images; the server takes {IMAGES} a request")
    return turns


def _part(part: Any, place: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind != "image_url":
        raise Refusal(400, f"{place}: give type text or image_url")
    address = part.get("image_url")
    address = address.get("url") if isinstance(address, dict) else address
    # An address elsewhere is refused: a server that fetches what it is told to reaches into its own network.
    if not isinstance(address, str) or not (head := _DATA.match(address)):
        raise Refusal(400, f"{place}: give the image as data:image/png;base64,...")
    try:
        data = base64.b64decode(address[head.end() :], validate=True)
    except ValueError:
        raise Refusal(400, f"{place}: not base64") from None
    return {"type": "image", "image": open_image(data, place)}


def _row(seed: int, index: int) -> int:
    """A number below 2**32 for the randomness of a seed's choice."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {index}".encode(), digest_size=4).digest(), "big")


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                size += len(part)
                if size > BODY:
                    raise Refusal(413, f"the request is longer than {BODY} bytes")
                parts.append(part)
    except TimeoutError:
        raise Refusal(408, f"the request did not come in within {PATIENCE:.0f} s") from None
    except ClientDisconnect:
        raise Refusal(400, "the client went away") from None
    return b"".join(parts)


async def _gone(request: Request) -> None:
    """Returns when the client has gone away."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)


def _event(value: dict) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _refused(_: Request, error: Exception) -> Response:
    return _error(error.status if isinstance(error, Refusal) else 500, str(error))


def _error(status: int, message: str) -> Response:
    headers = {"Retry-After": "1"} if status == 429 else {}
    return JSONResponse(_problem(status, message), status, headers)


def _problem(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": status}}
