"""Rewards of hand-written completions, their weights, their log names, and a user's own functions."""

import sys
import types

import numpy as np
import pytest

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.data.prompts import render
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.gba import rewards
from mmedexpert_jax.gba.guidelines import Prompt
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
    reward = rewards.Weighted(name, 1.0, rewards.REWARDS[name])
    return rewards.score((reward,), rollout(texts, **kwargs), 100).values[0, :, 0].tolist()


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
    assert {r.name: r.weight for r in scoring} == {"accuracy": 1.0, "format": 0.5, "structure": 0.5}
    scores = rewards.score(scoring, rollout([render(TRACES["bayesian"], "B"), render("x", "A")]), 100)
    assert scores.total.tolist() == [[2.0, 0.5]]
    stats = scores.stats()
    assert stats["rewards/accuracy/mean"] == 0.5
    assert stats["rewards/format/std"] == 0
    assert stats["reward"] == 1.25
    assert stats["reward_std"] == pytest.approx(np.std([2.0, 0.5], ddof=1))


def test_means_by_the_paradigm_that_a_prompt_asks_for():
    scoring = rewards.from_config(config(**{"rewards.structure": 0}))[:1]
    values = np.array([[[1.0], [0.0]], [[1.0], [1.0]], [[0.0], [0.0]]])
    scores = rewards.Scores(values, 2 * values[..., 0], scoring)
    expected = {"bayesian/accuracy": 0.75, "bayesian/reward": 1.5, "intuitive/accuracy": 0.0, "intuitive/reward": 0.0}
    assert scores.by_paradigm(["bayesian", "bayesian", "intuitive"]) == {
        f"paradigms/{name}": value for name, value in expected.items()
    }
    assert scores.by_paradigm([None, None, None]) == {}


def test_grpo_drops_the_structure_reward_and_nothing_else():
    assert [r.name for r in rewards.from_config(config(objective="grpo"))] == ["accuracy", "format"]


def test_accuracy_is_watched_even_without_weight():
    scoring = rewards.from_config(config(**{"rewards.accuracy": 0, "rewards.length": 0.1}))
    assert {r.name: r.weight for r in scoring} == {"accuracy": 0, "format": 0.5, "structure": 0.5, "length": 0.1}


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
    with pytest.raises(ConfigError, match="broken failed on case case-7: ZeroDivisionError"):
        scores("own.broken")
    with pytest.raises(ConfigError, match="nothing gave nan on case case-7"):
        scores("own.nothing")


@pytest.mark.parametrize("spec", ["nowhere.brief", "json.nothing=1", "json.dumps=much", "brief"])
def test_a_function_that_cannot_be_had(spec):
    with pytest.raises(ConfigError, match=r"config\.rewards\.functions"):
        rewards.from_config(config(**{"rewards.functions": (spec,)}))


def test_two_rewards_of_one_name_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "own", module := types.ModuleType("own"))
    module.format = lambda *_, **__: 1.0
    with pytest.raises(ConfigError, match="two rewards are called format"):
        rewards.from_config(config(**{"rewards.functions": ("own.format",)}))
