"""P_guide (paper section 4.2): which query is put under which paradigm at which step."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mmedexpert_jax import border
from mmedexpert_jax.data import prompts
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.data.order import epoch_order, seeded, steps_of
from mmedexpert_jax.errors import ConfigError, DataError

GROUPINGS = ("prompt", "query")
Difficulties = dict[str, float] | None  # by case id, rising with difficulty; None: no order by them


@dataclass(frozen=True)
class Prompt:
    """A query under one paradigm."""

    case: Case  # the query
    paradigm: str | None = None  # one of data.case.PARADIGMS; None for the plain query
    guideline: str | None = None  # text of a guideline that the prompt quotes; None for none

    @property
    def conversation(self) -> list[dict]:
        """The prompt as a message list."""
        return prompts.conversation(self.case, self.paradigm, self.guideline)


@dataclass(frozen=True)
class Guidelines:
    """The prompts of every step; which ones is a function of the step, the seed and the set of cases alone.

    A query takes its paradigms in turn, epoch by epoch. Where it starts is its rank, in the order of a seeded hash,
    among the queries to which the same paradigms apply: in every epoch the paradigms are used equally often.
    """

    cases: Sequence[Case]  # the queries
    seed: int  # of the order and the assignment
    groups: int  # groups a step, each of `num_samples` completions that equation 4 compares
    num_samples: int  # G
    paradigms_per_query: int = 1  # prompts made of a query each time it is visited
    # "prompt", a group is one prompt (equation 4); "query", a group is one query, its G samples split over its
    # paradigms
    group_by: str = "prompt"
    # whether the prompts ask for their paradigm; False takes the same queries without paradigm and guideline
    guided: bool = True
    texts: dict[str, str] | None = None  # guideline texts by task or case id, which prompts quote
    # of the cases; every epoch then goes from easy to hard, in random order among equals. None: random.
    difficulties: Difficulties = None

    def __post_init__(self):
        if self.group_by not in GROUPINGS:
            raise ConfigError(f"config.group_by is {self.group_by!r}; one of {', '.join(GROUPINGS)}")
        if self.texts is not None and self._unmatched == {*self.texts}:
            tasks = ", ".join(sorted({case.task for case in self.cases} - {""}))
            raise DataError(
                f"config.guideline_text: none of its {len(self.texts)} keys ({border.cut(', '.join(self.texts))}) is a "
                f"task or id of the {len(self.cases)} cases, whose tasks are {border.cut(tasks) or 'not named'}"
            )
        if not 1 <= self.paradigms_per_query <= 4:
            raise ConfigError(f"config.paradigms_per_query is {self.paradigms_per_query}; 1 to 4")
        name, whole = (
            ("num_samples", self.num_samples) if self.group_by == "query" else ("prompts_per_step", self.groups)
        )
        if whole % self.paradigms_per_query:
            raise ConfigError(
                f'config.{name} is {whole}; with group_by="{self.group_by}" it must be a multiple of '
                f"paradigms_per_query, {self.paradigms_per_query}"
            )

    @property
    def _unmatched(self) -> set[str]:
        """Keys of the texts that are no task and no id of a case."""
        return {*(self.texts or ())} - {key for case in self.cases for key in (case.id, case.task)}

    def warn_unmatched(self) -> None:
        """Warns of texts that no prompt will quote, and of queries that are asked the same prompt several times."""
        few = sum(len(case.paradigms) < self.paradigms_per_query for case in self.cases) if self.guided else 0
        if few:
            logging.getLogger(__name__).warning(
                "config.paradigms_per_query=%d: fewer apply to %d of %d cases, which are asked the same prompt again",
                *(self.paradigms_per_query, few, len(self.cases)),
            )
        if self._unmatched:
            keys = border.cut(", ".join(sorted(self._unmatched)), 200)
            logging.getLogger(__name__).warning("config.guideline_text: no task or id of the cases: %s", keys)

    @property
    def queries_per_step(self) -> int:
        """Queries that a step visits."""
        return self.groups if self.group_by == "query" else self.groups // self.paradigms_per_query

    @property
    def prompts_per_step(self) -> int:
        """Prompts of a step, each read once."""
        return self.queries_per_step * self.paradigms_per_query

    @property
    def samples_per_prompt(self) -> int:
        """Completions of each prompt."""
        return self.num_samples // self.paradigms_per_query if self.group_by == "query" else self.num_samples

    def steps(self, epochs: float) -> int:
        """Steps that visit every query `epochs` times."""
        return steps_of(epochs, len(self.cases), self.queries_per_step)

    def prompts(self, step: int) -> list[Prompt]:
        """The prompts of a step (from 0), those of one query side by side."""
        count = len(self.cases)
        positions = np.arange(step * self.queries_per_step, (step + 1) * self.queries_per_step)
        orders = {epoch: self._order(epoch) for epoch in {int(p) // count for p in positions}}
        visits = [(int(orders[p // count][p % count]), p // count) for p in map(int, positions)]
        return [
            self._prompt(query, epoch * self.paradigms_per_query + turn)
            for query, epoch in visits
            for turn in range(self.paradigms_per_query)
        ]

    def _order(self, epoch: int) -> np.ndarray:
        """The order of an epoch's queries, of which the last two are kept: steps go on from one to the next."""
        if (known := self._orders.get(epoch)) is not None:
            return known
        order = epoch_order(len(self.cases), self.seed, epoch)
        if self.difficulties is not None:
            levels = [self.difficulties[self.cases[query].id] for query in order]
            order = order[np.argsort(levels, kind="stable")]
        self._orders[epoch] = order
        self._orders.pop(epoch - 2, None)
        return order

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        return {}

    def _prompt(self, query: int, turn: int) -> Prompt:
        case = self.cases[query]
        if not self.guided:
            return Prompt(case)
        texts = self.texts or {}
        paradigm = case.paradigms[(self._start[query] + turn) % len(case.paradigms)]
        return Prompt(case, paradigm, texts.get(case.id, texts.get(case.task)))

    @cached_property
    def _start(self) -> list[int]:
        ranks, used = [0] * len(self.cases), dict.fromkeys((case.paradigms for case in self.cases), 0)
        for index in sorted(range(len(self.cases)), key=lambda index: seeded(self.seed, self.cases[index].id)):
            ranks[index] = used[self.cases[index].paradigms]
            used[self.cases[index].paradigms] += 1
        return ranks


def load_texts(path: str) -> dict[str, str] | None:
    """Guideline texts by task or case id from a JSON file; None for an empty path. Raises DataError."""
    if not path:
        return None
    return border.read_json(Path(path).expanduser(), dict[str, str])
