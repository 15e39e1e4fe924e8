"""P_guide: every query once an epoch, paradigms in balance, groups as configured."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax.data.case import PARADIGMS, Case
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.gba.guidelines import Guidelines, load_texts


def make_cases(count, paradigms=PARADIGMS, prefix="c"):
    return [
        Case(f"{prefix}{i}", "Which?", ("x", "y"), "A", "AM", f"task{i % 2}", paradigms=paradigms) for i in range(count)
    ]


def visits(guidelines, steps):
    return [(p.case.id, p.paradigm) for step in range(steps) for p in guidelines.prompts(step)]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 23), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_visits_every_query_once_and_uses_the_paradigms_equally(count, seed, epoch):
    guidelines = Guidelines(make_cases(count), seed=seed, groups=1, num_samples=4)
    seen = visits(guidelines, count * (epoch + 1))[count * epoch :]
    assert sorted(case for case, _ in seen) == sorted(case.id for case in guidelines.cases)
    used = Counter(paradigm for _, paradigm in seen)
    assert max(used.values()) - min(used.get(p, 0) for p in PARADIGMS) <= 1


def test_four_epochs_show_every_query_under_every_paradigm():
    guidelines = Guidelines(make_cases(7), seed=0, groups=2, num_samples=4)
    assert Counter(visits(guidelines, 14)) == Counter((f"c{i}", p) for i in range(7) for p in PARADIGMS)


def test_balance_holds_among_queries_to_which_few_paradigms_apply():
    cases = make_cases(6, ("intuitive", "bayesian"), "few") + make_cases(8)
    used = Counter((case[:1], p) for case, p in visits(Guidelines(cases, seed=3, groups=14, num_samples=2), 1))
    assert used == {("f", "intuitive"): 3, ("f", "bayesian"): 3, **{("c", p): 2 for p in PARADIGMS}}


def test_the_assignment_depends_on_the_seed_and_not_on_the_file_order():
    cases = make_cases(12)

    def assigned(cases, seed):
        return dict(visits(Guidelines(cases, seed=seed, groups=12, num_samples=2), 1))

    assert assigned(cases, 0) == assigned(cases[::-1], 0) != assigned(cases, 1)


@pytest.mark.parametrize(("group_by", "queries", "samples"), [("prompt", 2, 8), ("query", 4, 4)])
def test_two_paradigms_a_query(group_by, queries, samples):
    guidelines = Guidelines(make_cases(9), seed=0, groups=4, num_samples=8, paradigms_per_query=2, group_by=group_by)
    assert (guidelines.queries_per_step, guidelines.samples_per_prompt) == (queries, samples)
    prompts = guidelines.prompts(0)
    assert len(prompts) == guidelines.prompts_per_step == 2 * queries
    assert len(prompts) * samples == 4 * 8  # completions a step, however they are grouped
    for first, second in zip(prompts[::2], prompts[1::2], strict=True):
        assert first.case is second.case
        assert first.paradigm != second.paradigm


def test_grpo_sees_the_same_queries_in_the_same_order_without_guidelines():
    options = {"seed": 1, "groups": 4, "num_samples": 4, "paradigms_per_query": 2, "texts": {"task0": "Rule."}}
    gba, grpo = (Guidelines(make_cases(9), guided=guided, **options) for guided in (True, False))
    assert [p.case.id for p in gba.prompts(3)] == [p.case.id for p in grpo.prompts(3)]
    assert all(p.paradigm is None and p.guideline is None for p in grpo.prompts(3))
    assert all(p.paradigm for p in gba.prompts(3))


def test_a_prompt_asks_for_its_paradigm_and_quotes_a_guideline_if_asked():
    case = make_cases(1)[0]
    plain = Guidelines([case], seed=0, groups=1, num_samples=2).prompts(0)[0]
    open_book = Guidelines([case], seed=0, groups=1, num_samples=2, texts={"task0": "Rule."}).prompts(0)[0]
    text = plain.conversation[0]["content"][-1]["text"]
    assert "reasoning" in text or "differential diagnosis" in text
    assert "Rule." not in text
    assert "Rule." in open_book.conversation[0]["content"][-1]["text"]


def test_epochs_become_steps():
    assert Guidelines(make_cases(9), seed=0, groups=4, num_samples=2).steps(1) == 3
    assert Guidelines(make_cases(9), seed=0, groups=4, num_samples=4, paradigms_per_query=2).steps(2) == 9
    for epochs, steps in ((1.1, 11), (2.2, 22), (1.11, 12)):  # of 100 cases, 10 a step
        assert Guidelines(make_cases(100), seed=0, groups=10, num_samples=2).steps(epochs) == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_by": "step"}, "config.group_by"),
        ({"paradigms_per_query": 5}, "config.paradigms_per_query"),
        ({"paradigms_per_query": 3}, "config.prompts_per_step is 4"),
        ({"paradigms_per_query": 3, "group_by": "query"}, "config.num_samples is 8"),
    ],
)
def test_settings_that_do_not_go_together(options, message):
    with pytest.raises(ConfigError, match=message):
        Guidelines(make_cases(3), **{"seed": 0, "groups": 4, "num_samples": 8} | options)


def test_guideline_texts_come_from_a_json_object(tmp_path):
    (tmp_path / "good.json").write_text(json.dumps({"task0": "Rule."}))
    (tmp_path / "bad.json").write_text("[1]")
    assert load_texts("") is None
    assert load_texts(str(tmp_path / "good.json")) == {"task0": "Rule."}
    for name in ("bad.json", "absent.json"):
        with pytest.raises(DataError, match=name):
            load_texts(str(tmp_path / name))


def test_a_guideline_file_that_matches_nothing_is_a_line():
    cases = make_cases(3)
    with pytest.raises(
        DataError, match=r"none of its 2 keys \(curb65, x\) is a task or id of the 3 cases, whose tasks"
    ) as e:
        Guidelines(cases, 0, 1, 2, texts={"curb65": "Rule.", "x": ""})
    assert str(e.value).endswith("are task0, task1") and "\n" not in str(e.value)
    assert Guidelines(cases, 0, 1, 2, texts={"c1": "Rule.", "curb65": ""}).texts


@pytest.mark.parametrize(
    ("paradigms", "fields", "said"),
    [
        (("analytical",), {"paradigms_per_query": 4}, "=4: fewer apply to 3 of 3 cases"),
        (PARADIGMS[:2], {"paradigms_per_query": 4, "group_by": "query"}, "=4: fewer apply to 3 of 3 cases"),
        (PARADIGMS, {"paradigms_per_query": 4}, ""),
        (("analytical",), {}, ""),
        ((), {"paradigms_per_query": 4, "guided": False}, ""),
    ],
)
def test_prompts_that_are_asked_again_for_want_of_paradigms_are_said(paradigms, fields, said, caplog):
    Guidelines(make_cases(3, paradigms), 0, groups=4, num_samples=4, **fields).warn_unmatched()
    assert (said in caplog.text) if said else not caplog.text
