"""merge_report.html: where the experts fight, as heat maps over layers and modules in one file without scripts."""

import html
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mmedexpert_jax.lora import TOWERS
from mmedexpert_jax.merging.interference import Interference, kind, layer
from mmedexpert_jax.report import pages
from mmedexpert_jax.runtime import files

_CELL, _LEFT, _TOP = 16, 150, 16  # pixels
_MAPS = (
    ("conflict", "Sign conflict", "Of the entries that an expert keeps, the share that two keep with opposite signs."),
    ("shared", "Wanted by two or more", "Of the entries that an expert keeps, the share that two or more keep."),
    ("cancellation", "Cancellation", "1 - |sum| / sum of | | over what is kept: what plain addition would lose."),
    (
        "rounding_error",
        "Lost in rounding",
        "Relative error of the merged update as it stands in the output's dtype: what bf16 takes away.",
    ),
)


def write_page(path: str | Path, report: Interference, facts: Mapping[str, Any]) -> Path:
    """Writes the page, whole; nothing in it reaches outside the file.

    Args:
        path: of the file.
        report: of the merge.
        facts: names and values at the top: method, switches, experts.
    """
    files.write_text(path, page(report, facts))
    return Path(path)


def page(report: Interference, facts: Mapping[str, Any]) -> str:
    """The HTML."""
    grid = Grid(report)
    lines = "".join(f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in facts.items())
    parts = [f"<p class=lead>{_text(report.sentence())}</p>"] if report.sentence() else []
    if elections := report.election_rows():
        won = {name: grid.values("won", name) for name in report.experts}
        note = "Of the entries where another expert keeps the opposite sign, the share that goes this expert's way."
        parts.append(f"<h2>Who won where two disagreed</h2><p>{note} {_scale(0, 1)}</p>{grid.many(won, 0, 1)}")
        parts.append(_table(elections))
    parts += [f"<table>{lines}</table>", "<h2>All tensors</h2>", _table(report.cosine_rows())]
    parts += ["<h2>By kind of module</h2>", _table(report.kind_rows())]
    for key, title, note in _MAPS:
        top = max(np.nanmax(grid.values(key), initial=0.0), 1e-9)
        parts.append(f"<h2>{title}</h2><p>{note} {_scale(0, top)}</p>{grid.svg(grid.values(key), 0, top)}")
    kept = {name: grid.values("kept_mass", name) for name in report.experts}
    note = "Share of the sum of magnitudes of each expert's task vector that the trim keeps."
    parts.append(f"<h2>Mass kept, by expert</h2><p>{note} {_scale(0, 1)}</p>{grid.many(kept, 0, 1)}")
    cosines = {
        f"{first} · {second}": grid.values("cosine", (i, j))
        for (i, first), (j, second) in combinations(enumerate(report.experts), 2)
    }
    if cosines:
        note = "Between task vectors, before the trim. Red: they point apart, blue: the same way."
        parts.append(f"<h2>Cosine, by pair</h2><p>{note} {_scale(-1, 1)}</p>{grid.many(cosines, -1, 1)}")
    body = Markup("".join(parts))
    return pages.render("merging/merge_page.html", title="Merge report", width=grid.width + 10, body=body)


class Grid:
    """Tensors laid out as module kinds x layers; tensors outside the layers stand in a first column."""

    def __init__(self, report: Interference):
        layers = [number for number in map(layer, report.sums) if number is not None]
        self.kinds = report.kinds()
        self.columns: list[int | None] = [None] if len(layers) < len(report.sums) else []
        self.columns += list(range(max(layers, default=-1) + 1))
        self.width = _LEFT + _CELL * len(self.columns) + 4
        self._rates = {name: report.tensor_rates(name) for name in report.sums}

    def values(self, key: str, item: Any = None) -> np.ndarray:
        """One rate [kinds, columns]; NaN where there is no such tensor."""
        grid = np.full((len(self.kinds), len(self.columns)), np.nan)
        for name, rates in self._rates.items():
            value = rates[key]
            if isinstance(item, tuple):
                value = value[item[0]][item[1]]
            elif item is not None:
                value = value[item]
            grid[self.kinds.index(kind(name)), self.columns.index(layer(name))] = value
        return grid

    def many(self, grids: Mapping[str, np.ndarray], low: float, high: float) -> str:
        """Small maps side by side."""
        maps = "".join(f"<div><h3>{_text(t)}</h3>{self.svg(g, low, high)}</div>" for t, g in grids.items())
        return f'<div class="maps">{maps}</div>'

    def svg(self, grid: np.ndarray, low: float, high: float) -> str:
        """One map; every cell tells its tensor and value when pointed at."""
        height = _TOP + _CELL * len(self.kinds) + 2
        parts = []
        for column, number in enumerate(self.columns):
            if number is None or number % 4 == 0:
                label = "–" if number is None else number
                parts.append(f'<text x="{_LEFT + _CELL * column + 3}" y="11">{label}</text>')
        for row, name in enumerate(self.kinds):
            y = _TOP + _CELL * row
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 12}" text-anchor="end">{_text(_short(name))}</text>')
            for column, number in enumerate(self.columns):
                value = grid[row, column]
                if np.isnan(value):
                    continue
                title = _text(f"{name.replace('*', str(number), 1)}: {value:.4f}")
                parts.append(
                    f'<rect x="{_LEFT + _CELL * column}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}" '
                    f'fill="{_colour(value, low, high)}"><title>{title}</title></rect>'
                )
        size = f'width="{self.width}" height="{height}" viewBox="0 0 {self.width} {height}"'
        name = f"map of module kinds by layers, from {low:.3g} to {high:.3g}"
        return pages.scrolled(f'<svg {size} role="img" aria-label="{name}">{"".join(parts)}</svg>', "map")


def _colour(value: float, low: float, high: float) -> str:
    """White to blue from 0 up, white to red from 0 down."""
    share = float(np.clip(value / (high if value >= 0 else -low or 1), 0, 1))
    end = (8, 69, 148) if value >= 0 else (165, 15, 21)
    return "#" + "".join(f"{round(255 + (tone - 255) * (0.06 + 0.94 * share)):02x}" for tone in end)


def _scale(low: float, high: float) -> str:
    stops = ",".join(_colour(low + (high - low) * step / 8, low, high) for step in range(9))
    bar = f'<span class="bar" style="background:linear-gradient(90deg,{stops})"></span>'
    return f'<span class="scale">{low:.3g}{bar}{high:.3g}</span>'


def _short(name: str) -> str:
    """The end of a kind's name that tells it apart: "mlp.up_proj.weight" without what all of them have."""
    parts = name.removesuffix(".weight").split(".")
    tail = parts[parts.index("*") + 1 :] if "*" in parts else parts
    return ("vis " if name.startswith(TOWERS) else "") + ".".join(tail[-2:])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{_text(key)}</th>" for key in rows[0])
    body = "".join(
        "<tr>"
        + "".join(f'<td class="n">{v:.4f}</td>' if isinstance(v, float) else f"<td>{_text(v)}</td>" for v in r.values())
        + "</tr>"
        for r in rows
    )
    return pages.scrolled(f"<table><tr>{head}</tr>{body}</table>")


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
