"""report.html: one file that shows a run, without a server, a network or a viewer.

A report is a title and a list of sections, each a small record; every job builds its own list and calls the same
`write_report`. `run_sections` makes the sections that any run directory has.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedexpert_jax.runtime import files, metrics, pages, plots

FILTERS = ("step", "specialty", "paradigm", "correct")  # fields of a completion that the browser offers to select by
MAX_ROWS = 400  # completions in one report, so that a phone can open it


@dataclass(frozen=True)
class Facts:
    """Names and values, such as a summary. Nested mappings are flattened with dots."""

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


@dataclass(frozen=True)
class Completions:
    """A browser of completions, with selectors for those of FILTERS that the rows have.

    Long texts (`prompt`, `question`, `completion`) are shown as written, images (data URIs) as pictures, `correct` as
    the card's colour, every other field as a small label. Rows beyond MAX_ROWS are thinned out evenly, and the page
    says so.
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


Section = Facts | Figures | Table | Completions | Text


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Writes the page, whole. Everything is escaped; nothing in it reaches outside the file."""
    parts = {"title": _escape(title), "body": "\n".join(_render(section) for section in sections)}
    files.write_text(path, pages.render("mmedexpert_jax.runtime", "report_page.html", parts))
    return Path(path)


def report_run(folder: str | Path, sections: Sequence[Section] = (), title: str = "") -> Path:
    """Draws the plots of a run directory and writes its report.html; `sections` stand after the curves."""
    folder = Path(folder)
    return write_report(folder / "report.html", title or folder.resolve().name, run_sections(folder, sections))


def run_sections(folder: Path, extra: Sequence[Section] = ()) -> list[Section]:
    """Summary, curves, `extra`, completions, config and environment, as far as the run directory has them."""
    status = files.read_json(folder / "STATUS.json") or {}
    rows = metrics.read(folder)
    state = {key: status[key] for key in ("state", "step", "started", "updated", "error") if key in status}
    sections: list[Section] = [Facts("Summary", state | (status.get("summary") or {}))]
    if drawn := plots.draw_run(folder):
        sections.append(Figures("Curves", drawn, "Thin: every step. Thick: moving average. Points: held out."))
    if len(rows) > 1:
        note = "Mean of the first and of the last tenth of the steps."
        sections.append(Table("Figures", first_and_last(rows), note))
    sections += extra
    for name in sorted(path.name for path in (folder / "samples").glob("*") if path.is_dir()):
        sections.append(Completions(name.capitalize(), read_tables(folder / "samples" / name)))
    for title, name in (("Config", "config.json"), ("Environment", "env.json")):
        if values := files.read_json(folder / name):
            sections.append(Facts(title, values, folded=True))
    if (folder / "cmd.txt").exists():
        sections.append(Text("Command", (folder / "cmd.txt").read_text(), folded=True))
    return sections


def first_and_last(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each metric its mean over the first and the last tenth of its rows, and the change."""
    names = dict.fromkeys(key for row in rows for key in row if key != "step" and not metrics.is_clock(key))
    table = []
    for name in names:
        _, values = plots.series(rows, name)
        if values:
            tenth = max(1, len(values) // 10)
            first, last = sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth
            table.append({"metric": name, "first tenth": first, "last tenth": last, "change": last - first})
    return table


def read_tables(folder: Path) -> list[dict[str, Any]]:
    """The rows of samples/<name>/*.jsonl, each with the step of its file."""
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        rows += [{"step": int(path.stem)} | json.loads(line) for line in path.read_bytes().splitlines()]
    return rows


def _render(section: Section) -> str:
    match section:
        case Facts(title, values, folded):
            return _block(title, _facts(values), folded)
        case Figures(title, paths, note):
            return _block(title, _note(note) + f'<div class="figures">{"".join(map(_image, paths))}</div>')
        case Table(title, rows, note):
            return _block(title, _note(note) + _table(rows))
        case Completions(title, rows, note):
            return _block(title, _note(note) + _browser(rows))
        case Text(title, text, folded):
            return _block(title, f"<pre>{_escape(text)}</pre>", folded)


def _block(title: str, inner: str, folded: bool = False) -> str:
    if folded:
        return f"<details><summary><h2>{_escape(title)}</h2></summary>{inner}</details>"
    return f"<section><h2>{_escape(title)}</h2>{inner}</section>"


def _note(text: str) -> str:
    return f'<p class="note">{_escape(text)}</p>' if text else ""


def _escape(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return _escape(f"{value:.4g}" if isinstance(value, float) else value)


def _facts(values: Mapping[str, Any]) -> str:
    lines = "".join(f"<tr><th>{_escape(k)}</th><td>{_cell(v)}</td></tr>" for k, v in _flat(files.plain(values)))
    return f'<div class="scroll"><table class="facts">{lines}</table></div>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{_escape(column)}</th>" for column in columns)
    lines = [[files.plain(row.get(column)) for column in columns] for row in rows]
    body = "".join("<tr>" + "".join(f"<td{_numeric(v)}>{_cell(v)}</td>" for v in line) + "</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _numeric(value: Any) -> str:
    return ' class="number"' if isinstance(value, (int, float)) else ""


def _image(path: Path) -> str:
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return f'<img alt="{_escape(Path(path).stem)}" src="data:image/png;base64,{data}">'


def _browser(rows: Sequence[Mapping[str, Any]]) -> str:
    """Selectors and an empty list that the page's script fills from the JSON beside them."""
    stride = -(-len(rows) // MAX_ROWS) or 1
    shown = [files.plain(row) for row in rows[::stride]]
    thinned = _note(f"{len(shown)} of {len(rows)} rows; all of them are in samples/.") if stride > 1 else ""
    data = json.dumps({"filters": FILTERS, "rows": shown}, ensure_ascii=False).replace("<", "\\u003c")
    return (
        f'{thinned}<div class="browser"><div class="filters"></div><div class="cards"></div>'
        f'<script type="application/json">{data}</script></div>'
    )
