"""Charts of a page: lines over steps that can be hovered and zoomed, and figures with their intervals side by side.

Lines are drawn by uPlot (report/uplot, MIT, 51 KB), which a page with charts inlines once; here stand the data.
Intervals are SVG. Both take the colours of the page, light or dark.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape

from mmedexpert_jax.report.figure import Figure

MOST = 400  # points of a line; more cannot be told apart on a screen
LEFT, WIDTH, ROW = 150, 640, 30  # of the intervals: columns of names, whole width, height of a row, in SVG's units
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
    stride = -(-len(points) // MOST)
    return [*points[:-1:stride], points[-1]]


def intervals(title: str, unit: str, rows: Mapping[str, Figure], note: str = "") -> str:
    """A <figure> with a point and its first interval for each row, over one axis; a line at 0 for differences."""
    if not rows:
        return ""
    ends = [f.factor * x for f in rows.values() for x in (f.value, f.low, f.high) if x is not None]
    ends += [0.0] if any(figure.signed for figure in rows.values()) else []
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0

    def at(value: float) -> float:
        return LEFT + 20 + (value - low) / span * (WIDTH - LEFT - 40)

    height = ROW * len(rows) + 24
    marks = (
        [f'<line class="grid" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="0" y2="{height - 20}"/>']
        if low <= 0 <= high
        else []
    )
    marks += [
        f'<text x="{at(value):.1f}" y="{height - 4}" text-anchor="middle">{value:.1f}</text>' for value in {low, high}
    ]
    for number, (name, figure) in enumerate(rows.items()):
        y, x = ROW * number + ROW / 2, at(figure.factor * figure.value)
        ends = [at(figure.factor * end) for end in (figure.low, figure.high) if end is not None]
        whisker = f'<path d="M{ends[0]:.1f},{y}H{ends[1]:.1f}"/>' if len(ends) == 2 else ""
        short = name if len(name) <= 20 else f"{name[:19]}…"
        marks.append(
            f'<text x="{LEFT}" y="{y + 4}" text-anchor="end">{escape(short)}</text><g class="line-1">'
            f'<title>{escape(f"{name}: {figure}")}</title>{whisker}<circle cx="{x:.1f}" cy="{y}" r="5"/></g>'
        )
    said = escape("; ".join([title, *(f"{name} {figure}" for name, figure in rows.items())]))
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>, {escape(unit)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{said}">{"".join(marks)}</svg>'
        f'<p class="note">{escape(note)}</p></figure>'
    )
