"""What stands in a cell of a table: a text, a list, a yes or no; of a CSV or a typed value alike."""

import json
from typing import Any


def text(value: Any) -> str:
    """The value as text without white space around it; "" for None."""
    return "" if value is None else str(value).strip()


def items(cell: str) -> Any:
    """A list or object that is written out: as JSON, or as texts with semicolons between. Raises ValueError."""
    if cell.lstrip().startswith(("[", "{")):
        return json.loads(cell)
    return [part.strip() for part in cell.split(";") if part.strip()]


def flag(value: Any) -> bool | None:
    """A yes or no, also as a spreadsheet writes it; None for an empty cell, and no for any other word."""
    return None if text(value) == "" else text(value).lower() in ("true", "yes", "y", "1")
