"""OpenAI's chat completions over HTTP: what a desk answers, for any client of that protocol."""

import asyncio
import hashlib
import hmac
import json
import random
import re
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mmedexpert_jax.border import check, cut, parse_json
from mmedexpert_jax.errors import DataError, ResourceError, UserError
from mmedexpert_jax.processing.images import VIEWED, View, decode
from mmedexpert_jax.processing.processor import PART_KEYS, Conversation, Processor
from mmedexpert_jax.rollout.chat import Vote, Votes, pages
from mmedexpert_jax.rollout.decode import Completions
from mmedexpert_jax.rollout.desk import Busy, Choice, Desk

BODY = 64 * 2**20  # bytes of a request, images included
PATIENCE = 30.0  # seconds in which a request must have come in whole
CHOICES = 64  # of a request
IMAGES = 32  # of a request
CHARACTERS = 64  # for each token that a prompt may have: longer texts are refused before they are cut into tokens
IDLE = (  # keys of an image that change nothing
    *("type", "image_url", "url", "detail", "cache_control", "format", "uuid", "id", "index", "name", "filename"),
    *("mime_type", "media_type"),
)
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}  # as templates know them
# Fields beside those of ChatRequest -> their values that change no answer; None: any does not. Of fields that are not
# here either, NOTHING. Whatever else is asked for is refused by the field's name.
HARMLESS: dict[str, tuple[Any, ...] | None] = {
    **dict.fromkeys(("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")),
    **dict.fromkeys(("prompt_cache_retention", "parallel_tool_calls", "spaces_between_special_tokens")),
    **dict.fromkeys(("priority", "request_id", "cache_salt", "cache_prompt", "id_slot", "keep_alive")),
    **dict.fromkeys(("timeout", "caching", "drop_params", "api_key", "provider", "usage", "timings_per_token")),
    **dict.fromkeys(("skip_special_tokens", "add_generation_prompt", "include_reasoning", "do_sample"), (True,)),
    **dict.fromkeys(("repetition_penalty", "repeat_penalty", "length_penalty", "typical_p", "best_of"), (1,)),
    **dict.fromkeys(("n_predict", "truncate_prompt_tokens"), (-1,)),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    "num_beams": (1,),
    "detokenize": (True,),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "thinking": ({"type": "disabled"},),
    "guided_decoding_backend": None,  # the guides themselves are refused
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "chat_template_content_format": ("auto",),
}
NOTHING: tuple[Any, ...] = (0, "", [], {})  # 0 is False too
SWITCHES = ("think", "enable_thinking")  # of templates: off is idle where the template does not know them
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves in GPT-2's tokens
_BYTES = {chr(byte): byte for byte in _PRINTED}
_BYTES |= {chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in _PRINTED)}
_WIDEST = 4  # bytes, and so tokens, of a letter

Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]
Heat = Annotated[float, msgspec.Meta(ge=0, le=2)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class ChatRequest(msgspec.Struct):
    """The fields that are read of a request."""

    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=1024)]
    model: str | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=CHOICES)] | None = 1
    temperature: Heat | None = 1.0
    top_p: Fraction | None = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] | None = 0
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=16)] | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    logprobs: bool | None = False

    @property
    def limit(self) -> int | None:
        """Tokens of an answer at most; of two limits that of the newer field, as in vLLM."""
        return self.max_completion_tokens or self.max_tokens

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
            Route("/v1/models/{name:path}", server.model),
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
        return JSONResponse({"object": "list", "data": [self._about(name) for name in self.desk.loras]})

    async def model(self, request: Request) -> Response:
        self._let_in(request)
        return JSONResponse(self._about(self._served(request.path_params["name"])))

    def _about(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.began, "owned_by": "local"}

    def _served(self, name: str) -> str:
        """The name. Raises Refusal where no model has it."""
        if name not in self.desk.loras:
            raise Refusal(404, f"model {name[:80]!r} is not served; /v1/models lists those that are")
        return name

    async def complete(self, request: Request) -> Response:
        self._let_in(request)
        question, encoded = await asyncio.to_thread(self._read, await _body(request))
        (answer,) = self._submit([question], encoded)
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
        pair = self._submit([msgspec.structs.replace(question, model=name, n=1) for name in names], encoded)

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

    def _submit(self, questions: list[ChatRequest], encoded: Any) -> list["_Answer"]:
        """The answers to questions of one prompt, which the desk takes all or none of."""
        answers = [_Answer(self.desk, question, encoded) for question in questions]
        try:
            self.desk.submit([choice for answer in answers for choice in answer.choices])
        except Busy:
            raise Refusal(429, "as many requests wait as the server takes; try again later") from None
        return answers

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
        given = request.headers.get("authorization", "")
        scheme, _, key = given.partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else given  # names of schemes have no case
        if self.key and not hmac.compare_digest(given.encode(), self.key.encode()):
            raise Refusal(401, "the server wants its key as Authorization: Bearer <key>")

    def _read(self, body: bytes) -> tuple[ChatRequest, Any]:
        """The question of a body, and its prompt encoded."""
        try:
            given = parse_json(body, "request")
            question = check(given, ChatRequest, "request")
            question.model = self._served(question.model or next(iter(self.desk.loras)))
            for name in given.keys() - set(question.__struct_fields__):
                if not _is_harmless(name, given[name], self.desk.processor):
                    raise Refusal(400, f"{cut(name)} is not supported")
            asked = question.limit or self.desk.max_new_tokens
            if asked > self.desk.max_new_tokens:
                raise Refusal(400, f"max_tokens {asked} is over the server's {self.desk.max_new_tokens}")
            if (question.n or 1) > self.desk.queue:
                raise Refusal(400, f"n {question.n} is over the server's queue of {self.desk.queue}; ask for fewer")
            conversation = _conversation(question.messages, CHARACTERS * self.desk.max_prompt_length)
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
                question.model or "",  # which `_read` has filled in
                encoded,
                secrets.randbits(32) if question.seed is None else _row(question.seed, index),
                temperature,
                question.top_p or 1.0,
                max(0, question.top_k or 0),
                question.limit or desk.max_new_tokens,
                teller(index),
                watched=bool(question.stream or question.stops),
            )
            for index in range(question.n or 1)
        ]

    async def parts(self) -> AsyncIterator[tuple[int, str, str | None, list[dict]]]:
        """(choice, its whole text so far, the reason why it has ended or None, its new tokens if they are wanted), each
        choice ending once."""
        sent_tokens = dict.fromkeys(range(len(self.choices)), 0)  # of choices that go on
        try:
            while sent_tokens:
                index, done, over = await self.news.get()
                if done is None:
                    known = isinstance(self.desk.failure, UserError)
                    raise Refusal(500, str(self.desk.failure) if known else "the server failed; its log says more")
                if index not in sent_tokens:
                    continue
                begin, length = sent_tokens[index], int(done.lengths[0])
                text, stop = self._cut(done, length)
                reason = None
                if stop is not None:
                    # The desk looks every few tokens; the answer ends with the one that completes the stop text.
                    length = next(n for n in range(begin + 1, length + 1) if self._cut(done, n)[1] is not None)
                    reason = "stop"
                    self.desk.drop([self.choices[index]])
                elif over:
                    reason = "length" if done.truncated[0] else "stop"
                sent_tokens[index] = length
                if reason:
                    del sent_tokens[index]
                    self.count += length
                yield index, text[:stop], reason, self._logprobs(done, begin, length)
        finally:
            self.desk.drop([self.choices[index] for index in sent_tokens])

    def _cut(self, done: Completions, length: int) -> tuple[str, int | None]:
        """The text of the first `length` tokens, and where in it the first stop text begins; None: it holds none."""
        text = self.desk.processor.decode(np.asarray(done.tokens[0, :length]))
        return text, min((place for stop in self.question.stops if (place := text.find(stop)) >= 0), default=None)

    async def whole(self) -> dict[str, Any]:
        """The response to a request that does not stream."""
        choices: dict[int, dict] = {}
        tokens: dict[int, list[dict]] = defaultdict(list)
        async for index, text, reason, new in self.parts():
            tokens[index] += new
            if reason:
                choices[index] = {"index": index, "finish_reason": reason, "logprobs": self._told(tokens[index])}
                choices[index]["message"] = {"role": "assistant", "content": text}
        return self._framed("chat.completion", [choices[i] for i in sorted(choices)]) | {"usage": self._usage()}

    async def events(self) -> AsyncIterator[str]:
        """The response to a request that streams, as server-sent events."""
        sent: dict[int, int] = {}
        held = max((len(stop) - 1 for stop in self.question.stops), default=0)
        try:
            async for index, text, reason, new in self.parts():
                # A stop text may be half there, and a letter too, whose first bytes decode to U+FFFD: both wait.
                safe = len(text) if reason else len(text.rstrip("\ufffd")) - held
                delta: dict[str, Any] = {} if index in sent else {"role": "assistant"}
                start = sent.get(index, 0)
                sent[index] = max(start, safe)
                delta["content"] = text[start : sent[index]]
                choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": self._told(new)}
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

    def _logprobs(self, done: Completions, begin: int, end: int) -> list[dict]:
        """The tokens from `begin` to `end`, if the request wants them."""
        if not self.question.logprobs:
            return []
        rows = []
        for place in range(begin, end):
            text, spelt = _piece(self.desk.processor, np.asarray(done.tokens[0, : place + 1]))
            value = {"token": text, "logprob": float(done.logprobs[0, place]), "bytes": list(spelt)}
            rows.append(value | {"top_logprobs": []})
        return rows

    def _told(self, tokens: list[dict]) -> dict[str, Any] | None:
        return {"content": tokens} if self.question.logprobs else None


def _is_harmless(name: str, value: Any, processor: Processor) -> bool:
    """True for a field beside those of ChatRequest, of a value that changes no answer of the processor's template."""
    harmless = HARMLESS.get(name, NOTHING)
    switches = {name: value} if name in SWITCHES else {}
    if name == "chat_template_kwargs" and isinstance(value, dict):
        switches = value
    if switches:
        template = str(processor.tokenizer.chat_template)
        return all(
            off in (None, False) and not re.search(rf"\b{re.escape(key)}\b", template) for key, off in switches.items()
        )
    return harmless is None or value in (None, *harmless)


def _piece(processor: Processor, tokens: np.ndarray) -> tuple[str, bytes]:
    """The text that the last token adds, and its bytes, which of a part of a letter only its own spelling tells."""
    before, after = (processor.decode(part) for part in (tokens[-_WIDEST - 1 : -1], tokens[-_WIDEST - 1 :]))
    if not before.endswith("\ufffd") and after.startswith(before) and "\ufffd" not in after[len(before) :]:
        return after[len(before) :], after[len(before) :].encode("utf-8", "replace")
    spelling = processor.tokenizer.convert_ids_to_tokens(int(tokens[-1])) or ""  # embeddings may be padded
    if found := re.fullmatch("<0x([0-9A-F]{2})>", spelling):  # SentencePiece's
        spelt = bytes.fromhex(found[1])
    elif set(spelling) <= _BYTES.keys():
        spelt = bytes(_BYTES[sign] for sign in spelling)
    else:
        spelt = spelling.replace("\u2581", " ").encode()
    return processor.decode(tokens[-1:]), spelt


def _conversation(messages: list[dict[str, Any]], most: int) -> Conversation:
    """The processor's conversation of at most so many characters, with images decoded. Raises Refusal."""
    turns: list[dict[str, Any]] = []
    images = characters = 0
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in ROLES:
            raise Refusal(400, f"messages[{number}].role: give system, user or assistant")
        role = ROLES[role]
        if message.get("tool_calls") or message.get("function_call"):
            raise Refusal(400, f"messages[{number}]: calls of tools are not supported")
        if content is None and role == "assistant":  # beside a refusal, say
            content = message.get("refusal") or ""
        if isinstance(content, str):
            turns.append({"role": role, "content": content})
            characters += len(content)
            continue
        if not isinstance(content, list) or not content:
            raise Refusal(400, f"messages[{number}].content: give a text or a list of parts")
        parts: list[dict[str, Any]] = []
        for place, part in enumerate(content):
            parts += (seen := _parts(part, f"messages[{number}].content[{place}]", IMAGES - images))
            images += sum(one["type"] == "image" for one in seen)
        characters += sum(len(part.get("text", "")) for part in parts)
        turns.append({"role": role, "content": parts})
    if characters > most:
        raise Refusal(400, f"a prompt of {characters} characters is over the limit of {most}; shorten the text")
    return turns


def _parts(part: Any, place: str, left: int) -> list[dict[str, Any]]:
    """A part of a message as the processor takes it; an image for each of the slices that it names.

    Raises Refusal before more than `left` images are decoded.
    """
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return [{"type": "text", "text": part[kind]}]
    if kind != "image_url":
        raise Refusal(400, f"{place}: give type text or image_url")
    address = part.get("image_url")
    said = part | (address if isinstance(address, dict) else {})  # clients write an image's keys in either
    address = said.get("url") if isinstance(address, dict) else address
    # An address elsewhere is refused: a server that fetches what it is told to reaches into its own network.
    if not isinstance(address, str) or address[:5].lower() != "data:":
        raise Refusal(400, f"{place}: give the image as data:image/png;base64,...")
    said = {key: value for key, value in said.items() if key not in IDLE and value is not None}
    if unknown := [key for key in said if key not in (*VIEWED, *PART_KEYS)]:
        raise Refusal(400, f"{place}: {cut(unknown[0])} is not supported")
    view, sizes = ({key: said[key] for key in keys if key in said} for keys in (VIEWED, PART_KEYS))
    slices = View.make(**view, name=place).slices or 1
    if (slices if isinstance(slices, int) else len(slices)) > left:
        raise Refusal(400, f"{place}: the server takes {IMAGES} images a request, slices counted; give fewer")
    return [{"type": "image", "image": picture} | sizes for picture in decode(address, name=place, **view)]


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
    """Returns when the client of a request whose body is read has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


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
