"""Answers of one model to many cases, judged: batches of few shapes, one row per answer, a summary with intervals."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from mmedexpert_jax import rollout
from mmedexpert_jax.data.case import LETTERS, PARADIGMS, Case
from mmedexpert_jax.data.prompts import conversation
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.medeval.batches import Job, plan
from mmedexpert_jax.medeval.scoring import judge_choice, strict_choice
from mmedexpert_jax.medeval.stats import Comparison, bootstrap, compare, wilson
from mmedexpert_jax.models import Model
from mmedexpert_jax.processing.processor import Processor

GROUPS = ("specialty", "paradigm", "modality", "task")


@dataclass(frozen=True)
class Row:
    """One answer.

    Attributes:
        id: of the case.
        sample: number of the answer among those to the same prompt.
        response: the whole completion.
        letter: what the strict parser reads in it; None where it reads nothing.
        answer: letter of the right option.
        right: verdict of the scorer.
        tokens: length of the completion, its end counted.
        truncated: it reached the limit without an end.
        specialty: of the case.
        paradigm: that the prompt asks for; of a prompt that asks for none, the case's own.
        modality: "image" or "text".
        task: of the case.
    """

    id: str
    sample: int
    response: str
    letter: str | None
    answer: str
    right: bool
    tokens: int
    truncated: bool
    specialty: str
    paradigm: str
    modality: str
    task: str


@dataclass(frozen=True)
class Evaluation:
    """The answers of one model, in the order of the cases."""

    rows: tuple[Row, ...]

    def outcomes(self) -> dict[str, list[bool]]:
        """Verdicts by case; all samples and prompts of a case stand together."""
        outcomes: dict[str, list[bool]] = {}
        for row in self.rows:
            outcomes.setdefault(row.id, []).append(row.right)
        return outcomes

    def summary(self) -> dict[str, Any]:
        """Accuracy with its interval, parse rate and lengths of all rows, and accuracy `by` each of GROUPS."""
        by = {}
        for group in GROUPS:
            values = sorted({getattr(row, group) for row in self.rows} - {""})
            by[group] = {value: self.only(group, value).accuracy() for value in values}
        return self.accuracy() | {
            "parse_rate": _mean(row.letter is not None for row in self.rows),
            "mean_length": _mean(row.tokens for row in self.rows),
            "truncated": _mean(row.truncated for row in self.rows),
            "by": by,
        }

    def accuracy(self) -> dict[str, float]:
        """Items, mean accuracy, and its 95 % interval: Wilson's, or over items where they have several answers."""
        items = self.outcomes().values()
        means = [_mean(outcomes) for outcomes in items]
        single = all(len(outcomes) == 1 for outcomes in items)
        low, high = wilson(int(sum(means)), len(means)) if single else bootstrap(means)
        return {"items": len(means), "accuracy": _mean(means), "low": low, "high": high}

    def only(self, group: str, value: str) -> "Evaluation":
        """The rows of one specialty, paradigm, modality or task."""
        return Evaluation(tuple(row for row in self.rows if getattr(row, group) == value))

    def write(self, path: str | Path) -> None:
        """Writes the rows as JSON lines."""
        lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self.rows)
        Path(path).write_text("".join(lines), encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> "Evaluation":
        """Reads what `write` wrote. Raises DataError."""
        try:
            return cls(tuple(Row(**json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: not the rows of an evaluation ({error})") from None


def compare_evaluations(first: Sequence[Evaluation], second: Sequence[Evaluation], seed: int = 0) -> Comparison:
    """Paired comparison over the cases that both sides answered; runs (seeds) and samples of a case stay together."""
    before, after = _pooled(first), _pooled(second)
    shared = [case for case in before if case in after]
    if not shared:
        raise DataError("the two evaluations have no case in common: evaluate both on the same split")
    return compare([before[case] for case in shared], [after[case] for case in shared], seed)


def _pooled(evaluations: Sequence[Evaluation]) -> dict[str, list[bool]]:
    pooled: dict[str, list[bool]] = {}
    for evaluation in evaluations:
        for case, outcomes in evaluation.outcomes().items():
            pooled.setdefault(case, []).extend(outcomes)
    return pooled


def evaluate(
    model: Model,
    params: dict,
    processor: Processor,
    cases: Sequence[Case],
    *,
    lora: Lora | None = None,
    key: Array,
    num_samples: int = 1,
    temperature: float = 0.0,
    batch_size: int = 64,
    max_prompt_length: int | None = None,
    max_new_tokens: int = 1024,
    paradigm: str | None = None,
    scorer: str = "strict",
    on_batch: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Lets a model answer cases and judges what it says.

    Args:
        model: the network.
        params: its weights.
        processor: of its checkpoint.
        cases: what to ask, with unique ids.
        lora: deltas beside the weights.
        key: PRNG key of the sampling; an answer depends on it and its prompt's number alone, not on the batches.
        num_samples: answers to each prompt.
        temperature: 0 decodes greedily.
        batch_size: prompts decoded together.
        max_prompt_length: tokens; a longer prompt is refused. None: no limit.
        max_new_tokens: limit of an answer.
        paradigm: None for prompts without guidelines; one of PARADIGMS; or "all": each case under each that applies.
        scorer: "strict" or "medevalkit" (`scoring.judge_choice`).
        on_batch: called with the number of prompts answered so far.

    Raises:
        ConfigError: an unknown paradigm or scorer.
        DataError: a prompt over the limit, or a case that cannot be encoded, by its id.
    """
    jobs = list(_jobs(cases, paradigm))
    rows: dict[int, list[Row]] = {}
    for batch, members in plan(processor, jobs, batch_size, max_prompt_length):
        completions = rollout.generate(
            model,
            params,
            batch,
            key=key,
            num_samples=num_samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            lora=lora,
            rows=jnp.array(members, jnp.int32),
        )
        tokens, lengths, truncated = map(np.asarray, (completions.tokens, completions.lengths, completions.truncated))
        for place, number in enumerate(members):
            if number not in rows:  # a batch is filled up with repeated prompts
                texts = [processor.decode(ids[:n]) for ids, n in zip(tokens[place], lengths[place], strict=True)]
                judged = zip(texts, lengths[place], truncated[place], strict=True)
                rows[number] = [_row(jobs[number], i, *found, scorer) for i, found in enumerate(judged)]
        on_batch(len(rows))
    return Evaluation(tuple(row for number in range(len(jobs)) for row in rows[number]))


def constant(cases: Sequence[Case]) -> tuple[str, Evaluation]:
    """The baseline that always answers the letter which is right most often in these very cases."""
    counts = {letter: sum(case.answer == letter for case in cases) for letter in LETTERS}
    letter = max(LETTERS, key=counts.__getitem__)
    said = f"<answer>{letter}</answer>"
    return letter, Evaluation(tuple(_row(job, 0, said, 1, False, "strict") for job in _jobs(cases, None)))


def chance(cases: Sequence[Case]) -> float:
    """Expected accuracy of a uniform guess."""
    return _mean(1 / len(case.options) for case in cases)


def _jobs(cases: Sequence[Case], paradigm: str | None) -> Iterator[Job]:
    if paradigm not in (None, "all", *PARADIGMS):
        raise ConfigError(f"no paradigm {paradigm!r}: choose one of {', '.join(PARADIGMS)}, all, or none")
    for case in cases:
        for asked in case.paradigms if paradigm == "all" else (paradigm,):
            yield Job(case, asked, conversation(case, asked))


def _row(job: Job, sample: int, text: str, tokens: int, truncated: bool, scorer: str) -> Row:
    case = job.case
    labelled = [f"{letter}. {option}" for letter, option in zip(LETTERS, case.options, strict=False)]
    return Row(
        id=case.id,
        sample=sample,
        response=text,
        letter=strict_choice(text, case.options),
        answer=case.answer,
        right=judge_choice(text, labelled, case.answer, scorer),
        tokens=int(tokens),
        truncated=bool(truncated),
        specialty=case.specialty,
        paradigm=job.paradigm or case.paradigm,
        modality=case.modality,
        task=case.task,
    )


def _mean(values: Any) -> float:
    values = list(values)
    return float(sum(values) / len(values)) if values else 0.0
