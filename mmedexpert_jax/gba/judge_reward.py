"""A language model as reward: one score for each completion by a rubric, or comparisons within a group."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmedexpert_jax import answers, border, privacy
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.gba.askers import OWN, Asker, Network, chat_of, endpoint_asker, guarded, network_of, stored

KINDS = ("rubric", "pairwise")
RUBRIC = (
    "Is the reasoning medically sound, does it follow from the findings of the case, and does it lead to the answer "
    "that is given? A wrong answer gets at most 3."
)
_SCORE = re.compile(
    # the range that the prompt names: "Score (0-10): 7", "Score out of 10: 7"
    r"(?<![^\W_])(?:score|rating|grade(?=\W{0,4}[:=])|评分|得分|punktzahl|puntuación)(?:[^\d\n:=]{0,24}(?:[01]\s*(?:[-–]|to)\s*|\bof\s+)10\W{0,2}(?=[:=]))?"
    r"(?P<link>[^\w−+-]{0,3}\s[-–]{1,2}\s|\s+is\s|[^\w−+-]{0,8})(?P<number>\d{1,2}(?:\.\d+)?)(?:\s*(?:/|out\s+of)\s*10)?"
    # no other denominator, unit or range
    r"(?![\d%]|[.,]\d|\s*(?:/|out\s+of)|\s*%|e\d|\s*(?:[-–]|to)\s*\d)",
    re.IGNORECASE,
)
_OWN_LINE = re.compile(
    rf"^\W{{0,8}}(?:(?:final|overall|total)\s+)?{_SCORE.pattern}\W{{0,8}}$", re.IGNORECASE | re.MULTILINE
)
# A reply that is nothing else, and one that gives it in a sentence.
_NUMBER = re.compile(
    r"(?:[^.\n]{0,40}\b(?:give|rate|score|deserves?)\s[^\d\n]{0,24}(?=\d{1,2}(?:\.\d+)?\s*(?:/|out\s+of)))?"
    r"(?P<number>\d{1,2}(?:\.\d+)?)(?:\s*(?:/|out\s+of)\s*10)?[.!]?",
    re.IGNORECASE,
)
_BETTER = re.compile(
    r"\bbetter\W{0,6}(?:response\W{1,3})?([AB])\b(?!\W{0,3}(?:(?:or|and|vs)\W{1,3}|[/=,]\s*)(?:response\s)?[AB]\b)|^\W*(?:response\s)?([AB])\W*$",
    re.IGNORECASE | re.MULTILINE,
)
# The same in a sentence that does not deny or doubt it.
_IS_BETTER = re.compile(
    r"^(?!.*\?\s*$)(?:(?!\b(?:[Nn]either|nor|[Ww]hether|[Ii]f|not|cannot|unclear|unsure)\b|n['’]t\b).)*?"
    r"(?:\b([AB])\s(?:is|was)\s(?:clearly\s|the\s)*better\b(?!\s\w+(?:ed|wn)\b)"
    r"|\bbetter\s(?:(?:response|answer|one)\s)?is\W{1,3}(?:[Rr]esponse\s)?([AB])\b|\A\W*([AB])\s?>\s?[AB]\W*\Z"
    r"|\b(?:(?i:winner|verdict)\W{1,4}|I\sprefer\s)(?:[Rr]esponse\s)?([AB])\b)"
)


@dataclass(frozen=True)
class JudgeReward:
    """A reward of all completions of a rollout, asked of a language model. A reply that cannot be read, or a refusal
    for that text, is an abstention.
    """

    ask: Asker  # the judge, at temperature 0
    kind: str  # "rubric": 0 to 1, a score of 10 over 10; "pairwise": share of comparisons won in the group
    rubric: str  # what a score is given for
    # what becomes of a text that may identify a person, one of `privacy.MODES`; under "refuse" the judge abstains on it
    privacy: str = "report"
    sends: bool = True  # whether texts leave this process
    by_prompt: bool = True  # groups are of one prompt; False: of a query under all its paradigms
    # cases that were said to hold one, so that a step does not say it again
    reported: set[str] = field(default_factory=set)

    @classmethod
    def from_config(cls, config: ConfigDict, folder: Path | None, own: Network | None = None) -> "JudgeReward":
        """From `config.rewards.judge`. Raises ConfigError: neither a path nor URL and model, no such key or rubric."""
        group = config.rewards.judge
        kind, rubric, store = group.kind, group.rubric, (folder or Path()) / "judge.sqlite"
        if kind not in KINDS:
            raise ConfigError(
                f"config.rewards.judge.kind={border.shown(kind)} is unknown; choose one of {', '.join(KINDS)}"
            )
        if re.fullmatch(r"[!-~]+\.\w{1,8}|[!-~]*/[!-~]*", rubric) or rubric.endswith((".txt", ".md")):
            try:
                text = border.read_text(Path(rubric).expanduser(), 1 << 20)
            except DataError as error:
                raise ConfigError(f"config.rewards.judge.rubric: {border.cut(str(error), 200)}") from None
            if not text.strip():
                raise ConfigError(f"config.rewards.judge.rubric: {border.cut(rubric, 200)} is empty; write what counts")
            rubric = text
        rubric = rubric or RUBRIC
        by_prompt = config.group_by == "prompt"
        if group.path:
            answer = chat_of(network_of(group.path, own), group.max_tokens)
            ask = stored(answer, f"{name_of(group.path, config)} judge of {group.max_tokens} tokens", store)
            return cls(ask, kind, rubric, sends=False, by_prompt=by_prompt)
        ask = guarded(endpoint_asker(endpoint_of(config, "judge"), store), group.privacy)
        return cls(ask, kind, rubric, group.privacy, by_prompt=by_prompt)

    def __call__(
        self, cases: Sequence[Case], texts: Sequence[str], *, paradigms: Sequence[str | None] = (), **_: Any
    ) -> list[float | None]:
        """A number from 0 to 1 for each completion, None where the judge did not say. Raises RemoteError."""
        if self.sends:
            report_sent(cases, texts, self.reported, self.privacy, "the judge")
        if self.kind == "rubric":
            return self._scores(cases, texts)
        under = paradigms if self.by_prompt and paradigms else [None] * len(cases)
        return self._wins(cases, texts, [(case.id, one) for case, one in zip(cases, under, strict=True)])

    def _scores(self, cases: Sequence[Case], texts: Sequence[str]) -> list[float | None]:
        asked = [
            f"{_head(case)}\n\nResponse:\n{text}\n\nRubric: {self.rubric}\n\n"
            "Reply with one line: Score: N, from 0 to 10."
            for case, text in zip(cases, texts, strict=True)
        ]
        return [read_score(reply) for reply in self.ask(asked)]

    def _wins(self, cases: Sequence[Case], texts: Sequence[str], by: Sequence[Any]) -> list[float | None]:
        """Each text of a group, those of one key in `by`, against the next other one, in a cycle, in an order that a
        hash chooses. Equal texts have one share; half where all of a group are equal, of which nothing is asked."""
        first: dict[tuple[Any, str], int] = {}  # (group, text) -> the completion that stands for those equal to it
        cycles, sizes = defaultdict(list), Counter(by)
        for place, one in enumerate(zip(by, texts, strict=True)):
            if first.setdefault(one, place) == place:
                cycles[one[0]].append(place)
        pairs = [
            pair for places in cycles.values() if len(places) > 1
            for pair in zip(places, places[1:] + places[:1], strict=True)
        ]  # fmt: skip
        ordered = [pair if _digest(texts[pair[0]], texts[pair[1]]) % 2 else pair[::-1] for pair in pairs]
        asked = [
            f"{_head(cases[a])}\n\nResponse A:\n{texts[a]}\n\nResponse B:\n{texts[b]}\n\nRubric: {self.rubric}\n\n"
            "Reply with one line: Better: A, or Better: B."
            for a, b in ordered
        ]
        won: dict[int, list[float]] = defaultdict(list)
        won |= {places[0]: [0.5] for key, places in cycles.items() if len(places) == 1 < sizes[key]}
        for (a, b), reply in zip(ordered, self.ask(asked), strict=True):
            if better := read_better(reply):
                won[a].append(float(better == "A"))
                won[b].append(float(better == "B"))
        shares = {place: sum(points) / len(points) for place, points in won.items()}
        return [shares.get(first[one]) for one in zip(by, texts, strict=True)]


def report_sent(cases: Sequence[Case], texts: Sequence[str], reported: set[str], mode: str, reader: str) -> None:
    """Prints a line on the cases that, with what was said to them, may identify a person; each case once."""
    rows: dict[str, list[privacy.Found]] = defaultdict(list)
    for case, text in zip(cases, texts, strict=True):
        parts = [("question", case.question), ("options", case.options), ("key", case.golds), ("response", text)]
        rows[case.id] += privacy.scan_texts(parts)
    new = {name: found for name, found in rows.items() if name not in reported}
    if line := privacy.line(new, reader, mode):
        print(line, "" if reported else privacy.BLIND, flush=True)
    reported.update(name for name, found in new.items() if found)


def endpoint_of(config: ConfigDict, name: str, **own: Any) -> Any:
    """The endpoint of a group of `config.rewards`, with `own` in place of its fields.

    Raises ConfigError: no URL or model, no such key.
    """
    from mmedexpert_jax.remote.protocol import endpoint

    group = config.rewards[name]
    for key in ("url", "model"):
        if not group[key]:
            raise ConfigError(f"config.rewards.{name}.{key} is empty; name the {key}, or a model in process as path")
    found = endpoint(group, temperature=0.0, **own)
    found.key()
    return found


def name_of(path: str, config: ConfigDict) -> str:
    """The model behind a path, in the keys of a store."""
    return config.model.path if path == OWN else path


def read_score(reply: str) -> float | None:
    """A score of 0 to 10 over 10: the last that has a line of its own, else the only one behind a colon, else the only
    one; None where there is none in that range, or one of another range ("4/5")."""
    text = answers.spoken(reply)
    if bare := _NUMBER.fullmatch(answers.unwrap(text)):
        found = {float(bare["number"])}
    elif own := list(_OWN_LINE.finditer(text)):
        found = {float(own[-1]["number"])}
    else:
        stated = list(_SCORE.finditer(text))
        headed = [score for score in stated if re.search("[:=]", score["link"])]
        found = {float(score["number"]) for score in headed or stated}
    score = found.pop() if len(found) == 1 else 11.0
    return score / 10 if score <= 10 else None


def read_better(reply: str) -> str | None:
    """ "A" or "B" where the reply names one of the two and not the other."""
    text = answers.spoken(reply)
    found = _BETTER.findall(text) or _BETTER.findall(answers.unwrap(text))
    sentences = re.split(r"(?<=[.!?;])\s|\n", text) if not found else []
    found = found or [said.groups("") for said in map(_IS_BETTER.search, sentences) if said]
    named = {"".join(letters).upper() for letters in found}
    return named.pop() if len(named) == 1 else None


def _head(case: Case) -> str:
    """The case as a judge is shown it, its key or reference answer included."""
    options = "\n".join(["\nOptions:", *answers.lettered(case.options)]) if case.options else ""
    key = "\nor: ".join(case.golds)
    return f"You grade a response to a medical question.\n\nQuestion:\n{case.question}{options}\n\nKey:\n{key}"


def _digest(*texts: str) -> int:
    return int(hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8], 16)
