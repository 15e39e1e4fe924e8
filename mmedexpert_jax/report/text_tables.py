"""Rows of named cells as Markdown, or aligned for a terminal."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

_NAMED = re.compile(r" *\S+(?: \S+)* {2,}(?=\S)")


def column_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of all rows in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def markdown(rows: Sequence[Mapping[str, Any]], decimals: int | None = None) -> str:
    """A Markdown table with `column_names`; empty for no rows, an empty cell where a row lacks a column.

    Args:
        rows: texts and numbers.
        decimals: of floats; None: as many as they have.
    """
    heads = column_names(rows)
    lines = [heads, ["---"] * len(heads), *([row.get(head, "") for head in heads] for row in rows)]
    return "".join("| " + " | ".join(_cell(value, decimals) for value in line) + " |\n" for line in lines if rows)


def folded(text: str, width: int) -> str:
    """A text for a terminal of that width. A longer line goes on below: behind the gap of two spaces or more that ends
    its name, if that lies in the left half, else two columns to the right of where it begins. A command behind "next:"
    and a word are whole, since half of one may be copied."""
    lines = []
    for line in text.split("\n"):
        if line.startswith("next: "):
            lines.append(line)
            continue
        named = _NAMED.match(line)
        column = named.end() if named else width
        inset = column if 2 * column <= width else len(line) - len(line.lstrip()) + 2
        whole: Any = {"break_on_hyphens": False, "break_long_words": False}
        lines += textwrap.wrap(line, width, subsequent_indent=" " * inset, **whole) or [""]
    return "\n".join(lines)


def _cell(value: Any, decimals: int | None) -> str:
    text = str(value) if decimals is None or not isinstance(value, float) else f"{value:.{decimals}f}"
    return " ".join(text.replace("|", "\\|").split("\n"))


def aligned(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in columns for a terminal: two spaces apart, no lines drawn."""
    heads = column_names(rows)
    table = [heads, *([_cell(row.get(head, ""), None) for head in heads] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )
