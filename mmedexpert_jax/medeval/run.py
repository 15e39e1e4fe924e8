"""The job `evaluate` (section 5): one or several models on one split, their rows, tables and report."""

from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from mmedexpert_jax.data import load_cases
from mmedexpert_jax.data.case import LETTERS, Case
from mmedexpert_jax.errors import ConfigError, Interrupted
from mmedexpert_jax.medeval import tables
from mmedexpert_jax.medeval.evaluate import GROUPS, Evaluation, chance, constant, evaluate
from mmedexpert_jax.models import load_model, load_processor
from mmedexpert_jax.runtime import Run, files, report

SAMPLES = 100  # answers of each model that the report shows


def run(config: ConfigDict, run: Run) -> None:
    """Evaluates `model.path` and every model of `compare` on one split, and says how they differ.

    Writes export/rows/<model>.jsonl as soon as a model is done (a resumed run does not ask it again),
    export/summary.json, table.md, samples/ and report.html, and finishes the run with the summaries by model.

    Args:
        config: of the job; `compare` holds further models as "path" or "name=path".
        run: the open run.
    """
    cases = load_cases(config.data.path, config.split, limit=config.limit, seed=config.seed)
    evaluations = {}
    for name, path in models(config).items():
        if signum := run.interrupted():
            raise Interrupted(f"stopped before {name}; the same command resumes", signum)
        rows = run.path / "export" / "rows" / f"{slug(name)}.jsonl"
        if not rows.exists():
            found = _evaluate(config, run, name, path, cases)
            rows.parent.mkdir(parents=True, exist_ok=True)
            found.write(rows)
        evaluations[name] = Evaluation.read(rows)
    _finish(run, cases, evaluations)


def models(config: ConfigDict) -> dict[str, str]:
    """Name -> path of the models to evaluate; a path without a name is its own. Raises ConfigError on a name twice."""
    named: dict[str, str] = {}
    for entry in (config.model.path, *config.get("compare", ())):
        name, _, path = entry.rpartition("=")
        if (name or path) in named:
            raise ConfigError(f"two models are called {name or path!r}: give names as name=path")
        named[name or path] = path
    return named


def slug(name: str) -> str:
    """A model's name as a file name."""
    return "".join(char if char.isalnum() or char in "-." else "-" for char in name).strip("-.")


def _evaluate(config: ConfigDict, run: Run, name: str, path: str, cases: Sequence[Case]) -> Evaluation:
    model, params = load_model(path, dtype=config.model.dtype)
    paradigm = config.get("paradigm") or None
    prompts = sum(len(case.paradigms) for case in cases) if paradigm == "all" else len(cases)
    with run.progress(prompts, label=name) as progress:
        return evaluate(
            model,
            params,
            load_processor(path),
            cases,
            key=jax.random.key(config.seed),
            num_samples=config.num_samples,
            temperature=config.temperature,
            batch_size=config.batch_size,
            max_prompt_length=config.max_prompt_length,
            max_new_tokens=config.max_new_tokens,
            paradigm=paradigm,
            scorer=config.scorer,
            on_batch=progress.update,
        )


def _finish(run: Run, cases: Sequence[Case], evaluations: dict[str, Evaluation]) -> None:
    summaries = {name: evaluation.summary() for name, evaluation in evaluations.items()}
    letter, always = constant(cases)
    headline = [
        *tables.models_table(summaries | {f"always {letter}": always.summary()}),
        tables.chance_row(chance(cases)),
    ]
    parts = {"Accuracy, % [95 % interval]": headline}
    if len(evaluations) > 1:
        parts["Paired comparison, points [95 % interval]"] = tables.comparison_table(evaluations)
    parts |= {f"By {group}": tables.breakdown_table(summaries, group) for group in GROUPS}
    for name, evaluation in evaluations.items():
        run.table(slug(name), 0, sample_rows(evaluation, cases))
    files.write_json(run.path / "export" / "summary.json", summaries)
    text = "\n".join(f"## {title}\n\n{tables.markdown(rows)}" for title, rows in parts.items() if rows)
    files.write_text(run.path / "table.md", text)
    run.finish({"models": summaries})
    report.report_run(run.path, [report.Table(title, rows) for title, rows in parts.items() if rows])
    tables.show(headline, "Accuracy, % [95 % interval]")


def sample_rows(evaluation: Evaluation, cases: Sequence[Case]) -> list[dict]:
    """Up to SAMPLES answers at even distances, with question, options and images, to be read."""
    by_id = {case.id: case for case in cases}
    stride = -(-len(evaluation.rows) // SAMPLES)
    rows = []
    for row in evaluation.rows[::stride]:
        case = by_id[row.id]
        options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, case.options, strict=False))
        shown = {"id": row.id, "correct": row.right, "key": row.answer, "read": row.letter, "specialty": row.specialty}
        shown |= {"paradigm": row.paradigm, "task": row.task, "tokens": row.tokens, "images": list(case.images)}
        rows.append(shown | {"question": f"{case.question}\n{options}", "completion": row.response})
    return rows
