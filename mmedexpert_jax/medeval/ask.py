"""Questions to one model: what is stored is not asked again, what is asked is stored as it comes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.medeval import prompt_styles
from mmedexpert_jax.medeval.backends import Backend
from mmedexpert_jax.medeval.prompt_styles import Question
from mmedexpert_jax.medeval.store import AnswerLog, answer_key
from mmedexpert_jax.rollout import Reply


def questions(items: Sequence[Case], style: str, paradigm: str | None = None) -> list[Question]:
    """Items under a prompt style; `paradigm` "all" gives a question for each that applies to an item."""
    return [
        prompt_styles.build(item, style, one)
        for item in items
        for one in (item.paradigms if paradigm == "all" else (paradigm,))
    ]


@dataclass
class Asker:
    """Asks one model."""

    backend: Backend  # the model
    answers: AnswerLog  # the store
    settings: dict[str, Any]  # of the generation; all that an answer depends on, for its key
    num_samples: int = 1  # replies to each question
    # of several processes each has the questions whose key leaves its number as remainder
    process: int = 0
    processes: int = 1
    # called with the number of questions answered so far, stored ones included
    on_answer: Callable[[int], None] = lambda done: None
    # takes (name, error) of a question that cannot be asked; None: the error is raised
    refuse: Callable[[str, DataError], None] | None = None

    def ask(self, asked: Sequence[Question]) -> dict[int, Question]:
        """The questions with their replies by number, those of this process; refused ones are missing.

        A second turn is a conversation of its own for each reply to the first, stored like any other.

        Raises:
            DataError: a question cannot be asked, by its item, and `refuse` is None.
            RemoteError: of the endpoint.
        """
        firsts = {}
        for number, question in enumerate(asked):
            first = self._keyed(question)
            # by the key, not the number: questions that are one conversation are asked by one process
            if first is not None and first.row % self.processes == self.process:
                firsts[number] = first
        replies = self._turn(firsts, self.num_samples)
        seconds = {}
        for number, found in replies.items():
            if asked[number].follow_up:
                for sample, reply in enumerate(found):
                    second = self._keyed(asked[number].then(reply.text), sample)
                    if second is not None:
                        seconds[number, sample] = second
        last = self._turn(seconds, 1)
        answered = {}
        for number, found in replies.items():
            if not asked[number].follow_up:
                answered[number] = replace(firsts[number], replies=found)
            elif all((number, sample) in last for sample in range(len(found))):
                final = [last[number, sample][0] for sample in range(len(found))]
                answered[number] = replace(firsts[number], replies=final, first=found)
        return answered

    def _keyed(self, question: Question, sample: int | None = None) -> Question | None:
        """The question with its key, of a second turn that to a `sample` of the first; None where it is refused."""
        settings = self.settings | {"num_samples": self.num_samples if sample is None else 1}
        if sample:  # of equal samples each is drawn on apart, the first as in a run of one sample
            settings |= {"sample": sample}
        try:
            return replace(question, key=answer_key(question.messages, self.backend.identity, settings))
        except DataError as error:
            self._refuse(question.name, DataError(f"{question.name}: {error}"))
            return None

    def _turn(self, asked: dict[Any, Question], num_samples: int) -> dict[Any, list[Reply]]:
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
