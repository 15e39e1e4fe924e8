"""Progress that people can read: a live bar on a terminal, a plain line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

LINES = 20  # plain lines in the course of a run, besides the first and the last step's
# (metric, label, format); the first metric of a label that is there is shown
SHOWN = (
    ("loss", "loss", ".3f"),
    ("reward", "reward", ".3f"),
    ("rewards/accuracy/mean", "accuracy", ".3f"),
    ("accuracy", "accuracy", ".3f"),
    ("kl", "KL", ".4f"),
    ("completions/mean_length", "length", ".0f"),
    ("tokens_per_second", "tokens/s", ".0f"),
    ("requests_per_second", "requests/s", ".1f"),
    ("dollars", "$", ".4f"),
    ("dollars_projected", "of about $", ".2f"),
)


class Progress:
    """A display of `total` steps, of which `start` are done; a context manager with `update(step, metrics)`.

    It goes to stderr, so that stdout stays free for results, and a reader that goes away does not stop the run.
    """

    def __init__(self, total: int, start: int, label: str, stream: TextIO | None = None):
        self.total, self.start, self.label = total, start, label
        self._stream = stream or sys.stderr
        self._begun = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        self._begun = time.monotonic()
        if self.start:
            self._print(f"{self.label}: resuming at step {self.start}/{self.total}")
        if self._stream.isatty():
            self._bar = self._make_bar()
            self._bar.start()
        return self

    def update(self, step: float, metrics: Mapping[str, Any] | None = None) -> None:
        """Says that `step` steps are done, with the newest metrics."""
        shown = describe(metrics or {})
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, shown=shown)
            return
        every = max(1, self.total // LINES)
        if step % every == 0 or step == self.start + 1 or step == self.total:
            self._print(f"{self.label} {step}/{self.total}  {shown}  ETA {self.eta(step)}")

    def eta(self, step: float) -> str:
        """Time left at the mean rate so far, as h:mm:ss; the first step, which compiles, counts as any other."""
        done = step - self.start
        if done <= 0:
            return "?"
        left = int((time.monotonic() - self._begun) / done * (self.total - step))
        return f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _print(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the reader has gone
            print(line, file=self._stream, flush=True)

    def _make_bar(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        bar = Bar(*columns, console=Console(file=self._stream))
        bar.add_task(self.label, total=self.total, completed=self.start, shown="")
        return bar


def describe(metrics: Mapping[str, Any]) -> str:
    """The metrics worth a glance, such as "reward 0.512  KL 0.0013  length 84"."""
    parts: dict[str, str] = {}
    for name, label, form in SHOWN:
        if metrics.get(name) is not None:
            parts.setdefault(label, f"{label} {float(metrics[name]):{form}}")
    return "  ".join(parts.values())
