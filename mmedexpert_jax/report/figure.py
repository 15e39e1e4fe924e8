"""A number with its intervals, which stays one until a table, a page or a terminal prints it."""

import html
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A value and its 95 % intervals."""

    value: float  # in its unit, such as a share from 0 to 1
    # low, high: of the interval that is printed first, in brackets; None: there is none
    low: float | None = None
    high: float | None = None
    other: tuple[float, float] | None = None  # (low, high) of a second interval, in parentheses
    spread: float | None = None  # half of an interval over seeds, printed after the value; None: there is none
    factor: float = 1.0  # what value and intervals are multiplied by when printed: 100 for percent or points
    decimals: int = 1  # printed
    signed: bool = False  # a difference, printed with its sign
    paired: bool = False  # the difference of paired observations

    @classmethod
    def percent(cls, value: float, low: float | None = None, high: float | None = None, **more) -> "Figure":
        """A share in percent, or a difference of shares in points."""
        return cls(value, low, high, factor=100.0, **more)

    def number(self, value: float) -> str:
        """A number of this figure's unit as it is printed."""
        if not math.isfinite(value):
            return "–"
        sign = "+" if self.signed else ""
        text = f"{self.factor * value:{sign}.{self.decimals}f}"
        return text.replace("-", sign) if float(text) == 0 else text  # no "-0.0"

    @property
    def middle(self) -> str:
        """The value without its intervals, such as "57.3" or "57.3 ± 1.2"."""
        over_seeds = "" if self.spread is None else f" ± {self.factor * self.spread:.{self.decimals}f}"
        return self.number(self.value) + over_seeds

    def intervals(self) -> list[str]:
        """The intervals as they are printed, brackets first."""
        found = []
        if self.low is not None and self.high is not None:
            found.append(f"[{self.number(self.low)}, {self.number(self.high)}]")
        if self.other is not None:
            found.append(f"({self.number(self.other[0])}, {self.number(self.other[1])})")
        return found

    @property
    def ends(self) -> tuple[float, ...]:
        """Low and high of the first interval, brackets before parentheses; empty where there is none."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        return self.other or ()

    @property
    def settled(self) -> bool:
        """True for a difference whose first interval does not hold zero."""
        return bool(self.ends) and (self.ends[0] > 0 or self.ends[1] < 0)

    @property
    def short(self) -> str:
        """The value and its first interval, such as "57.3 [54.5, 60.0]"."""
        return " ".join([self.middle, *self.intervals()[:1]])

    def __str__(self) -> str:
        """Such as "57.3 [54.5, 60.0] (54.6, 60.1)"."""
        return " ".join([self.middle, *self.intervals()])

    def __html__(self) -> str:
        """The same for a page, intervals small and on lines of their own; jinja2 takes it as it is."""
        small = "".join(f"<small>{html.escape(interval)}</small>" for interval in self.intervals())
        return html.escape(self.middle) + small


def parts(value: Any) -> list[str]:
    """A cell of a table as texts: a figure and each of its intervals, or any other value as one."""
    return [value.middle, *value.intervals()] if isinstance(value, Figure) else [str(value)]
