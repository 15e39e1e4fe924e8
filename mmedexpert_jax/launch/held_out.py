"""The held-out evaluation that launch passes into a training job, and what it says of the job as a whole."""

from collections.abc import Mapping
from pathlib import Path
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
from mmedexpert_jax.runtime import Run, metrics, processes
from mmedexpert_jax.runtime.run import finished
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
            _rows(run.path, step).parent.mkdir(parents=True, exist_ok=True)
            evaluation.write(_rows(run.path, step))
        run.table("held_out", step, sample_rows(evaluation, [from_case(case) for case in cases]))
        summary = evaluation.summary()
        metrics = {f"eval/{name}": summary[name] for name in ("accuracy", "parse_rate", "mean_length", "truncated")}
        by = summary["by"]
        metrics |= {f"eval/accuracy/{v}": by[g][v]["accuracy"] for g in ("specialty", "modality") for v in by[g]}
        return metrics

    return evaluate


def scorer(config: ConfigDict, run: Run) -> Evaluate:
    """`evaluator` with the accuracy's 95 % interval added, as `eval/low` and `eval/high`."""
    evaluate = evaluator(config, run)
    assert evaluate is not None

    def score(params: dict, step: int, lora: Lora | None = None) -> dict[str, float]:
        metrics = evaluate(params, step, lora)
        accuracy = Evaluation.read(_rows(run.path, step)).accuracy()
        return metrics | {"eval/low": accuracy["low"], "eval/high": accuracy["high"]}

    return score


def gain(folder: Path) -> dict[str, float]:
    """Held-out accuracy and share of parsed answers before and after, and the paired difference of the accuracies with
    its 95 % interval; empty without both."""
    found = first_and_last(folder)
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


def table(found: Mapping[Any, Evaluation]) -> list[dict[str, Any]]:
    """Accuracies with intervals, before and after where both are there, and the paired gain: in all, by specialty, by
    modality.

    Args:
        found: heading -> evaluation of the same cases, such as `first_and_last`.
    """
    whole = next(iter(found.values()), Evaluation(()))
    groups = [(label, value) for label in ("specialty", "modality") for value in whole.values(label)]
    rows = [_row({heading: one.only(*group) for heading, one in found.items()}, group[1]) for group in groups]
    return [_row(found, "all"), *rows] if found else []


def _row(found: Mapping[Any, Evaluation], name: str) -> dict[str, Any]:
    accuracies = {heading: evaluation.accuracy() for heading, evaluation in found.items()}
    row: dict[str, Any] = {"cases": name, "number": str(next(iter(accuracies.values()))["items"])}
    row |= {heading: result_tables.cell(accuracy) for heading, accuracy in accuracies.items()}
    return row | ({"gain": paired_gain(*found.values())} if len(found) > 1 else {})


def paired_gain(before: Evaluation, after: Evaluation) -> Figure:
    """The difference of two accuracies over the same cases, in points, with its 95 % interval."""
    paired = medeval.compare_evaluations([before], [after])
    return Figure.percent(paired.difference, paired.low, paired.high, signed=True, paired=True)


def first_and_last(folder: Path) -> dict[str, Evaluation]:
    """The evaluations before and after training, as far as a run directory has them: "step 0", "step 48"; of a run that
    exports its best checkpoint, after is that one's: "step 32 (best)"."""
    steps = sorted({row["step"] for row in metrics.read(folder) if "eval/accuracy" in row})
    exported = finished(folder).get("summary", {}).get("steps")
    last = exported if exported in steps else max(steps, default=0)
    names = {step: f"step {step}" for step in (*steps[:1], last)}
    if last < max(steps, default=0):
        names[last] += " (best)"
    return {name: Evaluation.read(_rows(folder, step)) for step, name in names.items() if _rows(folder, step).exists()}


def _rows(folder: Path, step: int) -> Path:
    return folder / "export" / "rows" / f"step-{step:06d}.jsonl"
