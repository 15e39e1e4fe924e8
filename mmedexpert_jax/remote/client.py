"""The client: many requests to one endpoint, at a bounded rate and cost, each answer stored as soon as it is there."""

import asyncio
import importlib.util
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any

from mmedexpert_jax.errors import ConfigError, DataError, Interrupted, RemoteError
from mmedexpert_jax.remote import messages, policy
from mmedexpert_jax.remote.limits import Gate, Ledger
from mmedexpert_jax.remote.policy import Verdict
from mmedexpert_jax.remote.protocol import Attempt, Endpoint, Reply, Request, Usage
from mmedexpert_jax.remote.store import Answers

LONGEST_WAIT = 60.0  # seconds between two tries where the server names no time
PATIENCE = 900.0  # seconds; a server that asks for a longer wait ends the run
FRUITLESS = 8  # requests in a row given up without an answer, after which the run stops
UNREADABLE = "unreadable"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Ask:
    """A request on its way: content address, body, tokens it may take, dollars it may cost at most."""

    key: str
    body: dict[str, Any]
    tokens: int
    worst: float


class Client:
    """Asks one endpoint.

    What the store holds is never asked again. Failures are retried by kind (`policy`), with backoff and jitter; a rate
    limit or a Retry-After pauses all requests. A field that the server does not know is left out from then on.
    Exhausted quota, a refused key and a spent budget end the run after the requests in flight have come home.
    """

    def __init__(self, endpoint: Endpoint, answers: Answers, interrupted: Callable[[], int | None] = lambda: None):
        """Raises ConfigError where the key's variable is not set, or httpx2 is missing.

        Args:
            endpoint: whom to ask, and how.
            answers: the store.
            interrupted: tells of a signal (`Run.interrupted`); looked at before each request.
        """
        if importlib.util.find_spec("httpx2") is None:
            raise ConfigError("endpoints need httpx2: pip install 'mmedexpert-jax[remote]'")
        self.endpoint, self.answers = endpoint, answers
        self._interrupted = interrupted
        self._key = endpoint.key()
        self._dropped: set[str] = set()
        self._answered, self._answered_before = 0, answers.totals().get("answered", 0)
        self._fruitless = 0
        self._halt: Exception | None = None
        self._began = time.monotonic()
        self._spent_before = self._spent = answers.spent()

    def ask(self, requests: Sequence[Request], on_reply: Callable[[int, Reply], None] | None = None) -> list[Reply]:
        """Replies in the order of `requests`; stored ones come first, others as they arrive, each once to `on_reply`.

        A request that was given up has a reply with `error`; asking again tries again. An error that begins with
        UNREADABLE is of an image that cannot be decoded, so that nothing was asked. Equal requests are asked once.

        Raises:
            RemoteError: quota, refused key, spent budget, or a server that gives no answers at all.
            Interrupted: a signal came. In both cases what has been answered is stored.
        """
        keys = [messages.request_key(request, self.endpoint) for request in requests]
        places: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            places.setdefault(key, []).append(index)
        replies: dict[str, Reply] = {}

        def settle(reply: Reply) -> None:
            replies[reply.key] = reply
            for index in places[reply.key]:
                if on_reply is not None:
                    on_reply(index, reply)

        missing = []
        for key in places:
            if stored := self.answers.get(key):
                settle(stored)
            else:
                missing.append(key)
        if missing:
            _run(self._ask_all(iter([(key, requests[places[key][0]]) for key in missing]), len(missing), settle))
        return [replies[key] for key in keys]

    def figures(self, left: int) -> dict[str, float]:
        """For a progress line: "requests_per_second", "dollars" spent in all, and "dollars_projected" with `left`
        requests to come at the mean cost so far."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        mean = (self._spent - self._spent_before) / max(self._answered, 1)
        figures = {"requests_per_second": self._answered / seconds}
        if self.endpoint.price_input + self.endpoint.price_output > 0:
            figures |= {"dollars": self._spent, "dollars_projected": self._spent + left * mean}
        return figures

    def worst_cost(self, request: Request) -> float:
        """Dollars that one attempt may cost: the estimated prompt and a completion of `max_tokens`."""
        return self.endpoint.cost(Usage(messages.estimate_tokens(request), self.endpoint.max_tokens))

    async def _ask_all(self, queue: Iterator[tuple[str, Request]], count: int, settle: Callable[[Reply], None]) -> None:
        endpoint = self.endpoint
        self._gate = Gate(endpoint.concurrency, endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self._ledger = Ledger(endpoint.budget, self._spent)
        async with _http(endpoint, self._key) as self._http, asyncio.TaskGroup() as group:
            for _ in range(min(endpoint.concurrency, count)):
                group.create_task(self._work(queue, settle))
        if self._halt is not None:
            raise self._halt

    async def _work(self, queue: Iterator[tuple[str, Request]], settle: Callable[[Reply], None]) -> None:
        """One of `concurrency` workers: takes request after request until there is none, or the run halts."""
        for key, request in queue:
            if signum := self._interrupted():
                self._halt = Interrupted("what was answered is stored; the same command resumes", signum)
            if self._halt is not None:
                return
            try:
                wire = messages.wire(request, self.endpoint)
            except DataError as error:
                settle(Reply(key, error=f"{UNREADABLE}: {error}"))
                continue
            body = {"model": self.endpoint.model, "messages": wire} | settings(self.endpoint, request.sample)
            tokens = messages.estimate_tokens(request) + self.endpoint.max_tokens
            reply = await self._until_answered(Ask(key, body, tokens, self.worst_cost(request)))
            if reply is not None:
                settle(reply)

    async def _until_answered(self, ask: Ask) -> Reply | None:
        """Tries up to `max_attempts` times; None where the run halts first."""
        verdict = Verdict("rejected")
        for number in range(self.endpoint.max_attempts):
            if self._halt is not None:
                return None
            if not await self._ledger.reserve(ask.worst):
                self._stop(
                    f"the budget of ${self.endpoint.budget:g} cannot bear another request (spent ${self._spent:.4f}); "
                    "raise the budget and run the same command to go on"
                )
                return None
            if self._halt is not None:  # it came while this request waited for the budget
                await self._ledger.settle(ask.worst, 0.0)
                return None
            verdict, reply = await self._try(ask)
            if reply is not None:
                return reply
            if verdict.outcome in policy.FATAL:
                self._stop(f"{self.endpoint.host} refuses: {verdict.detail}; mend it, the same command goes on")
                return None
            if verdict.outcome not in policy.RETRIED:
                break
            if number + 1 < self.endpoint.max_attempts and not await self._wait(verdict, number):
                return None
        if verdict.outcome in policy.RETRIED or not (self._answered or self._answered_before):
            self._fruitless += 1  # a refusal of one request says nothing of a server that has answered others
        if self._fruitless >= FRUITLESS:
            self._stop(
                f"{self.endpoint.host} gave no answer to {FRUITLESS} requests in a row, last {verdict.detail}; "
                "see that it is up and serves the model, then run the same command"
            )
        return Reply(ask.key, error=f"{verdict.outcome}: {verdict.detail}")

    async def _try(self, ask: Ask) -> tuple[Verdict, Reply | None]:
        """One attempt, recorded in the store with what it cost."""
        await self._gate.enter(ask.tokens)
        started, clock = time.time(), time.monotonic()
        status, verdict = await self._post({k: v for k, v in ask.body.items() if k not in self._dropped})
        cost = self._cost(ask, verdict)
        usage = verdict.usage or Usage()
        attempt = Attempt(
            *(ask.key, started, time.monotonic() - clock, status, verdict.outcome, self._clean(verdict.detail)),
            *(usage, cost, verdict.response_id, self.endpoint.host),
        )
        if reply := verdict.stored(ask.key, cost):
            self._answered, self._fruitless = self._answered + 1, 0
        self.answers.put([attempt], [reply] if reply else [])
        self._spent += cost
        await self._gate.leave(ask.tokens - usage.prompt - usage.completion, well=reply is not None)
        await self._ledger.settle(ask.worst, cost)
        return replace(verdict, detail=attempt.detail), reply

    async def _post(self, body: dict[str, Any]) -> tuple[int, Verdict]:
        """Status and verdict of one POST; 0 where no response came."""
        import httpx2

        try:
            async with asyncio.timeout(self.endpoint.timeout):
                response = await self._http.post("chat/completions", json=self._renamed(body))
            headers = {name.lower(): value for name, value in response.headers.items()}
            return response.status_code, policy.judge(response.status_code, headers, response.content)
        except (TimeoutError, httpx2.TimeoutException):
            return 0, Verdict("timeout", f"no answer within {self.endpoint.timeout:g} s", billed=True)
        except httpx2.DecodingError as error:
            return 0, Verdict("malformed", f"body cannot be decoded ({error})", billed=True)
        except httpx2.HTTPError as error:
            sent = not isinstance(error, httpx2.ConnectError)
            return 0, Verdict("connection", f"{type(error).__name__}: {error}"[:300], billed=sent)

    def _renamed(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body with the older `max_tokens` where the server does not know `max_completion_tokens`."""
        old = "max_completion_tokens" in self._dropped
        return body | {"max_tokens": self.endpoint.max_tokens} if old else body

    async def _wait(self, verdict: Verdict, number: int) -> bool:
        """Waits before the next try; False where the server asks for more than PATIENCE."""
        if verdict.outcome == "unsupported":
            self._dropped.add(verdict.drop)
            return True
        wait = verdict.wait
        if wait is not None and wait > PATIENCE:
            self._stop(f"{self.endpoint.host} asks to wait {wait:.0f} s ({verdict.detail}); run the same command then")
            return False
        if wait is None:
            wait = min(LONGEST_WAIT, self.endpoint.retry_wait * 2**number) * random.uniform(0.5, 1.0)
        if verdict.outcome == "rate-limit" or verdict.wait is not None:
            self._gate.pause(wait)
        else:
            await asyncio.sleep(wait)
        return True

    def _cost(self, ask: Ask, verdict: Verdict) -> float:
        """Dollars of an attempt; where the server may have billed without a count, the most it can be."""
        if verdict.usage is not None:
            return self.endpoint.cost(verdict.usage)
        return ask.worst if verdict.billed else 0.0

    def _stop(self, message: str) -> None:
        self._halt = self._halt or RemoteError(self._clean(message))

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def settings(endpoint: Endpoint, sample: int) -> dict[str, Any]:
    """Fields of a body beside model and messages."""
    body: dict[str, Any] = {"max_completion_tokens": endpoint.max_tokens}
    if endpoint.temperature is not None:
        body["temperature"] = endpoint.temperature
    if endpoint.top_p is not None:
        body["top_p"] = endpoint.top_p
    if endpoint.seed is not None:
        body["seed"] = endpoint.seed + sample
    if endpoint.effort:
        body["reasoning_effort"] = endpoint.effort
    return body


def http_options(endpoint: Endpoint, key: str) -> dict[str, Any]:
    """Options of httpx2's clients. Proxies of the environment are honoured except for servers on this machine."""
    local = endpoint.host.rpartition(":")[0] in LOOPBACK or endpoint.host in LOOPBACK
    return {
        "base_url": endpoint.url.rstrip("/") + "/",
        "headers": {"authorization": f"Bearer {key}"} if key else {},
        "timeout": endpoint.timeout,
        "trust_env": not local,
    }


def _http(endpoint: Endpoint, key: str) -> Any:
    import httpx2

    limits = httpx2.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
    return httpx2.AsyncClient(limits=limits, **http_options(endpoint, key))


def _run(coroutine: Any) -> None:
    """Runs a coroutine to its end, in a thread of its own where this one has a loop (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _unwrapped(coroutine)
        return
    failed: list[BaseException] = []

    def target() -> None:
        try:
            _unwrapped(coroutine)
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=target)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _unwrapped(coroutine: Any) -> None:
    """Runs a coroutine; of an exception group of its tasks the first exception is raised alone."""
    try:
        asyncio.run(coroutine)
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
