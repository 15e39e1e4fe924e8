"""Progress that people can read: live lines at the foot of a terminal, a plain line now and then elsewhere.

Displays nest, as an evaluation stands inside a training: each that is open has a line, the innermost last, and what is
printed meanwhile goes above them. All of it goes to stderr, so that stdout stays free for results.
"""

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, TextIO

from mmedexpert_jax import border

BAR = 12  # columns of the bar
LABEL = 24  # columns that a label may take
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


class Compiling:
    """The compilations of JAX in this process: seconds so far, and since when a program is being compiled.

    XLA tells nothing while it works, so that a line can show its time but no share of it.
    """

    BEGINS, ENDS = "/jax/compilation_cache/compile_requests_use_cache", "/jax/core/compile/backend_compile_duration"

    def __init__(self) -> None:
        self.seconds, self.since, self._listens = 0.0, 0.0, False

    def listen(self) -> None:
        """Hears of every compilation from now on; nothing where JAX is not in use."""
        if self._listens or "jax" not in sys.modules:
            return
        self._listens = True
        from jax import monitoring

        monitoring.register_event_listener(self._begin)
        monitoring.register_event_duration_secs_listener(self._end)

    def _begin(self, event: str, **_: Any) -> None:
        if event == self.BEGINS:
            self.since = time.monotonic()

    def _end(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == self.ENDS:
            self.seconds, self.since = self.seconds + duration_secs, 0.0

    def now(self) -> float:
        """Seconds so far, those of a program that is being compiled included."""
        return self.seconds + (time.monotonic() - self.since if self.since else 0.0)


COMPILING = Compiling()


class Screen:
    """The live lines of one terminal."""

    def __init__(self) -> None:
        self.open: list[Progress] = []
        self._live: Any = None

    def add(self, progress: "Progress") -> None:
        """Shows another line, below the others."""
        self.open.append(progress)
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=progress.stream, highlight=False)
            # rich would send what is printed to stdout to this stream: right where both are this terminal, else a loss
            prints = sys.stdout.isatty()
            self._live = Live(
                console=console, get_renderable=self._lines, redirect_stdout=prints, redirect_stderr=prints
            )
            self._live.start()
        self._live.refresh()

    def remove(self, progress: "Progress") -> None:
        """Takes a line away; the outermost one stays as it was last."""
        if self._live is None or progress not in self.open:
            return
        if progress is self.open[0]:
            self._live.stop()
            self._live = None
            self.open.clear()
            return
        self.open.remove(progress)
        self._live.refresh()
        self._live.console.print(progress.said(), markup=False, no_wrap=True, overflow="crop")

    def refresh(self) -> None:
        """Draws the lines anew."""
        if self._live is not None:
            self._live.refresh()

    def _lines(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        width = self._live.console.width if self._live else 80
        drawn = []
        for progress in list(self.open):
            head, bar, tail = progress.line(width)
            drawn.append(Text.assemble((head, "bold"), (bar, "cyan"), tail, no_wrap=True, overflow="crop"))
        return Group(*drawn)


SCREEN = Screen()


class Progress:
    """A display of `total` steps, of which `start` are done; a context manager with `update(step, metrics)`.

    A `total` of 0 has no bar: a line with what is done and for how long. A reader that goes away does not stop the run.
    """

    def __init__(self, total: int, start: int, label: str, stream: TextIO | None = None):
        self.total, self.start, self.label = total, start, border.cut(label, LABEL if total else 60)
        self.stream = stream or sys.stderr
        self.step, self.phase = float(start), ""
        self._shown = ""
        self._begun = self._phase_begun = time.monotonic()
        self._compiled = 0.0  # seconds that compilers had taken when the clock of the ETA started
        self._first: tuple[float, float] | None = None  # (step, moment) of the first update
        self._live = False

    def __enter__(self) -> "Progress":
        """Starts the clock and the line."""
        COMPILING.listen()
        self._begun = self._phase_begun = time.monotonic()
        self._compiled = COMPILING.now()
        if self.start and self.total:
            self._print(f"{self.label}: resuming at step {self.start}/{self.total}")
        self._live = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        if self._live:
            SCREEN.add(self)
        return self

    def update(self, step: float, metrics: Mapping[str, Any] | None = None) -> None:
        """Says that `step` steps are done, with the newest metrics."""
        if self._first is None:
            self._first, self._compiled = (step, time.monotonic()), COMPILING.now()
        self.step, self._shown = step, describe(metrics or {})
        every = max(1, self.total // LINES)
        if self._live:
            SCREEN.refresh()
        elif step % every == 0 or step == self.start + 1 or step == self.total:
            self._print(
                "  ".join(filter(None, (f"{self.label} {step}/{self.total}", self._shown, f"ETA {self.eta(step)}")))
            )

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Shows what goes on within the block, with its time, in the place of the metrics."""
        before, self.phase, self._phase_begun = self.phase, what, time.monotonic()
        if not self._live:
            self._print(f"{self.label}: {what}")
        try:
            yield
        finally:
            self.phase = before

    def eta(self, step: float) -> str:
        """Time left as h:mm:ss, at the mean rate since the first step ended, compilations left out; "?" before."""
        begun, since = self._first if self._first and step > self._first[0] else (float(self.start), self._begun)
        if step <= begun:
            return "?"
        spent = max(0.0, time.monotonic() - since - (COMPILING.now() - self._compiled))
        return clock(spent / (step - begun) * (self.total - step))

    def line(self, width: int) -> tuple[str, str, str]:
        """Label, bar, and the rest that a terminal of that width has room for: counts and times whole, then metrics."""
        elapsed = time.monotonic() - self._begun
        if not self.total:
            return f"{self.label} ", "", clock(elapsed)
        counts = f" {f'{self.step:g}':>{len(str(self.total))}}/{self.total} {clock(elapsed)}"
        if self.step > self.start:
            counts += f" ETA {self.eta(self.step)}"
        shown = self.phase and f"{self.phase} {clock(time.monotonic() - self._phase_begun)}"
        innermost = SCREEN.open[-1:] in ([], [self])
        if COMPILING.since and innermost:
            shown = f"compiling {clock(time.monotonic() - COMPILING.since)}"
        elif not shown:
            waits = innermost and self.step == self.start
            shown = self._shown or ("waiting for the first" if waits else "")
        free = width - len(self.label) - 1 - BAR - len(counts) - 2
        parts: list[str] = []
        for part in shown.split("  "):
            if len("  ".join([*parts, part])) > free:
                break
            parts.append(part)
        return f"{self.label} ", self._drawn(), f"{counts}  {'  '.join(parts)}".rstrip()

    def said(self) -> str:
        """The line that stays of a display that stood inside another."""
        count = f": {self.step:g}/{self.total}" if self.total else ""
        return f"{self.label}{count} in {clock(time.monotonic() - self._begun)}"

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            SCREEN.remove(self)

    def _print(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the reader has gone
            print(line, file=self.stream, flush=True)

    def _drawn(self) -> str:
        """The bar as text, so that it can be read without colours too."""
        full, empty = "━─" if "utf" in (getattr(self.stream, "encoding", None) or "utf-8").lower() else "#-"
        done = round(BAR * min(1.0, self.step / max(1, self.total)))
        return full * done + empty * (BAR - done)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Shows what goes on within the block, such as "loading mini", in the innermost display or alone."""
    if SCREEN.open:
        with SCREEN.open[-1].doing(what):
            yield
        return
    with Progress(0, 0, what) as alone:
        alone._print(f"{what} ...") if not alone._live else None
        yield


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def describe(metrics: Mapping[str, Any]) -> str:
    """The metrics worth a glance, such as "reward 0.512  KL 0.0013  length 84"."""
    parts: dict[str, str] = {}
    for name, label, form in SHOWN:
        if metrics.get(name) is not None and not math.isnan(metrics[name]):  # NaN is the mean of nothing
            parts.setdefault(label, f"{label} {float(metrics[name]):{form}}")
    return "  ".join(parts.values())
