"""Calls of users' functions: in parallel, each with a time limit, and again after a failure."""

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError, UserError

FIRST_WAIT = 0.5  # seconds before the second attempt; doubles from attempt to attempt
# Bugs, which another attempt would raise again.
FAULTS = (AttributeError, ImportError, NameError, SyntaxError, TypeError, ZeroDivisionError, NotImplementedError)


@dataclass(frozen=True)
class Call:
    """A call of a function without arguments."""

    function: Callable[[], Any]
    name: str  # for errors
    # False: it counts its own tries and seconds, as a judge of ours does, which another limit would only cut short
    limited: bool = True


def call_all(calls: Sequence[Call], timeout: float = 60.0, attempts: int = 3, workers: int = 16) -> list[Any]:
    """Results of `calls` in their order; what a call returns that can be awaited is awaited.

    An event loop of its own in a thread of its own runs them, since a notebook has one already. A call that does not
    end in time is left behind in a thread that does not keep the process alive.

    Args:
        calls: those that run beside each other.
        timeout: seconds of one attempt; 0: no limit.
        attempts: of one call.
        workers: limited calls in flight at most.

    Raises:
        ConfigError: a call failed `attempts` times; it names the call and the error.
        UserError: what a call raised of our own kinds, unchanged.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["results"] = asyncio.run(_all(calls, timeout, attempts, workers))
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    with border.same_folder():
        thread.start()
        thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["results"]


async def _all(calls: Sequence[Call], timeout: float, attempts: int, workers: int) -> list[Any]:
    gate = asyncio.Semaphore(workers)
    tasks = [
        asyncio.create_task(
            _tried(call, timeout, attempts, gate) if call.limited else _tried(call, 0, 1, contextlib.nullcontext())
        )
        for call in calls
    ]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _tried(call: Call, timeout: float, attempts: int, gate: contextlib.AbstractAsyncContextManager) -> Any:
    """The result of a call, after as many attempts as it takes."""
    async with gate:
        for attempt in range(1, attempts + 1):
            try:
                return await asyncio.wait_for(_in_thread(call.function), timeout or None)
            except UserError:
                raise
            except Exception as error:
                reason = border.message_of(error, 200)
                if reason == "TimeoutError":
                    reason = f"no answer within {timeout:g} s"
                if attempt == attempts or isinstance(error, FAULTS):
                    tries = f" {attempt} times" if attempt > 1 else ""
                    raise ConfigError(f"{call.name} failed{tries}: {reason}") from error
            await asyncio.sleep(FIRST_WAIT * 2 ** (attempt - 1))
    raise AssertionError("attempts are at least 1")


async def _in_thread(call: Callable[[], Any]) -> Any:
    """The result of a call in a daemon thread; awaits what it returns."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future = loop.create_future()

    def settle(method: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            method(value)

    def run() -> None:
        try:
            method, value = future.set_result, call()
        except BaseException as error:  # SystemExit of a user's function is a failure like any other
            kept = isinstance(error, Exception) and not isinstance(error, StopIteration)  # which no future takes
            fault = error if kept else RuntimeError(border.message_of(error, 200))
            method, value = future.set_exception, fault
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, method, value)

    threading.Thread(target=run, daemon=True).start()
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
