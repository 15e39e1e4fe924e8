"""Line charts as SVG: they follow the reader's colours, scale to a phone, and say each value under the pointer.

No library is inlined: plotly's smallest bundle is 1 MB a page, where the two curves of a report take some 20 KB.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 40  # room for axes, in the same units
MOST = 400  # points of a line; more cannot be told apart at this width


@dataclass(frozen=True)
class _Scale:
    """Data to pixels, both ways of the chart."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def chart(title: str, unit: str, lines: Mapping[str, Sequence[tuple[float, float]]], note: str = "") -> str:
    """A <figure> with one line a label, of (step, value) points; empty where no line has a point.

    Args:
        title: over it, and the first words of its description.
        unit: of the values.
        lines: drawn in the order given, in the colours that the page's style calls --line-1, --line-2, ...
        note: under it: what good looks like.
    """
    lines = {label: _thinned(points) for label, points in lines.items() if points}
    if not lines:
        return ""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    room = 0.08 * ((max(ys) - min(ys)) or abs(max(ys)) or 1)
    scale = _Scale((min(xs), max(xs)), (min(ys) - room, max(ys) + room))
    said = "; ".join(f"{label} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for label, points in lines.items())
    body = _axes(scale, unit) + "".join(
        _line(label, points, scale, number) for number, (label, points) in enumerate(lines.items(), 1)
    )
    legend = "".join(
        f'<span class="key line-{number}">{escape(label)} {points[-1][1]:.4g}</span>'
        for number, (label, points) in enumerate(lines.items(), 1)
    )
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b> {legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {said}")}">{body}</svg>'
        f'<p class="note">{escape(note)}</p></figure>'
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = -(-len(points) // MOST)
    return [*points[:-1:stride], points[-1]]


def _axes(scale: _Scale, unit: str) -> str:
    marks = []
    for part in (0.0, 0.5, 1.0):
        y = scale.y[0] + part * (scale.y[1] - scale.y[0])
        left, down = scale.at(scale.x[0], y)
        marks.append(f'<path class="grid" d="M{LEFT} {down:.1f}H{WIDTH - RIGHT}"/>')
        marks.append(f'<text x="{left - 6:.1f}" y="{down + 4:.1f}" text-anchor="end">{y:.3g}</text>')
        x = scale.x[0] + part * (scale.x[1] - scale.x[0])
        across, _ = scale.at(x, scale.y[0])
        anchor = {0.0: "start", 1.0: "end"}.get(part, "middle")
        marks.append(f'<text x="{across:.1f}" y="{HEIGHT - 20}" text-anchor="{anchor}">{x:.0f}</text>')
    label = (
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">step; vertical: {escape(unit or "value")}</text>'
    )
    return "".join(marks) + label


def _line(label: str, points: Sequence[tuple[float, float]], scale: _Scale, number: int) -> str:
    places = [scale.at(x, y) for x, y in points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    # each dot says its value under the pointer
    dots = "".join(
        f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{4 if len(points) < 12 else 2}">'
        f"<title>{escape(label)}, step {x:g}: {y:.4g}</title></circle>"
        for (px, py), (x, y) in zip(places, points, strict=True)
    )
    return f'<g class="line-{number}"><path d="{path}"/>{dots}</g>'
