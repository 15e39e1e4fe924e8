"""The last lines of a job: what came out in words, one table of before and after, where it lies, and what follows."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmedexpert_jax.config.presets import model_of
from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.launch.held_out import first_and_last, paired_gain, table
from mmedexpert_jax.medeval import result_tables
from mmedexpert_jax.medeval.evaluate import AnswerRow, Evaluation
from mmedexpert_jax.medeval.result_tables import Rows
from mmedexpert_jax.medeval.results import rows_path
from mmedexpert_jax.report import Figure
from mmedexpert_jax.report.text_tables import aligned
from mmedexpert_jax.runtime import files
from mmedexpert_jax.runtime.progress import COMPILING, clock
from mmedexpert_jax.runtime.run import free_folder, read_status

ARTEFACTS = {
    "table": "table.md",
    "report": "report.html",
    "dataset": "export/dataset",
    "model": "export/model",
    "adapter": "export/adapter",
    "samples": "samples",
    "plots": "plots",
    "metrics": "metrics.jsonl",
}


def closing(config: ConfigDict, compiled: float = 0.0) -> str:
    """The result of a job that is done, its outputs, and the commands that go on from there; before it began, this
    process had spent `compiled` seconds in compilations."""
    folder = Path(config.workdir)
    rows = result(config.job, folder)
    lines = [sentence(rows), "", aligned([_line(row) for row in rows]), ""] if rows else []
    lines.append(f"done: {folder}{_spent(folder, COMPILING.seconds - compiled)}")
    lines += [f"  {name:8} {folder / part}" for name, part in ARTEFACTS.items() if (folder / part).exists()]
    return "\n".join([*lines, *(f"next: {shlex.join(['mmedexpert', *words])}" for words in _next(config, folder))])


def result(job: str, folder: Path) -> Rows:
    """Accuracies that a job measured, rows of `cases` (or `model`), `number`, `before`, `after` and the paired `gain`;
    none for jobs that measure none."""
    if job in ("dsa", "gba"):
        experts = {name: first_and_last(folder / name) for name in SPECIALTIES}
        if any(experts.values()):
            return [table(_ends(found))[0] | {"cases": name} for name, found in experts.items() if found]
        return table(_ends(first_and_last(folder)))
    if job in ("evaluate", "pipeline"):
        rows = compared_runs([folder if job == "evaluate" else folder / "evaluate"])
        several = len({row["benchmark"] for row in rows}) > 1
        columns = ("model", "number", "accuracy", "gain", *(["benchmark"] if several else []))
        return [{name: row[name] for name in columns if name in row} for row in rows]
    return []


def _ends(found: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    return dict(zip(("before", "after"), found.values(), strict=False))


def compared_runs(folders: Sequence[Path]) -> Rows:
    """Accuracies of evaluations in several runs: a row for each benchmark, run and model, with the paired gain over the
    benchmark's first row on the items that both have, and their number; none of runs without. Where runs were scored by
    different rules, the rule stands beside, and gains are under the first one's, or none."""
    found: dict[str, list[tuple[str, str, Evaluation]]] = {}
    for folder in folders:
        summary = files.json_or_none(folder / "export" / "summary.json")
        for benchmark, models in summary.items() if isinstance(summary, dict) else ():
            for name in models if isinstance(models, dict) else ():
                path = rows_path(folder, benchmark, name)
                if path.exists():
                    found.setdefault(benchmark, []).append((str(folder), name, Evaluation.read(path)))
    rows: Rows = []
    for benchmark, evaluations in found.items():
        first = evaluations[0][2]
        scorers = [_scorer(Path(run), evaluation) for run, _, evaluation in evaluations]
        for (run, model, evaluation), scorer in zip(evaluations, scorers, strict=True):
            accuracy = evaluation.accuracy()
            row: dict[str, Any] = {"benchmark": benchmark, "run": run, "model": model, "number": str(accuracy["items"])}
            row |= {"accuracy": result_tables.cell(accuracy)} | ({"scorer": scorer} if len(set(scorers)) > 1 else {})
            rows.append(row if evaluation is first else row | _gain(first, scorers[0], evaluation, scorer))
    return rows


def _scorer(folder: Path, evaluation: Evaluation) -> str:
    """The rule by which a run's rows are right: its judge, or the scorer of its config."""
    held = files.json_or_none(folder / "config.json") or {}
    if any("judge" in row.verdicts for row in evaluation.rows):
        return f"judge {held.get('judge', {}).get('model', '')}".strip()
    return "" if evaluation.graded else held.get("scorer", "")


def _gain(first: Evaluation, wanted: str, second: Evaluation, scorer: str) -> dict[str, Any]:
    """Cells of `_over`, the second's answers under the scorer of the first; no gain where they lack its verdict."""
    if scorer == wanted:
        return _over(first, second)
    if not all(wanted in row.verdicts for row in second.rows):
        return {"gain": f"none: {scorer or 'unknown'} beside {wanted or 'unknown'}"}
    return _over(first, second.under(wanted)) | {"scorer": f"{scorer}; gain: {wanted}"}


def _over(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """Cells of the paired gain, over the items of both: those of one content, or, of files without it, of one id and
    one key, since ids are often numbers of rows."""
    known = all(row.item for row in (*first.rows, *second.rows))
    before, after = _named(first, known), _named(second, known)
    ids = {row.id for row in before} & {row.id for row in after}
    if not ids:
        return {"gain": "no item in common", "items of both": "0"}
    kept, same = (Evaluation(tuple(row for row in rows if row.id in ids)) for rows in (before, after))
    return {"gain": paired_gain(kept, same), "items of both": str(len(ids))}


def _named(evaluation: Evaluation, known: bool) -> list[AnswerRow]:
    """The rows with ids by what was asked; what was asked under several ids keeps them beside it."""
    ids: dict[str, set[str]] = {}
    for row in evaluation.rows:
        ids.setdefault(row.item, set()).add(row.id)

    def name(row: AnswerRow) -> str:
        if not known:
            return f"{row.id} {row.answer}"
        return row.item if len(ids[row.item]) == 1 else f"{row.id} {row.item}"

    return [replace(row, id=name(row)) for row in evaluation.rows]


def sentence(rows: Rows) -> str:
    """The rows in words: "held-out 37.6 -> 60.2 %, +22.7 [+19.6, +25.8]; image 22.9 -> 24.7 %, +1.8 [-2.9, +6.5]".

    Of groups of cases only the modalities, which show whether it uses the images; the table has all the others.
    """
    if "accuracy" in rows[0]:
        best = max(rows, key=lambda row: row["accuracy"].value)
        text = f"{best['model']} {best['accuracy'].middle} %"
        return text + (f", {best['gain']} over {rows[0]['model']}" if "gain" in best else "")
    shown = [row for row in rows if row["cases"] not in SPECIALTIES or rows[0]["cases"] in SPECIALTIES]
    parts = []
    for row in shown:
        name = "held-out" if row["cases"] == "all" else row["cases"]
        ends = " -> ".join(row[end].middle for end in ("before", "after") if end in row)
        parts.append(f"{name} {ends} %" + (f", {row['gain']}" if "gain" in row else ""))
    return "; ".join(parts)


def _line(row: Mapping[str, Any]) -> dict[str, str]:
    """A row for a terminal of 80 columns: the first interval of each figure, and the gain's verdict in a word."""
    line = {}
    for heading, value in row.items():
        shown = value.short if isinstance(value, Figure) else str(value)
        line[{"cases": "", "model": "", "number": "n"}.get(heading, heading)] = shown
    if isinstance(gain := row.get("gain"), Figure):
        sure = "better" if gain.value > 0 else "worse"
        line[" "] = sure if gain.settled else "unsettled"
    return line


def _spent(folder: Path, compiling: float) -> str:
    """The time that a run took, and how much of it went into compiling."""
    seconds = (read_status(folder).get("cost") or {}).get("wall_seconds")
    if not seconds:
        return ""
    compiled = f", {clock(compiling)} of it compiling" if compiling >= 1 else ""
    return f" in {clock(seconds)}{compiled}"


def _next(config: ConfigDict, folder: Path) -> list[list[str]]:
    """Arguments of the commands that usually follow a job."""

    def on(job: str, model: Path = folder) -> list[str]:
        preset = config.preset if job in ("dsa", "gba") else model_of(config.preset)
        default = Path("runs", f"{job}-{preset}")
        held = files.json_or_none(default / "config.json") or {}
        # an evaluation goes on with other models; any other job would be refused in the run of another one
        taken = job != "evaluate" and held and held.get("model", {}).get("path") != str(model)
        return [f"{job}:{preset}", f"model.path={model}", *([f"workdir={free_folder(default)}"] if taken else [])]

    if config.job == "dsa" and config.specialty == "all":
        experts = ",".join(f"{folder}/{name}" for name in SPECIALTIES)
        return [[f"merge:{model_of(config.preset)}", f"experts={experts}"]]
    if config.job == "dataset":
        review, train = ["review", f"data.path={folder}"], folder / "export" / "dataset"
        held_out = any(train.glob("dev.*"))  # a small set has no dev split, without which none is evaluated on
        more = [] if held_out else ["eval.every=-1"]
        return [review, ["dsa", f"data.path={train}", *more]] if train.exists() else [review]
    if config.job == "pipeline":
        return [on("export", folder / "final")]
    following = {"dsa": ("evaluate", "export"), "gba": ("evaluate", "export"), "merge": ("evaluate", "gba")}
    return [on(job) for job in following.get(config.job, ())]
