"""The result of a pipeline: its table, and a report from which every stage can be read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.medeval import result_tables
from mmedexpert_jax.medeval.evaluate import Evaluation
from mmedexpert_jax.medeval.results import rows_path
from mmedexpert_jax.report.text_tables import markdown
from mmedexpert_jax.runtime import files, metrics, plots, report, stage_costs

if TYPE_CHECKING:
    from mmedexpert_jax.runtime import Run

EXPERTS = plots.Panel("experts", "Loss of the experts", "nats per token", {"loss/*": ""})
TABLE_NOTE = (
    "Every answer of every model, both scorers and more groups of cases: evaluate/report.html beside this file."
)


def finish(run: "Run", stages: Sequence[Path], models: Sequence[str], price: float) -> None:
    """Writes and prints table.md, finishes the run with the accuracies, and writes report.html.

    Args:
        run: the pipeline's own.
        stages: the runs of the stages, the evaluation last.
        models: names of what was evaluated, the base first.
        price: dollars for an hour of one device; 0: no money is shown.

    Raises:
        DataError: the evaluation's summary is gone.
    """
    summaries = stages[-1] / "export" / "summary.json"
    names = files.json_or_none(summaries)  # by benchmark
    if not names:
        raise DataError(f"{summaries} is missing or broken; run the pipeline again with fresh=True")
    found = {name: {model: Evaluation.read(rows_path(stages[-1], name, model)) for model in models} for name in names}
    several = len(found) > 1
    parts = {
        f"{name}: {result_tables.HEADLINE}" if several else result_tables.HEADLINE: _table(found[name])
        for name in found
    }
    text = "\n".join(f"{title}\n\n" * several + markdown(rows) for title, rows in parts.items())
    files.write_text(run.path / "table.md", text)
    accuracies = {name: {model: found[name][model].accuracy()["accuracy"] for model in models} for name in found}
    run.finish({"accuracy": accuracies if several else next(iter(accuracies.values()))})
    note = f"{result_tables.INTERVALS} {TABLE_NOTE}"
    sections = [
        *(report.Table(title, rows, note, drawn=("model", "accuracy")) for title, rows in parts.items()),
        *_training(run.path),
        report.Table("Cost of the stages", stage_costs.table(stages, price), stage_costs.note(price)),
    ]
    report.report_run(run.path, sections)
    print(text, flush=True)


def _table(evaluations: Mapping[str, Evaluation]) -> result_tables.Rows:
    """A row for each model: its accuracies, and the gain over the first."""
    gains = {row.pop("model"): row for row in result_tables.comparison_table(evaluations)}
    summaries = {name: evaluation.summary() for name, evaluation in evaluations.items()}
    return [row | gains.get(row["model"], {}) for row in result_tables.models_table(summaries)]


def _training(folder: Path) -> list[report.Section]:
    """Curves of the experts and of GBA, and GBA's completions."""
    rows = [
        {"step": row["step"], f"loss/{name}": row["loss"]}
        for name in SPECIALTIES
        for row in metrics.read(folder / "experts" / name)
        if "loss" in row
    ]
    experts = plots.draw(EXPERTS, rows, folder / "plots" / "experts.png")
    found: list[report.Section] = [report.Figures("Experts (DSA)", [experts], report.CURVES)] if experts else []
    return [*found, *report.curves(folder / "gba", "GBA"), *report.samples(folder / "gba", "GBA, ")]
