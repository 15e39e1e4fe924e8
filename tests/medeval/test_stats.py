import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mmedexpert_jax import answers, comparison
from mmedexpert_jax.intervals import wilson
from mmedexpert_jax.medeval.evaluate import AnswerRow, Evaluation
from mmedexpert_jax.medeval.stats import (
    bootstrap,
    compare,
    holm,
    majority,
    mcnemar,
    pass_at_k,
    stratified_bootstrap,
)


@settings(deadline=None)
@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts):
    interval = scipy_stats.binomtest(*counts).proportion_ci(method="wilson")
    assert wilson(*counts) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_wilson_by_hand():
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_binomial_test_on_discordant_pairs(pairs):
    first, second = zip(*pairs, strict=True)
    gained, lost = sum(b > a for a, b in pairs), sum(a > b for a, b in pairs)
    expected = scipy_stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)


def test_bootstrap_matches_the_normal_interval_on_many_items():
    values = np.random.default_rng(1).random(2000) < 0.3
    low, high = bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=2e-3)
    assert bootstrap([1, 1, 1]) == (1, 1)
    assert bootstrap(values) == (low, high)  # seeded


def test_samples_of_an_item_stay_together():
    """Eight identical samples of an item add nothing: the interval is that of one sample."""
    rng = np.random.default_rng(0)
    first, second = rng.random((200, 1)) < 0.4, rng.random((200, 1)) < 0.5
    once, often = compare(first, second), compare(np.repeat(first, 8, 1), np.repeat(second, 8, 1))
    assert (often.low, often.high) == (once.low, once.high)
    assert once.p_value is not None and often.p_value is None


def test_compare_by_hand():
    result = compare([[1, 0], [0, 0]], [[1, 1], [1, 0]])
    assert (result.difference, result.low, result.high, result.items) == (0.5, 0.5, 0.5, 2)
    with pytest.raises(ValueError, match="1 and 2 items"):
        compare([[1]], [[1], [0]])


def test_bootstrap_of_yes_and_no_is_the_binomial_distribution():
    low, high = bootstrap([1] * 30 + [0] * 70)
    expected = scipy_stats.binom(100, 0.3).ppf([0.025, 0.975]) / 100
    assert (low, high) == pytest.approx(expected, abs=0.011)


def test_stratified_bootstrap_weighs_strata_alike():
    assert stratified_bootstrap([[1.0] * 50, [0.0] * 2]) == (0.5, 0.5)
    assert stratified_bootstrap([]) == (0, 0)


@settings(deadline=None)
@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(counts):
    right, total, k = counts
    draws = list(itertools.combinations([True] * right + [False] * (total - right), k))
    assert pass_at_k(right, total, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_votes_of_open_answers_are_counted_as_they_are_judged():
    said = ("Asthma", "asthma", "ASTHMA.", "Gout", "Gout")
    rights = [comparison.same_text(each, "Asthma") for each in said]
    rows = [
        AnswerRow("1", place, each, each, "Asthma", right, 3, False)
        for place, (each, right) in enumerate(zip(said, rights, strict=True))
    ]
    assert rights == [True] * 3 + [False] * 2 and Evaluation(rows).summary()["majority"]["accuracy"] == 1.0
    assert len({answers.vote(said) for said in ("5", "-5", "HER2-", "HER2+", "+", "-")}) == 6
    assert len({answers.vote(said) for said in ("5 mg", "5mg", "**5 mg**", "5 mg.")}) == 1


def test_majority_by_hand():
    assert majority([("A", False), ("B", True), ("B", True)]) == 1.0
    assert majority([("A", False), ("B", True), (None, False)]) == 0.5  # shared first place, one abstains
    assert majority([(None, False)]) == 0.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("verdicts", "right", "majority"),
    [
        ({"strict": False, "judge": True}, True, 1.0),  # another word for the key, which a judge knows
        ({"strict": True, "judge": False}, False, 0.0),
        ({"strict": True, "medevalkit": False}, False, 1.0),
        ({"strict": False}, False, 0.0),
    ],
)
def test_votes_count_by_the_judge_where_one_was_asked(verdicts, right, majority):
    said = [("gouty arthritis", right, verdicts), ("gouty arthritis", right, verdicts)]
    said += [("x", False, dict.fromkeys(verdicts, False))]
    rows = [AnswerRow("a", n, "", text, "Gout", ok, 1, False, {}, held) for n, (text, ok, held) in enumerate(said)]
    assert Evaluation(tuple(rows))._samples()["majority"]["accuracy"] == majority


@pytest.mark.parametrize("right", [False, True])
def test_items_of_one_outcome_with_several_answers_have_wilsons_interval_over_items(right):
    rows = [AnswerRow(f"{n}", k, "", "A", "A", right, 1, False, {}) for n in range(12) for k in range(2)]
    found = Evaluation(tuple(rows)).accuracy()
    wanted = scipy_stats.binomtest(12 * right, 12).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((wanted.low, wanted.high))
    assert found["wilson"] == [found["low"], found["high"]] and found["bootstrap"] is None


def test_items_of_one_mean_between_have_an_interval_with_a_width():
    rows = [AnswerRow(f"{n}", k, "", "A", "A", k == 0, 1, False, {}) for n in range(8) for k in range(2)]
    summary = Evaluation(tuple(rows)).summary()
    wanted = scipy_stats.binomtest(4, 8).proportion_ci(method="wilson")
    for found in (summary, summary["pass_at"]["1"]):
        assert (found["accuracy"], found["low"], found["high"]) == pytest.approx((0.5, wanted.low, wanted.high))
        assert found["wilson"] == [found["low"], found["high"]] and found["bootstrap"] is None
    negative = [replace(row, grade=-0.5) for row in rows]
    assert Evaluation(tuple(negative)).accuracy()["low"] == 0


def test_one_item_shows_no_spread_of_several():
    rows = [
        AnswerRow("a", sample, "", "A", "A", sample < 3, 1, False, {"x": "1"}, {"strict": True}) for sample in range(4)
    ]
    one = Evaluation(tuple(rows))
    accuracy = one.accuracy()
    assert (accuracy["accuracy"], accuracy["low"], accuracy["high"], accuracy["bootstrap"]) == (0.75, 0.0, 1.0, None)
    assert (one.macro("x")["low"], one.macro("x")["high"]) == (0.0, 1.0)
    found = compare([[0.0]], [[1.0]])
    assert (found.difference, found.low, found.high, found.p_value, found.items) == (1.0, -1.0, 1.0, 1.0, 1)
    two = compare([[0.0], [0.0]], [[1.0], [1.0]])
    assert (two.low, two.high) == (1.0, 1.0)
