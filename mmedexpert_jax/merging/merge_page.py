"""merge_report.html: where the experts fight, as heat maps over layers and modules in one file without scripts."""

from collections.abc import Mapping
from functools import reduce
from itertools import combinations
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np

from mmedexpert_jax.lora import TOWERS
from mmedexpert_jax.merging.interference import Interference, layer, part_of
from mmedexpert_jax.report import pages
from mmedexpert_jax.runtime import files

CELL, LEFT, TOP = 16, 150, 16  # pixels
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
_WON = "Of the weights that another expert would move the other way, the share that goes this expert's way, by layer."
_KEPT = "Share of the sum of magnitudes of each expert's task vector that the trim keeps."
_COSINES = "Between task vectors, before the trim. Red: they point apart, blue: the same way."
_ENERGY = "Share of the merged update's squared norm that the adapter's rank leaves, tensor by tensor."


def write_page(path: str | Path, report: Interference, facts: Mapping[str, Any]) -> Path:
    """Writes the page, whole; nothing in it reaches outside the file.

    Args:
        facts: names and values at the top: method, switches, experts.
    """
    files.write_text(path, page(report, facts))
    return Path(path)


def page(report: Interference, facts: Mapping[str, Any]) -> str:
    """The HTML: a sentence, the elections, then the rest."""
    grid, names = Grid(report), report.experts
    elections = report.election_rows()
    won = grid.maps("Who won where two disagreed", _WON, 0, 1, {name: grid.values("won", name) for name in names})
    rest = [grid.maps(title, note, 0, None, {"": grid.values(key)}) for key, title, note in _MAPS]
    rest.append(
        grid.maps("Mass kept, by expert", _KEPT, 0, 1, {name: grid.values("kept_mass", name) for name in names})
    )
    pairs = list(combinations(range(len(names)), 2))
    if pairs:
        cosines = {f"{names[i]} · {names[j]}": grid.values("cosine", i, j) for i, j in pairs}
        rest.append(grid.maps("Cosine, by pair", _COSINES, -1, 1, cosines))
    if report.energy:
        rest.append(grid.maps("Energy kept at the rank", _ENERGY, 0, 1, {"": grid.values("energy")}))
    tables = {"All tensors": report.cosine_rows(), "By kind of module": report.kind_rows()}
    shown: dict[str, Any] = {"sentence": report.sentence(), "won": won if elections else None, "elections": elections}
    shown |= {"facts": facts, "tables": tables, "sections": rest, "width": grid.width + 10}
    return pages.render("merging/merge_page.html", title="Merge report", grid=grid, **shown)


class Grid:
    """Tensors laid out as module kinds x layers; tensors outside the layers stand in a first column."""

    def __init__(self, report: Interference):
        layers = [number for number in map(layer, report.sums) if number is not None]
        self.kinds = report.kinds()
        self.columns: list[int | None] = [None] if len(layers) < len(report.sums) else []
        self.columns += list(range(max(layers, default=-1) + 1))
        self.width, self.height = LEFT + CELL * len(self.columns) + 4, TOP + CELL * len(self.kinds) + 2
        self.rows = [(short(name), TOP + CELL * row + 12) for row, name in enumerate(self.kinds)]
        self.heads = [
            ("–" if number is None else str(number), LEFT + CELL * column + 3)
            for column, number in enumerate(self.columns)
            if number is None or number % 4 == 0
        ]
        self._rates = {name: report.tensor_rates(name) for name in report.sums}

    def values(self, *keys: Any) -> dict[str, float]:
        """One rate by tensor; where it holds rates by expert or pair, theirs."""
        first, *rest = keys
        measured = {name: rates[first] for name, rates in self._rates.items() if first in rates}
        return {name: reduce(getitem, rest, value) for name, value in measured.items()}

    def maps(
        self, title: str, note: str, low: float, high: float | None, values: Mapping[str, Mapping]
    ) -> dict[str, Any]:
        """Maps side by side under one scale; `high` None: their highest value."""
        if high is None:
            high = max([1e-9, *(value for one in values.values() for value in one.values())])
        stops = ",".join(colour(low + (high - low) * step / 8, low, high) for step in range(9))
        maps = {name: [self._cell(*item, low, high) for item in one.items()] for name, one in values.items()}
        return {"title": title, "note": note, "low": low, "high": high, "stops": stops, "maps": maps}

    def _cell(self, name: str, value: float, low: float, high: float) -> tuple[int, int, str, str]:
        """Place, colour and what is told when it is pointed at."""
        x, y = LEFT + CELL * self.columns.index(layer(name)), TOP + CELL * self.kinds.index(part_of(name))
        return x, y, colour(value, low, high), f"{name}: {value:.4f}"


def colour(value: float, low: float, high: float) -> str:
    """White to blue from 0 up, white to red from 0 down."""
    share = float(np.clip(value / (high if value >= 0 else -low or 1), 0, 1))
    end = (8, 69, 148) if value >= 0 else (165, 15, 21)
    return "#" + "".join(f"{round(255 + (tone - 255) * (0.06 + 0.94 * share)):02x}" for tone in end)


def short(name: str) -> str:
    """The end of a kind's name that tells it apart: "mlp.up_proj.weight" without what all of them have."""
    parts = name.removesuffix(".weight").split(".")
    tail = parts[parts.index("*") + 1 :] if "*" in parts else parts
    tail = tail or parts[:-1]  # a list of plain layers, such as the merger's
    return ("vis " if name.startswith(TOWERS) else "") + ".".join(tail[-2:])
