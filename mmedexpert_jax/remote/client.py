"""The client: many requests to one endpoint, at a bounded rate and cost, each answer stored as soon as it is there."""

import asyncio
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from mmedexpert_jax.errors import DataError, Interrupted, RemoteError, needs
from mmedexpert_jax.remote import messages, outcomes
from mmedexpert_jax.remote.answer_store import Answers
from mmedexpert_jax.remote.limits import Gate, Ledger
from mmedexpert_jax.remote.outcomes import Outcome
from mmedexpert_jax.remote.protocol import Endpoint, EndpointReply, Request, Usage

LONGEST_WAIT = 60.0  # seconds between two tries where the server names no time
PATIENCE = 900.0  # seconds; a server that asks for a longer wait ends the run
FRUITLESS = 8  # requests in a row given up without an answer, after which the run stops
UNREADABLE = "unreadable"
LOOK_AGAIN = 0.2  # seconds between two looks at a request that another run is asking for


@dataclass(frozen=True)
class Ask:
    """A request on its way: content address, body, tokens it may take, dollars it may cost at most."""

    key: str
    body: dict[str, Any]
    tokens: int
    worst: float


class Client:
    """Asks one endpoint.

    What the store holds is never asked again, nor what another process on the same store is asking for now. Failures
    are retried by kind (`outcomes`), with backoff and jitter; a rate limit or a Retry-After pauses all requests. A
    field that the server does not know is left out from then on. Exhausted quota, a refused key and a spent budget end
    the run after the requests in flight have come home.
    """

    def __init__(self, endpoint: Endpoint, answers: Answers, interrupted: Callable[[], int | None] = lambda: None):
        """Raises ConfigError where the key's variable is not set, or the openai client is missing.

        Args:
            endpoint: whom to ask, and how.
            interrupted: tells of a signal (`Run.interrupted`); looked at before each request.
        """
        needs("remote")
        self.endpoint, self.answers = endpoint, answers
        self._interrupted = interrupted
        self._key = endpoint.key()
        self._dropped: set[str] = set()
        self._other_run_said = False  # for another run's answers, which has been said
        self._answered, self._answered_before = 0, answers.totals().get("answered", 0)
        self._fruitless = 0
        self._waits_said = False
        self._halt: Exception | None = None
        self._began = time.monotonic()
        self._spent_before = self._spent = answers.spent()

    def ask(
        self, requests: Sequence[Request], on_reply: Callable[[int, EndpointReply], None] | None = None
    ) -> list[EndpointReply]:
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
        replies: dict[str, EndpointReply] = {}

        def settle(reply: EndpointReply) -> None:
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
        self.answers.say_elsewhere(self.endpoint.host, replies)
        if missing:
            run_to_end(self._ask_all([(key, requests[places[key][0]]) for key in missing], settle))
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

    async def _ask_all(self, missing: list[tuple[str, Request]], settle: Callable[[EndpointReply], None]) -> None:
        from mmedexpert_jax.remote.connection import connect

        endpoint, queue = self.endpoint, deque(missing)
        self._gate = Gate(endpoint.concurrency, endpoint.requests_per_minute, endpoint.tokens_per_minute)
        spent = self.answers.spent()  # others on the same store may have spent since
        self._spent_before += spent - self._spent
        self._spent = spent
        self._ledger = Ledger(endpoint.budget, spent)
        try:
            async with connect(endpoint, self._key) as self._api, asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch())
                workers = [self._work(queue, settle) for _ in range(min(endpoint.concurrency, len(missing)))]
                await asyncio.gather(*workers)
                watch.cancel()
        finally:
            self.answers.release_all()
        if self._halt is not None:
            raise self._halt

    def _look(self) -> None:
        """Halts the run where a signal came: what is in flight is paid, and comes home."""
        if signum := self._interrupted():
            self._halt = self._halt or Interrupted("what was answered is stored; the same command resumes", signum)

    async def _watch(self) -> None:
        """Looks while all requests are in flight, too."""
        while self._halt is None:
            self._look()
            await asyncio.sleep(1.0)

    async def _work(self, queue: deque[tuple[str, Request]], settle: Callable[[EndpointReply], None]) -> None:
        """One of `concurrency` workers: takes request after request until there is none, or the run halts."""
        while queue:
            key, request = queue.popleft()
            self._look()
            if self._halt is not None:
                return
            if not self.answers.claim(key):  # another run on this store has answered it, or is asking for it now
                if stored := self.answers.get(key):
                    settle(stored)
                else:
                    if not self._other_run_said:
                        print(f"waits for answers that another run on {self.answers.path} is asking for", flush=True)
                    self._other_run_said = True
                    queue.append((key, request))
                    await asyncio.sleep(LOOK_AGAIN)
                continue
            reply = await self._ask_one(key, request)
            if reply is not None:
                if reply.error:  # an answer's claim went with its storing
                    self.answers.release(key)
                settle(reply)

    async def _ask_one(self, key: str, request: Request) -> EndpointReply | None:
        """The reply to a request that is ours to ask; None where the run halts first."""
        try:
            wire = messages.wire(request, self.endpoint)
        except DataError as error:
            return EndpointReply(key, error=f"{UNREADABLE}: {error}")
        body = {"model": self.endpoint.model, "messages": wire} | settings(self.endpoint, request.sample)
        tokens = messages.estimate_tokens(request) + self.endpoint.max_tokens
        return await self._until_answered(Ask(key, body, tokens, self.worst_cost(request)))

    async def _until_answered(self, ask: Ask) -> EndpointReply | None:
        """Tries up to `max_attempts` times; None where the run halts first."""
        outcome = Outcome("rejected")
        for number in range(self.endpoint.max_attempts):
            if self._halt is not None or not await self._reserve(ask):
                return None
            outcome, reply = await self._try(ask)
            if reply is not None:
                return reply
            if outcome.kind in outcomes.FATAL:
                parts = urlsplit(self.endpoint.url)
                root = outcome.status == 404 and not parts.path.strip("/")
                hint = f" (is the url {parts.scheme}://{parts.netloc}/v1?)" if root else ""
                self._stop(f"{self.endpoint.host} refuses: {outcome.detail}{hint}; fix it, the same command goes on")
                return None
            if outcome.kind not in outcomes.RETRIED:
                break
            if number + 1 < self.endpoint.max_attempts and not await self._wait(outcome, number):
                return None
        if outcome.kind in outcomes.RETRIED or outcome.status == 403 or not self._has_answered():
            self._fruitless += 1  # a refusal of one request says nothing of a server that has answered others
        if self._fruitless >= FRUITLESS:
            self._stop(
                f"{self.endpoint.host} gave no answer to {FRUITLESS} requests in a row, last {outcome.detail}; "
                "see that it is up and serves the model, then run the same command"
            )
        return EndpointReply(ask.key, error=f"{outcome.kind}: {outcome.detail}")

    async def _reserve(self, ask: Ask) -> bool:
        """Sets the worst cost of an attempt aside; False where the budget cannot bear it or the run has halted."""
        if not await self._ledger.reserve(ask.worst):
            self._stop(
                f"the budget of ${self.endpoint.budget:g} cannot bear another request (spent ${self._spent:.4f}); "
                "raise the budget and run the same command to go on"
            )
            return False
        if self._halt is not None:  # it came while this request waited for the budget
            await self._ledger.settle(ask.worst, 0.0)
            return False
        return True

    async def _try(self, ask: Ask) -> tuple[Outcome, EndpointReply | None]:
        """One attempt. Its answer and cost are in the store before anyone else sees them."""
        await self._gate.enter(ask.tokens)
        started, clock = time.time(), time.monotonic()
        left_out = tuple(sorted(self._dropped))
        outcome = await self._post({k: v for k, v in ask.body.items() if k not in self._dropped})
        if outcome.kind == "refused" and outcome.status == 403 and self._has_answered():
            outcome = replace(outcome, kind="rejected")  # the key is good: it is this prompt that is not wanted
        cost = outcome.cost(self.endpoint, ask.worst)
        attempt = outcome.attempt(ask.key, started, time.monotonic() - clock, cost, self.endpoint.host)
        reply = outcome.stored(ask.key, cost, left_out)
        self.answers.put([attempt], [reply] if reply else [])
        if reply:
            self._answered, self._fruitless = self._answered + 1, 0
        self._spent += cost
        used = attempt.usage.prompt + attempt.usage.completion
        await self._gate.leave(ask.tokens - used, well=reply is not None)
        await self._ledger.settle(ask.worst, cost)
        return outcome, reply

    async def _post(self, body: dict[str, Any]) -> Outcome:
        """The outcome of one POST; its status is 0 where no response came."""
        import openai

        try:
            async with asyncio.timeout(self.endpoint.timeout):
                raw = await self._send(body)
            response = raw.http_response
        except openai.APIStatusError as error:
            response = error.response
        except (TimeoutError, openai.APITimeoutError):
            return Outcome("timeout", f"no answer within {self.endpoint.timeout:g} s", billed=True)
        except openai.APIConnectionError as error:
            return _broken(error.__cause__ or error, self._key)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return replace(self._read(response.status_code, headers, response.content), status=response.status_code)

    async def _send(self, body: dict[str, Any]) -> Any:
        """The raw response to a body, with the older `max_tokens` where `max_completion_tokens` is not known."""
        if "max_completion_tokens" in self._dropped:
            body = body | {"max_tokens": self.endpoint.max_tokens}
        return await self._api.chat.completions.with_raw_response.create(**body)

    def _read(self, status: int, headers: dict[str, str], content: bytes) -> Outcome:
        return outcomes.classify(status, headers, content, self._key)

    async def _wait(self, outcome: Outcome, number: int) -> bool:
        """Waits before the next try; False where the server asks for more than PATIENCE."""
        if outcome.kind == "unsupported":
            self._dropped.add(outcome.drop)
            return True
        wait = outcome.wait
        if wait is not None and wait > PATIENCE:
            self._stop(f"{self.endpoint.host} asks to wait {wait:.0f} s ({outcome.detail}); run the same command then")
            return False
        if not wait:  # also of a date that has passed, where clocks differ
            wait = self._pause(number) * random.uniform(0.5, 1.0)
        if number == 1:  # many a failure is over with the first further try
            self._say_waits(outcome)
        if outcome.kind == "rate-limit" or outcome.wait is not None:
            self._gate.pause(wait)
        else:
            await asyncio.sleep(wait)
        return True

    def _pause(self, number: int) -> float:
        """Seconds before a further try at most, after so many, where the server names none."""
        return min(LONGEST_WAIT, self.endpoint.retry_wait * 2**number)

    def _say_waits(self, outcome: Outcome) -> None:
        """Says, once for all requests, that a server which does not answer is asked again, and how long that may be."""
        if self._waits_said:
            return
        self._waits_said = True
        tries = range(1, self.endpoint.max_attempts - 1)  # the first further try has failed, too
        detail = outcomes.masked(outcome.detail, self._key)[:120]
        lasts = "as it asks" if outcome.wait else f"over {sum(map(self._pause, tries)):.0f} s"
        print(
            f"{self.endpoint.host} has not answered yet ({outcome.kind}: {detail}); asking again, up to {len(tries)} "
            f"times {lasts}",
            file=sys.stderr,
            flush=True,
        )

    def _stop(self, message: str) -> None:
        self._halt = self._halt or RemoteError(outcomes.masked(message, self._key))

    def _has_answered(self) -> bool:
        return bool(self._answered or self._answered_before)


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


def _broken(error: BaseException, key: str) -> Outcome:
    """The outcome of a request that got no whole response."""
    import httpx2

    detail = outcomes.shown(f"{type(error).__name__}: {error}", key)
    if isinstance(error, httpx2.DecodingError):
        return Outcome("malformed", detail, billed=True)
    return Outcome("connection", detail, billed=not isinstance(error, httpx2.ConnectError))


def run_to_end(coroutine: Any) -> None:
    """Runs a coroutine to its end, in a thread of its own where this one has a loop (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _unwrapped(coroutine)
        return
    # not as a context, whose end waits for the thread: an interrupt of the notebook would wait for all answers
    ThreadPoolExecutor(1).submit(_unwrapped, coroutine).result()


def _unwrapped(coroutine: Any) -> None:
    """Runs a coroutine; of an exception group of its tasks the first exception is raised alone."""
    try:
        asyncio.run(coroutine)
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
