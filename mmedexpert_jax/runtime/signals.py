"""SIGINT and SIGTERM as a flag that a loop reads between two steps."""

import os
import signal
import threading
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Counts the open runs of the process; the handlers stand while there is one, and the flag is common to all,
    so that a stage inside a pipeline and the pipeline itself both see it.

    The first signal sets the flag. A second SIGINT raises KeyboardInterrupt at once, a second SIGTERM kills.
    """

    def __init__(self) -> None:
        self._open = 0
        self._previous: dict[int, Any] = {}
        self.caught: int | None = None

    def install(self) -> None:
        """Takes the handlers over. Outside the main thread Python allows no handlers, and none are set."""
        self._open += 1
        if self._open > 1 or threading.current_thread() is not threading.main_thread():
            return
        self.caught = None
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Gives the handlers back when the last open run closes."""
        self._open -= 1
        if self._open or threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        self.caught = None

    def _handle(self, number: int, frame: object) -> None:
        self.caught = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        name = signal.Signals(number).name
        text = f"\n{name}: saving a checkpoint at the end of this step, then stopping; once more stops at once\n"
        os.write(2, text.encode())  # a buffered stream must not be entered again from a handler


SIGNALS = Signals()
