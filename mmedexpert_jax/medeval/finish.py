"""The outputs of an evaluation: rows, a summary, tables in four formats, the report."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmedexpert_jax.data.benchmarks import Benchmark, describe
from mmedexpert_jax.medeval import conditions, control_tables, eval_page, kit_totals, paper_tables, result_tables
from mmedexpert_jax.medeval.evaluate import Evaluation, chance, constant
from mmedexpert_jax.medeval.published import SOURCE, TABLES
from mmedexpert_jax.medeval.result_tables import HEADLINE, Rows
from mmedexpert_jax.medeval.results import Result, rows_path, slug
from mmedexpert_jax.medeval.systems import Target
from mmedexpert_jax.report import Figure
from mmedexpert_jax.report.text_tables import markdown
from mmedexpert_jax.runtime import Run, costs, files
from mmedexpert_jax.runtime.report import Table


def finish(
    config: ConfigDict,
    run: Run,
    targets: Sequence[Target],
    results: Mapping[str, Result],
    requests: Rows,
    asked: Rows,
) -> None:
    """Writes export/rows/, export/summary.json, export/tables/, table.md and report.html; prints the paper's tables,
    the headlines, how each model was `asked`, and the `requests` to endpoints, a row each."""
    summaries = {key: _summaries(result) for key, result in results.items()}
    for file in [*_made(run.path)]:  # of an earlier command with other models or benchmarks
        file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something else
            file.parent.rmdir()
    (run.path / "export").mkdir(exist_ok=True)
    files.write_json(run.path / "export" / "summary.json", summaries)  # first, as it names what follows
    for key, result in results.items():
        for name, evaluation in result.evaluations.items():
            rows = rows_path(run.path, key, name)
            rows.parent.mkdir(parents=True, exist_ok=True)
            evaluation.write(rows)

    unlike = conditions.warning(asked)
    papers = _paper_tables(run.path, results, targets)
    headlines: list[Table] = []  # what the terminal shows of the benchmarks
    details: list[Table] = []  # all that table.md and the page have of them
    for key, result in results.items():
        tables = benchmark_tables(result, summaries[key], len(results), config.judge.what)
        headlines += _headline_tables(run.path, key, result.benchmark.title, tables, summaries[key], unlike)
        details += [replace(table, title=f"{key}: {table.title}") for table in tables]
    if together := kit_totals.of_three_files({key: result.evaluations for key, result in results.items()}):
        headlines.append(Table("HealthBench, its three files together", together, _TOGETHER))
        details.append(headlines[-1])
    how = Table("How they were asked", asked, f"{conditions.NOTE} {unlike}".strip())
    files.write_text(run.path / "table.md", "\n".join(map(_markdown, (*papers, *details, how))))

    narrow = [
        Table(f"{table.title} (rows without a mark: {SOURCE})", paper_tables.narrow(table.rows), table.note)
        for table in papers
    ]
    sent = [Table("Requests to endpoints", requests, _REQUESTS, True)] if requests else []
    spent = {name: str(value) for name, value in costs.rounded(run.cost).items()}
    shown = [*narrow, *details, how, *sent, Table("Cost", [spent], "", True)]
    styles = {target.name: target.style(config.prompt) for target in targets}
    eval_page.write(run.path, shown, results, styles, config.paradigm or None, config.report_items)
    run.finish({"benchmarks": summaries})
    for table in (*narrow, *headlines, how, *sent):
        result_tables.show(table.rows, table.title, table.note)


def _made(folder: Path) -> Iterator[Path]:
    """Rows and tables in a run's folder, by the names in its summary; what else lies beside them is somebody's."""
    found = files.json_or_none(folder / "export" / "summary.json")
    summaries = (
        {key: models for key, models in found.items() if isinstance(models, dict)} if isinstance(found, dict) else {}
    )
    yield from (rows_path(folder, key, model) for key, models in summaries.items() for model in models)
    names = {name for key in summaries for name in (slug(key), f"{slug(key)}-controls")}
    names |= {f"table{table.number}" for table in TABLES}
    for file in folder.glob("export/tables/*"):
        if file.suffix in _FORMATS and file.stem in names:
            yield file


def _paper_tables(folder: Path, results: Mapping[str, Result], targets: Sequence[Target]) -> list[Table]:
    """The paper's tables in which a measured model has a figure, written to export/tables/ as well."""
    tables = []
    for table, lines in paper_tables.measured_tables(results, targets):
        title, readable = f"Table {table.number}: {table.title}", paper_tables.readable(table, lines)
        notes = (paper_tables.partly(table, results), result_tables.INTERVALS, table.note, _UNLIKE)
        note = " ".join(filter(None, notes))
        spread = paper_tables.spread(table, lines)
        structured = paper_tables.structured(table, lines) | {"note": note}
        _write_table(folder, f"table{table.number}", readable, title, spread, structured, note)
        tables.append(Table(title, readable, note))
    return tables


def _headline_tables(
    folder: Path, key: str, title: str, tables: Sequence[Table], summaries: Mapping[str, Any], unlike: str
) -> list[Table]:
    """The headline of a benchmark's `tables` and its controls, written to export/tables/ as well."""
    headline = Table(f"{title}: {tables[0].title}", tables[0].rows, unlike)
    cells = result_tables.every_cell(summaries)
    _write_table(folder, slug(key), headline.rows, headline.title, cells, summaries)
    shown = [headline]
    for table in tables:
        if table.title == CONTROLS:
            shown.append(Table(f"{title}: controls", table.rows, table.note))
            texts = [{column: str(cell) for column, cell in row.items()} for row in table.rows]
            _write_table(folder, f"{slug(key)}-controls", table.rows, shown[-1].title, texts, texts, table.note)
    return shown


def benchmark_tables(
    result: Result, summaries: Mapping[str, Mapping[str, Any]], benchmarks: int = 1, judged: str = "open"
) -> list[Table]:
    """The tables of one benchmark of the `benchmarks` of a run, the headline first; `judged`: as `judge.what`."""
    benchmark, evaluations = result.benchmark, result.evaluations
    graded = any(evaluation.graded for evaluation in evaluations.values())
    title = "Score, % (bootstrap)" if graded else HEADLINE
    asked = control_tables.table(evaluations, result.controls)
    headline = _headline(benchmark, summaries)
    for row in headline:  # what each control takes away stands beside the accuracy itself
        row |= {f"loss, {one['control']}": one["loss"] for one in asked if one["model"] == row["model"]}
        if row["model"] in evaluations:
            total = kit_totals.of_halves(benchmark.name, evaluations[row["model"]].rows, judged)
            row |= {kit_totals.TITLE: total} if total else {}
    note = f"{result_tables.INTERVALS} {_unlabelled(benchmark)}".strip()
    tables = [Table(title, headline, note, drawn=("model", "micro"))]
    if not graded:
        tables.append(Table("Both scorers", result_tables.scorers_table(summaries), _SCORERS))
    if asked:
        told = (control_tables.sentence(name, evaluations[name], made) for name, made in result.controls.items())
        note = " ".join(filter(None, (*told, control_tables.EXPLAINED)))
        tables.append(Table(CONTROLS, asked, note, drawn=("model", "control", "loss")))
    if measured := result_tables.measures_table(summaries):
        tables.insert(1, Table("Measures, % (bootstrap)", measured, _MEASURES))
    if samples := result_tables.samples_table(summaries):
        tables.append(Table("Several answers an item", samples, _SAMPLES))
    if len(evaluations) > 1:
        note = f"{_COMPARISON} {result_tables.comparison_warning(len(evaluations) - 1, benchmarks)}".strip()
        rows = result_tables.comparison_table(evaluations)
        drawn = ("model", f"gain over {next(iter(evaluations))}")
        tables.append(Table("Paired comparison, points (95 % bootstrap interval)", rows, note, drawn=drawn))
    labels = dict.fromkeys(label for summary in summaries.values() for label in summary["by"])
    tables += [Table(f"By {label}", result_tables.breakdown_table(summaries, label), "", True) for label in labels]
    census = [{"": line} for line in describe(benchmark).splitlines()]
    return [*tables, Table("Census", census, "", True)]


_FORMATS = (".md", ".csv", ".tex", ".json")  # of a table
CONTROLS = "Controls"
_SCORERS = (
    "Strict: an answer that is ambiguous or absent is wrong. MedEvalKit's rule guesses the most similar option where "
    "it cannot read; the share of such guesses stands beside."
)
_SAMPLES = "Votes are read by the strict scorer, and ties shared; pass@k is the estimator of Chen et al. (2021)."
_REQUESTS = (
    "All attempts under this folder of answers, failed ones included, by outcome; cost in dollars at the prices given."
)
_MEASURES = (
    "Of a report BLEU, ROUGE and, where nltk has its WordNet, METEOR, as MedEvalKit computes them; the headline is "
    "ROUGE-L. Of an answer under a rubric the points of each axis over those that can be earned; the headline is that "
    "over all criteria, and a mean below 0 counts as 0. RaTEScore, GREEN, BERTScore and CIDEr are not computed."
)
_TOGETHER = (
    "MedEvalKit's mean over the three files, in which most conversations count twice; the authors report them apart."
)
_UNLIKE = "Published rows were asked under their authors' conditions, measured ones as How they were asked says."
_COMPARISON = "McNemar's exact test needs one answer an item; the interval is the bootstrap's over items."


def _summaries(result: Result) -> dict[str, Any]:
    """Summaries by model, with the macro accuracy over the benchmark's first label where it has columns."""
    summaries = {name: evaluation.summary() for name, evaluation in result.evaluations.items()}
    if labels := result.benchmark.labels:
        for name, evaluation in result.evaluations.items():
            summaries[name]["macro"] = evaluation.macro(labels[0]) | {"over": labels[0]}
    return summaries


def _unlabelled(benchmark: Benchmark) -> str:
    """A sentence on the items that the macro accuracy leaves out; "" where it holds all."""
    label = next(iter(benchmark.labels), "")
    count = sum(not item.labels.get(label) for item in benchmark.items) if label else 0
    return f"{count} items without a {label} are in the micro accuracy alone." if count else ""


def _headline(benchmark: Benchmark, summaries: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Models, and what is right without a model: the commonest letter, and a uniform guess."""
    baselines: dict[str, Evaluation] = {}
    if all(item.kind == "choice" for item in benchmark.items):
        letter, always = constant(benchmark.items)
        baselines[f"always {letter}"] = always
    label = next(iter(benchmark.labels), "")
    everyone = dict(summaries) | {name: found.summary() for name, found in baselines.items()}
    headings = benchmark.columns.get(label, {})
    rows = []
    for row in result_tables.models_table(everyone, label):
        name = row.pop("model")
        figures = {"micro": row.pop("accuracy")}
        if label:
            macro = summaries[name]["macro"] if name in summaries else baselines[name].macro(label)
            figures["macro"] = result_tables.cell(macro)
        ordered = [*(value for value in headings if value in row), *(key for key in row if key not in headings)]
        rows.append({"model": name} | figures | {headings.get(key, key): row[key] for key in ordered})
    if baselines:
        rows.append({"model": "chance (uniform guess)", "micro": Figure.percent(chance(benchmark.items))})
    return rows


def _write_table(
    folder: Path,
    name: str,
    readable: Sequence[Mapping[str, Any]],
    title: str,
    spread: Rows,
    structured: Any,
    note: str = result_tables.INTERVALS,
) -> None:
    place = folder / "export" / "tables"
    place.mkdir(parents=True, exist_ok=True)
    files.write_text(place / f"{name}.md", f"{title}\n\n{markdown(readable)}\n{note}\n")
    files.write_text(place / f"{name}.csv", result_tables.comma_separated(spread))
    files.write_text(place / f"{name}.tex", result_tables.latex(readable, f"{title}. {note}"))
    files.write_json(place / f"{name}.json", structured)


def _markdown(table: Table) -> str:
    note = f"\n{table.note}\n" if table.note else ""
    if all(list(row) == [""] for row in table.rows):  # lines of text
        return f"## {table.title}\n\n```text\n" + "".join(f"{row['']}\n" for row in table.rows) + "```\n"
    return f"## {table.title}\n\n{markdown(table.rows)}{note}"
