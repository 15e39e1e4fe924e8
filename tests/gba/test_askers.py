"""Rewards that ask: endpoints and models in process, each text once, what goes wrong with them."""

import dataclasses
import json
import math
import time

import pytest
from PIL import Image

from mmedexpert_jax import remote
from mmedexpert_jax.config.job_config import load_config
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError, RemoteError
from mmedexpert_jax.gba import askers, rewards, trainer
from mmedexpert_jax.gba.askers import endpoint_asker, network_of, stored, tower_of
from mmedexpert_jax.gba.judge_reward import JudgeReward, endpoint_of
from mmedexpert_jax.gba.similarity import SimilarityReward, cosine
from mmedexpert_jax.models import Model, load_model, load_processor
from tests.remote.loopback import Loopback, Misbehaviour

OPEN = Case("o", "Which?", (), "left lung nodule", "AM")
CHOICE = Case("c", "Which?", ("fever", "cough"), "B", "AM")


def endpoint(server, **fields):
    return remote.Endpoint(server.url, "m", key_env="", retry_wait=0.001, max_attempts=2, **fields)


def said(text):
    return f"<think>x</think><answer>{text}</answer>"


def judge(ask, kind="rubric"):
    return JudgeReward(ask, kind, "Sound?", sends=False)


def thinks(body):
    """A server's answer of a model that thinks: nothing is left of too few tokens (OpenAI's and vLLM's form)."""
    cut = body["max_completion_tokens"] < 1000
    message = {"role": "assistant", "content": None if cut else "Score: 8", "reasoning_content": "Let me see."}
    choice = {"message": message, "finish_reason": "length" if cut else "stop"}
    return 200, {}, json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 9}}).encode()


@pytest.mark.parametrize(("fields", "score"), [({}, None), ({"rewards.judge.max_tokens": 2048}, 0.8)])
def test_a_judge_that_thinks_has_the_tokens_it_is_given(tmp_path, fields, score):
    with Loopback(raw=thinks) as server:
        named = {"rewards.judge.weight": 1.0, "rewards.judge.url": server.url, "rewards.judge.model": "m"}
        config = load_config("configs/gba.py:mini", named | fields)
        assert JudgeReward.from_config(config, tmp_path)([CHOICE], ["x"]) == [score]


def test_a_reward_that_asks_has_the_limits_of_its_fields():
    fields = {"timeout": 5.0, "max_attempts": 2, "requests_per_minute": 3, "tokens_per_minute": 400}
    for name, own in (("judge", {"effort": "low", "max_tokens": 7}), ("similarity", {})):
        group = {"url": "http://h/v1", "model": "m"} | fields | own
        config = load_config("configs/gba.py:mini", {f"rewards.{name}.{key}": value for key, value in group.items()})
        found = endpoint_of(config, name)
        assert {key: getattr(found, key) for key in group} == group


# Never twice ----------------------------------------------------------------------------------------------------------


def test_a_model_in_process_is_asked_once_for_a_text(tmp_path):
    calls = []

    def answer(texts):
        calls.extend(texts)
        return [text.upper() for text in texts]

    ask = stored(answer, "one", tmp_path / "store.sqlite")
    assert ask(["a", "b", "a"]) == ["A", "B", "A"] and calls == ["a", "b"]
    again = stored(answer, "one", tmp_path / "store.sqlite")  # another run in the same folder
    assert again(["b", "c"]) == ["B", "C"] and calls == ["a", "b", "c"]
    assert stored(answer, "two", tmp_path / "store.sqlite")(["a"]) == ["A"] and calls[-1] == "a"
    assert ask([]) == []


def test_each_of_several_processes_has_a_file_of_its_own(tmp_path, monkeypatch):
    calls = []
    ask = stored(lambda texts: calls.extend(texts) or list(texts), "one", tmp_path / "judge.sqlite")
    monkeypatch.setattr(askers.processes, "_index", 1)
    other = stored(lambda texts: calls.extend(texts) or list(texts), "one", tmp_path / "judge.sqlite")
    assert ask(["a"]) == other(["a"]) == ask(["a"]) == other(["a"]) == ["a"] and calls == ["a", "a"]
    assert {path.name for path in tmp_path.glob("*.sqlite")} == {"judge.sqlite", "judge-1.sqlite"}


@pytest.mark.parametrize("kind", ["rubric", "pairwise"])
def test_a_judge_at_an_endpoint_is_asked_once_for_a_text(tmp_path, kind):
    reply = {"rubric": "Score: 8", "pairwise": "Better: A"}[kind]
    with Loopback(lambda body: reply) as server:
        reward = judge(endpoint_asker(endpoint(server), tmp_path / "judge.sqlite"), kind)
        cases, texts = [CHOICE] * 3, [said("A"), said("B"), said("A")]
        first = reward(cases, texts)
        assert reward(cases, texts) == first
        assert max(server.asked.values()) == 1
    if kind == "rubric":
        assert first == [0.8] * 3 and server.asked.total() == 2


def test_embeddings_are_asked_once_and_cosines_are_theirs(tmp_path):
    vectors = {"left lung nodule": [3.0, 4.0], "lung nodule": [4.0, 3.0], "kidney": [-3.0, -4.0]}
    with Loopback(embed=lambda body: vectors[body["input"]]) as server:
        reward = SimilarityReward(endpoint_asker(endpoint(server), tmp_path / "e.sqlite", embeds=True), sends=False)
        cases = [OPEN, OPEN, OPEN, CHOICE, OPEN]
        texts = [said("lung nodule"), said("kidney"), said("left lung nodule"), said("B"), "no answer at all"]
        expected = [pytest.approx(24 / 25), 0.0, pytest.approx(1.0), None, 0.0]
        assert reward(cases, texts) == reward(cases, texts) == expected
        assert server.asked == dict.fromkeys(vectors, 1)


def test_a_vector_that_is_none_or_of_another_length_is_an_abstention():
    assert cosine("", "[1]") is None and cosine("[1, 2]", "[1]") is None and cosine("[0, 0]", "[1, 0]") is None
    assert cosine("[1, 0]", "[1, 1]") == pytest.approx(1 / math.sqrt(2))


# In process -----------------------------------------------------------------------------------------------------------


def test_the_models_own_tower_embeds_and_its_decoder_judges(tiny_model_dir, tmp_path, monkeypatch):
    """A text's vector depends on it alone, not on what is read beside it; a judge that talks nonsense abstains."""
    model, params = load_model(tiny_model_dir)
    network = network_of("policy", lambda: (model, params, None, load_processor(tiny_model_dir)))
    traced, prefill = [], Model.prefill

    def counted(self, *arguments, **options):
        traced.append(1)
        return prefill(self, *arguments, **options)

    monkeypatch.setattr(Model, "prefill", counted)
    embed = tower_of(network)
    vectors = [json.loads(one) for one in embed(["a nodule", "a rather longer text about a nodule", "a nodule"])]
    assert vectors[0] == vectors[2] != vectors[1] and len(vectors[0]) == model.config.text.hidden_size
    alone = json.loads(embed(["a nodule"])[0])
    assert len(traced) == 1  # of one shape one program, however often texts are embedded
    assert alone == pytest.approx(vectors[0], abs=1e-4)

    overrides = {"rewards.similarity.weight": 1.0, "rewards.judge.weight": 1.0, "rewards.judge.path": "policy"}
    config = load_config("configs/gba.py:mini", {**overrides, "model.path": str(tiny_model_dir)})
    scoring = {one.name: one.function for one in rewards.from_config(config, tmp_path, network)}
    assert scoring["judge"]([CHOICE], [said("B")]) == [None]
    (score,) = scoring["similarity"]([OPEN], [said("left lung nodule")])
    assert score == pytest.approx(1.0)
    assert (tmp_path / "judge.sqlite").exists() and (tmp_path / "embeddings.sqlite").exists()


# Bad input ------------------------------------------------------------------------------------------------------------


def test_a_judge_that_is_down_is_a_line():
    with Loopback() as server:
        url = server.url
    asked = endpoint_asker(remote.Endpoint(url, "m", key_env="", retry_wait=0.001, max_attempts=1), _nowhere())
    with pytest.raises(RemoteError, match="gave no answer to 8 requests in a row") as error:
        judge(asked)([CHOICE] * 9, [said(str(i)) for i in range(9)])
    assert "\n" not in str(error.value)


def test_a_judge_that_dies_abstains_on_nothing(tmp_path):
    """However few it was asked: what it did not see is no opinion, and a run that resumes would score it."""
    with Loopback(lambda body: "Score: 5") as server:
        asked = endpoint_asker(endpoint(server), tmp_path / "judge.sqlite")
        assert judge(asked)([CHOICE], ["x"]) == [0.5]
    with pytest.raises(
        RemoteError, match=r"answers nothing .*ConnectError.*; see that it is up and takes such texts, then run"
    ):
        judge(asked)([CHOICE] * 2, ["x", "y"])


def test_a_judge_that_fails_on_every_text_of_a_step_ends_it(tmp_path):
    """On one of them it may be the text's fault."""
    with Loopback(
        lambda body: "Score: 5", misbehaviour=Misbehaviour(share=1.0, kinds=("500",), in_a_row=100)
    ) as server:
        asked = endpoint_asker(endpoint(server), tmp_path / "judge.sqlite")
        with pytest.raises(RemoteError, match=r"answers nothing .server: "):
            judge(asked)([CHOICE] * 3, ["x", "y", "z"])


HTML, LONG = b"<html>busy</html>", b'{"error": {"message": "This model\'s maximum context length is 4096 tokens."}}'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, {"content-type": "text/html"}, HTML), "malformed: "),
        ((200, {}, b'{"choices": []}'), "malformed: "),
        ((400, {}, LONG), "rejected: .*maximum context length"),
        ((413, {}, b""), "rejected: "),
        ((404, {}, b'{"error": {"message": "no such route"}}'), "."),
    ],
)
def test_a_judge_that_answers_no_text_of_a_step_ends_it_whatever_it_says(tmp_path, answer, said):
    """After it has answered others, too; what it fails on beside such as it answers is an abstention."""
    fails = ["none"]
    with Loopback(
        lambda body: "Score: 5", raw=lambda body: answer if fails[0] in body["messages"][-1]["content"] else None
    ) as server:
        asked = endpoint_asker(endpoint(server), tmp_path / "judge.sqlite")
        assert judge(asked)([CHOICE] * 2, ["w", "x"]) == [0.5] * 2
        fails[0] = "a bad one"
        if answer[0] != 404:  # of a server that lacks the model
            assert judge(asked)([CHOICE] * 2, ["a bad one", "y"]) == [None, 0.5]
        fails[0] = "bad"
        with pytest.raises(RemoteError, match=said) as error:
            judge(asked)([CHOICE] * 3, ["bad 1", "bad 2", "bad 3"])
        assert "\n" not in str(error.value)


def test_a_filter_that_stops_every_text_of_a_step_has_answered(tmp_path):
    with Loopback(lambda body: "Score: 5", misbehaviour=Misbehaviour(filtered=1.0)) as server:
        asked = endpoint_asker(endpoint(server), tmp_path / "judge.sqlite")
        assert judge(asked)([CHOICE] * 3, ["x", "y", "z"]) == [None] * 3


def test_a_judge_has_its_own_tries_and_time(tmp_path):
    """The limits of own functions would cut its waiting between tries short, and ask twice at once."""
    with Loopback(lambda body: "Score: 5", latency=0.5) as server:
        reward = rewards.WeightedReward("judge", 1.0, judge(endpoint_asker(endpoint(server), tmp_path / "j.sqlite")))
        told = {"case": CHOICE, "text": "x", "paradigm": None, "length": 1, "truncated": False, "max_new_tokens": 8}
        limits = {"timeout": 0.05, "attempts": 1, "workers": 1}
        assert rewards._columns([reward], [told], slice(None), 8, limits) == [[0.5]]


def _nowhere():
    import tempfile
    from pathlib import Path

    return Path(tempfile.mkdtemp()) / "judge.sqlite"


def test_a_judge_that_is_slow_is_given_up_for_that_text(tmp_path):
    with Loopback(lambda body: "Score: 5", latency=30) as server:
        asked = endpoint_asker(endpoint(server, timeout=0.05), tmp_path / "judge.sqlite")
        began = time.monotonic()
        assert judge(asked)([CHOICE], [said("A")]) == [None]
        assert time.monotonic() - began < 25


def test_a_judge_out_of_budget_or_quota_is_a_line(tmp_path):
    with Loopback(lambda body: "Score: 5") as server:
        prices = {"budget": 1e-9, "price_input": 1.0, "price_output": 1.0}
        with pytest.raises(RemoteError, match="cannot bear another request"):
            judge(endpoint_asker(endpoint(server, **prices), tmp_path / "a.sqlite"))([CHOICE], ["x"])
        budget = {"budget": 1e-9, "price_input": 1.0, "max_tokens": 0}
        similar = endpoint_asker(endpoint(server, **budget), tmp_path / "b.sqlite", embeds=True)
        with pytest.raises(RemoteError, match="cannot bear another request"):
            SimilarityReward(similar, sends=False)([OPEN], [said("x")])
        assert not server.asked
    with Loopback(misbehaviour=Misbehaviour(quota_after=1)) as server:
        asked = endpoint_asker(endpoint(server, concurrency=1), tmp_path / "c.sqlite")
        with pytest.raises(RemoteError, match="quota"):
            judge(asked)([CHOICE] * 3, ["x", "y", "z"])


@pytest.mark.parametrize("reply", ["Score: a lot", "Score: 99", "", "I cannot say.", "Score: nan"])
def test_a_judge_that_answers_nonsense_abstains(tmp_path, reply):
    with Loopback(lambda body: reply) as server:
        assert judge(endpoint_asker(endpoint(server), tmp_path / "j.sqlite"))([CHOICE], ["x"]) == [None]


def test_all_accepted_answers_are_known_to_judge_and_embedder():
    case = Case("o", "Which?", (), "myocardial infarction", kind="open", columns={"accepted": ["heart attack"]})
    asked = []
    judge(lambda texts: asked.extend(texts) or ["Score: 7"])([case], ["x"])
    assert "Key:\nmyocardial infarction\nor: heart attack\n" in asked[0]
    vectors = {"myocardial infarction": "[1, 0]", "heart attack": "[0, 1]"}
    similar = SimilarityReward(lambda texts: [vectors[text] for text in texts], sends=False)
    assert similar([case, case], [said("heart attack"), said("myocardial infarction")]) == [1.0, 1.0]


def test_an_accepted_answer_that_may_identify_a_person_is_reported_as_it_is_sent(capsys):
    columns = {"accepted": ["the mole of Mrs. Alice Example", "naevus"]}
    case = Case("o", "Which?", (), "melanoma", kind="open", columns=columns)
    sent = []
    JudgeReward(lambda texts: sent.extend(texts) or ["Score: 7"], "rubric", "Sound?")([case], ["x"])
    assert "Mrs. Alice Example" in sent[0]
    assert "1 of 1 rows for the judge may identify a person (name in 1); sent as they are: o" in capsys.readouterr().out
    vectors = dict.fromkeys((*case.golds, "naevus"), "[1, 0]")
    SimilarityReward(lambda texts: [vectors[text] for text in texts])([case], [said("naevus")])
    assert "1 of 1 rows for the embedder may identify a person (name in 1)" in capsys.readouterr().out


@pytest.mark.parametrize("vector", [[], "[1, 2]", [1, None], [float("nan"), 1.0], {"a": 1}, None, [True, False]])
def test_an_embedding_that_is_none_is_an_abstention(tmp_path, vector):
    """Of one text among others; where no text has one, the server is no embedder."""
    with Loopback(embed=lambda body: [1.0, 0.0] if body["input"] in OPEN.golds else vector) as server:
        embed = endpoint_asker(endpoint(server), tmp_path / "e.sqlite", embeds=True)
        assert SimilarityReward(embed, sends=False)([OPEN], [said("x")]) == [None]
    with Loopback(embed=lambda body: vector) as server, pytest.raises(RemoteError, match=r"answers nothing .malformed"):
        embed = endpoint_asker(endpoint(server), tmp_path / "none.sqlite", embeds=True)
        SimilarityReward(embed, sends=False)([OPEN], [said("x")])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"rewards.judge.weight": 1.0}, r"config.rewards.judge.url is empty; name the url, or a model in process"),
        ({"rewards.similarity.weight": 1.0, "rewards.similarity.path": ""}, r"config.rewards.similarity.url is empty"),
        ({"rewards.judge.weight": 1.0, "rewards.judge.path": "mini", "rewards.judge.rubric": "none.txt"}, "none.txt"),
        ({"rewards.judge.weight": 1.0, "rewards.judge.path": "mini", "rewards.judge.kind": "vote"}, "vote"),
    ],
)
def test_a_reward_that_has_nobody_to_ask_is_refused(tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=said):
        rewards.from_config(load_config("configs/gba.py:mini", overrides), tmp_path)


@pytest.mark.parametrize(("fields", "count"), [({"rewards.judge.weight": 0.5}, 1), ({}, 0)])
def test_a_judge_that_is_not_shown_the_pictures_is_said_to_read_texts_alone(caplog, fields, count):
    cases = [CHOICE, dataclasses.replace(CHOICE, id="p", images=(Image.new("RGB", (8, 8)),))]
    config = load_config("configs/gba.py:mini", {"rewards.judge.path": "policy"} | fields if fields else {})
    trainer.preflight(config, cases)
    said = "config.rewards.judge reads texts alone: 1 of 2 cases have images, which it is not shown"
    assert [record.getMessage() for record in caplog.records].count(said) == count
    caplog.clear()
    trainer.preflight(config, cases[:1])
    assert "texts alone" not in caplog.text
