"""The Batch API: half the price for an answer within a day. Shards, resubmits what is missing, survives a kill."""

import asyncio
import hashlib
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.errors import RemoteError, stop_if
from mmedexpert_jax.remote import messages, outcomes
from mmedexpert_jax.remote.answer_store import Answers
from mmedexpert_jax.remote.client import LOOK_AGAIN, run_to_end, settings
from mmedexpert_jax.remote.protocol import Endpoint, EndpointReply, Request, Usage

MOST_REQUESTS = 50_000  # in one file, as OpenAI documents
MOST_BYTES = 190 * 2**20  # of one file; the documented limit is 200 MB
PAGES = 10  # of 100 batches each, in which one that was not recorded is looked for
CALL_SECONDS = 1800.0  # for one call, the download of a large file included
GOING_ON = (
    "validating",
    "queued",
    "pending",
    "running",
    "in_progress",
    "finalizing",
    "cancelling",
    "cancellation_requested",
)
# how a batch ended, in OpenAI's words, by what it and others say, some in capitals
ENDED = {state: state for state in ("completed", "expired", "failed", "cancelled")}
ENDED |= {"canceled": "cancelled", "success": "completed", "succeeded": "completed", "ended": "completed"}
ENDED |= {"error": "failed", "timeout_exceeded": "expired"}
# calls whose 404 has a meaning of its own
UPLOAD, LIST, LOOK, READ = "upload a file", "list batches", "look at batch", "read a file"
GONE = b'{"status": "expired", "errors": [{"message": "the server does not know it any more"}]}'
NO_FILE = b"-"  # in the place of a file that the server does not know
FILES = ("output_file_id", "error_file_id")
STATES = {"failed": "failed", "cancelled": "was cancelled"}


class BatchClient:
    """Asks one endpoint by its Batch API; `ask` is that of `client.Client`.

    A submitted batch is remembered before it is waited for, and found again by the hash in its metadata where a kill
    came between the two, so that no request is submitted twice. Requests that an expired batch left unanswered are
    submitted again, up to `max_attempts` times.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        answers: Answers,
        interrupted: Callable[[], int | None] = lambda: None,
        poll: float = 30.0,
    ):
        """Raises ConfigError where the key's variable is not set. `poll`: seconds between two looks at a batch."""
        self.endpoint, self.answers, self._interrupted, self._poll = endpoint, answers, interrupted, poll
        self._key = endpoint.key()
        self._requests: Mapping[str, Request] = {}  # by key, those that are asked now

    def ask(
        self, requests: Sequence[Request], on_reply: Callable[[int, EndpointReply], None] | None = None
    ) -> list[EndpointReply]:
        """Replies in the order of `requests`, each once to `on_reply`.

        Raises:
            RemoteError: no Batch API there, a refused key, a batch that failed or was cancelled, or a budget that
                cannot bear the batches.
            Interrupted: a signal came; the batches go on at the server and are collected by the next run.
        """
        keys = [messages.request_key(request, self.endpoint) for request in requests]
        run_to_end(self._ask_all(dict(zip(keys, requests, strict=True))))
        self.answers.say_elsewhere(self.endpoint.host, keys)
        replies = [self.answers.get(key) or EndpointReply(key, error=self._last_error(key)) for key in keys]
        if on_reply is not None:
            for index, reply in enumerate(replies):
                on_reply(index, reply)
        return replies

    async def _ask_all(self, by_key: dict[str, Request]) -> None:
        from mmedexpert_jax.remote.connection import connect

        self._requests = by_key
        turn = f"batches of {self.endpoint.host}"
        while not self.answers.claim(turn):  # a second run on this store would submit, and pay, everything again
            stop_if(
                self._interrupted,
                "another run on the same answers waits for its batches; the same command collects it",
            )
            await asyncio.sleep(LOOK_AGAIN)
        try:
            async with connect(self.endpoint, self._key) as self._api:
                for batch in self.answers.open_batches(self.endpoint.host):
                    await self._collect(batch)
                for _ in range(self.endpoint.max_attempts):
                    missing = [key for key in by_key if self.answers.get(key) is None]
                    if not missing:
                        break
                    self._check_budget([by_key[key] for key in missing])
                    lines = ((key, self._line(key, by_key[key])) for key in missing)
                    said = [await self._collect(batch) for batch in [await self._submit(one) for one in shards(lines)]]
                    if all(self.answers.get(key) is None for key in missing):
                        self._give_up(missing, by_key, said)
                        break  # sent once more, they would fare no better
        finally:
            self.answers.release_all()

    def _give_up(self, missing: Sequence[str], by_key: Mapping[str, Request], said: Sequence[str]) -> None:
        """Raises RemoteError where batches that brought nothing leave no answer at all; `said`: how each ended."""
        if len(missing) == len(by_key):
            reasons = dict.fromkeys([*said, *filter(None, map(self._last_error, missing[:1]))])
            raise RemoteError(
                f"{self.endpoint.host} answered none of {len(missing)} requests of its batches "
                f"({border.cut('; '.join(reasons), outcomes.DETAIL)}); the same command submits them again"
            )

    def _line(self, key: str, request: Request) -> bytes:
        body = {"model": self.endpoint.model, "messages": messages.wire(request, self.endpoint)}
        body |= settings(self.endpoint, request.sample)
        line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(line).encode() + b"\n"

    def _check_budget(self, requests: Sequence[Request]) -> None:
        """Raises RemoteError where the worst case of `requests` is above what is left."""
        endpoint = self.endpoint
        worst = sum(map(self._worst_cost, requests))
        spent = self.answers.spent()
        if endpoint.budget and spent + worst > endpoint.budget:
            raise RemoteError(
                f"{len(requests)} requests may cost up to ${worst:.2f}, ${spent:.2f} are spent: more than the budget "
                f"of ${endpoint.budget:g}; raise it, lower max_tokens, or set a limit on the cases"
            )

    def _worst_cost(self, request: Request | None) -> float:
        """Dollars that a request may cost; of None, one of an earlier run, those of its longest completion alone."""
        tokens = messages.estimate_tokens(request) if request else 0
        return self.endpoint.cost(Usage(tokens, self.endpoint.max_tokens), self.endpoint.batch_discount)

    async def _submit(self, shard: list[tuple[str, bytes]]) -> str:
        """Id of the batch with these lines: one that a killed run left unrecorded, or a new one."""
        keys = [key for key, _ in shard]
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]
        id = await self._unrecorded(name)
        if not id:
            content = b"".join(line for _, line in shard)
            file = (f"{name}.jsonl", content, "application/jsonl")
            uploaded = await self._call(UPLOAD, self._api.files, "create", file=file, purpose="batch")
            batch = await self._call(
                "submit a batch",
                self._api.batches,
                "create",
                input_file_id=_id(uploaded),
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"shard": name},
                made=partial(self._unrecorded, name),
            )
            id = _id(batch)
        self.answers.add_batch(id, self.endpoint.host)
        return id

    async def _unrecorded(self, name: str) -> str:
        """Id of a batch of this shard that was submitted but never recorded: the run was killed, or the server's reply
        was lost; "" for none."""
        known, page = self.answers.known_batches(), dict[str, Any]()
        for _ in range(PAGES):
            listed = await self._call(LIST, self._api.batches, "list", limit=100, **page)
            batches = [batch for batch in listed.get("data") or () if isinstance(batch, dict)]
            for batch in batches:
                metadata = batch.get("metadata")
                if isinstance(metadata, dict) and metadata.get("shard") == name and batch.get("id") not in known:
                    return _id(batch)
            if not batches or not listed.get("has_more"):
                break
            page = {"after": _id(batches[-1])}
        return ""

    async def _collect(self, id: str) -> str:
        """Waits for a batch to end, stores what it answered, whole or in part, and returns how it ended, in words.

        Raises RemoteError where it failed or was cancelled: sent again at once, it would fail again.
        """
        batch = await self._ended(id)
        messages = _messages(batch)
        for file in map(batch.get, FILES):
            if not isinstance(file, str) or not file:
                continue
            content = await self._response(READ, self._api.files.with_raw_response.content, {"file_id": file})
            if content == NO_FILE:
                messages.append(f"{self.endpoint.host} does not know the file {file} of batch {id} any more")
                print(f"{messages[-1]}; what it held is asked again", file=sys.stderr, flush=True)
            for line in content.splitlines():
                self._store(line, id)
        self.answers.close_batch(id)
        said = "; ".join(messages)
        why = outcomes.shown(said or "the server gives no reason", self._key)
        if batch["status"] in ("failed", "cancelled"):
            raise RemoteError(
                f"batch {id} at {self.endpoint.host} {STATES[batch['status']]}: {why}; what it answered is stored, the "
                "same command submits the rest again once that is fixed"
            )
        return f"batch {id} {batch['status']}" + (f": {why}" if said else "")

    async def _ended(self, id: str) -> Mapping[str, Any]:
        """The batch when it has ended, its state in OpenAI's words. Raises RemoteError for one that stays unknown."""
        strange = early = 0
        while True:
            batch = await self._call(f"{LOOK} {id}", self._api.batches, "retrieve", batch_id=id)
            state = str(batch.get("status")).lower()
            if state in ENDED:
                early += 1
                waits = ENDED[state] == "completed" and _lacks_files(batch)
                if not waits or early >= self.endpoint.max_attempts:
                    return {**batch, "status": ENDED[state]}
            strange = 0 if state in (*GOING_ON, *ENDED) else strange + 1
            if strange >= self.endpoint.max_attempts:
                said = outcomes.shown(state, self._key)[:40]
                raise RemoteError(
                    f"batch {id} at {self.endpoint.host} is in no known state ({said}); "
                    "look at it there, the same command goes on"
                )
            stop_if(self._interrupted, f"batch {id} goes on at {self.endpoint.host}; the same command collects it")
            await asyncio.sleep(self._poll)

    def _store(self, line: bytes, id: str) -> None:
        """Stores the attempt and answer in one line of a batch's output; a line that is no answer loses no other."""
        found = outcomes.json_object(line, self._key)
        key = found.get("custom_id")
        if not isinstance(key, str):
            return  # cut off, or not ours: its request is still missing, and is submitted again
        response = found.get("response")
        if not isinstance(response, dict):
            # 500 as of a server that failed: asked again, and not a fault of the request
            response = {"status_code": 500, "body": {"error": found.get("error") or "no response in the line"}}
        body = response if response.get("choices") else response.get("body")
        body = outcomes.json_object(body.encode()) if isinstance(body, str) else body
        status = 200 if isinstance(body, dict) and body.get("choices") else 500  # where none is given
        if re.fullmatch("[1-5][0-9]{2}", code := str(response.get("status_code"))):
            status = int(code)
        content = json.dumps(body).encode()
        outcome = outcomes.classify(status, {"content-type": "application/json"}, content, self._key)
        outcome = replace(outcome, status=status, response_id=outcome.response_id or id)
        cost = outcome.cost(self.endpoint, self._worst_cost(self._requests.get(key)), self.endpoint.batch_discount)
        attempt = outcome.attempt(key, time.time(), 0.0, cost, self.endpoint.host)
        if any((a.response_id, a.host) == (attempt.response_id, attempt.host) for a in self.answers.attempts(key)):
            return  # read by a run that was killed before it had read all of the batch
        reply = outcome.stored(key, cost)
        self.answers.put([attempt], [reply] if reply else [])

    async def _call(
        self, what: str, resource: Any, method: str, made: Callable[[], Awaitable[str]] | None = None, **arguments: Any
    ) -> Mapping[str, Any]:
        """The object in a response of the server; passing trouble is retried.

        `made`: looks, before each retry, for what a try whose reply was lost may have made, and gives its id or "".
        """
        response = await self._response(what, getattr(resource.with_raw_response, method), arguments, made)
        return outcomes.json_object(response, self._key)

    async def _response(
        self,
        what: str,
        call: Callable[..., Any],
        arguments: Mapping[str, Any],
        made: Callable[[], Awaitable[str]] | None = None,
    ) -> bytes:
        import openai

        detail = ""
        for number in range(self.endpoint.max_attempts):
            if number and made is not None and (id := await made()):
                return json.dumps({"id": id}).encode()
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    return (await call(**arguments)).http_response.content
            except openai.APIStatusError as error:
                status, content = error.response.status_code, error.response.content
                detail = outcomes.classify(status, {}, content, self._key).detail
                if status in (404, 405) and what in (UPLOAD, LIST):
                    raise RemoteError(
                        f"{self.endpoint.host} has no Batch API ({detail}); ask it by chat instead"
                    ) from None
                if status == 404 and what.startswith(LOOK):
                    return GONE  # kept open, it would end every run; its requests are submitted again
                # or not there yet; of the API itself, not of a proxy in front of it
                lost = what == READ and status in (404, 410) and content.lstrip().startswith(b"{")
                if lost and number + 1 == self.endpoint.max_attempts:
                    return NO_FILE  # as with GONE
                if status not in (408, 409, 429) and status < 500 and not lost:
                    break
            except (TimeoutError, openai.APIConnectionError) as error:
                detail = outcomes.shown(f"{type(error).__name__}: {error.__cause__ or error}", self._key)
            await asyncio.sleep(min(60.0, self.endpoint.retry_wait * 2**number))
        raise RemoteError(f"{self.endpoint.host}: cannot {what}: {detail}; fix it, the same command goes on")

    def _last_error(self, key: str) -> str:
        attempts = self.answers.attempts(key)
        return f"{attempts[-1].outcome}: {attempts[-1].detail}" if attempts else "no batch answered it"


def _id(thing: Mapping[str, Any]) -> str:
    """The server's id of a file or batch. Raises RemoteError where it gives none."""
    id = thing.get("id")
    if not isinstance(id, str) or not id:
        raise RemoteError("the server names no id for what was sent to its Batch API; ask it by chat instead")
    return id


def _lacks_files(batch: Mapping[str, Any]) -> bool:
    """True of a batch that names no file of what it has answered, as one whose state is written first."""
    output, errors = map(batch.get, FILES)
    counts = batch.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    if counts.get("completed"):
        return not output
    none = counts.get("completed") == counts.get("failed") == 0 and not counts.get("total")
    return not none and not output and not errors


def _messages(batch: Mapping[str, Any]) -> list[str]:
    """The messages among a batch's errors, each once."""
    errors = batch.get("errors")
    data = errors.get("data", [errors]) if isinstance(errors, dict) else errors
    data = data if isinstance(data, list) else [data]
    found = [one.get("message") or one.get("code") if isinstance(one, dict) else one for one in data]
    return list(dict.fromkeys(str(message) for message in found if message))


def shards(lines: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Lines in files of at most MOST_REQUESTS requests and MOST_BYTES bytes."""
    shard: list[tuple[str, bytes]] = []
    size = 0
    for key, line in lines:
        if shard and (len(shard) == MOST_REQUESTS or size + len(line) > MOST_BYTES):
            yield shard
            shard, size = [], 0
        shard.append((key, line))
        size += len(line)
    if shard:
        yield shard
