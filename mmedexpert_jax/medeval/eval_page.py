"""report.html of an evaluation: tables, and items to browse with images, prompt, reasoning, gold and two models.

One page that opens from disk without a server or a network; its pictures lie beside it in export/report/.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.medeval import prompt_styles
from mmedexpert_jax.medeval.evaluate import AnswerRow
from mmedexpert_jax.medeval.results import Result
from mmedexpert_jax.report import pages
from mmedexpert_jax.runtime import files, report
from mmedexpert_jax.runtime.report import Table

PICTURES = "export/report"
SAID = 5  # accuracies that a sentence holds
SIDE = 768  # pixels, the longest side of a picture
_SHOWN = ("said", "right", "verdicts", "guessed", "tokens", "truncated", "first")  # of an answer, under these names


def write(
    folder: Path,
    tables: Sequence[Table],
    results: Mapping[str, Result],
    styles: Mapping[str, str],
    paradigm: str | None,
    limit: int,
) -> Path:
    """Writes report.html and its pictures.

    Args:
        tables: in order.
        results: benchmarks and evaluations by key.
        styles: prompt style by model.
        paradigm: that the prompts ask for; "all" for each that applies.
        limit: items of each benchmark to browse; of more, those that a model got wrong come first.
    """
    shown: dict[str, dict[str, Any]] = {}
    for key, result in results.items():
        by_model = {name: evaluation.by_item() for name, evaluation in result.evaluations.items()}
        chosen = _choose(result.benchmark.items, by_model, limit)
        shown[key] = {
            "title": result.benchmark.title,
            "total": len(result.benchmark.items),
            "models": list(by_model),
            "items": [_item(folder, item, by_model, styles, paradigm) for item in chosen],
        }
    data = json.dumps(shown, ensure_ascii=False).replace("<", "\\u003c")
    drawn = [table for table in tables if table.drawn]
    charts, told = [table.chart() for table in drawn], [line for table in drawn for line in _said(table)]
    opening = [report.Charts("In short", charts, told)] if drawn else []
    sections = [*opening, *(replace(table, drawn=()) for table in tables), *report.settings(folder)]
    body = Markup("\n".join(map(report.render, sections)))
    page = pages.render("medeval/page.html", title=folder.resolve().name, tables=body, data=Markup(data))
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def _said(table: Table) -> list[str]:
    """The chart of a table in words: its accuracies, of more than SAID the best and the last (a guess where there is
    one); or each paired difference, and whether chance alone may give it."""
    *names, column = table.drawn
    told = [(", ".join(row[name] for name in names), row[column]) for row in table.rows if column in row]
    if any(figure.paired for _, figure in told):
        doubt = {True: "", False: ", which chance alone may give"}
        return [f"{name}: {column} {figure.short} points{doubt[figure.settled]}." for name, figure in told]
    best = max(told, key=lambda pair: pair[1].value)
    shown = told if len(told) <= SAID else [best, told[-1]]
    return [f"{table.title.split(',')[0]}: " + "; ".join(f"{name} {figure.short} %" for name, figure in shown) + "."]


def _choose(items: Sequence[Case], by_model: Mapping[str, Mapping[str, list[AnswerRow]]], limit: int) -> list[Case]:
    """At most `limit` items in their order: all of them, or those that a model got wrong and then the others, each
    kind at even distances."""
    if len(items) <= limit:
        return list(items)
    wrong = [not all(row.right for rows in by_model.values() for row in rows.get(item.id, ())) for item in items]
    chosen: list[int] = []
    for kind in (True, False):
        places = [place for place, is_wrong in enumerate(wrong) if is_wrong is kind]
        free = limit - len(chosen)
        chosen += places if len(places) <= free else [places[i * len(places) // free] for i in range(free)]
    return [items[place] for place in sorted(chosen)]


def _item(
    folder: Path,
    item: Case,
    by_model: Mapping[str, Mapping[str, list[AnswerRow]]],
    styles: Mapping[str, str],
    paradigm: str | None,
) -> dict[str, Any]:
    texts: list[str] = []
    answers: dict[str, list[dict[str, Any]]] = {}
    for model, rows in by_model.items():
        answers[model] = []
        for row in rows.get(item.id, ()):
            asked = row.labels.get("paradigm") if paradigm == "all" else paradigm
            text = _prompt_text(item, styles[model], asked)
            if text not in texts:
                texts.append(text)
            answer = {name: getattr(row, name) for name in _SHOWN}
            answers[model].append({"text": row.response, **answer, "prompt": texts.index(text)})
    return {
        "id": item.id,
        "question": item.question,
        "options": list(item.options),
        "gold": item.answer,
        "labels": {label: value for label, value in item.labels.items() if value},
        "images": _pictures(folder, item),
        "prompts": texts,
        "answers": answers,
    }


def _prompt_text(item: Case, style: str, paradigm: str | None) -> str:
    """A prompt as text, a line for each image."""
    prompt = prompt_styles.build(item, style, paradigm)
    lines = []
    for message in prompt.messages:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [part.get("text", "[image]") for part in content]
        lines.append(f"{message['role']}: " + "\n".join(parts))
    if prompt.follow_up:
        lines.append(f"user, second turn: {prompt.follow_up}")
    return "\n\n".join(lines)


def _pictures(folder: Path, item: Case) -> list[str]:
    """Paths of an item's images, relative to the page; an image that cannot be read is left out."""
    paths = []
    for image in item.images:
        try:
            name = f"{PICTURES}/{image.sha256[:24]}.jpg"
            if not (folder / name).exists():
                picture = image.picture()
                picture.thumbnail((SIDE, SIDE))
                buffer = io.BytesIO()
                picture.save(buffer, "JPEG", quality=85)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(folder / name, buffer.getvalue())
            paths.append(name)
        except DataError:
            continue
    return paths
