"""Charts of a page: lines over steps that can be hovered and zoomed, and figures with their intervals side by side.

uPlot (report/uplot, MIT, 51 KB) draws the lines; a page with charts inlines it once, and here stand the data.
Intervals are boxes that the page's style places, so that their texts keep their size on a phone. Both take the page's
colours, light or dark.
"""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape

from mmedexpert_jax.report.figure import Figure
from mmedexpert_jax.rounding import cdiv

MOST = 400  # points of a line; more cannot be told apart on a screen
Points = Sequence[tuple[float, float]]


def chart(
    title: str,
    unit: str,
    lines: Mapping[str, Points],
    note: str = "",
    dots: Sequence[str] = (),
    logarithmic: bool = False,
) -> str:
    """A <figure> with one line a label, of (step, value) points; empty where no line has a point.

    Args:
        title: over it, and the first words of its description.
        unit: of the values.
        lines: drawn in the order given, in the colours that the page's style calls --line-1, --line-2, ...
        note: under it: what good looks like.
        dots: labels whose points are shown, as they are few.
        logarithmic: the axis of the values.
    """
    lines = {label: _thinned(points) for label, points in lines.items() if points}
    if not lines:
        return ""
    steps = sorted({step for points in lines.values() for step, _ in points})
    values = [[dict(points).get(step) for step in steps] for points in lines.values()]
    said = "; ".join(f"{label} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for label, points in lines.items())
    data = {"unit": unit, "log": logarithmic, "x": steps, "values": values}
    data["lines"] = [{"label": label, "dots": label in dots or len(points) == 1} for label, points in lines.items()]
    content = json.dumps(data, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b></figcaption>'
        f'<div class="plot" role="img" aria-label="{escape(f"{title}: {said}")}"></div>'
        f'<script type="application/json">{content}</script><p class="note">{escape(note)}</p></figure>'
    )


def _thinned(points: Points) -> list[tuple[float, float]]:
    """At most MOST points or one more at even distances, the first and the last among them."""
    stride = cdiv(len(points), MOST)
    return [*points[:-1:stride], points[-1]]


def intervals(title: str, rows: Mapping[str, Figure], note: str = "") -> str:
    """A <figure> with a point and the first interval of each row over one scale, which holds 0 for differences; empty
    where no row has a finite value.

    Args:
        title: over it with the unit, and the first words of its description.
        rows: figures of one unit by what they belong to.
        note: under it.
    """
    rows = {name: figure for name, figure in rows.items() if math.isfinite(figure.value)}
    if not rows:
        return ""
    marks = [figure.factor * x for figure in rows.values() for x in (figure.value, *figure.ends)]
    marks += [0.0] if any(figure.signed for figure in rows.values()) else []
    low, high = min(marks), max(marks)
    margin = 0.1 * (high - low) or 1.0  # so that no point lies on the edge

    def at(value: float) -> float:
        return 100 * (value - low + margin) / (high - low + 2 * margin)

    zero = f'<i class="zero" style="left:{at(0):.2f}%"></i>' if low <= 0 <= high else ""
    lines = []
    for name, figure in rows.items():
        ends = [at(figure.factor * end) for end in figure.ends]
        whisker = f'<i class="range" style="left:{ends[0]:.2f}%;width:{ends[1] - ends[0]:.2f}%"></i>' if ends else ""
        point = f'<i class="point" style="left:{at(figure.factor * figure.value):.2f}%"></i>'
        track = f'<span class="track">{zero}{whisker}{point}</span>'
        lines.append(f"<span>{escape(name)}</span>{track}<span>{escape(figure.short)}</span>")
    said = "; ".join(f"{name} {figure}" for name, figure in rows.items())
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b></figcaption>'
        f'<div class="intervals" role="img" aria-label="{escape(f"{title}: {said}")}">{"".join(lines)}</div>'
        f'<p class="note">{escape(note)}</p></figure>'
    )
