"""Numbers that the paper publishes (arXiv 2601.10949): Tables 1, 2, 4 and 5, in percent, as printed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedexpert_jax import border

SOURCE = "arXiv 2601.10949"


@dataclass(frozen=True)
class Column:
    """A column: its heading, the benchmark it is about, and the heading of the part of it ("" for the whole)."""

    heading: str
    benchmark: str
    part: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper."""

    number: int  # in the paper
    title: str  # what it is about
    columns: tuple[Column, ...]  # of figures
    # (name, size) -> a figure per column in percent, None where the paper has a dash
    rows: Mapping[tuple[str, str], tuple[float | None, ...]]
    note: str = ""  # what one must know to read it


def _table(fields: dict[str, Any]) -> PaperTable:
    """A table as published.yaml writes it."""
    columns = tuple(Column(heading, *place.split("/")) for heading, place in fields["columns"].items())
    rows = {}
    for line in fields["rows"].splitlines():
        name, size, *figures = line.split()
        rows[name, size] = tuple(None if figure == "-" else float(figure) for figure in figures)
    return PaperTable(**fields | {"columns": columns, "rows": rows})


TABLES = tuple(map(_table, border.read_yaml(Path(__file__).with_name("published.yaml"))))
MAIN, SKILLS, OMNIMEDVQA, GMAI = TABLES
