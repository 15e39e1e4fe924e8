"""Batches made ahead of their use, on the host while the device computes."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetched(Generic[T]):
    """`make(step)` for rising steps, `ahead` of them made in `threads` before they are asked for.

    The order is that of the steps, whatever the threads do, so that a run that resumes at any of them meets the same
    batches. An error is raised where its step is asked for. Decoding and resizing images leave Python to others.
    """

    def __init__(self, make: Callable[[int], T], stop: int, ahead: int = 2, threads: int = 1):
        self._make, self._stop, self._ahead = make, stop, ahead
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
        self._waiting: deque[tuple[int, Future[T]]] = deque()

    def __call__(self, step: int) -> T:
        """The item of `step`."""
        if self._waiting and self._waiting[0][0] != step:  # another run of steps, from here on
            self.close()
        first = self._waiting[-1][0] + 1 if self._waiting else step
        for number in range(first, min(step + self._ahead + 1, self._stop)):
            self._waiting.append((number, self._pool.submit(self._make, number)))
        return self._waiting.popleft()[1].result() if self._waiting else self._make(step)

    def close(self) -> None:
        """Drops what was made ahead."""
        while self._waiting:
            self._waiting.popleft()[1].cancel()

    def __iter__(self) -> Iterator[T]:
        """The items of all steps, from the first on."""
        return map(self, range(self._stop))
