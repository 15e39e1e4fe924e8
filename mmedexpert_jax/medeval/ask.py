"""Questions to one model: what is stored is not asked again, what is asked is stored as it comes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.medeval import prompt_styles
from mmedexpert_jax.medeval.backends import Asked, Backend
from mmedexpert_jax.medeval.prompt_styles import Prompt
from mmedexpert_jax.medeval.store import AnswerLog, answer_key
from mmedexpert_jax.rollout import Reply


@dataclass(frozen=True)
class Question:
    """An item under a prompt; `paradigm` is the one that the prompt asks for, None where it asks for none."""

    item: Case
    prompt: Prompt
    paradigm: str | None = None


@dataclass(frozen=True)
class Share:
    """The part of the questions that falls to one of several processes: those whose key leaves it as remainder."""

    process: int = 0
    processes: int = 1

    def __contains__(self, asked: Asked) -> bool:
        return asked.row % self.processes == self.process


@dataclass(frozen=True)
class Answered:
    """A model's answer to a question: its replies, and those to the first turn where there are two."""

    replies: list[Reply]
    first: list[Reply] = field(default_factory=list)


def questions(items: Sequence[Case], style: str, paradigm: str | None = None) -> list[Question]:
    """Items under a prompt style; `paradigm` "all" gives a question for each that applies to an item."""
    asked = []
    for item in items:
        for one in item.paradigms if paradigm == "all" else (paradigm,):
            asked.append(Question(item, prompt_styles.build(item, style, one), one))
    return asked


@dataclass
class Asker:
    """Asks one model.

    Attributes:
        backend: the model.
        answers: the store.
        settings: of the generation; all that an answer depends on, for its key.
        num_samples: replies to each question.
        share: of this process.
        on_answer: called with the number of questions answered so far, stored ones included.
        refuse: takes (name, error) of a question that cannot be asked; None: the error is raised.
    """

    backend: Backend
    answers: AnswerLog
    settings: dict[str, Any]
    num_samples: int = 1
    share: Share = field(default_factory=Share)
    on_answer: Callable[[int], None] = lambda done: None
    refuse: Callable[[str, DataError], None] | None = None

    def ask(self, asked: Sequence[Question]) -> dict[int, Answered]:
        """Answers by number of their question, those of this process's share; refused ones are missing.

        A second turn is a conversation of its own for each reply to the first, stored like any other.

        Raises:
            DataError: a question cannot be asked, by its item, and `refuse` is None.
            RemoteError: of the endpoint.
        """
        firsts = {}
        for number, question in enumerate(asked):
            name = f"{question.item.benchmark} {question.item.id}"
            first = self._asked(name, question.prompt.messages)
            if first is not None and first in self.share:
                firsts[number] = first
        replies = self._turn(firsts, self.num_samples)
        seconds = {}
        for number, found in replies.items():
            if asked[number].prompt.follow_up:
                for sample, reply in enumerate(found):
                    again = self._asked(firsts[number].name, asked[number].prompt.then(reply.text), sample)
                    if again is not None:
                        seconds[number, sample] = again
        last = self._turn(seconds, 1)
        answered = {}
        for number, found in replies.items():
            if not asked[number].prompt.follow_up:
                answered[number] = Answered(found)
            elif all((number, sample) in last for sample in range(len(found))):
                answered[number] = Answered([last[number, sample][0] for sample in range(len(found))], found)
        return answered

    def _asked(self, name: str, messages: prompt_styles.Messages, sample: int | None = None) -> Asked | None:
        settings = self.settings | {"num_samples": self.num_samples if sample is None else 1}
        if sample is not None and sample > 0:
            settings |= {"sample": sample}
        try:
            return Asked(name, answer_key(messages, self.backend.identity, settings), messages)
        except DataError as error:
            self._refuse(name, DataError(f"{name}: {error}"))
            return None

    def _turn(self, asked: dict[Any, Asked], num_samples: int) -> dict[Any, list[Reply]]:
        """Replies by the keys of `asked`; equal conversations are asked once."""
        if not asked:
            return {}
        waiting = Counter(one.key for one in asked.values() if one.key not in self.answers)
        missing = list({one.key: one for one in asked.values() if one.key in waiting}.values())
        done = len(asked) - waiting.total()
        self.on_answer(done)

        def settle(number: int, replies: list[Reply]) -> None:
            nonlocal done
            self.answers.add(missing[number].name, missing[number].key, replies)
            done += waiting[missing[number].key]
            self.on_answer(done)

        def refuse(number: int, error: DataError) -> None:
            self._refuse(missing[number].name, error)

        if missing:
            self.backend.answer(missing, num_samples, settle, refuse if self.refuse else None)
        return {place: self.answers.get(one.key) for place, one in asked.items() if one.key in self.answers}

    def _refuse(self, name: str, error: DataError) -> None:
        if self.refuse is None:
            raise error
        self.refuse(name, error)
