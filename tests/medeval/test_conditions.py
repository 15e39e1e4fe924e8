"""What a table says of how its models were asked."""

import dataclasses

import pytest

from mmedexpert_jax import load_config
from mmedexpert_jax.data.benchmarks import Benchmark
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.medeval import conditions
from mmedexpert_jax.medeval.evaluate import Evaluation, judged
from mmedexpert_jax.medeval.results import Result
from mmedexpert_jax.medeval.systems import Target
from mmedexpert_jax.rollout import Reply

ITEMS = [Case(str(n), "q", ("one", "two"), "A", benchmark="b") for n in range(4)]
HERE = Target("mine", "jax", "mini")
THERE = Target("theirs", "endpoint", "gpt", url="https://h/v1")


def answered(items):
    return Evaluation(tuple(row for i in items for row in judged(i, [Reply("<answer>A</answer>", 1, False)])))


@pytest.fixture
def rows():
    result = Result(Benchmark("b", "B", ITEMS), {"mine": answered(ITEMS), "theirs": answered(ITEMS[:3])})
    config = load_config("configs/evaluate.py:mini")
    styles = {"mine": "think_answer", "theirs": "medevalkit"}
    return conditions.table(config, [HERE, THERE], styles, {"b": result})


def test_each_model_has_its_conditions(rows):
    mine, theirs = rows
    assert mine["runs on"] == "jax" and theirs["runs on"] == "https://h/v1"
    assert mine["decoding"] == "greedy, 96 tokens" and mine["image budget"].endswith(" px")
    assert (mine["left out"], theirs["left out"]) == ("0 of 4", "1 of 4")
    assert theirs["image budget"].startswith("1024 px a side") and theirs["template"] == "the server's"
    assert len(mine["template"]) == 12 and (mine["answered as"], mine["refused"]) == ("–", "–")


def test_models_that_were_not_asked_alike_are_not_set_side_by_side_without_a_word(rows):
    said = conditions.warning(rows)
    assert "prompt, template, image budget, questions left out" in said
    assert conditions.warning([rows[0], rows[0]]) == ""


def test_sampled_answers_say_how():
    config = load_config("configs/evaluate.py:mini", overrides={"temperature": 0.7, "top_p": 0.9})
    (row,) = conditions.table(config, [HERE], {"mine": "think_answer"}, {})
    assert row["decoding"] == "temperature 0.7, top_p 0.9, 96 tokens"
    assert dataclasses.asdict(HERE)["name"] == row["model"]


def test_what_a_server_refused_and_what_privacy_kept_back_stand_in_the_row():
    result = Result(Benchmark("b", "B", ITEMS), {"theirs": answered(ITEMS[:3])}, kept_back={"theirs": 1})
    config = load_config("configs/evaluate.py:mini", overrides={"num_samples": 4, "temperature": 1.0})
    told = {"settings refused": "seed, temperature", "answered as": "gpt-mini", "answers refused": "2 of 12"}
    requests = [{"model": "theirs", **told}]
    (row,) = conditions.table(config, [THERE], {"theirs": "x"}, {"b": result}, requests)
    assert row["decoding"].endswith("96 tokens, 4 answers an item, the server refused seed, temperature")
    assert row["left out"] == "1 of 4, 1 of them for privacy"
    (plain,) = conditions.table(config, [THERE], {"theirs": "x"}, {"b": result})
    assert "decoding" in conditions.warning([row, plain])
    assert row["answered as"] == "gpt-mini (asked for gpt)" and row["refused"] == "2 of 12"
    assert "answers refused, another model's name in the answers" in conditions.warning([row])
    assert plain["answered as"] == "–" and "name" not in conditions.warning([plain])
