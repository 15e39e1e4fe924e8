"""`--config.plan=True` of the job `evaluate`: what every model would be asked, about how much of it, and what it costs.

Nothing is asked, no weights are loaded and nothing is written; of the images only those of a sample are read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from mmedexpert_jax.data.case import GRADED, Case
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.medeval.ask import questions
from mmedexpert_jax.medeval.controls import variants
from mmedexpert_jax.medeval.eval_job import answers_folder, load, models
from mmedexpert_jax.medeval.prompt_styles import Question, opened
from mmedexpert_jax.medeval.results import slug
from mmedexpert_jax.medeval.systems import Target
from mmedexpert_jax.models import load_processor
from mmedexpert_jax.remote import Request
from mmedexpert_jax.remote.messages import estimate_tokens
from mmedexpert_jax.remote.protocol import endpoint

SAMPLE = 48  # questions whose prompts are counted for the estimate, at even distances
ASKED = 200  # tokens of a judge's instructions
ANSWER, TOKEN = 1000, 5  # bytes beside an answer's text, and of a token of it, both on the safe side
RUNS_ON = {"jax": "the JAX engine", "transformers": "transformers"}


@dataclass(frozen=True)
class Workload:
    """The load of a benchmark on a model, estimated: answers, tokens of all prompts, tokens of answers at most."""

    answers: int
    prompt: int
    completion: int


def describe(config: ConfigDict) -> tuple[list[str], int]:
    """The census of each benchmark; requests and tokens of each model on each; their sum; and the number of answers of
    models on devices of ours.

    Raises:
        ConfigError: an unknown benchmark, system or prompt, a name twice.
        DataError: a benchmark's files.
    """
    lines: list[str] = []
    loaded = load(config, lines.append)
    lines = [f"benchmark  {text}".replace("\n", f"\n{'':11}") for text in lines]
    items = {key: _items(config, benchmark.items) for key, benchmark in loaded.items()}
    estimates = []
    for target in models(config):
        lines.append(f"model      {target.name}: {target.model} on {RUNS_ON.get(target.kind, target.url or '?')}")
        count, exact = _counter(target)
        for key, benchmark in loaded.items():
            asked = questions(items[key], target.style(config.prompt), config.paradigm or None)
            text, estimate = _estimate(config, asked, count, exact)
            if more := len(items[key]) - len(benchmark.items):
                text += f"; {more:,} of {len(items[key]):,} items are of controls"
            lines.append(f"{'':11}{key}, prompt {target.style(config.prompt)}: {text}{_stored(config, target, key)}")
            estimates.append((target, estimate))
    ours = sum(estimate.answers for target, estimate in estimates if target.kind != "endpoint")
    return [*lines, *_sum(config, estimates), *_judge(config, items, len(models(config)))], ours


def _items(config: ConfigDict, items: Sequence[Case]) -> list[Case]:
    """The items and those of the controls. No image is read: pairs ask nothing new, and other images are planned as
    grey ones, as many and about as large."""
    all_items = list(items)
    for name in config.controls:
        name = "blank" if name == "other_image" else name
        for control in variants(() if name == "pairs" else items, name, config.rotations, config.seed):
            all_items += control.items
    return all_items


def _counter(target: Target) -> tuple[Callable[[Question], int], bool]:
    """Counts the tokens of a prompt: exactly, by the model's own tokenizer and image grid, where they lie here, else
    roughly; and which of the two."""
    local = target.kind == "jax" and (Path(target.model).expanduser().is_dir() or target.model in ("mini", "smollm2"))
    if not local:
        return lambda question: estimate_tokens(Request(question.messages)), False
    processor = load_processor(target.model)
    return lambda question: len(processor.encode(opened(question.messages)).tokens), True


def _estimate(
    config: ConfigDict, asked: Sequence[Question], count: Callable[[Question], int], exact: bool
) -> tuple[str, Workload]:
    """In words and as a `Workload`; the mean of a sample stands for all, and a second turn repeats the first with its
    answer."""
    sample = [asked[i * len(asked) // min(SAMPLE, len(asked))] for i in range(min(SAMPLE, len(asked)))]
    lengths = []
    for question in sample:
        try:
            lengths.append(count(question))
        except DataError:
            continue  # the run names it
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    answers = len(asked) * config.num_samples
    turns = 1 + any(question.follow_up for question in asked)
    prompt = len(asked) * mean + (turns - 1) * answers * (mean + config.max_new_tokens)
    done = Workload(answers * turns, round(prompt), answers * turns * config.max_new_tokens)
    text = f"{len(asked):,} questions x {config.num_samples}{' x 2 turns' if turns > 1 else ''}"
    text += f" = {done.answers:,} answers; about {done.prompt:,} prompt tokens ({mean:.0f} a question), "
    text += f"at most {done.completion:,} of answers"
    over = exact and sum(length > config.max_prompt_length for length in lengths)
    if over:
        text += f"; {over} of {len(lengths)} sampled prompts are over max_prompt_length={config.max_prompt_length}"
    return text, done


def _stored(config: ConfigDict, target: Target, key: str) -> str:
    """The number of answers in the folder of stored ones, whether or not they fit this run's keys."""
    folder = answers_folder(config, Path(config.workdir)) / slug(target.name) / slug(key)
    lines = sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))
    return f"; {lines:,} lines of answers are stored" if lines else ""


def _sum(config: ConfigDict, estimates: Sequence[tuple[Target, Workload]]) -> list[str]:
    """All answers and tokens, the share of each process, and dollars where an endpoint's prices are set."""
    names = ("answers", "prompt", "completion")
    total = Workload(*(sum(getattr(each, name) for _, each in estimates) for name in names))
    each = f", 1/{config.processes} of them by each process" if config.processes > 1 else ""
    tokens = f"about {total.prompt:,} prompt tokens, at most {total.completion:,} of answers"
    lines = [f"in all     {total.answers:,} answers{each}; {tokens}"]
    kept = total.answers * answer_bytes(config.max_new_tokens)
    lines.append(f"disk       at most about {kept / 1e6:.1f} MB: stored answers and rows, without the report's images")
    remote = [each for target, each in estimates if target.kind == "endpoint"]
    if remote and (config.endpoint.price_input or config.endpoint.price_output):
        dollars = sum(each.prompt for each in remote) * config.endpoint.price_input
        dollars += sum(each.completion for each in remote) * config.endpoint.price_output
        budget = _budget(config.endpoint.budget)
        lines.append(f"cost       at most about ${dollars / 1e6:,.2f} at the endpoint; {budget}")
    return lines


def answer_bytes(tokens: int) -> int:
    """The bytes of an answer of so many tokens on disk, in the store and in its row, on the safe side."""
    return ANSWER + 2 * TOKEN * tokens


def _judge(config: ConfigDict, asked: Mapping[str, Sequence[Case]], number: int) -> list[str]:
    items = [item for held in asked.values() for item in held]
    criteria = sum(len(item.columns["criteria"]) for item in items if item.kind == "rubric")
    if not config.judge.model:
        missing = f"judge      none is named, and {criteria:,} criteria need one: set config.judge.model"
        return [missing] if criteria else []
    ungraded = [item for item in items if item.kind not in GRADED]
    wanted = len(ungraded) if config.judge.what != "open" else sum(item.kind == "open" for item in ungraded)
    requests = (wanted + criteria) * number * config.num_samples
    lines = [f"judge      {config.judge.model}: at most {requests:,} requests"]
    if items and (config.judge.price_input or config.judge.price_output):
        texts = ["\n".join((item.question, *item.options, item.answer)) for item in items]
        read = estimate_tokens(Request([{"role": "user", "content": "\n".join(texts)}])) / len(texts)
        dollars = (read + config.max_new_tokens + ASKED) * config.judge.price_input
        dollars += endpoint(config.judge).max_tokens * config.judge.price_output
        lines.append(f"{'':11}at most about ${requests * dollars / 1e6:,.2f}, {_budget(config.judge.budget)}")
    return lines


def _budget(dollars: float) -> str:
    return f"budget ${dollars:g}" if dollars else "no budget set"
