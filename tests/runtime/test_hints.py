"""Hints: each on a run that it is meant for, and none on a run that learns."""

import pytest

from mmedexpert_jax.runtime.hints import RECENT, hints

HEALTHY = {
    "reward": 1.0,
    "frac_reward_zero_std": 0.2,
    "completions/clipped_ratio": 0.05,
    "kl": 0.01,
    "rewards/format/mean": 0.9,
    "rewards/accuracy/mean": 0.5,
    "sampling/logp_difference/mean": 0.002,
    "entropy": 1.0,
}


def run(steps=40, **late):
    """A healthy run whose last RECENT steps differ."""
    return [HEALTHY] * (steps - RECENT) + [HEALTHY | late] * RECENT


def test_a_run_that_learns_gets_no_hint():
    rising = [HEALTHY | {"rewards/accuracy/mean": 0.3 + step / 100} for step in range(40)]
    assert hints(run(**{"rewards/judge/abstained": 0.5})) == {}
    assert hints(rising) == {} and hints([]) == {} and hints(run()[:3]) == {}


@pytest.mark.parametrize(
    ("late", "name", "words"),
    [
        ({"frac_reward_zero_std": 0.95, "rewards/accuracy/mean": 0.05}, "equal rewards", "95% of the groups"),
        ({"frac_reward_zero_std": 0.95, "rewards/accuracy/mean": 0.95}, "equal rewards", "too easy"),
        ({"completions/clipped_ratio": 0.4}, "truncation", "40% of the completions"),
        ({"kl": 0.6}, "KL", "60 times 0.01, its median"),
        ({"sampling/logp_difference/mean": 0.2}, "sampler gap", "importance_cap"),
        (
            {"rewards/judge/abstained": 0.75},
            "abstentions of judge",
            "the reward judge abstained on 75% of the completions",
        ),
        ({"entropy": 0.01}, "entropy", "from 1.00 to 0.010"),
    ],
)
def test_each_hint_on_a_run_that_it_is_meant_for(late, name, words):
    found = hints(run(**{**late}))
    assert list(found) == [name] and words in found[name]


def test_form_that_rises_alone():
    rows = [HEALTHY | {"rewards/format/mean": 0.4 + min(0.5, step / 40)} for step in range(40)]
    assert list(hints(rows)) == ["form alone"]


def test_a_metric_that_is_missing_gives_no_hint():
    assert hints([{"reward": 0.0}] * 40) == {}


@pytest.mark.parametrize("name", sorted(HEALTHY))
def test_a_metric_that_was_no_number_in_a_step_is_passed_over(name):
    rows = run()
    assert hints([*rows[:-3], rows[-3] | {name: None}, *rows[-2:]]) == {}
    assert hints([row | {name: None} for row in rows]) == {}


@pytest.mark.parametrize(("calm", "wild"), [(4, 8), (8, 8), (9, 11), (12, 12)])
def test_a_kl_that_runs_away_in_the_first_steps_is_told(calm, wild):
    rows = [HEALTHY | {"kl": 0.001}] * calm + [HEALTHY | {"kl": 3.0}] * wild
    assert list(hints(rows)) == ["KL"] and hints(rows)["KL"].startswith("the KL to the reference is 3 nats a token")


def test_a_kl_that_leaves_zero_and_an_accuracy_that_is_not_measured_give_no_hint():
    from_the_reference = [HEALTHY | {"kl": 0.0}] * RECENT + [HEALTHY | {"kl": 0.06}] * RECENT
    assert hints(from_the_reference) == {}
    without = [
        {name: value for name, value in row.items() if name != "rewards/accuracy/mean"}
        | {"rewards/format/mean": 0.1 + step / 50}
        for step, row in enumerate(run())
    ]
    assert hints(without) == {}
