"""SIGINT, SIGTERM and SIGHUP as a flag that a loop reads between two steps, and an end to what takes longer."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from mmedexpert_jax.runtime import processes

GRACE = 8.0  # seconds from a signal to the end: clusters kill after 30, and a state has to be saved in between


def watched() -> tuple[signal.Signals, ...]:
    """The signals that end a run: of Ctrl-C, of a cluster or a kill, and of a terminal that closes unless `nohup` has
    it passed over."""
    hangup = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *[signal.SIGHUP] * hangup)


class Overdue(KeyboardInterrupt):
    """The end of the grace; no Exception, which those who bear with a bad row would swallow. The open run makes it an
    Interrupted."""


class Signals:
    """Counts the open runs of the process; the handlers stand while there is one, and the flag is common to all,
    so that a stage inside a pipeline and the pipeline itself both see it.

    The first signal sets the flag. Who has not come to look at it after GRACE seconds is interrupted where it is: all
    that is stored outlives a kill, and a trainer saves the state before the step. One of several processes waits for
    the others at the end of the step. A second SIGINT raises KeyboardInterrupt at once, a second SIGTERM kills,
    a second SIGHUP is passed over, since shell and terminal send one each. Under `nohup` none is heard.
    """

    def __init__(self) -> None:
        self._open = 0
        self._previous: dict[int, Any] = {}
        self._held = 0
        self.caught: int | None = None

    def heed(self) -> int | None:
        """The signal that came, on which the caller acts now; None: none came."""
        if self.caught:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return self.caught

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A context that is not interrupted, since it would leave less than nothing: an update in place, a save, paid
        requests in flight."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def install(self) -> None:
        """Takes the handlers over. Outside the main thread Python allows no handlers, and none are set."""
        self._open += 1
        if self._open > 1 or threading.current_thread() is not threading.main_thread():
            return
        self.caught = None
        for number in watched():
            self._previous[number] = signal.signal(number, self._handle)
        self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._overdue)

    def restore(self) -> None:
        """Gives the handlers back when the last open run closes."""
        self._open -= 1
        if self._open or threading.current_thread() is not threading.main_thread():
            return
        if self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        self.caught = None

    def _handle(self, number: int, frame: object) -> None:
        self.caught = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        name = signal.Signals(number).name
        text = f"\n{name}: saving what there is, then stopping; once more stops at once\n"
        with contextlib.suppress(OSError):  # who reads along may have gone, as `tee` does on the same Ctrl-C
            os.write(2, text.encode())  # a buffered stream must not be entered again from a handler
        if processes.count() == 1:
            signal.setitimer(signal.ITIMER_REAL, GRACE)

    def _overdue(self, number: int, frame: object) -> None:
        if self._held:
            signal.setitimer(signal.ITIMER_REAL, GRACE)
        elif self.caught:
            raise Overdue(self.caught)


SIGNALS = Signals()
