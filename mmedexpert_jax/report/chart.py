"""Charts of a page: lines over steps that can be hovered and zoomed.

uPlot (report/uplot, MIT, 51 KB) draws them in the page's colours, light or dark; a page with charts inlines it once.
Here stand the data.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape

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
    stride = -(-len(points) // MOST)
    return [*points[:-1:stride], points[-1]]
