"""The Batch API: half the price for an answer within a day. Shards, resubmits what is missing, survives a kill."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmedexpert_jax.errors import Interrupted, RemoteError
from mmedexpert_jax.remote import messages, policy
from mmedexpert_jax.remote.client import http_options, settings
from mmedexpert_jax.remote.protocol import Attempt, Endpoint, Reply, Request, Usage
from mmedexpert_jax.remote.store import Answers

MOST_REQUESTS = 50_000  # in one file, as OpenAI documents
MOST_BYTES = 190 * 2**20  # of one file; the documented limit is 200 MB
ENDED = ("completed", "expired", "failed", "cancelled")


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

    def ask(self, requests: Sequence[Request], on_reply: Callable[[int, Reply], None] | None = None) -> list[Reply]:
        """Replies in the order of `requests`, each once to `on_reply`.

        Raises:
            RemoteError: no Batch API there, a refused key, or a budget that cannot bear the batches.
            Interrupted: a signal came; the batches go on at the server and are collected by the next run.
        """
        import httpx2

        keys = [messages.request_key(request, self.endpoint) for request in requests]
        by_key = dict(zip(keys, requests, strict=True))
        with httpx2.Client(**http_options(self.endpoint, self._key)) as self._http:
            for batch in self.answers.open_batches(self.endpoint.host):
                self._collect(batch)
            for _ in range(self.endpoint.max_attempts):
                missing = [key for key in by_key if self.answers.get(key) is None]
                if not missing:
                    break
                self._check_budget([by_key[key] for key in missing])
                lines = ((key, self._line(key, by_key[key])) for key in missing)
                for batch in [self._submit(shard) for shard in shards(lines)]:
                    self._collect(batch)
        replies = [self.answers.get(key) or Reply(key, error=self._last_error(key)) for key in keys]
        for index, reply in enumerate(replies if on_reply else []):
            on_reply(index, reply)  # type: ignore[misc]
        return replies

    def _line(self, key: str, request: Request) -> bytes:
        body = {"model": self.endpoint.model, "messages": messages.wire(request, self.endpoint)}
        body |= settings(self.endpoint, request.sample)
        line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(line).encode() + b"\n"

    def _check_budget(self, requests: Sequence[Request]) -> None:
        """Raises RemoteError where the worst case of `requests` is above what is left."""
        endpoint = self.endpoint
        worst = sum(
            endpoint.cost(Usage(messages.estimate_tokens(r), endpoint.max_tokens), endpoint.batch_discount)
            for r in requests
        )
        spent = self.answers.spent()
        if endpoint.budget and spent + worst > endpoint.budget:
            raise RemoteError(
                f"{len(requests)} requests may cost up to ${worst:.2f}, ${spent:.2f} are spent: more than the budget "
                f"of ${endpoint.budget:g}; raise it, lower max_tokens, or set a limit on the cases"
            )

    def _submit(self, shard: list[tuple[str, bytes]]) -> str:
        """Id of the batch with these lines: one that a killed run left unrecorded, or a new one."""
        keys = [key for key, _ in shard]
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]
        listed = self._call("GET", "batches?limit=100").json().get("data", [])
        known = self.answers.known_batches()
        lost = [b["id"] for b in listed if (b.get("metadata") or {}).get("shard") == name and b["id"] not in known]
        if lost:
            id = lost[0]
        else:
            content = b"".join(line for _, line in shard)
            file = {"file": (f"{name}.jsonl", content, "application/jsonl")}
            uploaded = self._call("POST", "files", data={"purpose": "batch"}, files=file).json()["id"]
            body = {"input_file_id": uploaded, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            id = self._call("POST", "batches", json=body | {"metadata": {"shard": name}}).json()["id"]
        self.answers.add_batch(id, self.endpoint.host)
        return id

    def _collect(self, id: str) -> None:
        """Waits for a batch to end and stores what it answered, whole or in part."""
        while (batch := self._call("GET", f"batches/{id}").json())["status"] not in ENDED:
            if signum := self._interrupted():
                raise Interrupted(f"batch {id} goes on at {self.endpoint.host}; the same command collects it", signum)
            time.sleep(self._poll)
        for name in ("output_file_id", "error_file_id"):
            if batch.get(name):
                lines = self._call("GET", f"files/{batch[name]}/content").content.splitlines()
                found = [self._read(json.loads(line), id) for line in lines if line.strip()]
                self.answers.put([a for a, _ in found], [reply for _, reply in found if reply])
        self.answers.close_batch(id)

    def _read(self, line: dict[str, Any], id: str) -> tuple[Attempt, Reply | None]:
        """Attempt and answer in one line of a batch's output."""
        response = line.get("response") or {"status_code": 500, "body": {"error": line.get("error") or {}}}
        content = json.dumps(response["body"]).encode()
        verdict = policy.judge(response["status_code"], {"content-type": "application/json"}, content)
        usage = verdict.usage or Usage()
        cost = self.endpoint.cost(usage, self.endpoint.batch_discount)
        attempt = Attempt(
            *(line["custom_id"], time.time(), 0.0, response["status_code"], verdict.outcome, verdict.detail),
            *(usage, cost, verdict.response_id or id, self.endpoint.host),
        )
        return attempt, verdict.stored(attempt.key, cost)

    def _call(self, method: str, path: str, **content: Any) -> Any:
        """A response of the server; passing trouble is retried."""
        import httpx2

        detail = ""
        for number in range(self.endpoint.max_attempts):
            try:
                response = self._http.request(method, path, **content)
            except httpx2.HTTPError as error:
                detail = f"{type(error).__name__}: {error}"
            else:
                if response.status_code < 300:
                    return response
                detail = f"{response.status_code}: {response.text[:200]}"
                if response.status_code in (404, 405) and path.startswith(("files", "batches?")):
                    raise RemoteError(f"{self.endpoint.host} has no Batch API ({detail}); ask it by chat instead")
                if response.status_code not in (408, 409, 429) and response.status_code < 500:
                    break
            time.sleep(min(60.0, self.endpoint.retry_wait * 2**number))
        if self._key:
            detail = detail.replace(self._key, "***")
        raise RemoteError(f"{self.endpoint.host}, {method} {path}: {detail}; mend it, the same command goes on")

    def _last_error(self, key: str) -> str:
        attempts = self.answers.attempts(key)
        return f"{attempts[-1].outcome}: {attempts[-1].detail}" if attempts else "no batch answered it"


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
