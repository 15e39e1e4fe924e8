"""Rewards of hand-written completions, their weights, their log names, and a user's own functions."""

import asyncio
import dataclasses
import re
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.data.prompts import render
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.gba import rewards, trainer
from mmedexpert_jax.gba.advantages import estimate, estimator
from mmedexpert_jax.gba.calls import Call, call_all
from mmedexpert_jax.gba.guidelines import Prompt
from mmedexpert_jax.gba.judge_reward import JudgeReward, read_better, read_score
from mmedexpert_jax.gba.rollouts import Rollout
from mmedexpert_jax.launch import load_config

CASE = Case("case-7", "Which?", ("fever", "cough"), "B", "AM", "")
TRACES = {
    "differential": "(1) Either fever or cough. (2) Fever is ruled out by the temperature.",
    "intuitive": "(1) A classic picture. (2) Cough.",
    "analytical": "(1) The temperature is 37, so it is low. (2) Therefore cough.",
    "bayesian": "(1) Prior: even. (2) The evidence raises cough. (3) Posterior: cough.",
}


def config(**overrides):
    return load_config("configs/gba.py:mini", overrides)


def rollout(texts, paradigm="bayesian", lengths=None):
    size = (1, len(texts))
    lengths = np.full(size, 10) if lengths is None else np.array([lengths])
    empty = np.zeros((*size, 1))
    cut, trained = np.zeros(size, bool), np.ones(1, bool)
    return Rollout([Prompt(CASE, paradigm)], [], [texts], empty, lengths, empty, cut, np.zeros(size), trained, ~cut)


def values(name, texts, **kwargs):
    reward = rewards.WeightedReward(name, 1.0, rewards.REWARDS[name])
    return rewards.score((reward,), rollout(texts, **kwargs), 100).values[0, :, 0].tolist()


def test_of_several_processes_one_asks_an_endpoint_for_all(monkeypatch):
    """Each scores its own prompts by what is in the process, and has of the endpoint's values those of its prompts."""
    asked, told = [], []

    class Judge:
        sends = True

        def __call__(self, cases, texts, **_):
            asked.extend(texts)
            return [None if text == "c" else len(asked) + place for place, text in enumerate(texts)]

    def gather(value):
        told.append(value)
        return [told[0], []]

    made = rollout(["a", "bb"])
    parts = {"prompts": made.prompts * 2, "texts": [["a", "bb"], ["c", "dddd"]]}
    parts |= {name: np.concatenate([getattr(made, name)] * 2) for name in ("lengths", "truncated")}
    made = dataclasses.replace(made, **parts)
    plain = rewards.WeightedReward("letters", 1.0, lambda case, text, **_: len(text))
    scoring = (plain, rewards.WeightedReward("judge", 1.0, Judge()))
    expected = rewards.score(scoring, made, 100).values
    assert expected[..., 0].tolist() == [[1, 2], [1, 4]] and asked == ["a", "bb", "c", "dddd"]
    monkeypatch.setattr(rewards.processes, "_count", 2)
    monkeypatch.setattr(rewards.processes, "gather", gather)
    monkeypatch.setattr(rewards.processes, "concatenate", lambda rows: rows)
    asked.clear()
    halves = []
    for index in range(2):
        monkeypatch.setattr(rewards.processes, "_index", index)
        halves.append(rewards.score(scoring, made, 100).values)
    assert asked == ["a", "bb", "c", "dddd"] and told[1] == []
    np.testing.assert_array_equal(np.concatenate(halves), expected)


def test_accuracy_counts_the_parsed_answer_alone():
    texts = [render("x", "B"), "<answer>(B)</answer>", render("x", "A"), "the answer is B", render("B", ""), ""]
    assert values("accuracy", texts) == [1, 1, 0, 0, 0, 0]


def test_format_wants_one_of_each_block():
    texts = [render("x", "B"), render("x", "A") + "\n", "<answer>B</answer>", render("", "B"), render("x", "B") * 2]
    assert values("format", texts) == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("paradigm", TRACES)
def test_structure_wants_the_paradigm_of_the_prompt(paradigm):
    texts = [render(trace, "A") for trace in TRACES.values()]
    given = dict(zip(TRACES, values("structure", texts, paradigm=paradigm), strict=True))
    assert given[paradigm] == 1
    assert sum(given.values()) < 4
    assert values("structure", [TRACES[paradigm], ""], paradigm=paradigm) == [0, 0]  # outside the tags
    assert values("structure", texts, paradigm=None) == [0, 0, 0, 0]


def test_length_is_counted_in_tokens_and_punishes_the_last_fifth():
    np.testing.assert_allclose(values("length", ["x"] * 4, lengths=[1, 80, 90, 100]), [0, 0, -0.5, -1])


def test_the_sum_is_weighted_and_logged_by_function():
    scoring = rewards.from_config(config())
    assert {r.name: r.weight for r in scoring} == {"accuracy": 1.0, "format": 0.2, "structure": 0.2}
    scores = rewards.score(scoring, rollout([render(TRACES["bayesian"], "B"), render("x", "A")]), 100)
    np.testing.assert_allclose(scores.total, [[1.4, 0.2]], rtol=1e-6)
    stats = scores.stats()
    assert stats["rewards/accuracy/mean"] == 0.5
    assert stats["rewards/format/std"] == 0
    assert stats["reward"] == pytest.approx(0.8)
    assert stats["reward_std"] == pytest.approx(np.std([1.4, 0.2], ddof=1))


def test_means_by_the_paradigm_that_a_prompt_asks_for():
    scoring = rewards.from_config(config(**{"rewards.structure": 0}))[:1]
    values = np.array([[[1.0], [0.0]], [[1.0], [1.0]], [[0.0], [0.0]]])
    scores = rewards.Scores(values, (dataclasses.replace(scoring[0], weight=2.0),))
    expected = {"bayesian/accuracy": 0.75, "bayesian/reward": 1.5, "intuitive/accuracy": 0.0, "intuitive/reward": 0.0}
    assert scores.by("paradigms", ["bayesian", "bayesian", "intuitive"]) == {
        f"paradigms/{name}": value for name, value in expected.items()
    }
    assert scores.by("paradigms", [None, None, None]) == {}


def test_grpo_drops_the_structure_reward_and_nothing_else():
    assert [r.name for r in rewards.from_config(config(objective="grpo"))] == ["accuracy", "format"]


def test_accuracy_is_watched_even_without_weight():
    scoring = rewards.from_config(config(**{"rewards.accuracy": 0, "rewards.length": 0.1}))
    assert {r.name: r.weight for r in scoring} == {"accuracy": 0, "format": 0.2, "structure": 0.2, "length": 0.1}


def test_own_functions_join_by_dotted_path(monkeypatch):
    module = types.ModuleType("own")
    module.brief = lambda case, text, *, length, **_: 1 / length
    module.broken = lambda case, text, **_: 1 / 0
    module.nothing = lambda case, text, **_: float("nan")
    monkeypatch.setitem(sys.modules, "own", module)

    def scores(spec):
        return rewards.score(rewards.from_config(config(**{"rewards.functions": (spec,)})), rollout(["x", "y"]), 100)

    assert scores("own.brief=2").total[0, 0] == pytest.approx(0.2)
    assert "rewards/brief/mean" in scores("own.brief").stats()
    with pytest.raises(ConfigError, match="broken, case case-7 failed: ZeroDivisionError"):
        scores("own.broken")
    with pytest.raises(ConfigError, match="nothing gave nan on case case-7"):
        scores("own.nothing")


@pytest.mark.parametrize(
    "spec",
    [
        "nowhere.brief",
        "json.nothing=1",
        "json.dumps=much",
        "json.dumps=nan",
        "brief",
        "json.__name__",
        "",
        "=1",
        "a..b",
    ],
)
def test_a_function_that_cannot_be_had(spec):
    with pytest.raises(ConfigError, match=r"config\.rewards\.functions"):
        rewards.from_config(config(**{"rewards.functions": (spec,)}))


def test_a_weight_beyond_float32_is_none_and_a_folder_may_have_an_equals_sign(tmp_path):
    (tmp_path / "run=1").mkdir()
    file = written(tmp_path / "run=1", "def f(case, text, **_):\n    return 0.5\n")
    for spec, weight in ((f"{file}:f", 1.0), (f"{file}:f=-2", -2.0)):
        scoring = rewards.from_config(config(**{"rewards.functions": (spec,)}))
        assert (scoring[-1].name, scoring[-1].weight) == ("f", weight)
    for weight in ("1e39", "", "\uff11"):  # the last is a digit of full width
        with pytest.raises(ConfigError, match=rf"the weight '{weight}' is no finite number"):
            rewards.from_config(config(**{"rewards.functions": (f"{file}:f={weight}",)}))


STATE = """
import os
import pickle

os.chdir("/")
seen = []
class Empty:
    def __len__(self): return 0
    def __call__(self, case, text, **_): return len(seen)
def size(text): return len(text)
def sizes(cases, texts, **_):
    os.chdir("/")
    seen.extend(texts)
    return list(map(pickle.loads(pickle.dumps(size)), texts))  # as a pool of processes is given its work
empty = Empty()
def mean(values, weights, eps, ddof):
    seen.append("")
    return values[..., 0] * 0 + len(seen)
"""


def test_the_functions_of_a_file_share_what_it_holds(tmp_path, monkeypatch):
    """The file runs once for all of a run's functions, as a module that pickle finds, and moves the job nowhere."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, STATE)
    files = {}
    functions = ("mine.py:sizes", f"{tmp_path}/mine.py:empty")
    scoring = rewards.from_config(config(**{"rewards.functions": functions}), files=files)[-2:]
    assert Path.cwd() == tmp_path
    assert rewards.score(scoring, rollout(["a", "abc"]), 100).values.tolist() == [[[1.0, 2.0], [3.0, 2.0]]]
    assert Path.cwd() == tmp_path
    own = estimator("mine.py:mean", files)
    given = np.zeros((1, 2, 1)), np.ones(1), "mine.py:mean"
    assert [estimate(*given, function=own)[0, 0] for _ in range(2)] == [3, 4]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import sys\nasync def f(case, text, **_): sys.exit(0)", "RuntimeError: SystemExit: 0"),
        ("async def f(case, text, **_): raise KeyboardInterrupt", "RuntimeError: KeyboardInterrupt"),
        ("import asyncio\nasync def f(case, text, **_): raise asyncio.CancelledError", "RuntimeError: CancelledError"),
        ("class E(Exception):\n    def __str__(self): raise self\ndef f(case, text, **_): raise E", "failed: E"),
        (
            "class T:\n    ndim = 0\n    def item(self): raise OSError('gone')\ndef f(case, text, **_): return T()",
            "gone",
        ),
        (
            "class T:\n    def tolist(self): raise OSError('gone')\ndef f(cases, texts, **_): return T()",
            "OSError: gone",
        ),
    ],
)
def test_whatever_a_function_raises_is_one_line_and_ends_no_process(tmp_path, body, said):
    with pytest.raises(ConfigError, match=f"reward f.*{said}"):
        scored(f"{written(tmp_path, body)}:f", ["x"], attempts=1)


def test_two_rewards_of_one_name_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "own", module := types.ModuleType("own"))
    module.format = lambda *_, **__: 1.0
    with pytest.raises(ConfigError, match="two rewards are called format"):
        rewards.from_config(config(**{"rewards.functions": ("own.format",)}))


# Own functions of every kind ------------------------------------------------------------------------------------------


def scored(spec, texts, lengths=None, case=CASE, **limits):
    scoring = rewards.from_config(config(**{"rewards.functions": (spec,)}))
    made = rollout(texts, lengths=lengths)
    made.prompts[0] = Prompt(case, "bayesian")
    return rewards.score(scoring, made, 100, **limits)


def written(tmp_path, text):
    (tmp_path / "mine.py").write_text(text)
    return f"{tmp_path}/mine.py"


def test_a_function_from_a_file_sees_every_column_of_the_row(tmp_path):
    file = written(tmp_path, "def known(case, text, **_):\n    return case.columns['difficulty'] * len(text)\n")
    case = dataclasses.replace(CASE, columns={"difficulty": 0.5})
    assert scored(f"{file}:known=2", ["x", "yyy"], case=case).values[0, :, -1].tolist() == [0.5, 1.5]


def test_a_function_of_a_whole_rollout_is_called_once(tmp_path):
    calls = "calls = []\n\ndef whole(cases, texts, *, paradigms, lengths, **_):\n    calls.append(1)\n"
    file = written(tmp_path, calls + "    return [len(calls) * n for n in lengths]\n")
    assert scored(f"{file}:whole", ["a", "b", "c"], lengths=[1, 2, 3]).values[0, :, -1].tolist() == [1, 2, 3]


def test_a_coroutine_is_awaited_and_none_abstains(tmp_path):
    file = written(tmp_path, "async def slow(case, text, **_):\n    return None if text == 'x' else 1\n")
    scores = scored(f"{file}:slow", ["x", "y"])
    assert np.isnan(scores.values[0, 0, -1]) and scores.values[0, 1, -1] == 1
    assert scores.stats()["rewards/slow/mean"] == 1.0 and scores.total.tolist() == [[0.0, 1.0]]


def test_a_completion_about_which_all_abstain_has_no_total():
    scoring = (rewards.WeightedReward("none", 1.0, lambda case, text, **_: None),)
    scores = rewards.score(scoring, rollout(["x", "y"]), 100)
    assert np.isnan(scores.total).all() and "reward" not in scores.stats()


def test_a_coroutine_may_call_others_and_those_others():
    async def inner():
        return call_all([Call(lambda: 2, "innermost")], timeout=5)

    async def outer():
        return call_all([Call(inner, "inner")], timeout=5)

    assert call_all([Call(outer, "outer")], timeout=5) == [[[2]]]


def test_calls_run_beside_each_other(monkeypatch):
    """All eight wait for each other: one after another they would wait for ever, and the barrier would break."""
    barrier = threading.Barrier(8)
    monkeypatch.setitem(sys.modules, "own", module := types.ModuleType("own"))
    module.meets = lambda case, text, **_: float(barrier.wait(20) >= 0)
    assert scored("own.meets", list("abcdefgh")).values[0, :, -1].tolist() == [1.0] * 8


def test_functions_run_beside_each_other_and_beside_a_judge(monkeypatch):
    """Functions of two files and an endpoint's judge wait for each other; columns stand in the order of the rewards."""
    barrier = threading.Barrier(3)
    monkeypatch.setitem(sys.modules, "own", module := types.ModuleType("own"))
    monkeypatch.setitem(sys.modules, "other", other := types.ModuleType("other"))
    module.meets = lambda case, text, **_: 2 + 0 * barrier.wait(20)
    other.whole = lambda cases, texts, **_: [3 + 0 * barrier.wait(20)]

    class Judge:
        sends = True

        def __call__(self, cases, texts, **_):
            return [4 + 0 * barrier.wait(20)]

    own = rewards.from_config(config(**{"rewards.functions": ("own.meets", "other.whole")}))
    scoring = (own[0], rewards.WeightedReward("judge", 1.0, Judge()), *own[1:])
    names = [reward.name for reward in scoring]
    values = dict(zip(names, rewards.score(scoring, rollout(["x"]), 100).values[0, 0].tolist(), strict=True))
    assert names == ["accuracy", "judge", "format", "structure", "meets", "whole"]
    assert values == {"accuracy": 0, "judge": 4, "format": 0, "structure": 0, "meets": 2, "whole": 3}


def test_with_one_worker_functions_are_called_one_after_another(monkeypatch):
    monkeypatch.setitem(sys.modules, "own", module := types.ModuleType("own"))
    called, running = [], threading.Lock()

    def alone(name):
        assert running.acquire(blocking=False)
        called.append(name)
        time.sleep(0.01)
        running.release()
        return 1.0

    module.first, module.second = (
        (lambda case, text, **_: alone("first")),
        (lambda cases, texts, **_: [alone("second")] * 2),
    )
    scoring = rewards.from_config(config(**{"rewards.functions": ("own.first", "own.second")}))
    rewards.score(scoring, rollout(["x", "y"]), 100, workers=1)
    assert called == ["first", "first", "second"]


def test_models_in_process_wait_for_their_turn():
    """Two threads of one process would start collectives in an order of their own."""
    running = threading.Lock()

    class Model:
        sends = False

        def __call__(self, cases, texts, **_):
            assert running.acquire(blocking=False)
            time.sleep(0.01)
            running.release()
            return [1.0] * len(cases)

    scoring = tuple(rewards.WeightedReward(name, 1.0, Model()) for name in ("judge", "similarity"))
    assert rewards.score(scoring, rollout(["x", "y"]), 100).values.tolist() == [[[1.0, 1.0]] * 2]


def test_a_failure_that_passes_is_tried_again(monkeypatch):
    monkeypatch.setattr("mmedexpert_jax.gba.calls.FIRST_WAIT", 0.01)
    monkeypatch.setitem(sys.modules, "own", module := types.ModuleType("own"))
    calls = []

    def flaky(case, text, **_):
        calls.append(text)
        if calls.count(text) < 3:
            raise TimeoutError("busy")
        return 1.0

    module.flaky = flaky
    assert scored("own.flaky", ["x", "y"]).values[0, :, -1].tolist() == [1.0, 1.0]
    assert sorted(calls) == ["x"] * 3 + ["y"] * 3
    calls.clear()
    with pytest.raises(ConfigError, match="reward flaky, case case-7 failed 2 times: TimeoutError: busy"):
        scored("own.flaky", ["x"], attempts=2)


def test_a_call_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr("mmedexpert_jax.gba.calls.FIRST_WAIT", 0.01)
    monkeypatch.setitem(sys.modules, "own", module := types.ModuleType("own"))
    done = threading.Event()
    module.hangs = lambda case, text, **_: done.wait(60)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"reward hangs, case case-7 failed 2 times: no answer within 0.05 s"):
        scored("own.hangs", ["x"], timeout=0.05, attempts=2)
    assert time.monotonic() - began < 30
    done.set()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("time.sleep(20)", "reward blocks, case case-7"),
        ("await inner()", "reward blocks, case case-7"),
        ("await asyncio.create_task(inner())", "a task of an own function"),
    ],
)
def test_a_coroutine_that_blocks_is_given_up(tmp_path, monkeypatch, body, named):
    """It holds the loop of all, and so every limit of time; what comes after it has a loop that runs."""
    monkeypatch.setattr("mmedexpert_jax.gba.calls.GRACE", 0.2)
    (tmp_path / "own.py").write_text(
        "import asyncio, time\nasync def inner():\n    time.sleep(20)\n"
        f"async def blocks(case, text, **_):\n    await asyncio.sleep(0.05)\n    {body}\n"
        "async def fine(case, text, **_):\n    await asyncio.sleep(0.4)\n    return 0.5\n"
    )
    began = time.monotonic()
    said = rf"^{named} blocks the event loop of all coroutines for 0.3 s: await asyncio.to_thread"
    with pytest.raises(ConfigError, match=said):
        scored(f"{tmp_path}/own.py:blocks", ["x", "y"], timeout=0.3)
    assert time.monotonic() - began < 10
    assert scored(f"{tmp_path}/own.py:fine", ["x"], timeout=5.0).values[0, 0, -1] == 0.5


def test_a_limit_beyond_what_a_lock_can_wait_is_none():
    assert call_all([Call(lambda: 1, "one")], timeout=1e300) == [1]


def test_a_loop_that_is_busy_for_less_than_the_limit_is_waited_for(tmp_path, monkeypatch):
    """As often as it may be: a coroutine that computes a little is no fault, though all together take long."""
    monkeypatch.setattr("mmedexpert_jax.gba.calls.GRACE", 0.2)
    (tmp_path / "own.py").write_text(
        "import time\nasync def busy(case, text, **_):\n    time.sleep(0.3)\n    return 0.5\n"
    )
    values = scored(f"{tmp_path}/own.py:busy", ["x"] * 6, timeout=0.5).values
    assert values[0, :, -1].tolist() == [0.5] * 6


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 'high'", "reward f gave 'high' on case case-7; rewards must be finite numbers"),
        ("return float('inf')", "reward f gave inf on case case-7"),
        ("return [1]", "reward f gave"),
        ("return 10**400", "reward f gave"),
        ("return 1e39", "reward f gave 1e+39 on case case-7"),  # no float32
        ("raise StopIteration(3)", "reward f, case case-7 failed 3 times: RuntimeError: StopIteration: 3"),
        ("raise SystemExit(0)", "reward f, case case-7 failed"),
        ("raise KeyError('x')", "reward f, case case-7 failed"),
    ],
)
def test_what_a_function_gives_that_is_no_reward(tmp_path, monkeypatch, body, said):
    monkeypatch.setattr("mmedexpert_jax.gba.calls.FIRST_WAIT", 0.01)
    file = written(tmp_path, f"def f(case, text, **_):\n    {body}\n")
    with pytest.raises(ConfigError) as error:
        scored(f"{file}:f", ["x"])
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


@pytest.mark.parametrize(("body", "found"), [("[1.0]", "1"), ("1.0", "float"), ("'xy'", "str"), ("None", "NoneType")])
def test_a_whole_function_gives_one_number_each(tmp_path, body, found):
    file = written(tmp_path, f"def f(cases, texts, **_):\n    return {body}\n")
    with pytest.raises(ConfigError, match=f"reward f gave {found} for 2 completions"):
        scored(f"{file}:f", ["x", "y"])


@pytest.mark.parametrize("body", ["def f(case:\n", "import nowhere_at_all\n", "raise SystemExit(0)\n", "f = 3\n", "\n"])
def test_a_file_that_is_no_python_or_ends_is_one_line(tmp_path, body):
    with pytest.raises(ConfigError, match=r"config\.rewards\.functions") as error:
        scored(f"{written(tmp_path, body)}:f", ["x"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scalar", ["numpy.array(0.5)", "jax.numpy.float32(0.5)", "torch.tensor(0.5)"])
def test_scalars_and_arrays_of_every_library_are_numbers(tmp_path, scalar):
    library = scalar.partition("(")[0].rpartition(".")[0]
    one = written(tmp_path, f"import {library}\n\ndef f(case, text, **_):\n    return {scalar}\n")
    assert scored(f"{one}:f", ["x"]).values[0, 0, -1] == 0.5
    each = scalar.replace("float32", "array").replace("0.5", "[0.5, 0.25]")
    whole = written(tmp_path, f"import {library}\n\ndef f(cases, texts, **_):\n    return {each}\n")
    assert scored(f"{whole}:f", ["x", "y"]).values[0, :, -1].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        ("case, text", "got an unexpected keyword argument 'paradigm'"),
        ("case, text, paradigm, length", "got an unexpected keyword argument 'truncated'"),
        ("completions, **kwargs", "too many positional arguments"),  # TRL's
        (
            "data_source, solution_str, ground_truth, extra_info=None",
            "missing a required argument: 'ground_truth'",
        ),  # verl's
        ("cases, texts, *, paradigm, **_", "missing a required argument: 'paradigm'"),
        ("prompts, completions, **kwargs", "it takes completions, as rewards of another trainer do"),
        ("predict_str, ground_truth, **kwargs", "it takes ground_truth, as rewards of another trainer do"),  # EasyR1's
        ("completion, answer, **_", "it takes completion, as rewards of another trainer do"),
        ("response, answer, **_", "it takes response, as rewards of another trainer do"),
        ("data_source, ground_truth, **_", "it takes data_source, as rewards of another trainer do"),
        ("model_output, ground_truth, **_", "it takes ground_truth, as rewards of another trainer do"),
        ("pred, label=None, **_", "it takes label, as rewards of another trainer do"),
        ("generated, reference, **_", "it takes reference, as rewards of another trainer do"),
        ("text, case, **_", "it takes the text before the case"),
        ("texts, cases, **_", "it takes the text before the case"),
    ],
)
def test_a_function_of_another_signature_is_refused_before_any_work(tmp_path, signature, said):
    file = written(tmp_path, f"def f({signature}):\n    return 1.0\n")
    with pytest.raises(
        ConfigError, match=r"config\.rewards\.functions: .*define it as f\(case, text, \*\*_\)"
    ) as error:
        rewards.from_config(config(**{"rewards.functions": (f"{file}:f",)}))
    assert said in str(error.value)


def test_a_file_imports_what_stands_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_it.py").write_text("WORTH = 0.5\n")
    file = written(tmp_path, "def f(case, text, **_):\n    import beside_it\n    return beside_it.WORTH\n")
    assert scored(f"{file}:f", ["x"]).values[0, 0, -1] == 0.5


SHARED = """
import asyncio

gate = asyncio.Semaphore(1)  # asyncio binds it to the loop in which a call first waits for it

async def limited(case, text, **_):
    async with gate:
        await asyncio.sleep(0.001)
    return 1.0

async def bad():
    raise SystemExit(3)

async def leaves(case, text, **_):
    if text == "bad":
        await asyncio.gather(asyncio.create_task(bad()), return_exceptions=True)
    return await limited(case, text)
"""


def test_what_coroutines_share_holds_from_step_to_step(tmp_path, monkeypatch):
    monkeypatch.setattr("mmedexpert_jax.gba.calls.FIRST_WAIT", 0.01)
    file = written(tmp_path, SHARED)
    for name in ("limited", "leaves"):
        scoring = rewards.from_config(config(**{"rewards.functions": (f"{file}:{name}",)}))
        for texts in (["x", "y", "z"], ["bad", "y", "z"], ["x", "y", "z"]):
            values = rewards.score(scoring, rollout(texts), 100, timeout=20, attempts=1).values
            assert values[0, :, -1].tolist() == [1.0] * 3


THREADS = """
import signal, sqlite3

store = sqlite3.connect(":memory:")

def timed(case, text, **_):
    signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGALRM))
    return 1.0

def stored(case, text, **_):
    return store.execute("select 0.5").fetchone()[0]

async def waits(case, text, **_):
    return 2.0

def stops(case, text, **_):
    raise KeyboardInterrupt
"""


def test_what_needs_the_main_thread_has_it_with_one_worker_and_no_limit(tmp_path):
    file = written(tmp_path, THREADS)
    for name in ("timed", "stored"):
        with pytest.raises(ConfigError, match=r"thread.*; rewards.workers=1 and rewards.timeout=0 call it in the main"):
            scored(f"{file}:{name}", ["x"], attempts=1)
    given = [scored(f"{file}:{name}", ["x", "y"], workers=1, timeout=0) for name in ("timed", "stored", "waits")]
    assert [one.values[0, :, -1].tolist() for one in given] == [[1.0] * 2, [0.5] * 2, [2.0] * 2]
    with pytest.raises(KeyboardInterrupt):  # the user's own, who wants the run to stop
        scored(f"{file}:stops", ["x"], workers=1, timeout=0)


def test_calls_work_where_a_loop_runs_already(monkeypatch):
    """As in a notebook."""
    monkeypatch.setitem(sys.modules, "own", module := types.ModuleType("own"))
    module.one = lambda case, text, **_: 1.0

    async def cell():
        return scored("own.one", ["x"])

    assert asyncio.run(cell()).values[0, 0, -1] == 1.0


# Rewards of open answers and of form ----------------------------------------------------------------------------------


def test_open_answers_are_scored_by_words_and_abstain_on_choices():
    case = Case("o", "Which?", (), "left lung nodule", "AM", "")
    scores = [rewards.token_f1(case, f"<answer>{text}</answer>") for text in ("the left lung", "kidney", "")]
    assert scores == [pytest.approx(2 * 2 / 5), 0.0, 0.0]
    assert rewards.token_f1(CASE, "<answer>B</answer>") is None


def test_a_reasoning_that_begins_with_its_answer_is_punished():
    first = ["The answer is B. Then why.", "B. It is a cough.", "Cough"]
    later = ["The fever is low. The answer is B.", "(1) Either fever or cough. (2) B.", ""]
    looked_at = ["Option A: fever would rise. Then why.", "A: airway patent. Then why.", "First, option B: cough. Why."]
    assert values("answer_first", [render(text, "B") for text in first]) == [-1, -1, -1]
    assert values("answer_first", [render(text, "B") for text in later + looked_at]) == [0] * 6
    assert (
        values("answer_first", [render(text, "B") for text in ("B. Cough. Why.", "B) cough\nWhy.", "Option B.")])
        == [-1] * 3
    )


@pytest.mark.parametrize("count", ["", "1. ", "(1) ", "1: ", "Step 1. ", "**1.** ", "## Step 1\n", "1.\n"])
def test_a_number_before_the_answer_hides_it_not(count):
    case = Case("c", "Which?", ("Gout", "Septic arthritis", "Lupus"), "B")
    open_one = Case("o", "Which?", (), "Gout", columns={"accepted": ["podagra"]})

    def punished(case, begin, answer):
        return rewards.answer_first(case, render(f"{count}{begin} 2. Fever.", answer)) == -1

    first = ["The answer is B.", "Answer: B\n", "B\n", "B. Septic arthritis.", "Septic arthritis."]
    assert [punished(case, begin, "B") for begin in first] == [True] * 5
    later = ["B. Septic arthritis is a candidate.", "Either gout or lupus.", "A. Gout: no fever.", "3 days ill. So B."]
    assert [punished(case, begin, "B") for begin in later] == [False] * 4
    first = ["The answer is gout.", "Gout\n", "Answer: podagra.", "The diagnosis is Lupus because of the rash."]
    assert [punished(open_one, begin, "Lupus") for begin in first] == [True] * 4
    later = ["Gout and lupus are candidates.", "Gout hurts at night.", "The toe is red. So gout."]
    assert [punished(open_one, begin, "Gout") for begin in later] == [False] * 3
    said = ["No.", "The answer is no.", "There is no fever.", "No swelling is seen."]
    no = Case("n", "A fracture?", (), "no")
    assert [punished(no, begin, "no") for begin in said] == [True, True, False, False]


def test_figures_are_no_numbers_of_statements():
    case = Case("c", "Which?", ("Gout", "Lupus"), "B")
    for begin in ("1.5 mg/dl of urea. B.", "38.5 of fever. The answer is B.", "2 findings. B."):
        assert rewards.answer_first(case, render(begin, "B")) == 0


def test_a_right_answer_without_reasoning_is_above_a_wrong_one_in_full_form():
    """By the default weights, and gated by any; at even weights the two tie."""
    made = rollout(["<answer>B</answer>", render(TRACES["bayesian"], "A"), render(TRACES["bayesian"], "B")])
    np.testing.assert_allclose(rewards.score(rewards.from_config(config()), made, 100).total, [[1.0, 0.4, 1.4]], 1e-6)
    even = rewards.from_config(config(**{"rewards.format": 0.5, "rewards.structure": 0.5}))
    assert rewards.score(even, made, 100).total.tolist() == [[1.0, 1.0, 2.0]]
    assert rewards.score(even, made, 100, gated=True).total.tolist() == [[1.0, 0.0, 2.0]]


# Abstentions ----------------------------------------------------------------------------------------------------------


def test_a_judge_that_answers_nonsense_is_named_at_its_first_step(capsys):
    """Its abstentions are a metric, which rewards that never abstain do not have, and all of a step are a line."""
    replies = {"nonsense": "lorem ipsum", "half": "Score: 5"}
    judge = JudgeReward(
        lambda texts: [
            next((reply for text, reply in replies.items() if f"\n{text}\n" in asked), "") for asked in texts
        ],
        *("rubric", "sound reasoning"),
        sends=False,
    )
    scoring = (rewards.WeightedReward("accuracy", 1.0, rewards.accuracy), rewards.WeightedReward("judge", 1.0, judge))
    told = set()
    for step, texts, share in ((1, ["half", "nonsense"], 0.5), (2, ["nonsense"] * 2, 1.0), (3, ["nonsense"] * 2, 1.0)):
        scores = rewards.score(scoring, rollout(texts), 100)
        assert scores.stats()["rewards/judge/abstained"] == share and "rewards/accuracy/abstained" not in scores.stats()
        trainer._tell_silent(scores, step, told)
    assert capsys.readouterr().out == (
        "step 2: the reward judge abstained on all 2 completions, which count without it; no reply could be read: see "
        "judge.sqlite in the run directory; raise rewards.judge.max_tokens for a model that thinks, or name one that "
        "keeps to the form\n"
    )


def test_the_metrics_of_the_default_rewards_are_those_that_never_abstain():
    assert {reward.name for reward in rewards.from_config(config())} <= {*rewards.SURE}
    assert not [
        name for name in rewards.score(rewards.from_config(config()), rollout(["x"]), 9).stats() if "abst" in name
    ]


# A judge --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 7", 0.7), ("**Score:** 10/10", 1.0), ("score = 0", 0.0), ("Sound.\nScore: 6.5", 0.65),
        ("Score: 11", None), ("good", None), ("", None), ("<think>Score: 2</think> Score: 9", 0.9),
        # the range of the prompt, scores of other ranges and of something else
        ("Score (0-10): 7", 0.7), ("Score 0 to 10: 7", 0.7), ("Score (out of 10): 6", 0.6), ("Score: 8 out of 10", 0.8),
        ("Score - 7", 0.7), ("Score:\n\n**7**", 0.7), ("final_score: 7", 0.7), ('{"overall_score": 7}', 0.7),
        ("Score: 4/5", None), ("Score: -3", None), ("Score: 7-8", None), ("Score: 1e1", None), ("Score: 7%", None),
        ("Score: 9 (Glasgow coma score 3)", 0.9), ("Score: 3. A perfect Score: 10 would need more.", None),
        ("The Glasgow coma score is 3.\n**Score: 9/10**\nSound.", 0.9), ("Score: 7 - sound", 0.7), ("Score:\n7", 0.7),
        ("Score: 7.", 0.7),
        # a reply that is nothing else, and sentences
        ("6", 0.6), ("9/10", 0.9), ("[[7]]", 0.7), ("\\boxed{7}", 0.7), ("Rating: 3/10", 0.3), ("评分：7", 0.7),
        ("The score is 4 because the dose is missing.", 0.4), ("I would give 7 out of 10.", 0.7), ("Grade: 5", 0.5),
        ("Gleason score is 7.\nScore: 3", 0.3), ("4/5", None), ("Rating: 85", None), ("7 or 8", None), ("2024", None),
        ("The pain of 8/10 is missed.", None), ("Grade 3 tumour was missed", None), ("I would give 5 mg.", None),
    ],
)  # fmt: skip
def test_a_score_is_read_or_the_judge_abstains(reply, score):
    assert read_score(reply) == score


@pytest.mark.parametrize(
    ("reply", "better"),
    [
        ("Better: A", "A"),
        ("**Better: B**", "B"),
        ("B", "B"),
        ("Better: A\nBetter: B", None),
        ("Better: A or B", None),
        ("Better: A and B are equal", None),
        ("Better: A = B", None),
        ("Better: A, though B is longer", "A"),
        ("both", None),
        ("", None),
        # in the words of the prompt
        ("Better: Response A", "A"),
        ("Response B is better because it does not err.", "B"),
        ("Compared with A, B is better.", "B"),
        ("The better response is A.", "A"),
        ("B > A", "B"),
        ("\\boxed{A}", "A"),
        ("Winner: B", "B"),
        ("Better: A. In style B is better.", "A"),
        ("Better: Response A or Response B", None),
        ("A is better in style. B is better overall.", None),
        ("Neither A nor B is better", None),
        ("It is unclear whether A is better.", None),
        ("Is A better?", None),
        ("Hepatitis A is better known", None),
    ],
)
def test_a_comparison_is_read_or_the_judge_abstains(reply, better):
    assert read_better(reply) == better


@pytest.mark.parametrize(
    ("by_prompt", "partners"), [(True, {0: 1, 1: 0, 2: 3, 3: 2}), (False, {0: 1, 1: 2, 2: 3, 3: 0})]
)
def test_a_pairwise_judge_compares_within_the_groups_of_the_advantages(by_prompt, partners):
    """Two prompts of one case, two samples each."""
    asked = []

    def ask(texts):
        asked.extend(texts)
        return ["Better: A"] * len(texts)

    judge = JudgeReward(ask, "pairwise", "sound reasoning", sends=False, by_prompt=by_prompt)
    paradigms = ["bayesian", "bayesian", "intuitive", "intuitive"]
    judge([CASE] * 4, ["zero", "one", "two", "three"], paradigms=paradigms)
    names = ["zero", "one", "two", "three"]
    met = {frozenset(i for i, name in enumerate(names) if f"\n{name}\n" in text) for text in asked}
    assert met == {frozenset(pair) for pair in partners.items()}


@pytest.mark.parametrize(
    "field",
    [
        {"rewards.length": 1.0},
        {"rewards.functions": ("mine.f=-0.5",)},
        {"rewards.structure": -1.0},
        {"rewards.judge.weight": -1.0},
    ],
)
def test_weights_by_mean_reward_are_refused_where_rewards_may_be_negative(field):
    config = load_config("configs/gba.py", {"objective": "drpo"} | field)
    with pytest.raises(ConfigError, match="may make negative; leave it out, or set advantage_weights=equal"):
        trainer.preflight(config, [CASE])


GOOD = "a good long answer"


@pytest.mark.parametrize(
    ("texts", "expected", "count"),
    [
        ([GOOD, GOOD, "bad", "bad"], [1, 1, 0, 0], 1),
        ([GOOD, "bad", GOOD, GOOD], [1, 0, 1, 1], 1),
        (["middling", "bad", GOOD, "middling", "bad"], [0.5, 0, 1, 0.5, 0], 3),
        (["same"] * 3, [0.5] * 3, 0),
        (["alone"], [None], 0),
    ],
)
def test_a_pairwise_judge_gives_equal_texts_one_share(texts, expected, count):
    """A fair judge, whom two equal texts would force to guess, prefers the longer."""
    asked = set()

    def ask(prompts):
        asked.update(prompts)
        found = [re.search(r"Response A:\n(.*)\n\nResponse B:\n(.*)\n\nRubric", prompt) for prompt in prompts]
        assert all(one[1] != one[2] for one in found)
        return [f"Better: {'A' if len(one[1]) > len(one[2]) else 'B'}" for one in found]

    judge = JudgeReward(ask, "pairwise", "sound reasoning", sends=False)
    assert judge([CASE] * len(texts), texts, paradigms=["bayesian"] * len(texts)) == expected
    assert len({frozenset(re.findall(r"Response [AB]:\n(.*)\n", prompt)) for prompt in asked}) == count
    # the same texts under another paradigm are of another group
    other = judge([CASE] * (len(texts) + 1), [*texts, GOOD], paradigms=["bayesian"] * len(texts) + ["intuitive"])
    assert other == [*expected, None]
