"""A published clinical rule as data: findings and what they count, and the bands of the total."""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.data.embedded.problem import Problem, Step
from mmedexpert_jax.data.embedded.wording import NEUTRAL, question


@dataclass(frozen=True)
class Level:
    """One state of an item of a rule."""

    points: int  # what it counts
    phrases: tuple[str, ...]  # ways to write it in a vignette; "{}" takes a number from `spans`, in order
    spans: tuple[tuple[int, int], ...] = ()  # inclusive ranges of the numbers, in units of 1 / `scale`
    scale: int = 1  # 1 for whole numbers, 10 for one decimal

    def numbers(self, rng: Random) -> tuple[float, ...]:
        """A number from each span."""
        return tuple(rng.randint(low, high) / self.scale for low, high in self.spans)

    def write(self, phrase: str, numbers: tuple[float, ...]) -> str:
        """The finding as it stands in the vignette."""
        return phrase.format(*(f"{number:.{1 if self.scale > 1 else 0}f}" for number in numbers))


@dataclass(frozen=True)
class RuleItem:
    """One item of a rule: its name and the levels it can take."""

    name: str
    levels: tuple[Level, ...]


def points(count: int) -> str:
    """ "1 point", "2 points"."""
    return f"{count} point" if count == 1 else f"{count} points"


@dataclass(frozen=True)
class Rule:
    """A text task: the items are scored, the total falls in a band, the band is the answer."""

    task: str  # name of the task
    specialty: str  # one of data.case.SPECIALTIES
    title: str  # the rule's name
    doi: str  # of the publication or guideline the rule stands in
    contexts: tuple[str, ...]  # ways to name the clinical situation
    what: str  # what the question asks for
    items: tuple[RuleItem, ...]  # in the order of the rule
    bands: tuple[tuple[int, str], ...]  # (lowest total, option text), ascending
    prior: str  # option text of the band met most often in practice
    mechanism: str  # why the findings count, in a few words
    who: str = "patient"  # "patient", "child" or "newborn"
    highest: bool = False  # whether the total is the highest level of all items instead of their sum
    scored: bool = False  # whether the options themselves are totals, so that traces need not repeat the total
    most: int = 6  # how many items of a patient may count, so that traces stay short

    source = "generated from the published rule"
    licence = "Apache-2.0"
    ordered = True

    def __post_init__(self):
        assert self.prior in self.options, self.task

    @property
    def running(self) -> bool:
        """True where findings add up to a running total."""
        return not self.highest

    @property
    def options(self) -> tuple[str, ...]:
        """All option texts, from the lowest band to the highest."""
        return tuple(text for _, text in self.bands)

    def band(self, total: int) -> int:
        """Index of the band that `total` falls in."""
        return max(i for i, (low, _) in enumerate(self.bands) if i == 0 or total >= low)

    def problem(self, rng: Random, band: int, pool: str) -> Problem:
        """A patient whose total falls in `band`; totals in the band are equally likely."""
        choice = rng.choice(rng.choice(self._choices[band]))
        levels = [item.levels[i] for item, i in zip(self.items, choice, strict=True)]
        numbers = [level.numbers(rng) for level in levels]
        texts = [level.write(rng.choice(level.phrases), n) for level, n in zip(levels, numbers, strict=True)]
        findings = [(text, level.points) for text, level in zip(texts, levels, strict=True)]
        if rng.random() < 0.5:
            findings.insert(rng.randint(0, len(findings)), (rng.choice(NEUTRAL), 0))
        names = [item.name for item in self.items]
        return Problem(
            key=f"{self.task} {choice} {numbers}",
            question=question(
                rng, pool, self.contexts, self.what, who=self.who, findings=", ".join(text for text, _ in findings)
            ),
            steps=self._steps(findings),
            values={name: n or text for name, n, text in zip(names, numbers, texts, strict=True)},
        )

    @cached_property
    def _choices(self) -> list[list[list[tuple[int, ...]]]]:
        """For each band, for each total in it: the choices of levels (one index an item) that reach it."""
        table: list[dict[int, list[tuple[int, ...]]]] = [{} for _ in self.bands]
        for choice in product(*(range(len(item.levels)) for item in self.items)):
            counts = [item.levels[i].points for item, i in zip(self.items, choice, strict=True)]
            if sum(count > 0 for count in counts) <= self.most:
                total = max(counts) if self.highest else sum(counts)
                table[self.band(total)].setdefault(total, []).append(choice)
        return [[totals[total] for total in sorted(totals)] for totals in table]

    def _steps(self, findings: list[tuple[str, int]]) -> tuple[Step, ...]:
        """Every finding in its order, with the running total, or by itself where the highest decides."""
        steps: list[Step] = []
        total = 0
        for text, count in findings:
            if self.highest:
                total = max(total, count)
                if text not in NEUTRAL:
                    steps.append(Step(text, f"is {self.options[self.band(count)]}", self.band(total)))
            else:
                total += count
                said = "" if self.scored else points(total)
                steps.append(Step(text, str(total), self.band(total), said, counts=count > 0))
        return tuple(steps)


def _levels(item: Any) -> tuple[Level, ...]:
    """The levels of an item as rules.yaml writes it."""
    if isinstance(item, list):
        return tuple(Level(points, tuple(phrases.split("|"))) for points, phrases in item)
    phrases, scale = (item["phrase"],), item.get("scale", 1)
    return tuple(
        Level(n, phrases, tuple(zip(ends[::2], ends[1::2], strict=True)), scale) for n, *ends in item["levels"]
    )


def _rule(task: str, fields: dict[str, Any]) -> Rule:
    items = tuple(RuleItem(name, _levels(item)) for name, item in fields["items"].items())
    bands = tuple(fields["bands"].items())
    return Rule(task, **fields | {"contexts": tuple(fields["contexts"]), "items": items, "bands": bands})


_FILE = Path(__file__).with_name("rules.yaml")
RULES = {task: _rule(task, fields) for task, fields in border.read_yaml(_FILE).items()}  # in the order of the recipe
