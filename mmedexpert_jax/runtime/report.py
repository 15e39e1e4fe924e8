"""report.html: one file that shows a run, without a server, a network or a viewer.

A report is a title and a list of sections, each a small record; every job builds its own list and calls the same
`write_report`. `run_sections` makes the sections that any run directory has.
"""

import base64
import itertools
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from mmedexpert_jax import border
from mmedexpert_jax.config import flatten
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.report import Figure, chart, intervals, pages
from mmedexpert_jax.report.text_tables import column_names
from mmedexpert_jax.rounding import cdiv
from mmedexpert_jax.runtime import costs, files, metrics, plots
from mmedexpert_jax.runtime.hints import hints
from mmedexpert_jax.runtime.run import read_status

FILTERS = ("step", "specialty", "paradigm", "correct")  # fields of a completion that the browser offers to select by
GROUP = ("step", "id", "prompt")  # neighbours in which these are equal are samples of one group
CURVES = "Moving averages; points are held out. Drag to zoom, double-click to see all; plots/ has them as PNG."
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?( ?%| GB)?")
MAX_ROWS = 400  # completions in one report, so that a phone can open it


@dataclass(frozen=True)
class Facts:
    """Names and values: tiles, or, folded, a table. Nested mappings are flattened with dots."""

    title: str
    values: Mapping[str, Any]
    folded: bool = False


@dataclass(frozen=True)
class Figures:
    """PNG files, inlined."""

    title: str
    paths: Sequence[Path]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of one table; columns are the keys in order of first appearance."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    note: str = ""
    folded: bool = False
    drawn: tuple[str, ...] = ()  # columns that name a row, and last that of the figures that a chart shows; empty: none

    def chart(self) -> str:
        """The `drawn` figures with their intervals; empty where there are none."""
        *names, column = self.drawn or ("",)
        found = {", ".join(str(row[name]) for name in names): row.get(column) for row in self.rows}
        return intervals(self.title, {name: value for name, value in found.items() if isinstance(value, Figure)})


@dataclass(frozen=True)
class CompletionBrowser:
    """A browser of completions, with selectors for those of FILTERS that the rows have.

    Neighbours with the same `step`, `id` and `prompt` are samples of one group and share a card, which names once what
    they have in common. Long texts (`prompt`, `question`, `completion`) are shown as written, images (data URIs) as
    pictures, `correct` as a colour, every other field as a small label. Groups beyond MAX_ROWS rows are thinned out
    evenly, and the page says so.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    note: str = ""


@dataclass(frozen=True)
class Text:
    """Plain text as it stands."""

    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Charts:
    """Charts (`report.chart`), under sentences where they open a report."""

    title: str
    charts: Sequence[str]
    sentences: Sequence[str] = ()
    note: str = ""


Section = Charts | Facts | Figures | Table | CompletionBrowser | Text


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Writes the page, whole. Everything is escaped; nothing in it reaches outside the file."""
    links = Markup().join(Markup('<a href="#{}">{}</a>').format(_slug(s.title), s.title) for s in sections)
    body = Markup("\n").join(map(render, sections))
    charts = any(isinstance(section, Charts) and any(section.charts) for section in sections)
    parts = {"links": links, "body": body, "charts": charts}
    page = pages.render("runtime/report_page.html", title=title, **parts)
    files.write_text(path, page)
    return Path(path)


def report_run(folder: str | Path, sections: Sequence[Section] = (), title: str = "") -> Path:
    """Draws the plots of a run directory and writes its report.html; `sections` stand after the curves."""
    folder = Path(folder)
    return write_report(folder / "report.html", title or folder.resolve().name, run_sections(folder, sections))


def run_sections(folder: Path, extra: Sequence[Section] = ()) -> list[Section]:
    """Summary, curves, `extra`, completions, config and environment, as far as the run directory has them."""
    status = read_status(folder)
    rows = metrics.read(folder)
    state = {key: status[key] for key in ("state", "step", "error") if status.get(key)}
    times = {key: status[key] for key in ("started", "updated") if key in status}
    state |= {key: text.replace("T", " ").replace("+00:00", " UTC") for key, text in times.items()}
    sections: list[Section] = []
    said = [*sentences(status, rows), *(f"Hint: {hint}." for hint in hints(rows).values())]
    if said or rows:
        sections.append(Charts("In short", curves_that_matter(rows), said))
    sections.append(Facts("Summary", state | (status.get("summary") or {})))
    sections += [*curves(folder), *extra, *samples(folder)]
    if cost := run_cost(status, rows):
        sections.append(Facts("Cost", cost))
    if len(rows) > 1:
        note = "Mean of the first and of the last tenth of the steps."
        sections.append(Table("All metrics", changes(rows), note, folded=True))
    return [*sections, *settings(folder)]


def settings(folder: Path) -> list[Section]:
    """Config, environment and command of a run, as far as its directory has them, folded."""
    found: list[Section] = []
    for title, name in (("Config", "config.json"), ("Environment", "env.json")):
        if values := files.json_or_none(folder / name):
            found.append(Facts(title, values, folded=True))
    if (folder / "cmd.txt").exists():
        command = (folder / "cmd.txt").read_text(encoding="utf-8", errors="replace")
        found.append(Text("Command", command, folded=True))
    return found


def sentences(status: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The result of a run in sentences with figures; none where it has no figures."""
    found: list[str] = []
    summary = status.get("summary") or {}
    names = [f"held_out/{name}" for name in ("before", "after", "gain", "gain_low", "gain_high")]
    ends = [float(summary[name]) for name in names if isinstance(summary.get(name), int | float)]
    if len(ends) == len(names):
        before, after = (Figure.percent(value) for value in ends[:2])
        gain = Figure.percent(*ends[2:], signed=True, paired=True)
        verdict = "" if gain.settled else ", which chance alone may give"
        found.append(f"Held-out accuracy {before} -> {after} %: a paired gain of {gain} points{verdict}.")
    for name, label in (("reward", "Reward"), ("rewards/accuracy/mean", "Share of right samples"), ("loss", "Loss")):
        steps, values = plots.series(rows, name)
        if len(values) > 1 and not (name == "loss" and found):
            first, last = _tenths(values)
            found.append(f"{label} {first:.3g} -> {last:.3g} from the first to the last tenth of {steps[-1]} steps.")
    if status.get("state") in ("failed", "interrupted"):
        reason = f": {status['error']}" if status.get("error") else ""
        found.append(f"The run {'failed' if status['state'] == 'failed' else 'was interrupted'}{reason}.")
    return found


def curves_that_matter(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The two charts that tell whether it learns: accuracy, training beside held out, and reward or else loss."""
    names = ("accuracy", "reward") if any("reward" in row for row in rows) else ("accuracy", "loss")
    panels = {panel.name: panel for panel in plots.PANELS}
    return [drawn for name in names if (drawn := panel_chart(panels[name], rows))]


def panel_chart(panel: plots.Panel, rows: Sequence[Mapping[str, Any]]) -> str:
    """The chart of a panel: held-out points, and of every other metric its moving average, with each step where one
    metric is shown alone; empty without figures."""
    named, lines, held_out = plots.named(panel, rows), {}, []
    for name, label in named.items():
        steps, values = plots.series(rows, name)
        if name.startswith("eval/"):
            held_out.append(label)
            lines[label] = list(zip(steps, values, strict=True))
            continue
        lines[label] = list(zip(steps, plots.ema(values), strict=True))
        if len(named) == 1:
            lines["each step"] = list(zip(steps, values, strict=True))
    logarithmic = panel.logarithmic and all(value > 0 for points in lines.values() for _, value in points)
    return chart(panel.title, panel.unit, lines, panel.good, held_out, logarithmic)


def curves(folder: Path, title: str = "Curves") -> list[Section]:
    """The charts of a run, and its plots/ drawn anew; none where it has no figures."""
    plots.draw_run(folder)
    rows = metrics.read(folder)
    drawn = [found for panel in plots.PANELS if (found := panel_chart(panel, rows))]
    return [Charts(title, drawn, note=CURVES)] if drawn else []


def samples(folder: Path, prefix: str = "") -> list[Section]:
    """A browser for each folder of samples/ in a run."""
    found: list[Section] = []
    for path in sorted(path for path in (folder / "samples").glob("*") if path.is_dir()):
        title = prefix + path.name.replace("_", " ")
        found.append(CompletionBrowser(title[0].upper() + title[1:], read_tables(path)))
    return found


def run_cost(status: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The logged costs of a run: wall seconds in all and by phase of a step, tokens, tokens a second."""
    cost = costs.rounded(status["cost"]) if "cost" in status else {}
    clocks = sorted({key for row in rows for key in row if key == "step_time" or key.startswith("time/")})
    for name in clocks:
        label = "seconds of steps" if name == "step_time" else f"seconds of {name.removeprefix('time/')}s"
        cost[label] = round(sum(row.get(name) or 0 for row in rows), 1)
    tokens = max((row.get("num_tokens") or 0 for row in rows), default=0)
    if tokens:
        cost["tokens, prompts counted"] = tokens
    speeds = [row["tokens_per_second"] for row in rows if row.get("tokens_per_second")]
    if speeds:
        cost["tokens per second, median step"] = round(statistics.median(speeds), 1)
    return cost


def _tenths(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and of the last tenth."""
    tenth = max(1, len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def changes(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each metric its mean over the first and the last tenth of its rows, and the change."""
    names = dict.fromkeys(key for row in rows for key in row if key != "step" and not metrics.is_clock(key))
    table = []
    for name in names:
        _, values = plots.series(rows, name)
        if values:
            first, last = _tenths(values)
            table.append({"metric": name, "first tenth": first, "last tenth": last, "change": last - first})
    return table


def read_tables(folder: Path) -> list[dict[str, Any]]:
    """The rows of samples/<name>/*.jsonl, each with the step of its file."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.jsonl")):
        if not re.fullmatch(r"[0-9]{1,12}", path.stem):
            continue
        try:
            rows += [{"step": int(path.stem)} | row for _, row in border.read_jsonl(path, dict[str, Any])]
        except DataError as error:  # a page without these samples is worth more than no page
            print(f"{border.cut(str(error), 200)}; the report leaves the rest of it out", file=sys.stderr, flush=True)
    return rows


def render(section: Section) -> Markup:
    """A section as HTML, by runtime/section.html."""
    parts: dict[str, Any] = {"folded": False, "note": ""} | vars(section)
    match section:
        case Facts(values=values):
            parts["values"] = flatten(files.plain(values))
        case Figures(paths=paths):
            parts["images"] = [(path.stem, base64.b64encode(path.read_bytes()).decode()) for path in paths]
        case Table(rows=rows):
            names = column_names(rows)
            lines = [[_plain(row.get(name)) for name in names] for row in rows]
            numbers = map(_is_numeric, zip(*lines, strict=True))
            parts |= {"columns": list(zip(names, numbers, strict=True)), "rows": lines, "chart": section.chart()}
        case CompletionBrowser(rows=rows):
            parts |= _browsed(rows)
    own = {"kind": type(section).__name__, "id": _slug(section.title), "cell": _cell, "breakable": _breakable}
    return Markup(pages.render("runtime/section.html", **parts, **own))


def _slug(title: str) -> str:
    return re.sub(r"\W+", "-", title).strip("-").lower()


def _cell(value: Any) -> Any:
    """A value as a cell has it: a figure as it is, which is HTML of its own, any other as text."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else value


def _breakable(name: str) -> Markup:
    """A metric's name that a narrow tile may break behind each slash or underscore."""
    return Markup(re.sub(r"(?<=[/_])", "<wbr>", str(escape(name))))


def _plain(value: Any) -> Any:
    return value if isinstance(value, Figure) else files.plain(value)


def _is_numeric(values: Sequence[Any]) -> bool:
    """True for a column that holds numbers, some of which may be missing."""
    if any(isinstance(value, Figure) for value in values):
        return True
    texts = [str(value) for value in values if value not in (None, "", "–")]
    return bool(texts) and all(map(_NUMBER.fullmatch, texts))


def _browsed(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The JSON that the page's script fills the list of completions from, and a word where groups were left out."""
    groups = [list(group) for _, group in itertools.groupby(rows, lambda row: [row.get(key) for key in GROUP])]
    stride = cdiv(len(rows), MAX_ROWS) or 1
    shown = [files.plain(row) for group in groups[::stride] for row in group]
    thinned = f"{len(shown)} of {len(rows)} rows; all of them are in samples/." if stride > 1 else ""
    data = json.dumps({"filters": FILTERS, "group": GROUP, "rows": shown}, ensure_ascii=False).replace("<", "\\u003c")
    return {"data": data, "thinned": thinned}
