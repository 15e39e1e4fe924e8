"""Tables of evaluations: rows of plain cells that go to Markdown, to a terminal, or into a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmedexpert_jax.medeval.evaluate import Evaluation, compare_evaluations

Rows = list[dict[str, str]]


def cell(accuracy: Mapping[str, float]) -> str:
    """An accuracy in percent with its interval: "57.3 [54.5, 60.0]"."""
    return f"{100 * accuracy['accuracy']:.1f} [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"


def models_table(summaries: Mapping[str, Mapping[str, Any]], group: str = "specialty") -> Rows:
    """One row per model: accuracy in all and by `group`, parse rate and mean length. Takes `Evaluation.summary()`s."""
    rows = []
    for name, summary in summaries.items():
        parts = {value: cell(accuracy) for value, accuracy in summary["by"][group].items()}
        rest = {"parsed": f"{100 * summary['parse_rate']:.1f}", "tokens": f"{summary['mean_length']:.0f}"}
        rows.append({"model": name, "accuracy": cell(summary)} | parts | rest)
    return rows


def breakdown_table(summaries: Mapping[str, Mapping[str, Any]], group: str) -> Rows:
    """One row per value of `group` (a task, say), one column per model."""
    values = dict.fromkeys(value for summary in summaries.values() for value in summary["by"][group])
    rows = []
    for value in values:
        found = {name: summary["by"][group].get(value) for name, summary in summaries.items()}
        items = max(accuracy["items"] for accuracy in found.values() if accuracy)
        cells = {name: cell(accuracy) if accuracy else "–" for name, accuracy in found.items()}
        rows.append({group: value, "items": str(items)} | cells)
    return rows


def comparison_table(evaluations: Mapping[str, Evaluation]) -> Rows:
    """Each model against the first, on the items of both: difference in points, interval, McNemar's p."""
    (first, reference), *others = evaluations.items()
    rows = []
    for name, evaluation in others:
        result = compare_evaluations([reference], [evaluation])
        points = f"{100 * result.difference:+.1f} [{100 * result.low:+.1f}, {100 * result.high:+.1f}]"
        p_value = "–" if result.p_value is None else f"{result.p_value:.3g}"
        rows.append({"model": name, f"gain over {first}": points, "McNemar p": p_value, "items": str(result.items)})
    return rows


def chance_row(share: float) -> dict[str, str]:
    """A row of `models_table` for a uniform guess, whose accuracy is known exactly."""
    return {"model": "chance (uniform guess)", "accuracy": f"{100 * share:.1f}"}


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table; columns are the keys in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def show(rows: Sequence[Mapping[str, str]], title: str) -> None:
    """Prints a table to the terminal."""
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(row.get(column, "") for column in columns))
    Console().print(table)
