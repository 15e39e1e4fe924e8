"""Progress that people can read: a live bar on a terminal, a plain line now and then elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from mmedexpert_jax import border

BAR = 12  # columns of the bar
LINES = 20  # plain lines in the course of a run, besides the first and the last step's
# (metric, label, format); the first metric of a label that is there is shown
SHOWN = (
    ("loss", "loss", ".3f"),
    ("reward", "reward", ".3f"),
    ("rewards/accuracy/mean", "accuracy", ".3f"),
    ("accuracy", "accuracy", ".3f"),
    ("kl", "KL", ".4f"),
    ("completions/mean_length", "length", ".0f"),
    ("entropy", "entropy", ".2f"),
    ("frac_reward_zero_std", "no signal", ".0%"),
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
        self._first: tuple[float, float] | None = None  # (step, moment) of the first update
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        """Starts the clock and the bar."""
        self._begun = time.monotonic()
        if self.start:
            self._print(f"{self.label}: resuming at step {self.start}/{self.total}")
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = self._make_bar()
            self._bar.start()
        return self

    def update(self, step: float, metrics: Mapping[str, Any] | None = None) -> None:
        """Says that `step` steps are done, with the newest metrics."""
        self._first = self._first or (step, time.monotonic())
        shown = describe(metrics or {})
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0],
                completed=step,
                shown=self._fitted(shown),
                eta=f"ETA {self.eta(step)}",
                drawn=self._drawn(step),
            )
            return
        every = max(1, self.total // LINES)
        if step % every == 0 or step == self.start + 1 or step == self.total:
            self._print(f"{self.label} {step}/{self.total}  {shown}  ETA {self.eta(step)}")

    def eta(self, step: float) -> str:
        """Time left as h:mm:ss, at the mean rate since the first step ended, which compiled; at that one's before."""
        begun, since = float(self.start), self._begun
        if self._first and step > self._first[0]:
            begun, since = self._first
        if step <= begun:
            return "?"
        left = int((time.monotonic() - since) / (step - begun) * (self.total - step))
        return f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _print(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the reader has gone
            print(line, file=self._stream, flush=True)

    def _fitted(self, shown: str) -> str:
        """As many whole metrics as a line has room for behind label, bar, count and ETA, which are never cut."""
        room = (
            self._bar.console.width
            - len(self._label())
            - BAR
            - 2 * len(str(self.total))
            - len(" /  ETA 0:00:00 0:00:00  ")
        )
        parts: list[str] = []
        for part in shown.split("  "):
            if len("  ".join([*parts, part])) > room:
                break
            parts.append(part)
        return "  ".join(parts)

    def _drawn(self, step: float) -> str:
        """The bar as text, so that it can be read without colours too."""
        full, empty = "━─" if "utf" in (getattr(self._stream, "encoding", None) or "utf-8").lower() else "#-"
        done = round(BAR * min(1.0, step / max(1, self.total)))
        return full * done + empty * (BAR - done)

    def _label(self) -> str:
        return border.cut(self.label, 24)

    def _make_bar(self) -> Any:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        whole = Column(no_wrap=True)
        columns = (
            TextColumn("{task.description}", table_column=whole, markup=False),
            TextColumn("{task.fields[drawn]}", table_column=whole),
            MofNCompleteColumn(table_column=whole),
            TimeElapsedColumn(table_column=whole),
            TextColumn("{task.fields[eta]}", table_column=whole),
            TextColumn("{task.fields[shown]}", table_column=Column(no_wrap=True, overflow="crop"), markup=False),
        )
        bar = self._bar = Bar(*columns, console=Console(file=self._stream))
        begins = "compiling the first step" if "jax" in sys.modules else "waiting for the first"
        bar.add_task(
            self._label(),
            total=self.total,
            completed=self.start,
            shown=self._fitted(begins),
            eta="",
            drawn=self._drawn(0),
        )
        return bar


def describe(metrics: Mapping[str, Any]) -> str:
    """The metrics worth a glance, such as "reward 0.512  KL 0.0013  length 84"."""
    parts: dict[str, str] = {}
    for name, label, form in SHOWN:
        if metrics.get(name) is not None:
            parts.setdefault(label, f"{label} {float(metrics[name]):{form}}")
    return "  ".join(parts.values())
