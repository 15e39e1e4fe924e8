"""The job against a server of the OpenAI protocol on this machine, and the judge."""

import json

import pytest

from mmedexpert_jax import load_config, medeval
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError, DataError, RemoteError
from mmedexpert_jax.medeval.backends.endpoint import EndpointBackend
from mmedexpert_jax.medeval.evaluate import Evaluation, judged
from mmedexpert_jax.medeval.judge import judge
from mmedexpert_jax.medeval.judge_verdict import read
from mmedexpert_jax.medeval.prompt_styles import Question
from mmedexpert_jax.processing.images import ImageRef
from mmedexpert_jax.remote import Answers, Client, Endpoint
from mmedexpert_jax.remote.protocol import EndpointReply
from mmedexpert_jax.rollout import Reply
from mmedexpert_jax.runtime import Run
from tests.remote.loopback import Loopback, Misbehaviour


def say_b(body):
    return "<think>(1) x</think><answer>B</answer>"


def settings(server, **changes):
    config = load_config("configs/evaluate.py:mini").unlock()
    config.model.path = f"served=endpoint:some-model@{server.url}"
    config.limit = 24
    config.update(changes)
    return config


def execute(config, path):
    with Run.open(path, config) as run:
        medeval.run(config, run)
        return run.summary


def test_of_several_processes_one_asks_endpoints_and_judges(tmp_path):
    with Loopback(say_b) as server:
        judged = {"judge.model": "j", "judge.url": server.url, "judge.what": "all"}
        shares = [settings(server, processes=2, process=process, limit=4) for process in range(2)]
        for process, share in enumerate(shares):
            share.update_from_flattened_dict(judged)
            execute(share, tmp_path / f"process-{process}")
        assert not server.asked
        summary = execute(settings(server, limit=4), tmp_path)["benchmarks"]["mmedexpert_mini"]["served"]
        assert summary["items"] == 4 and max(server.asked.values()) == 1


def test_images_questions_and_samples_reach_the_server_and_come_back(tmp_path, capsys):
    bodies = []

    def answer(body):
        bodies.append(body)
        return say_b(body)

    with Loopback(answer, Misbehaviour(share=0.2, kinds=("429-after", "500"))) as server:
        config = settings(server, num_samples=2, temperature=0.7, skip_broken=True)
        summary = execute(config, tmp_path)["benchmarks"]["mmedexpert_mini"]["served"]
        assert server.answered.total() == 48 and summary["items"] == 24 and summary["pass_at"]["2"]["items"] == 24
        assert {body["max_completion_tokens"] for body in bodies} == {96}
        assert sorted({body["seed"] for body in bodies}) == [0, 1]
        parts = [part for body in bodies for part in body["messages"][0]["content"] if not isinstance(part, str)]
        assert any(part["type"] == "image_url" for part in parts)
        page = (tmp_path / "report.html").read_text()
        assert "Requests to endpoints" in page and f'<td class="number">{server.asked.total()}</td>' in page
        assert "attempts" in capsys.readouterr().out
        data = json.loads(page.split('id="data">')[1].split("</script>")[0])
        pictures = [path for item in data["mmedexpert_mini"]["items"] for path in item["images"]]
        assert pictures and all((tmp_path / path).is_file() for path in pictures)
        for place in (tmp_path / "answers").rglob("*.jsonl"):
            place.unlink()
        shared = settings(server, num_samples=2, temperature=0.7, answers=str(tmp_path / "answers"), report_items=0)
        execute(shared, tmp_path / "again")
        assert server.answered.total() == 48  # the history of attempts has them too
    paths = [tmp_path / name / "export" / "rows" / "mmedexpert-mini" / "served.jsonl" for name in (".", "again")]
    assert paths[0].read_text() == paths[1].read_text()


def test_a_server_that_refuses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "wrong")
    with Loopback(say_b, key="right") as server:
        config = settings(server, limit=4)
        config.endpoint.key_env = "SOME_KEY"
        with pytest.raises(RemoteError, match="refuses: 401"):
            execute(config, tmp_path)
    config = settings(server)
    config.model.path = "endpoint:some-model"
    with pytest.raises(ConfigError, match=r"set config\.endpoint\.url"):
        execute(config, tmp_path / "other")


def test_what_an_endpoint_samples_from_is_sent_or_refused(tmp_path):
    bodies = []
    with Loopback(lambda body: bodies.append(body) or say_b(body)) as server:
        fields = {"limit": 1, "top_p": 0.9, "report_items": 0}
        execute(settings(server, temperature=0.7, **fields), tmp_path / "sampled")
        execute(settings(server, **fields), tmp_path / "greedy")
        assert [body.get("top_p") for body in bodies] == [0.9, None]
        with pytest.raises(ConfigError, match=r"config\.top_k: served is an endpoint"):
            execute(settings(server, temperature=0.7, top_k=5), tmp_path / "refused")
    assert len(bodies) == 2


def test_a_broken_image_costs_its_own_question_alone(tmp_path):
    def asked(name, *images):
        parts = [{"type": "image", "image": ImageRef(name, lambda data=data: data)} for data in images]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": name}]}]
        return Question(Case(name, name, (), "A"), "think_answer", messages, "tags", key="0" * 64)

    found, refused = {}, {}
    with Loopback(say_b) as server:
        backend = EndpointBackend(Endpoint(server.url, "m", key_env=""), Answers(tmp_path / "a.sqlite"))
        both = [asked("whole"), asked("broken", b"no image"), asked("also whole")]
        backend.answer(both, 2, found.__setitem__, refused.__setitem__)
        assert sorted(found) == [0, 2] and [reply.text for reply in found[2]] == [say_b(None)] * 2
        assert list(refused) == [1] and str(refused[1]).startswith("broken: unreadable: an image: not an image")
        with pytest.raises(DataError, match="broken: unreadable"):
            backend.answer(both, 2, found.__setitem__)
        backend.close()


def test_a_server_that_stalls_or_talks_nonsense_is_asked_again_then_named(tmp_path):
    faults = Misbehaviour(share=0.3, kinds=("html", "no-choices", "truncated", "drop-mid-body"), in_a_row=1)
    with Loopback(say_b, faults) as server:
        config = settings(server, limit=12)
        assert execute(config, tmp_path / "first")["benchmarks"]["mmedexpert_mini"]["served"]["items"] == 12
        assert server.asked.total() > 12 == server.answered.total()
    with Loopback(say_b, Misbehaviour(share=1.0, kinds=("stall",), in_a_row=99)) as server:
        config = settings(server, limit=2)
        config.endpoint.timeout, config.endpoint.max_attempts = 0.3, 1
        with pytest.raises(RemoteError, match=r"mini-test-\d+: 127\.0\.0\.1:\d+ gave no answer .*asks again"):
            execute(config, tmp_path / "second")


def test_the_judge_decides_open_answers_and_is_asked_once(tmp_path):
    items = [Case(str(i), f"What is {i}?", (), "the left lung", kind="open", benchmark="vqa_rad") for i in range(3)]
    says = ["left lung, lower lobe", "right lung", "no idea"]
    rows = [judged(item, [Reply(text, 3, False)], form="plain")[0] for item, text in zip(items, says, strict=True)]
    prompts = []

    def answer(body):
        prompts.append(body["messages"][0]["content"])
        verdict = "CORRECT" if "left lung, lower" in prompts[-1] else "INCORRECT"
        return "hm" if "no idea" in prompts[-1] else f"**{verdict}**"

    by_id = {item.id: item for item in items}
    with Loopback(answer) as server:
        store = Answers(tmp_path / "judge.sqlite")
        client = Client(Endpoint(server.url, "judge", key_env="", temperature=0.0), store)
        found = judge(client, by_id, Evaluation(tuple(rows)))
        assert [row.right for row in found.rows] == [True, False, False]
        assert [row.verdicts["judge"] for row in found.rows] == [True, False, False]
        assert found.summary()["scorers"]["judge"]["accuracy"] == pytest.approx(1 / 3)
        assert judge(client, by_id, Evaluation(tuple(rows))) == found and len(prompts) == 3
        told = []
        judge(client, by_id, Evaluation(tuple(rows)), say=told.append)
        assert told == [
            "the judge gave no verdict on 1 of 3 answers, such as 'hm'; they count as they do without a judge"
        ]
        assert "Key:\nthe left lung" in prompts[0]
        with pytest.raises(ConfigError, match="choose one of open"):
            judge(client, by_id, found, "some")
        store.close()


def test_a_judges_refusal_is_no_verdict_and_it_is_shown_every_accepted_answer(tmp_path):
    item = Case(
        "1", "What?", (), "gout", kind="open", columns={"accepted": ("gouty arthritis",)}, benchmark="mmmu_medical"
    )
    rows = tuple(judged(item, [Reply("gout", 3, False)], form="plain"))
    prompts = []

    class Refusing:
        def ask(self, requests):
            prompts.extend(request.messages[0]["content"] for request in requests)
            return [EndpointReply("", "This would not be right.", "refusal") for _ in requests]

    found = judge(Refusing(), {"1": item}, Evaluation(rows))
    assert found.rows == rows and rows[0].right
    assert "Key:\ngout\nor: gouty arthritis\n" in prompts[0]


def test_the_judge_reads_unparsed_choices_where_asked(tmp_path):
    item = Case("1", "Which?", ("lung", "heart"), "A", benchmark="bench")
    rows = judged(item, [Reply("It must be the lung.", 5, False), Reply("<answer>B</answer>", 5, False)])
    with Loopback(lambda body: "CORRECT") as server:
        client = Client(Endpoint(server.url, "judge", key_env=""), Answers(tmp_path / "judge.sqlite"))
        found = judge(client, {"1": item}, Evaluation(tuple(rows)), "unparsed")
    assert [row.right for row in found.rows] == [True, False]
    assert [row.verdicts["judge"] for row in found.rows] == [True, False]


def test_verdicts():
    assert read("Incorrect.") is False and read("not INCORRECT but CORRECT") is True and read("yes") is None


def test_no_answer_at_all_is_an_error_and_no_accuracy_of_none(tmp_path):
    """An evaluation of nothing would print 0.0 % of 0 items."""
    with Loopback(lambda body: "hello") as server:
        row = {"prompt_id": "1", "prompt": [{"role": "user", "content": "Help"}]}
        row["rubrics"] = [{"criterion": "says x", "points": 5, "tags": []}]
        (tmp_path / "2025-05-07-06-14-12_oss_eval.jsonl").write_text(json.dumps(row))
        config = settings(server, benchmarks=(f"healthbench={tmp_path}",))
        config.judge.model, config.judge.url = "some-judge", server.url
        with pytest.raises(RemoteError, match="some-judge graded none of 1 answers of served to healthbench"):
            execute(config, tmp_path / "judge")
        (tmp_path / "test.jsonl").write_text(json.dumps({"id": "1", "question": "Mrs. Smith coughs?", "answer": "flu"}))
        config = settings(server, privacy="refuse")
        config.data.path = str(tmp_path)
        with pytest.raises(DataError, match="privacy=refuse keeps all 1 questions of mmedexpert_mini from served"):
            execute(config, tmp_path / "private")
    config = load_config("configs/evaluate.py:mini").unlock()
    config.update({"limit": 2, "max_prompt_length": 1, "skip_broken": True})
    with pytest.raises(DataError, match=r"all 2 questions of mmedexpert_mini were refused, the first: .*mini-test-"):
        execute(config, tmp_path / "long")


def test_a_benchmark_twice_is_refused_and_not_asked_once(tmp_path):
    with Loopback(say_b) as server:
        config = settings(server, benchmarks=("mmedexpert_mini", f"mmedexpert_mini={tmp_path}"))
        with pytest.raises(ConfigError, match="names mmedexpert_mini twice"):
            execute(config, tmp_path / "run")
        assert not server.asked
