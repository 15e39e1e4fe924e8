"""Questions to a model that fails, is asked in two turns, or shares the work."""

import dataclasses

import pytest

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.medeval.ask import Asker, questions
from mmedexpert_jax.medeval.prompt_styles import Question
from mmedexpert_jax.medeval.store import AnswerLog
from mmedexpert_jax.rollout import Reply

ITEMS = [
    Case(str(i), f"Question {i}?", ("one", "two"), "A", paradigms=("analytical",), benchmark="bench") for i in range(40)
]


@dataclasses.dataclass
class Fake:
    """Answers with what was asked; `dies_after` answers it breaks off; `refuses` names of items."""

    dies_after: int = 10**6
    refuses: tuple = ()
    asked: list = dataclasses.field(default_factory=list)
    identity: dict = dataclasses.field(default_factory=lambda: {"fake": 1})

    def answer(self, asked, num_samples, on_reply, refuse=None):
        for number, one in enumerate(asked):
            if one.name in self.refuses:
                error = DataError(f"{one.name}: too long")
                if refuse is None:
                    raise error
                refuse(number, error)
                continue
            if len(self.asked) == self.dies_after:
                raise KeyboardInterrupt
            self.asked.append((one.name, len(one.messages)))
            text = one.messages[-1]["content"]
            text = text if isinstance(text, str) else text[-1]["text"]
            on_reply(number, [Reply(f"{i}: {text}", 3, False) for i in range(num_samples)])

    def close(self):
        pass


def two_turns(item):
    messages = [{"role": "user", "content": item.question}]
    return Question(item, "two", messages, "plain", follow_up="Therefore?")


def test_a_run_that_dies_again_and_again_asks_each_question_once(tmp_path):
    asked = questions(ITEMS, "think_answer")
    backends = [Fake(dies_after=n) for n in (0, 7, 1, 30)] + [Fake()]
    for backend in backends:
        with AnswerLog(tmp_path) as answers:
            asker = Asker(backend, answers, {})
            if backend is not backends[-1]:
                with pytest.raises(KeyboardInterrupt):
                    asker.ask(asked)
            else:
                found = asker.ask(asked)
    names = [name for backend in backends for name, _ in backend.asked]
    assert sorted(names) == sorted(f"bench {item.id}" for item in ITEMS)
    assert len(found) == 40 and "Question 39?" in found[39].replies[0].text


def test_the_second_turn_follows_each_answer_to_the_first(tmp_path):
    backend = Fake()
    with AnswerLog(tmp_path) as answers:
        found = Asker(backend, answers, {}, num_samples=2).ask([two_turns(item) for item in ITEMS[:3]])
        assert [turns for _, turns in backend.asked] == [1] * 3 + [3] * 6
        assert [r.text for r in found[1].first] == ["0: Question 1?", "1: Question 1?"]
        assert [r.text for r in found[1].replies] == ["0: Therefore?", "0: Therefore?"]
        again = Fake()
        assert Asker(again, answers, {}, num_samples=2).ask([two_turns(item) for item in ITEMS[:3]]) == found
        assert not again.asked


def test_shares_are_disjoint_and_whole(tmp_path):
    names = []
    for process in range(3):
        backend = Fake()
        with AnswerLog(tmp_path, process) as answers:
            Asker(backend, answers, {}, process=process, processes=3).ask([two_turns(item) for item in ITEMS])
        names += [name for name, turns in backend.asked if turns == 1]
        assert 0 < len(backend.asked) < 80
    assert sorted(names) == sorted(f"bench {item.id}" for item in ITEMS)


def test_refused_questions_are_left_out_only_if_asked_for(tmp_path):
    backend, refused = Fake(refuses=("bench 2",)), []
    with AnswerLog(tmp_path) as answers:
        with pytest.raises(DataError, match="bench 2: too long"):
            Asker(backend, answers, {}).ask(questions(ITEMS[:4], "think_answer"))
        asker = Asker(backend, answers, {}, refuse=lambda name, error: refused.append(name))
        assert sorted(asker.ask(questions(ITEMS[:4], "think_answer"))) == [0, 1, 3]
    assert refused == ["bench 2"]


def test_equal_conversations_are_asked_once_and_other_settings_again(tmp_path):
    twice = [ITEMS[0], dataclasses.replace(ITEMS[0], id="copy")]
    backend, done = Fake(), []
    with AnswerLog(tmp_path) as answers:
        found = Asker(backend, answers, {}, on_answer=done.append).ask(questions(twice, "think_answer"))
        assert (
            len(backend.asked) == 1
            and (found[0].replies, found[0].key) == (found[1].replies, found[1].key)
            and done == [0, 2]
        )
        Asker(backend, answers, {"temperature": 1.0}).ask(questions(twice, "think_answer"))
        Asker(backend, answers, {}).ask(questions(twice, "think_answer", "all"))
    assert len(backend.asked) == 3
