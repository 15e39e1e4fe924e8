"""The paper's Tables 1, 2, 4 and 5: published rows, measured rows, and the gap between the two.

A measured model stands beside a published row if it is a registered system, or if its name spells the row out:
"MMedExpert-R1 7B=runs/final".
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmedexpert_jax.data.benchmarks.registry import entry_parts, spec
from mmedexpert_jax.medeval.published import SOURCE, TABLES, Column, PaperTable
from mmedexpert_jax.medeval.result_tables import Rows, cell, interval_columns
from mmedexpert_jax.medeval.results import Result
from mmedexpert_jax.medeval.systems import Target
from mmedexpert_jax.report import Figure

PUBLISHED, MEASURED, GAP = f"published ({SOURCE})", "measured", "gap to published"


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    model: str  # its name
    size: str  # as the paper writes it; "" where it is not known
    source: str  # PUBLISHED, MEASURED or GAP
    # heading -> accuracy with intervals, as `Evaluation.accuracy` gives it; published ones have "accuracy" alone, and a
    # gap is a "difference" in points. A heading without a figure is missing.
    cells: Mapping[str, Mapping[str, Any]]


def lines(table: PaperTable, results: Mapping[str, Result], targets: Sequence[Target]) -> list[Line]:
    """Rows of one table; a measured model that none of its columns knows is left out."""
    found = [Line(name, size, PUBLISHED, _published(table, figures)) for (name, size), figures in table.rows.items()]
    other = {column.heading for column in table.columns if _version(column, results)[1]}
    for target in targets:
        cells = {
            column.heading: measured
            for column in table.columns
            if (measured := _measured(column, results, target.name)) is not None
        }
        if not cells:
            continue
        size = target.row[1] if target.row else ""
        found.append(Line(target.name, size, MEASURED, cells))
        if target.row is not None and target.row in table.rows:
            printed = _published(table, table.rows[target.row])
            gaps = {
                heading: {"difference": 100 * (measured["accuracy"] - printed[heading]["accuracy"])}
                for heading, measured in cells.items()
                if heading in printed and heading not in other
            }
            found.append(Line(target.name, size, GAP, gaps))
    return found


def measured_tables(results: Mapping[str, Result], targets: Sequence[Target]) -> list[tuple[PaperTable, list[Line]]]:
    """The tables in which at least one measured row has a figure."""
    made = [(table, lines(table, results, targets)) for table in TABLES]
    return [(table, rows) for table, rows in made if any(line.source == MEASURED for line in rows)]


def partly(table: PaperTable, results: Mapping[str, Result]) -> str:
    """The columns that are measured on another number of items than the published one, or on another version of the
    benchmark; "" where none is."""
    versions = dict(_version(column, results) for column in table.columns)  # of several columns one
    found = {}
    for key in filter(None, versions):
        benchmark = results[key].benchmark
        wanted, have = benchmark.census.get("published_items"), len(benchmark.items)
        if wanted and wanted != have:
            found[benchmark.title] = f"{benchmark.title} {have:,} of {wanted:,}"
    part = f"Not the whole benchmark was measured: {', '.join(found.values())} items." if found else ""
    others = ", ".join(key for key, is_other in versions.items() if is_other)
    other = f"{others}: another version than the published one, without a gap." if others else ""
    return f"{part} {other}".strip()


def readable(table: PaperTable, rows: Sequence[Line]) -> Rows:
    """Rows for Markdown, LaTeX and the report: "27.5 [25.6, 29.5] (25.6, 29.4)", published figures as printed, gaps
    signed."""
    return [_head(line) | {c.heading: _text(line.cells.get(c.heading)) for c in table.columns} for line in rows]


def narrow(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """`readable`'s rows for a terminal or a phone: name, size and source in one column, the published one unmarked."""
    marks = {MEASURED: " (measured)", GAP: " (gap)"}
    labels = [" ".join(dict.fromkeys(f"{row['Model']} {row['Size']}".split())) for row in rows]
    return [
        {"model": label + marks.get(row["Source"], "")} | {key: row[key] for key in list(row)[3:]}
        for label, row in zip(labels, rows, strict=True)
    ]


def spread(table: PaperTable, rows: Sequence[Line]) -> Rows:
    """Rows for CSV: a column for each number."""
    made = []
    for line in rows:
        row = _head(line)
        for column in table.columns:
            row |= _numbers(column.heading, line.cells.get(column.heading, {}))
        made.append(row)
    return made


def structured(table: PaperTable, rows: Sequence[Line]) -> dict[str, Any]:
    """A table for JSON."""
    return {
        "table": table.number,
        "title": table.title,
        "note": table.note,
        "columns": [asdict(column) for column in table.columns],
        "rows": [asdict(line) for line in rows],
    }


def _published(table: PaperTable, figures: Sequence[float | None]) -> dict[str, dict[str, float]]:
    pairs = zip(table.columns, figures, strict=True)
    return {column.heading: {"accuracy": figure / 100} for column, figure in pairs if figure is not None}


def _measured(column: Column, results: Mapping[str, Result], model: str) -> dict[str, Any] | None:
    result = results.get(_version(column, results)[0])
    if result is None or model not in result.evaluations:
        return None
    evaluation = result.evaluations[model]
    if column.part:
        places = (
            (label, value)
            for label, headings in result.benchmark.columns.items()
            for value, heading in headings.items()
            if column.part in (heading, value)
        )
        if (place := next(places, None)) is None:
            return None
        evaluation = evaluation.only(*place)
    return evaluation.accuracy() if evaluation.rows else None


def _version(column: Column, results: Mapping[str, Result]) -> tuple[str, bool]:
    """The key of a column's benchmark, "" where it was not measured, and whether it is another version than the
    paper's, which comes first."""
    papers = column.benchmark, f"{column.benchmark}:{spec(entry_parts(column.benchmark)[0]).subsets[0]}"
    others = (key for key in results if key.startswith(f"{column.benchmark}:") and "@" not in key)
    key = next((key for key in (*papers, *others) if key in results), "")
    return key, key not in ("", *papers)


def _head(line: Line) -> dict[str, str]:
    return {"Model": line.model, "Size": line.size, "Source": line.source}


def _text(figure: Mapping[str, Any] | None) -> str | Figure:
    if figure is None:
        return "–"
    if "difference" in figure:
        return Figure(figure["difference"], decimals=2, signed=True)
    return cell(figure) if "bootstrap" in figure else Figure.percent(figure["accuracy"], decimals=2)


def _numbers(heading: str, figure: Mapping[str, Any]) -> dict[str, str]:
    accuracy = figure.get("accuracy")
    value = figure.get("difference", 100 * accuracy if accuracy is not None else None)
    texts = {heading: "" if value is None else f"{value:.2f}", f"{heading} items": str(figure.get("items", ""))}
    return texts | interval_columns(figure, heading)
