"""Answers of one model to the items of a benchmark, judged: one row per answer, a summary with intervals."""

import hashlib
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jax import Array

from mmedexpert_jax import answers, border
from mmedexpert_jax.data.benchmarks import from_case
from mmedexpert_jax.data.case import GRADED, LETTERS, PARADIGMS, Case
from mmedexpert_jax.data.prompts import conversation
from mmedexpert_jax.errors import ConfigError, DataError, Interrupted
from mmedexpert_jax.intervals import wilson
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.medeval import reports
from mmedexpert_jax.medeval.scoring import read_text, score
from mmedexpert_jax.medeval.stats import Comparison, bootstrap, compare, majority, pass_at_k, stratified_bootstrap
from mmedexpert_jax.models import Model
from mmedexpert_jax.processing.processor import Processor
from mmedexpert_jax.rollout import Engine, Reply, Settings
from mmedexpert_jax.runtime import costs, processes

BOTH = ("strict", "medevalkit")  # scorers that every report shows


@dataclass(frozen=True)
class AnswerRow:
    """One answer."""

    id: str  # of the item
    sample: int  # number of the answer among those to the same prompt
    response: str  # the whole completion, of the last turn
    # what the strict scorer reads in it: a letter, "yes" or "no", or text; None where it reads nothing
    said: str | None
    answer: str  # letter or text of the key
    right: bool  # verdict of the scorer in force; False where a `grade` stands
    tokens: int  # length of the completion, its end counted
    truncated: bool  # it reached the limit without an end
    # what accuracies are broken down by; "paradigm" is the one that the prompt asks for, if it asks for one
    labels: Mapping[str, str] = field(default_factory=dict)
    verdicts: Mapping[str, bool] = field(default_factory=dict)  # scorer -> whether it holds the answer right
    guessed: bool = False  # MedEvalKit's scorer could not read the answer and took the most similar option
    f1: float = 0.0  # token F1 of an open answer
    first: str = ""  # the reply to the first turn, where there are two
    logprob: float | None = None  # sum over the completion's tokens, where the sampler tells it
    # share that a report or an answer under a rubric earns, at most 1, below 0 where a rubric takes points off; None
    # where the answer is right or wrong
    grade: float | None = None
    measures: Mapping[str, float] = field(default_factory=dict)  # further figures of such an answer, by name
    item: str = ""  # hash of what was asked (`content_of`), by which it is known under another id; "" in older files

    @property
    def value(self) -> float:
        """The summand of the answer in a mean: its grade, else 1 where it is right."""
        return float(self.right) if self.grade is None else self.grade


@dataclass(frozen=True)
class Evaluation:
    """The answers of one model, in the order of the items."""

    rows: tuple[AnswerRow, ...]

    def outcomes(self) -> dict[str, list[float]]:
        """Values of the answers by item; all samples and prompts of an item stand together."""
        return {item: [row.value for row in rows] for item, rows in self.by_item().items()}

    def summary(self) -> dict[str, Any]:
        """Accuracy with its intervals; the same under both scorers; shares of guesses, of answers parsed and cut off;
        accuracy `by` each label's values; votes and pass@k where items have several answers; means of `measures`."""
        labels = dict.fromkeys(label for row in self.rows for label in row.labels)
        by = {
            label: {value: self.only(label, value).accuracy() for value in self.values(label)}
            for label in labels
            if self.values(label)
        }
        scorers = dict.fromkeys(scorer for row in self.rows for scorer in row.verdicts)
        figures = self.accuracy() | {
            "scorers": {scorer: self.under(scorer).accuracy() for scorer in scorers},
            "parse_rate": _mean(row.said is not None for row in self.rows),
            "guessed": _mean(row.guessed for row in self.rows),
            "f1": _mean(row.f1 for row in self.rows),
            "mean_length": _mean(row.tokens for row in self.rows),
            "truncated": _mean(row.truncated for row in self.rows),
            "by": by,
            "measures": self._measures(),
        }
        return figures | self._samples()

    def accuracy(self) -> dict[str, Any]:
        """Items, mean accuracy, and 95 % intervals of it: "bootstrap" over items, "wilson" where every item has one
        answer that is right or wrong, and in its place where all items have one mean; "low" and "high" are Wilson's if
        there are such, else the bootstrap's. Of grades the mean and the interval's ends are cut to 0 to 1, as
        HealthBench does."""
        outcomes = list(self.outcomes().values())
        means = [_mean(each) for each in outcomes]
        single = all(len(each) == 1 for each in outcomes) and not self.graded
        found = _figure(len(means), _mean(means), bootstrap(means)) if single else _mean_figure(means)
        if single:
            low, high = wilson(int(sum(means)), len(means))
            found |= {"low": low, "high": high, "wilson": [low, high]}
        return found

    @property
    def graded(self) -> bool:
        """True where answers earn a share instead of being right or wrong."""
        return any(row.grade is not None for row in self.rows)

    def macro(self, label: str) -> dict[str, Any]:
        """Mean of the accuracies by a label's values, and its bootstrap interval with items drawn within each value;
        a value with one item, which does not show how its items differ, may be anything from 0 to 1."""
        strata = [
            [_mean(outcomes) for outcomes in self.only(label, value).outcomes().values()]
            for value in self.values(label)
        ]
        accuracy = _mean(map(_mean, strata))
        low, high = stratified_bootstrap([values if len(values) > 1 else [0.0, 1.0] for values in strata])
        return _figure(sum(map(len, strata)), accuracy, (min(low, accuracy), max(high, accuracy)))

    def values(self, label: str) -> list[str]:
        """Values of a label, sorted."""
        return sorted({row.labels.get(label, "") for row in self.rows} - {""})

    def only(self, label: str, value: str) -> "Evaluation":
        """The rows of one specialty, task, modality ..."""
        return Evaluation(tuple(row for row in self.rows if row.labels.get(label) == value))

    def over(self, ids: Container[str]) -> "Evaluation":
        """The rows of some items."""
        return Evaluation(tuple(row for row in self.rows if row.id in ids))

    def under(self, scorer: str) -> "Evaluation":
        """The same answers under another of their verdicts."""
        return Evaluation(tuple(replace(row, right=row.verdicts.get(scorer, False)) for row in self.rows))

    def write(self, path: str | Path) -> None:
        """Writes the rows as JSON lines, whole or not at all. Raises ResourceError."""
        border.write_jsonl(path, map(asdict, self.rows))

    @classmethod
    def read(cls, path: str | Path) -> "Evaluation":
        """Reads what `write` wrote. Raises DataError."""
        try:
            lines = border.read_text(path).split("\n")
            return cls(tuple(AnswerRow(**border.parse_json(line, "a row")) for line in lines if line))
        except (DataError, TypeError) as error:
            raise DataError(f"{path}: not the rows of an evaluation ({error})") from None

    def by_item(self) -> dict[str, list[AnswerRow]]:
        """Rows by item; all samples and prompts of an item stand together."""
        rows: dict[str, list[AnswerRow]] = {}
        for row in self.rows:
            rows.setdefault(row.id, []).append(row)
        return rows

    def _measures(self) -> dict[str, Any]:
        """Means of the rows' measures by name, each over the items that have it."""
        found = {}
        for name in dict.fromkeys(name for row in self.rows for name in row.measures):
            items = [[row.measures[name] for row in rows if name in row.measures] for rows in self.by_item().values()]
            means = [_mean(values) for values in items if values]
            found[name] = _mean_figure(means)
        return found

    def _samples(self) -> dict[str, Any]:
        """Majority vote over what the strict scorer reads, right by its verdict, or by a judge's where one was asked,
        and pass@k; empty where an item has one answer or answers are graded."""
        items = list(self.by_item().values())
        least = min(map(len, items), default=0)
        if least < 2 or self.graded:
            return {}
        votes = [majority([_vote(row) for row in rows]) for rows in items]
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < least] + [least]
        counts = [(sum(row.right for row in rows), len(rows)) for rows in items]
        passed = {}
        for k in ks:
            passed[str(k)] = _mean_figure([pass_at_k(right, total, k) for right, total in counts])
        return {"majority": _mean_figure(votes), "pass_at": passed}


def _vote(row: AnswerRow) -> tuple[str | None, bool]:
    """The text that an answer votes for, None for none, and whether it is right: by the verdict in force where a judge
    was asked, as in the mean, else by the strict scorer's."""
    right = row.right if "judge" in row.verdicts else row.verdicts.get("strict", row.right)
    if row.said is None:
        return None, right
    word = answers.yes_no(row.said) if answers.yes_no_key(row.answer) else None
    return word or answers.vote(row.said), right


def compare_evaluations(first: Sequence[Evaluation], second: Sequence[Evaluation]) -> Comparison:
    """Paired comparison over the items that both sides answered; runs (seeds) and samples of an item stay together."""
    before, after = _pooled(first), _pooled(second)
    shared = [item for item in before if item in after]
    if not shared:
        raise DataError("the two evaluations have no case in common: evaluate both on the same split")
    return compare([before[item] for item in shared], [after[item] for item in shared])


def _pooled(evaluations: Sequence[Evaluation]) -> dict[str, list[float]]:
    pooled: dict[str, list[float]] = {}
    for evaluation in evaluations:
        for item, outcomes in evaluation.outcomes().items():
            pooled.setdefault(item, []).extend(outcomes)
    return pooled


def judged(
    item: Case,
    replies: Sequence[Reply],
    *,
    form: str = "tags",
    paradigm: str | None = None,
    scorer: str = "strict",
    first: Sequence[Reply] = (),
) -> list[AnswerRow]:
    """Rows of a model's replies to one item under a prompt that asks for an answer in `form`; those under a rubric are
    yet to be graded (`rubric_judge`). Raises ConfigError."""
    rows = []
    labels = {label: value for label, value in item.labels.items() if value}
    labels = labels | ({"paradigm": paradigm} if paradigm else {})
    content = content_of(item)
    for sample, reply in enumerate(replies):
        row = AnswerRow(
            id=item.id,
            sample=sample,
            response=reply.text,
            said=None,
            answer=item.answer,
            right=False,
            tokens=reply.tokens,
            truncated=reply.truncated,
            labels=labels,
            first=first[sample].text if first else "",
            logprob=reply.logprob,
            item=content,
        )
        rows.append(_graded(row, item, form) if item.kind in GRADED else _scored(row, item, form, scorer))
    return rows


def content_of(item: Case) -> str:
    """A hash of question, options, key and names of images: rows of a file that is sorted or cut anew keep it."""
    images = [re.split(r"[/\s]", image.name)[-1] for image in item.images]
    return hashlib.sha256(repr((item.question, item.options, item.answer, images)).encode()).hexdigest()[:16]


def _scored(row: AnswerRow, item: Case, form: str, scorer: str) -> AnswerRow:
    """The row with the verdicts of the scorers."""
    scores = {name: score(item, row.response, name, form) for name in dict.fromkeys((*BOTH, scorer))}
    return replace(
        row,
        said=scores["strict"].answer,
        right=scores[scorer].right,
        verdicts={name: found.right for name, found in scores.items()},
        guessed=scores["medevalkit"].guessed,
        f1=scores["strict"].f1,
    )


def _graded(row: AnswerRow, item: Case, form: str) -> AnswerRow:
    """The row with the measures of a report; of an answer under a rubric with what will be judged."""
    said = read_text(row.response, form)
    if item.kind != "report":
        return replace(row, said=said)
    measures = reports.measures(item.answer, said or "")
    return replace(row, said=said, grade=measures[reports.HEADLINE], measures=measures)


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
    on_batch: Callable[[int], int | None] = lambda done: None,
) -> Evaluation:
    """Lets a model in memory answer cases and judges what it says; several processes share the cases.

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
        scorer: "strict", "medevalkit" or "medxpertqa" (`scoring.score`).
        on_batch: called with the number of prompts answered so far; returns a signal that asks to stop, if any.

    Raises:
        Interrupted: a signal came to any of the processes, each of which has ended its batch.
        ConfigError: an unknown paradigm or scorer.
        DataError: a prompt over the limit, or a case that cannot be encoded, by its id.
    """
    jobs = list(_jobs(cases, paradigm))
    own = processes.own(range(len(jobs)))
    settings = Settings(
        num_samples=num_samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch_size=batch_size,
        max_prompt_length=max_prompt_length,
    )
    engine = Engine(model, params, processor, settings, lora=lora, key=key)
    prompts = (conversation(*jobs[number]) for number in own)
    names = (f"case {jobs[number][0].id}" for number in own)
    rows: dict[int, list[AnswerRow]] = {}
    signum: int | None = None
    with costs.shared():
        for place, replies in engine.answer(prompts, own, names):
            case, asked = jobs[own[place]]
            rows[place] = judged(from_case(case), replies, paradigm=asked, scorer=scorer)
            if len(rows) % batch_size == 0 or len(rows) == len(own):
                signum = on_batch(len(rows) * len(jobs) // len(own))
            if signum:
                break
    if signum := processes.largest(signum or 0):  # asked here, to which all come, and not where each has its own batch
        raise Interrupted("stopped during an evaluation; the same command makes it again", signum)
    gathered = processes.gather([[asdict(row) for row in rows[place]] for place in range(len(own))])
    count = len(gathered)  # of processes, which took the jobs in turn (`processes.own`)
    return Evaluation(tuple(AnswerRow(**row) for i in range(len(jobs)) for row in gathered[i % count][i // count]))


def constant(items: Sequence[Case]) -> tuple[str, Evaluation]:
    """The baseline that always answers the letter which is right most often in these very items."""
    counts = {letter: sum(item.answer == letter for item in items) for letter in LETTERS}
    letter = max(LETTERS, key=counts.__getitem__)
    said = [Reply(f"<answer>{letter}</answer>", 1, False)]
    return letter, Evaluation(tuple(row for item in items for row in judged(item, said)))


def chance(items: Sequence[Case]) -> float:
    """Expected accuracy of a uniform guess among the options, or of a coin for yes and no; 0 for an open question."""
    sizes = {"choice": lambda item: 1 / len(item.options), "yes_no": lambda item: 0.5}
    return _mean(sizes.get(item.kind, lambda item: 0.0)(item) for item in items)


def _jobs(cases: Sequence[Case], paradigm: str | None) -> Iterator[tuple[Case, str | None]]:
    if paradigm not in (None, "all", *PARADIGMS):
        raise ConfigError(f"no paradigm {paradigm!r}: choose one of {', '.join(PARADIGMS)}, all, or none")
    for case in cases:
        for asked in case.paradigms if paradigm == "all" else (paradigm,):
            yield case, asked


def _mean_figure(values: Sequence[float]) -> dict[str, Any]:
    """The mean over items with its bootstrap interval; without one of one item, whose resamples are all itself; with
    Wilson's where several have one value, since resamples show nothing of items of another."""
    if len(set(values)) == 1 < len(values):
        found = _figure(len(values), values[0], wilson(max(0.0, sum(values)), len(values)))
        return found | {"wilson": found["bootstrap"], "bootstrap": None}
    return _figure(len(values), _mean(values), bootstrap(values) if len(values) != 1 else None)


def _figure(items: int, accuracy: float, ends: tuple[float, float] | None) -> dict[str, Any]:
    """An accuracy or the mean of grades, with its bootstrap interval, without one from 0 to 1; a mean below 0 counts as
    0."""
    low, high = (max(0.0, end) for end in ends or (0.0, 1.0))
    bounds = [low, high] if ends else None
    return {"items": items, "accuracy": max(0.0, accuracy), "low": low, "high": high, "bootstrap": bounds}


def _mean(values: Any) -> float:
    values = list(values)
    return float(sum(values) / len(values)) if values else 0.0
