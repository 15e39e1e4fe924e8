"""A language model as reward: one score for each completion by a rubric, or comparisons within a group."""

import contextlib
import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmedexpert_jax import answers, border, privacy
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError, DataError

KINDS = ("rubric", "pairwise")
RUBRIC = (
    "Is the reasoning medically sound, does it follow from the findings of the case, and does it lead to the answer "
    "that is given? A wrong answer gets at most 3."
)
_SCORE = re.compile(r"score\W{0,6}(\d{1,2}(?:\.\d+)?)(?:\s*/\s*10)?(?!\d)", re.IGNORECASE)
_BETTER = re.compile(r"\bbetter\W{0,6}([AB])\b|^\W*([AB])\W*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class JudgeReward:
    """A reward of all completions of a rollout, asked of an endpoint; what it said of a text is stored and not asked
    again. A reply that cannot be read, or a refusal for that text, is an abstention.

    Attributes:
        endpoint: the judge's, at temperature 0.
        kind: "rubric": 0 to 1, a score of 10 over 10; "pairwise": share of comparisons won in the group.
        rubric: what a score is given for.
        store: file of its answers.
        privacy: what becomes of a text that may identify a person, one of `privacy.MODES`; under "refuse" the judge
            abstains on it.
        told: cases that were said to hold one, so that a step does not say it again.
    """

    endpoint: Any
    kind: str
    rubric: str
    store: Path
    privacy: str = "report"
    told: set[str] = field(default_factory=set)

    @classmethod
    def from_config(cls, config: ConfigDict, folder: Path | None) -> "JudgeReward":
        """From `config.rewards.judge`. Raises ConfigError: no URL or model, no such key or rubric."""
        from mmedexpert_jax import remote

        fields = config.rewards.judge.to_dict()
        kind, rubric, mode = fields.pop("kind"), fields.pop("rubric"), fields.pop("privacy")
        fields.pop("weight")
        for name in ("url", "model"):
            if not fields[name]:
                raise ConfigError(f"config.rewards.judge.{name} is empty; name the judge's {name}")
        if kind not in KINDS:
            raise ConfigError(
                f"config.rewards.judge.kind={border.shown(kind)} is unknown; choose one of {', '.join(KINDS)}"
            )
        if rubric.endswith((".txt", ".md")):
            try:
                rubric = border.read_bytes(Path(rubric).expanduser(), 1 << 20).decode()
            except (DataError, UnicodeDecodeError) as error:
                raise ConfigError(f"config.rewards.judge.rubric: {border.cut(str(error), 200)}") from None
        endpoint = remote.Endpoint(temperature=0.0, max_tokens=256, **fields)
        endpoint.key()
        return cls(endpoint, kind, rubric or RUBRIC, (folder or Path()) / "judge.sqlite", mode)

    def __call__(self, cases: Sequence[Case], texts: Sequence[str], **_: Any) -> list[float | None]:
        """A number from 0 to 1 for each completion, None where the judge did not say. Raises RemoteError."""
        self._tell(cases, texts)
        return self._scores(cases, texts) if self.kind == "rubric" else self._wins(cases, texts)

    def _scores(self, cases: Sequence[Case], texts: Sequence[str]) -> list[float | None]:
        asked = [
            f"{_head(case)}\n\nResponse:\n{text}\n\nRubric: {self.rubric}\n\n"
            "Reply with one line: Score: N, from 0 to 10."
            for case, text in zip(cases, texts, strict=True)
        ]
        return [read_score(reply) for reply in self._ask(asked)]

    def _wins(self, cases: Sequence[Case], texts: Sequence[str]) -> list[float | None]:
        """Each completion against the next of its case, in a cycle, in an order that a hash chooses."""
        groups = defaultdict(list)
        for place, case in enumerate(cases):
            groups[case.id].append(place)
        pairs = [
            pair for places in groups.values() if len(places) > 1
            for pair in zip(places, places[1:] + places[:1], strict=True)
        ]  # fmt: skip
        ordered = [pair if _digest(texts[pair[0]], texts[pair[1]]) % 2 else pair[::-1] for pair in pairs]
        asked = [
            f"{_head(cases[a])}\n\nResponse A:\n{texts[a]}\n\nResponse B:\n{texts[b]}\n\nRubric: {self.rubric}\n\n"
            "Reply with one line: Better: A, or Better: B."
            for a, b in ordered
        ]
        won: dict[int, list[float]] = defaultdict(list)
        for (a, b), reply in zip(ordered, self._ask(asked), strict=True):
            if better := read_better(reply):
                won[a].append(float(better == "A"))
                won[b].append(float(better == "B"))
        return [sum(won[place]) / len(won[place]) if won[place] else None for place in range(len(texts))]

    def _tell(self, cases: Sequence[Case], texts: Sequence[str]) -> None:
        """Prints a line on the cases that, with what was said to them, may identify a person; each case once."""
        rows: dict[str, list[privacy.Found]] = defaultdict(list)
        for case, text in zip(cases, texts, strict=True):
            told = [("question", case.question), ("options", case.options), ("key", case.answer), ("response", text)]
            rows[case.id] += privacy.scan_texts(told)
        new = {name: found for name, found in rows.items() if name not in self.told}
        if line := privacy.line(new, "the judge", self.privacy):
            print(line, "" if self.told else privacy.BLIND, flush=True)
        self.told.update(name for name, found in new.items() if found)

    def _ask(self, questions: Sequence[str]) -> list[str]:
        """Replies in order, "" where there is none; equal questions are asked once, stored ones not at all."""
        from mmedexpert_jax import remote

        if self.privacy == "redact":
            questions = [privacy.redact(question) for question in questions]
        elif self.privacy == "refuse":
            kept = [question for question in questions if not privacy.scan(question, "question")]
            said = dict(zip(kept, replace(self, privacy="report")._ask(kept), strict=True))
            return [said.get(question, "") for question in questions]
        distinct = list(dict.fromkeys(questions))
        self.store.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(remote.Answers(self.store)) as history:
            client = remote.Client(self.endpoint, history)
            requests = [remote.Request([{"role": "user", "content": question}]) for question in distinct]
            said = {q: r.text for q, r in zip(distinct, client.ask(requests), strict=True)}
        return [said[question] for question in questions]


def read_score(reply: str) -> float | None:
    """A score of 0 to 10 over 10, the last that the reply states; None where it states none in that range."""
    found = [float(number) for number in _SCORE.findall(answers.spoken(reply))]
    return found[-1] / 10 if found and found[-1] <= 10 else None


def read_better(reply: str) -> str | None:
    """ "A" or "B" where the reply names one of the two and not the other."""
    named = {(a or b).upper() for a, b in _BETTER.findall(answers.spoken(reply))}
    return named.pop() if len(named) == 1 else None


def _head(case: Case) -> str:
    """The case as a judge is shown it, its key or reference answer included."""
    options = "\n".join(["\nOptions:", *answers.lettered(case.options)]) if case.options else ""
    return f"You grade a response to a medical question.\n\nQuestion:\n{case.question}{options}\n\nKey:\n{case.answer}"


def _digest(*texts: str) -> int:
    return int(hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8], 16)
