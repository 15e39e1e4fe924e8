"""What an endpoint, a judge and a judge's reward are sent of a case that names a person, by mode."""

import json

import pytest

from mmedexpert_jax import load_config, medeval
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.gba.judge_reward import JudgeReward
from mmedexpert_jax.medeval import identifiers
from mmedexpert_jax.runtime import Run
from tests.remote.loopback import Loopback

NAMED = "Mrs. Miller, seen on 2021-03-04, coughs. Which?"
ROW = {"options": ["asthma", "flu"], "answer": "B", "specialty": "AM", "task": "t"}


def said(found):
    return {name: any(text in body for body in found) for name, text in (("name", "Miller"), ("date", "2021-03-04"))}


@pytest.mark.parametrize("mode", ["report", "redact", "refuse"])
def test_endpoint_and_judge_are_sent_what_the_mode_allows(tmp_path, mode, capsys):
    rows = [ROW | {"id": "named", "question": NAMED}, ROW | {"id": "plain", "question": "Who coughs?"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bodies = []

    def answer(body):
        text = json.dumps(body)
        bodies.append(text)
        return "CORRECT" if "You grade answers" in text else "I saw Dr. Jones. <answer>B</answer>"

    with Loopback(answer) as server:
        config = load_config("configs/evaluate.py:mini").unlock()
        config.model.path, config.data.path = f"served=endpoint:some-model@{server.url}", str(tmp_path)
        config.judge.model, config.judge.url, config.judge.what = "judge", server.url, "all"
        config.privacy = mode
        with Run.open(tmp_path / "run", config) as run:
            medeval.run(config, run)
            summary = run.summary["benchmarks"]["mmedexpert_mini"]["served"]
    assert set(said(bodies).values()) == {mode == "report"}
    assert any("Jones" in body for body in bodies) is (mode == "report")  # the model's own words, to the judge
    assert summary["items"] == (1 if mode == "refuse" else 2)
    out = capsys.readouterr().out
    assert "privacy: 1 of 2 rows for served" in out and "(date in 1, name in 1)" in out and ": named" in out
    assert "rows for the judge" in out and "burned into pixels" in out and "Miller" not in out
    table = (tmp_path / "run" / "export" / "privacy" / "served-mmedexpert-mini.csv").read_text()
    assert table.splitlines() == ["row,kind,place", "named,date,question", "named,name,question"]


@pytest.mark.parametrize("mode", ["report", "redact", "refuse"])
def test_the_judge_of_a_reward_is_sent_what_the_mode_allows(tmp_path, mode, capsys):
    bodies = []

    def answer(body):
        bodies.append(json.dumps(body))
        return "Score: 7"

    with Loopback(answer) as server:
        config = load_config("configs/gba.py:mini").unlock()
        judge = config.rewards.judge
        judge.weight, judge.url, judge.model, judge.privacy = 1.0, server.url, "judge", mode
        reward = JudgeReward.from_config(config, tmp_path)
        cases = [Case(name, text, ("a", "b"), "B", "AM", "") for name, text in (("named", NAMED), ("plain", "Who?"))]
        scores = reward(cases, ["x", "y"])
        assert reward(cases, ["x", "y"]) == scores
    assert scores == [None if mode == "refuse" else 0.7, 0.7]
    assert set(said(bodies).values()) == {mode == "report"}
    out = capsys.readouterr().out
    assert out.count("privacy: 1 of 2 rows for the judge") == 1 and "Miller" not in out


def test_an_item_whose_redacted_options_read_the_same_is_kept_back(tmp_path, capsys):
    items = [
        Case("dates", "Which is due?", ("12/01/2020", "14/02/2020", "01/03/2020"), "B"),
        Case("one", "Which is due?", ("12/01/2020", "never", "soon"), "B"),
        Case("same", "Which?", ("a", "a"), "B"),  # as its file has it
    ]
    sent = identifiers.sendable(items, "served", "redact", tmp_path / "x.csv")
    assert [item.id for item in sent] == ["one", "same"] and sent[0].options == ("[date]", "never", "soon")
    last = capsys.readouterr().out.splitlines()[-1]
    assert "1 of them not sent to served" in last and "dates" in last
    assert len(identifiers.sendable(items, "served", "report", tmp_path / "x.csv")) == 3


@pytest.mark.parametrize(
    ("mode", "options"), [("redact", ("12/01/2020", "14/02/2020")), ("refuse", ("Dr. Smith", "flu"))]
)
def test_a_mode_that_leaves_nothing_to_ask_is_named(tmp_path, mode, options):
    row = ROW | {"id": "one", "question": "Which is due?", "options": list(options)}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    config = load_config("configs/evaluate.py:mini").unlock()
    config.model.path, config.data.path = "served=endpoint:some-model@http://localhost:9/v1", str(tmp_path)
    config.privacy, config.endpoint.key_env = mode, ""
    with Run.open(tmp_path / "run", config) as run, pytest.raises(DataError) as told:
        medeval.run(config, run)
    assert f"config.privacy={mode} keeps all 1 questions of mmedexpert_mini from served" in str(told.value)
