"""Pass rates before training, the filter by them, the order from easy to hard."""

import dataclasses
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.gba import difficulty, trainer
from mmedexpert_jax.gba.guidelines import Guidelines
from mmedexpert_jax.runtime import Run

CASES = [Case(f"c{i}", f"Question {i}?", ("yes", "no"), "B", columns={"level": 6 - i}) for i in range(6)]
RIGHT = [0, 4, 2, 1, 4, 3]  # of 4 answers to each case


class Scripted:
    """An engine whose answers are known; it stops where told, as a run that is killed."""

    settings = SimpleNamespace(num_samples=4)

    def __init__(self, stop=99):
        self.asked, self.stop = [], stop

    def answer(self, conversations, ids, names):
        for number, (talk, place, _) in enumerate(zip(conversations, ids, names, strict=True)):
            if len(self.asked) == self.stop:
                raise KeyboardInterrupt
            assert f"Question {place}?" in str(talk)
            self.asked.append(place)
            letters = ["B"] * RIGHT[place] + ["A"] * (4 - RIGHT[place])
            yield number, [SimpleNamespace(text=f"<answer>{letter}</answer>") for letter in letters]


def test_rates_are_stored_and_none_is_asked_twice(tmp_path):
    file = tmp_path / "samples" / "pass_rates.jsonl"
    with pytest.raises(KeyboardInterrupt):
        difficulty.pass_rates(CASES, Scripted(stop=2), file)
    with file.open("a") as lines:
        lines.write('{"id": "c2", "ri')  # cut off by a kill
    lines = file.read_bytes().rpartition(b"\n")[0] + b"\n"
    engine = Scripted()
    rates = difficulty.pass_rates(CASES, engine, file)
    assert engine.asked == [2, 3, 4, 5] and file.read_bytes().startswith(lines)
    assert list(rates.values()) == [n / 4 for n in RIGHT]
    again = Scripted()
    assert difficulty.pass_rates(CASES, again, file) == rates and not again.asked
    edited = [*CASES[:4], dataclasses.replace(CASES[4], answer="A"), CASES[5]]  # a wrong key, mended before a resume
    again = Scripted()
    assert difficulty.pass_rates(edited, again, file) == rates | {"c4": 0.0} and again.asked == [4]
    assert difficulty.pass_rates(edited, again, file) == rates | {"c4": 0.0} and again.asked == [4]


def test_an_open_case_is_right_by_what_its_file_accepts(tmp_path):
    """Two of the four answers are among the references."""
    case = Case("open", "Question 0?", (), "Asthma", columns={"accepted": ["Bronchial asthma"]})
    said = ["<answer>asthma</answer>", "<answer>Bronchial asthma.</answer>", "<answer>COPD</answer>", "B"]
    engine = SimpleNamespace(
        settings=SimpleNamespace(num_samples=4),
        answer=lambda talks, ids, names: [(0, [SimpleNamespace(text=text) for text in said]) for _ in list(talks)],
    )
    assert difficulty.pass_rates([case], engine, tmp_path / "rates.jsonl") == {"open": 0.5}


def test_several_processes_share_the_cases_and_one_writes(tmp_path, monkeypatch):
    """Two threads as two processes."""
    here, both, told = threading.local(), threading.Barrier(2), [None, None]

    def gather(value):
        told[here.index] = value
        both.wait(20)
        found = list(told)
        both.wait(20)
        return found

    def process(index):
        here.index = index
        engine = Scripted()
        return difficulty.pass_rates(CASES, engine, file), engine.asked

    file = tmp_path / "samples" / "pass_rates.jsonl"
    ours = SimpleNamespace(own=lambda things: things[here.index :: 2], is_writer=lambda: here.index == 0, gather=gather)
    monkeypatch.setattr(difficulty, "processes", ours)
    for asked in ([[0, 2, 4], [1, 3, 5]], [[], []]):  # the second time all is known, to both
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(process, range(2)))
        assert [list(rates.values()) for rates, _ in results] == [[n / 4 for n in RIGHT]] * 2
        assert [places for _, places in results] == asked
        assert [rate.id for rate in difficulty.read_rates(file)] == ["c0", "c2", "c4", "c1", "c3", "c5"]


def test_bounds_are_inclusive_and_an_empty_set_is_refused(capsys):
    rates = {case.id: n / 4 for case, n in zip(CASES, RIGHT, strict=True)}
    assert [case.id for case in difficulty.within(CASES, rates, 0.25, 0.75)] == ["c2", "c3", "c5"]
    assert "filter: 3 of 6 cases kept, pass rate 0.25 to 0.75 (1 too hard, 2 too easy)" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"no case of 6 has a pass rate from 0.3 to 0.4 .2 are harder, 4 easier"):
        difficulty.within(CASES, rates, 0.3, 0.4)


def test_every_epoch_goes_from_easy_to_hard():
    levels = difficulty.difficulties(CASES, "level", None)
    order = Guidelines(CASES, 0, 2, 2, difficulties=levels)
    visited = [prompt.case.id for step in range(6) for prompt in order.prompts(step)]
    assert visited == [f"c{i}" for i in (5, 4, 3, 2, 1, 0)] * 2
    rates = {case.id: 0.5 for case in CASES}
    equal = Guidelines(CASES, 0, 2, 2, difficulties=difficulty.difficulties(CASES, "pass_rate", rates))
    assert [equal.prompts(s) for s in range(6)] == [Guidelines(CASES, 0, 2, 2).prompts(s) for s in range(6)]


def test_a_curriculum_without_its_numbers_is_refused():
    with pytest.raises(ConfigError, match=r"curriculum=pass_rate needs config.filter.samples"):
        difficulty.difficulties(CASES, "pass_rate", None)
    with pytest.raises(DataError, match="case c0: the column 'hardness' is not there"):
        difficulty.difficulties(CASES, "hardness", None)
    with pytest.raises(DataError, match="case c0: the column 'level' is 'high', no number"):
        difficulty.difficulties([Case("c0", "?", (), "x", columns={"level": "high"})], "level", None)


def test_difficulties_that_order_nothing_are_a_line(caplog):
    difficulty.tell_equal("level", difficulty.difficulties(CASES, "level", None))
    difficulty.tell_equal("", None)
    difficulty.tell_equal("level", {"c0": 3.0})
    assert not caplog.messages
    equal = [Case(f"c{i}", "?", (), "x", columns={"stage": 2}) for i in range(4)]
    difficulty.tell_equal("stage", difficulty.difficulties(equal, "stage", None))
    difficulty.tell_equal("pass_rate", difficulty.difficulties(CASES, "pass_rate", {case.id: 0.25 for case in CASES}))
    assert [message.partition(", so that")[0] for message in caplog.messages] == [
        "config.curriculum=stage: the same for all 4 cases (2)",
        "config.curriculum=pass_rate: the same for all 6 cases (0.25)",
    ]


@pytest.mark.parametrize("right", ['"all"', "5", "-1"])
def test_a_file_of_rates_that_is_damaged_is_named(tmp_path, right):
    (tmp_path / "rates").write_text(f'{{"id": "c0", "right": {right}, "samples": 4}}\n')
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'rates'} line 1") + ".*; delete the line"):
        difficulty.read_rates(tmp_path / "rates")


def test_a_run_trains_on_what_its_own_policy_sometimes_gets_right(run_config, tmp_path, monkeypatch):
    """The tiny model never answers: with the bounds open the run goes on, easy cases first; else it is refused."""
    overrides = {"limit": 2, "micro_batch": 0, "packing": 0, "samples_every": 0, "eval.every": -1, "steps": 1}
    config = run_config(tmp_path / "run", **overrides, **{"filter.samples": 2, "filter.least": 0.0})
    config.curriculum = "pass_rate"
    with Run.open(config.workdir, config) as run:
        trainer.train(config, run)
        rates = [json.loads(line) for line in (run.path / "samples/pass_rates.jsonl").open()]
    assert len({rate["id"] for rate in rates}) == 2 and {rate["samples"] for rate in rates} == {2}
    config = run_config(tmp_path / "none", **overrides, **{"filter.samples": 2})
    monkeypatch.setattr(difficulty, "pass_rates", lambda cases, *_: dict.fromkeys([case.id for case in cases], 0.0))
    with Run.open(config.workdir, config) as run, pytest.raises(DataError, match="no case of 2 has a pass rate"):
        trainer.train(config, run)
