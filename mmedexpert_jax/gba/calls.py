"""Calls of users' functions: in parallel, each with a time limit, and again after a failure."""

import asyncio
import contextlib
import functools
import inspect
import queue
import re
import threading
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError, UserError

FIRST_WAIT = 0.5  # seconds before the second attempt; doubles from attempt to attempt
# Bugs, which another attempt would raise again.
FAULTS = (AttributeError, ImportError, NameError, SyntaxError, TypeError, ZeroDivisionError, NotImplementedError)
GRACE = 1.0  # seconds in which a loop that only waited for the processor shows that it runs
_THREAD = threading.local()
THREADED = "; rewards.workers=1 and rewards.timeout=0 call it in the main thread (not under rollout_ahead)"


@dataclass(frozen=True)
class Call:
    """A call of a function without arguments."""

    function: Callable[[], Any]
    name: str  # for errors
    # False: it counts its own tries and seconds, as a judge of ours does, which another limit would only cut short
    limited: bool = True


def call_all(calls: Sequence[Call], timeout: float = 60.0, attempts: int = 3, workers: int = 16) -> list[Any]:
    """Results of `calls` in their order; what a call returns that can be awaited is awaited.

    One event loop of the process runs them, since what a client or a semaphore of theirs holds belongs to a loop. A
    call that does not end in time is left behind in a thread that does not keep the process alive.

    Args:
        calls: those that run beside each other.
        timeout: seconds of one attempt; 0: no limit.
        attempts: of one call.
        workers: limited calls in flight at most; 1, with a `timeout` of 0: they are called in the caller's thread.

    Raises:
        ConfigError: a call failed `attempts` times, or is a coroutine that blocks; it names the call and the error.
        UserError: what a call raised of our own kinds, unchanged.
    """
    here: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()  # what runs in this thread; None: all ran
    start = _begin if timeout or workers > 1 else here.put
    # a coroutine of theirs that calls holds its loop until this returns
    loop = _new_loop() if getattr(_THREAD, "runs_a_loop", False) else _loop()
    with border.same_folder():
        future = asyncio.run_coroutine_threadsafe(_all(calls, timeout, attempts, workers, start), loop)
        future.add_done_callback(lambda _: here.put(None))
        try:
            while (run := _next(here, loop, timeout, {call.name for call in calls})) is not None:
                run()
        finally:
            future.cancel()  # where this thread is interrupted; of what has ended nothing is left to cancel
    return future.result()


def _next(
    here: queue.SimpleQueue, loop: asyncio.AbstractEventLoop, timeout: float, names: Container[str]
) -> Callable[[], None] | None:
    """The next item of `here`. Raises ConfigError where one coroutine holds the loop, and with it every limit of
    time, for longer than `timeout`."""
    while True:
        beat, task = threading.Event(), asyncio.current_task(loop)
        loop.call_soon_threadsafe(beat.set)
        try:
            return here.get(timeout=min(timeout, threading.TIMEOUT_MAX) or None)
        except queue.Empty:
            if beat.wait(GRACE) or asyncio.current_task(loop) is not task:
                continue
            name = task.get_name() if task is not None and task.get_name() in names else "a task of an own function"
            _loop.cache_clear()  # in a notebook, another call has a loop that runs
            raise ConfigError(
                f"{name} blocks the event loop of all coroutines for {timeout:g} s: await asyncio.to_thread(...) in "
                "it, or make it a plain function"
            ) from None


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of users' functions."""
    return _new_loop()


def _new_loop() -> asyncio.AbstractEventLoop:
    """An event loop that runs in a daemon thread."""
    loop = asyncio.new_event_loop()

    def run() -> None:
        _THREAD.runs_a_loop = True
        while True:
            with contextlib.suppress(BaseException):  # SystemExit of a task that a user's function began
                loop.run_forever()

    _begin(run)
    return loop


def _begin(run: Callable[[], None]) -> None:
    threading.Thread(target=run, daemon=True).start()


async def _all(
    calls: Sequence[Call], timeout: float, attempts: int, workers: int, start: Callable[[Callable[[], None]], None]
) -> list[Any]:
    gate = asyncio.Semaphore(workers)
    tasks = [
        asyncio.create_task(
            _tried(call, timeout, attempts, gate, start)
            if call.limited
            else _tried(call, 0, 1, contextlib.nullcontext(), _begin),
            name=call.name,
        )
        for call in calls
    ]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _tried(
    call: Call,
    timeout: float,
    attempts: int,
    gate: contextlib.AbstractAsyncContextManager,
    start: Callable[[Callable[[], None]], None],
) -> Any:
    """The result of a call, after as many attempts as it takes."""
    async with gate:
        for attempt in range(1, attempts + 1):
            try:
                async with asyncio.timeout(timeout or None):  # in this task, which has the call's name
                    return await _in_thread(call.function, start)
            except UserError:
                raise
            except Exception as error:
                reason = border.message_of(error, 200)
                if reason == "TimeoutError":
                    reason = f"no answer within {timeout:g} s"
                if attempt == attempts or isinstance(error, FAULTS):
                    tries = f" {attempt} times" if attempt > 1 else ""
                    fix = THREADED if re.search(r"main thread|threaded|same thread", reason) else ""
                    raise ConfigError(f"{call.name} failed{tries}: {reason}{fix}") from error
            await asyncio.sleep(FIRST_WAIT * 2 ** (attempt - 1))
    raise AssertionError("attempts are at least 1")


async def _in_thread(call: Callable[[], Any], start: Callable[[Callable[[], None]], None]) -> Any:
    """The result of a call in the thread in which `start` runs it; awaits what it returns."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future = loop.create_future()

    def settle(method: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            method(value)

    def run() -> None:
        try:
            method, value = future.set_result, call()
        except BaseException as error:  # SystemExit of a user's function is a failure like any other
            if isinstance(error, KeyboardInterrupt) and start is not _begin:  # of the run, not of the function
                raise
            kept = isinstance(error, Exception) and not isinstance(error, StopIteration)  # which no future takes
            fault = error if kept else RuntimeError(border.message_of(error, 200))
            method, value = future.set_exception, fault
        loop.call_soon_threadsafe(settle, method, value)

    start(run)
    value = await future
    return await _awaited(value) if inspect.isawaitable(value) else value


async def _awaited(value: Any) -> Any:
    """The result of what a function returned, whose SystemExit and the like would end the loop and the job with it."""
    try:
        return await value
    except Exception:
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # by us: its time is up, or another call has failed
            raise
        raise RuntimeError(border.message_of(error, 200)) from error
