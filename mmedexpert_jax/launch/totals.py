"""The rest of a pipeline or a sweep, in all: its stages, their steps, tokens and answers, and disk."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from mmedexpert_jax.data import benchmarks, load_cases
from mmedexpert_jax.errors import DataError, RemoteError
from mmedexpert_jax.launch import ablation, pipeline
from mmedexpert_jax.plan import budget
from mmedexpert_jax.runtime.run import finished


def left(config: ConfigDict) -> list[ConfigDict]:
    """Configs of the stages that are not done, in order; all where `fresh` deletes them; a job without stages' own."""
    if config.job == "pipeline":
        stages = pipeline.stages(config)
    elif config.job == "ablation":
        stages = [task.config for task in ablation.tasks(config)]
    else:
        return [config]
    deleted = config.fresh and not config.get("stages")  # a folder that sweeps share stays
    return [stage for stage in stages if deleted or not finished(Path(stage.workdir))]


def lines(config: ConfigDict, kinds: Mapping[str, ConfigDict], train: Mapping[str, int]) -> Iterator[str]:
    """The lines of a plan on all that is left.

    Args:
        config: of the pipeline or the sweep.
        kinds: by job, the config of a stage whose disk stands for all of its kind.
        train: training cases by specialty.
    """
    stages = left(config)
    counts = Counter(stage.job for stage in stages)
    jobs = {job: counts[job] for job in kinds}
    yield "in all"
    yield f"  stages     {', '.join(f'{count} {job}' for job, count in jobs.items()) or 'none'} left"
    steps = [(budget.training_steps(stage, train), stage) for stage in stages if stage.job in budget.TRAINING]
    if all(count for count, _ in steps):
        tokens = sum(count * budget.tokens_per_step(stage) for count, stage in steps)
        yield f"  steps      {sum(count for count, _ in steps):,}, at most {tokens:,} tokens with padding"
    else:
        yield "  steps      not known without the training cases"
    each = {job: budget.disk(budget.count(kinds[job])[0]) for job in jobs if job != "evaluate"}
    parts = [f"{jobs[job]} {job} x {budget.gb(size)}" for job, size in each.items()]
    known = sum(jobs[job] * size for job, size in each.items())
    answers = _answers(config, [stage for stage in stages if stage.job == "evaluate"])
    if answers is None:
        parts.append("answers not counted: their number is not known")
    else:
        from mmedexpert_jax.medeval import eval_plan as evaluation

        longest = config.evaluate.max_new_tokens
        stored = answers * evaluation.answer_bytes(longest)
        yield f"  answers    {answers:,}, at most {answers * longest:,} tokens"
        parts.append(f"answers {budget.gb(stored)}")
        known += stored
    yield f"  disk       at most {budget.gb(known)}: {', '.join(parts)}"


def _answers(config: ConfigDict, stages: list[ConfigDict]) -> int | None:
    """Answers of the evaluations; None where a benchmark's items are not known without its files."""
    counts = [_items(config, entry) for entry in config.evaluate.benchmarks]

    def of(stage: ConfigDict, items: int) -> int:
        return (min(stage.limit, items) if stage.limit else items) * stage.num_samples * (1 + len(stage.compare))

    if all(counts):
        return sum(of(stage, items) for stage in stages for items in counts)
    if all(stage.limit for stage in stages):
        return sum(of(stage, stage.limit) for stage in stages for _ in counts)
    return None


def _items(config: ConfigDict, entry: str) -> int:
    """Items of a benchmark: those of `data.path`, or as its authors count them; 0: not known."""
    if entry != "mmedexpert_mini":
        return benchmarks.published_items(entry)
    try:
        return len(load_cases(config.data.path, config.evaluate.split))
    except (DataError, RemoteError):
        return 0
