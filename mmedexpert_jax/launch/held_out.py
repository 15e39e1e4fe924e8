"""The held-out evaluation that launch passes into a training job, and what it says of the job as a whole."""

from typing import Any

import jax
from ml_collections import ConfigDict

from mmedexpert_jax import medeval
from mmedexpert_jax.data import load_cases
from mmedexpert_jax.data.benchmarks import from_case
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.medeval import result_tables
from mmedexpert_jax.medeval.eval_job import sample_rows
from mmedexpert_jax.medeval.evaluate import Evaluation
from mmedexpert_jax.models import load_architecture, load_processor
from mmedexpert_jax.report import Figure
from mmedexpert_jax.runtime import Run, processes
from mmedexpert_jax.train.policy import Evaluate

NOTE = "Percent with 95 % intervals, [Wilson's] and (the bootstrap's over cases); gains in points, paired over cases."


def evaluator(config: ConfigDict, run: Run) -> Evaluate | None:
    """The held-out evaluation of a trainer, which gives metrics `eval/...`; None where eval.every is -1.

    Prompts carry no guideline. Every answer is written to export/rows/, a hundred of them to samples/held_out/.
    """
    if config.eval.every < 0:
        return None
    settings = config.eval
    cases = load_cases(config.data.path, settings.split, limit=settings.limit or config.limit, seed=config.seed)
    model, processor = load_architecture(config.model.path), load_processor(config.model.path)

    def evaluate(params: dict, step: int, lora: Lora | None = None) -> dict[str, float]:
        def on_batch(done: int) -> int | None:
            progress.update(done)
            return run.heard()

        with run.progress(len(cases), label=f"{settings.split} split at step {step}") as progress:
            evaluation = medeval.evaluate(
                model,
                processes.local(params),
                processor,
                cases,
                lora=processes.local(lora),
                key=jax.random.key(config.seed),
                num_samples=settings.num_samples,
                temperature=settings.temperature,
                batch_size=settings.batch_size,
                max_prompt_length=config.max_prompt_length,
                max_new_tokens=config.max_new_tokens,
                on_batch=on_batch,
            )
        if processes.is_writer():
            evaluation.write(_rows(run, step, make=True))
        run.table("held_out", step, sample_rows(evaluation, [from_case(case) for case in cases]))
        summary = evaluation.summary()
        metrics = {f"eval/{name}": summary[name] for name in ("accuracy", "parse_rate", "mean_length", "truncated")}
        by = summary["by"]
        metrics |= {f"eval/accuracy/{v}": by[g][v]["accuracy"] for g in ("specialty", "modality") for v in by[g]}
        return metrics

    return evaluate


def scorer(config: ConfigDict, run: Run) -> Evaluate:
    """`evaluator` with the accuracy's 95 % interval beside it, as `eval/low` and `eval/high`."""
    evaluate = evaluator(config, run)
    assert evaluate is not None

    def score(params: dict, step: int, lora: Lora | None = None) -> dict[str, float]:
        metrics = evaluate(params, step, lora)
        accuracy = Evaluation.read(_rows(run, step)).accuracy()
        return metrics | {"eval/low": accuracy["low"], "eval/high": accuracy["high"]}

    return score


def gain(run: Run) -> dict[str, float]:
    """Held-out accuracy and share of parsed answers before and after, and the paired difference of the accuracies with
    its 95 % interval; empty without both."""
    found = _first_and_last(run)
    if len(found) < 2:
        return {}
    before, after = found.values()
    paired = medeval.compare_evaluations([before], [after])
    return {
        "held_out/before": before.accuracy()["accuracy"],
        "held_out/after": after.accuracy()["accuracy"],
        "held_out/gain": paired.difference,
        "held_out/gain_low": paired.low,
        "held_out/gain_high": paired.high,
        "held_out/parsed_before": before.summary()["parse_rate"],
        "held_out/parsed_after": after.summary()["parse_rate"],
    }


def table(run: Run) -> list[dict[str, Any]]:
    """Held-out accuracy before and after with intervals, and the paired gain: in all, by specialty and by modality."""
    found = _first_and_last(run)
    whole = next(iter(found.values()), Evaluation(()))
    groups = [(label, value) for label in ("specialty", "modality") for value in whole.values(label)]
    return [_row(found, "all"), *(_row(_only(found, *group), group[1]) for group in groups)] if found else []


def _row(found: dict[int, Evaluation], name: str) -> dict[str, Any]:
    accuracies = {step: evaluation.accuracy() for step, evaluation in found.items()}
    row: dict[str, Any] = {"cases": name, "number": str(next(iter(accuracies.values()))["items"])}
    row |= {f"step {step}": result_tables.cell(accuracy) for step, accuracy in accuracies.items()}
    if len(found) > 1:
        before, after = found.values()
        paired = medeval.compare_evaluations([before], [after])
        row["gain"] = Figure.percent(paired.difference, paired.low, paired.high, signed=True, paired=True)
    return row


def _only(found: dict[int, Evaluation], label: str, value: str) -> dict[int, Evaluation]:
    return {step: evaluation.only(label, value) for step, evaluation in found.items()}


def _first_and_last(run: Run) -> dict[int, Evaluation]:
    """The evaluations before and after training, as far as they are there."""
    steps = sorted({row["step"] for row in run.metrics() if "eval/accuracy" in row})
    ends = dict.fromkeys([*steps[:1], *steps[-1:]])
    return {step: Evaluation.read(_rows(run, step)) for step in ends if _rows(run, step).exists()}


def gain_line(figures: dict[str, float]) -> str:
    """One line of `gain` for people, in percent."""
    percent = {name.removeprefix("held_out/"): 100 * value for name, value in figures.items()}
    return (
        "held-out accuracy {before:.1f} -> {after:.1f} %, paired gain {gain:+.1f} [{gain_low:+.1f}, {gain_high:+.1f}], "
        "answers with a choice {parsed_before:.0f} -> {parsed_after:.0f} %"
    ).format(**percent)


def groups_line(run: Run) -> str:
    """Accuracy before and after by modality, with the paired gains: "image 22.9 -> 24.7 %, +1.8 [-2.9, +6.5]"."""
    found = _first_and_last(run)
    if len(found) < 2:
        return ""
    parts = []
    for value in next(iter(found.values())).values("modality"):
        before, after = _only(found, "modality", value).values()
        paired = medeval.compare_evaluations([before], [after])
        gain = Figure.percent(paired.difference, paired.low, paired.high, signed=True, paired=True)
        ends = [Figure.percent(one.accuracy()["accuracy"]) for one in (before, after)]
        parts.append(f"{value} {ends[0]} -> {ends[1]} %, {gain}")
    return "by modality: " + "; ".join(parts) if parts else ""


def _rows(run: Run, step: int, make: bool = False):
    folder = run.path / "export" / "rows"
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    return folder / f"step-{step:06d}.jsonl"
