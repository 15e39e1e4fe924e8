"""Tables of evaluations: rows of figures and texts that go to Markdown, CSV, LaTeX, to a terminal, or into a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.medeval.evaluate import Evaluation, compare_evaluations
from mmedexpert_jax.medeval.stats import holm
from mmedexpert_jax.report.figure import Figure, parts
from mmedexpert_jax.report.text_tables import column_names

Rows = list[dict[str, Any]]  # by column, texts and figures
HEADLINE = "Accuracy, % [Wilson] (bootstrap)"
INTERVALS = (
    "Percent with two 95 % intervals: [Wilson's] and (the bootstrap's over items). Macro means, votes, pass@k and "
    "items with several answers have the bootstrap's alone, or Wilson's where all items have one outcome."
)
_LATEX = {"\\": r"\textbackslash{}", "–": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}  # other signs in LaTeX's first fonts
_LATEX |= {char: f"\\{char}" for char in "&%$#_{}"}


def cell(accuracy: Mapping[str, Any]) -> Figure:
    """An accuracy in percent, its 95 % intervals, Wilson's and the bootstrap's: "57.3 [54.5, 60.0] (54.6, 60.1)"."""
    bootstrap = accuracy.get("bootstrap")
    other = tuple(bootstrap) if bootstrap else None
    return Figure.percent(accuracy["accuracy"], *(accuracy.get("wilson") or ()), other=other)


def models_table(summaries: Mapping[str, Mapping[str, Any]], group: str = "specialty") -> Rows:
    """One row per model: accuracy in all and by `group`, parse rate and mean length. Takes `Evaluation.summary()`s."""
    rows = []
    for name, summary in summaries.items():
        groups = {value: cell(accuracy) for value, accuracy in summary["by"].get(group, {}).items()}
        rest = {
            "parsed": _percent(summary["parse_rate"]),
            "tokens": f"{summary['mean_length']:.0f}" if summary["mean_length"] else "–",
        }
        rows.append({"model": name, "accuracy": cell(summary)} | groups | rest)
    return rows


def scorers_table(summaries: Mapping[str, Mapping[str, Any]]) -> Rows:
    """One row per model: accuracy under every scorer, shares of answers guessed, not parsed and cut off."""
    rows = []
    for name, summary in summaries.items():
        shares: dict[str, Any] = {
            "guessed by medevalkit": _percent(summary["guessed"]),
            "not parsed by strict": _percent(1 - summary["parse_rate"]),
            "cut off": _percent(summary["truncated"]),
        }
        rows.append({"model": name} | {s: cell(a) for s, a in summary["scorers"].items()} | shares)
    return rows


def measures_table(summaries: Mapping[str, Mapping[str, Any]]) -> Rows:
    """One row per model with graded answers: the mean of each measure; none where answers are right or wrong."""
    return [
        {"model": name} | {measure: cell(found) for measure, found in summary["measures"].items()}
        for name, summary in summaries.items()
        if summary["measures"]
    ]


def samples_table(summaries: Mapping[str, Mapping[str, Any]]) -> Rows:
    """One row per model with several answers an item: their mean, the majority vote, pass@k."""
    return [
        {"model": name, "mean": cell(summary), "majority vote": cell(summary["majority"])}
        | {f"pass@{k}": cell(passed) for k, passed in summary["pass_at"].items()}
        for name, summary in summaries.items()
        if "pass_at" in summary
    ]


def breakdown_table(summaries: Mapping[str, Mapping[str, Any]], group: str) -> Rows:
    """One row per value of `group` (a task, say), one column per model."""
    values = dict.fromkeys(value for summary in summaries.values() for value in summary["by"].get(group, {}))
    rows = []
    for value in values:
        found = {name: summary["by"].get(group, {}).get(value) for name, summary in summaries.items()}
        items = max(accuracy["items"] for accuracy in found.values() if accuracy)
        cells = {name: cell(accuracy) if accuracy else "–" for name, accuracy in found.items()}
        rows.append({group: value, "items": str(items)} | cells)
    return rows


def every_cell(summaries: Mapping[str, Mapping[str, Any]]) -> Rows:
    """One row per model and part of a benchmark, for CSV: items, accuracy, both intervals, in percent; an interval that
    a figure does not have is empty."""
    rows = []
    for name, summary in summaries.items():
        lines = {("all", ""): summary} | {(f"all, {s}", ""): found for s, found in summary["scorers"].items()}
        lines |= {(label, value): found for label, by in summary["by"].items() for value, found in by.items()}
        if "macro" in summary:
            lines["macro over", summary["macro"]["over"]] = summary["macro"]
        for (label, value), found in lines.items():
            head = {"model": name, "part": label, "value": value, "items": str(found["items"])}
            rows.append(head | {"accuracy": f"{100 * found['accuracy']:.2f}"} | interval_columns(found))
    return rows


def interval_columns(accuracy: Mapping[str, Any], heading: str = "") -> dict[str, str]:
    """Both intervals of an accuracy in percent, a column for each end; empty where there is none."""
    columns = {}
    for kind in ("wilson", "bootstrap"):
        pair = accuracy.get(kind) or (None, None)
        for end, number in zip(("low", "high"), pair, strict=True):
            columns[f"{heading} {kind} {end}".strip()] = "" if number is None else f"{100 * number:.2f}"
    return columns


def comparison_table(evaluations: Mapping[str, Evaluation]) -> Rows:
    """Each model against the first, on the items of both: difference in points with its bootstrap interval, McNemar's
    exact p, and that p adjusted for the number of comparisons (Holm)."""
    (first, reference), *others = evaluations.items()
    results = {name: compare_evaluations([reference], [evaluation]) for name, evaluation in others}
    tested = {name: result.p_value for name, result in results.items() if result.p_value is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    rows = []
    for name, result in results.items():
        points = Figure.percent(result.difference, other=(result.low, result.high), signed=True, paired=True)
        p_values = {"McNemar p": tested.get(name), "Holm p": adjusted.get(name)}
        texts = {key: "–" if p is None else f"{p:.3g}" for key, p in p_values.items()}
        rows.append({"model": name, f"gain over {first}": points, **texts, "items": str(result.items)})
    return rows


def comparison_warning(comparisons: int, benchmarks: int = 1) -> str:
    """A warning of several comparisons at 5 % on each of some benchmarks; "" for a single one."""
    total = comparisons * benchmarks
    if total < 2:
        return ""
    where = f" on {benchmarks} benchmarks" if benchmarks > 1 else ""
    holm = "their number" if benchmarks == 1 else "those of one benchmark alone"
    return (
        f"{total} comparisons{where}: if no model differed, one of independent ones would still fall below p = 0.05 "
        f"with a chance of {100 * (1 - 0.95**total):.0f} %. Judge by Holm's p, which allows for {holm}; the intervals "
        "do not."
    )


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """A CSV table with a header."""
    return border.csv_text(column_names(rows), rows)


def latex(rows: Sequence[Mapping[str, Any]], caption: str = "") -> str:
    """A LaTeX table for booktabs; intervals are set small, under their figure."""
    columns = column_names(rows)
    lines = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    head, *body = (" & ".join(map(_tex, line)) + r" \\" for line in lines)
    inner = "\n".join([r"\toprule", head, r"\midrule", *body, r"\bottomrule"])
    form = "l" + "r" * (len(columns) - 1)
    return (
        "\\begin{table}\n\\centering\n\\caption{" + _tex(caption) + "}\n\\begin{tabular}{" + form + "}\n"
        f"{inner}\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def show(rows: Sequence[Mapping[str, Any]], title: str, note: str = "") -> None:
    """Prints a table to the terminal, intervals under their figure.

    One that is too wide stands on its side; if that is too wide, too, it comes in parts, each with the first column.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns, console = column_names(rows), Console()

    def table(lines: Sequence[Sequence[str]]) -> Table:
        made = Table(*lines[0], box=box.SIMPLE_HEAD)
        for line in lines[1:]:
            made.add_row(*line)
        return made

    def part(names: Sequence[str]) -> list[list[str]]:
        body = (["\n".join(parts(row.get(name, ""))) for name in names] for row in rows)
        return [list(names), *body]

    def fits(lines: Sequence[Sequence[str]]) -> bool:
        return console.measure(table(lines), options=console.options.update(width=10_000)).maximum <= console.width

    console.print(f"\n{title}", style="bold", highlight=False)
    ways = [part(columns), [list(line) for line in zip(*part(columns), strict=True)]]
    if whole := next(filter(fits, ways), None):
        console.print(table(whole))
    else:
        head, *rest = columns
        while rest:
            count = next((n for n in range(len(rest), 1, -1) if fits(part([head, *rest[:n]]))), 1)
            console.print(table(part([head, *rest[:count]])))
            rest = rest[count:]
    if note:
        console.print(note, highlight=False)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _tex(value: Any) -> str:
    figure, *intervals = ("".join(_LATEX.get(char, char) for char in part) for part in parts(value))
    figure = "{}" + figure if figure.startswith(("[", "*")) else figure  # which a line's end before it would take
    small = (rf"\\{{\scriptsize {interval}}}" for interval in intervals)
    return rf"\shortstack{{{figure}{''.join(small)}}}" if intervals else figure
