"""What servers send, tried by the command line: an evaluation or a data set that goes on and says so, or one line."""

import json
from pathlib import Path

import pytest

from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.medeval import Evaluation
from tests.mmedexpert.fake_teacher import answer as teaches
from tests.mmedexpert.test_factory import raw_cases
from tests.remote.loopback import Loopback

JSON = {"content-type": "application/json"}


def error(status, body, **headers):
    content = body if isinstance(body, str) else json.dumps(body)
    return status, (JSON if not isinstance(body, str) else {}) | headers, content.encode()


def reply(**choice):
    """Status 200 with one choice; `message` and `finish_reason` as given."""
    return 200, JSON, json.dumps({"id": "x", "model": "other-model", "choices": [choice]}).encode()


def said(text):
    return reply(finish_reason="stop", message={"role": "assistant", "content": text})


RIGHT = "<think>(1) x</think><answer>B</answer>"


class Wild:
    """A server's answer to each body: `first` to each question's first tries, or to the questions of one number."""

    def __init__(self, first, tries=1, only=None):
        self.first, self.tries, self.only = first, tries, only
        self.asked: dict[str, int] = {}

    def __call__(self, body):
        key = json.dumps(body["messages"])
        number = list(self.asked).index(key) if key in self.asked else len(self.asked)
        self.asked[key] = self.asked.get(key, 0) + 1
        if (self.only is None or number == self.only) and self.asked[key] <= self.tries:
            return self.first(body) if callable(self.first) else self.first
        return said(RIGHT)


def evaluate(server, folder, *more):
    """Exit code of an evaluation of six questions."""
    command = [
        "--config=configs/evaluate.py",
        f"--config.workdir={folder}",
        "--config.limit=6",
        "--config.report_items=0",
    ]
    command += [
        f"--config.model.path=served=endpoint:some-model@{server.url}",
        "--config.endpoint.concurrency=1",
        *more,
    ]
    return main(command)


def rows(folder):
    return Evaluation.read(Path(folder) / "export" / "rows" / "mmedexpert-mini" / "served.jsonl").rows


def unknown(name, words, status=400, wrap=lambda body: body):
    """A refusal of any body that has a field."""
    return lambda body: (
        error(status, wrap({"error": {"message": words, "code": status}})) if name in body else said(RIGHT)
    )


FOREVER = 10**6
MODERATED = {"error": {"message": "Your chosen model requires moderation and your input was flagged", "code": 403}}
ABSORBED = {  # what a server does at first, and the words of the table afterwards
    "Gemini's list": (
        Wild(unknown("seed", 'Invalid JSON: Unknown name "seed": Cannot find field.', 400, lambda b: [b]), FOREVER),
        "refused seed",
    ),
    "no greedy answers": (
        Wild(unknown("temperature", "temperature must be strictly positive"), FOREVER),
        "refused temperature",
    ),
    "a validator's list": (
        Wild(
            lambda body: (
                error(
                    422,
                    {
                        "detail": [
                            {
                                "loc": ["body", "seed"],
                                "msg": "Extra inputs are not permitted",
                                "type": "extra_forbidden",
                            }
                        ]
                    },
                )
                if "seed" in body
                else said(RIGHT)
            ),
            FOREVER,
        ),
        "refused seed",
    ),
    "finish_reason error": (Wild(reply(finish_reason="error", message={"content": ""})), "other-model"),
    "an error in a choice": (
        Wild(reply(finish_reason="error", error={"code": 502, "message": "up"}, message={})),
        "other-model",
    ),
    "an error with status 200": (Wild(error(200, {"error": {"code": 502, "message": "provider"}})), "other-model"),
    "a gateway's page": (Wild(error(502, "<html>bad gateway</html>")), "other-model"),
    "a stream that was not asked for": (
        Wild(error(200, "data: {}\n\n", **{"content-type": "text/event-stream"})),
        "other-model",
    ),
    "an empty body": (Wild(error(200, "")), "other-model"),
    "null": (Wild((200, JSON, b"null")), "other-model"),
    "a slow down": (Wild(error(429, {"error": {"message": "slow"}}, **{"retry-after": "0.01"})), "other-model"),
    "an overload": (
        Wild(error(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})),
        "other-model",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ABSORBED)
def test_a_passing_failure_costs_no_answer_and_what_was_changed_stands_in_the_table(name, tmp_path, capsys):
    wild, words = ABSORBED[name]
    wild.asked.clear()
    with Loopback(raw=wild) as server:
        assert evaluate(server, tmp_path / "run") == 0
        assert [row.said for row in rows(tmp_path / "run")] == ["B"] * 6
        table = (tmp_path / "run" / "report.html").read_text()
        assert words in table, name
        asked = sum(wild.asked.values())
        assert evaluate(server, tmp_path / "run") == 0 and sum(wild.asked.values()) == asked  # nothing is asked again
    assert "Traceback" not in capsys.readouterr().err


LOST = {  # answers to one question of six that stay what they are
    "moderation, 403": error(403, MODERATED),
    "moderation, a list": error(400, [MODERATED]),
    "moderation, 451": error(451, "unavailable for legal reasons"),
    "Azure's filter": error(
        400, {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}
    ),
    "a refusal": reply(finish_reason="stop", message={"content": None, "refusal": "I cannot help with that."}),
    "nothing at all": reply(finish_reason="stop", message={"content": ""}),
    "reasoning that ran out": reply(
        finish_reason="length", message={"content": None, "reasoning_content": "B or C ..."}
    ),
    "a tool's call": reply(finish_reason="tool_calls", message={"content": None, "tool_calls": [{"id": "1"}]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOST)
def test_an_answer_that_never_comes_is_one_wrong_answer(name, tmp_path, capsys):
    with Loopback(raw=Wild(LOST[name], FOREVER, only=2)) as server:
        assert evaluate(server, tmp_path / "run") == 0
        assert sorted(row.said or "" for row in rows(tmp_path / "run")) == ["", *["B"] * 5]
        refused = ("moderation" in name) + ("filter" in name) + ("refusal" in name)
        assert f"<td>{refused} of 6</td>" in (tmp_path / "run" / "report.html").read_text()
        assert evaluate(server, tmp_path / "run") == 0  # on every rerun too
    assert "Traceback" not in capsys.readouterr().err


FATAL = {
    "a wrong key": (error(401, {"error": {"message": "Incorrect API key"}}), "401"),
    "no such model": (error(404, {"error": {"message": "The model `some-model` does not exist"}}), "does not exist"),
    "no money": (error(402, {"error": {"message": "Insufficient credits"}}), "Insufficient credits"),
    "no quota": (error(429, {"error": {"message": "pay", "code": "insufficient_quota"}}), "pay"),
    "a login page": (error(302, "", location="/login"), "302"),
    "always an error": (reply(finish_reason="error", message={"content": ""}), "finish_reason"),
    "always too long": (error(400, {"error": {"message": "maximum context length is 8 tokens"}}), "maximum context"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FATAL)
def test_a_server_that_answers_nothing_ends_the_run_in_one_line_and_the_same_command_goes_on(name, tmp_path, capsys):
    content, words = FATAL[name]
    wild = Wild(content, FOREVER)
    with Loopback(raw=wild) as server:
        assert evaluate(server, tmp_path / "run", "--config.endpoint.max_attempts=2") in (3, 5)
        lines = capsys.readouterr().err.strip().splitlines()
        assert words in lines[-1] and "Traceback" not in "".join(lines)
        wild.first = said(RIGHT)
        assert evaluate(server, tmp_path / "run", "--config.endpoint.max_attempts=2") == 0
        assert [row.said for row in rows(tmp_path / "run")] == ["B"] * 6


def build(server, folder, *more, cases=8):
    """Exit code of a data set of a few cases with a teacher at the server, by its documented preset."""
    folder.mkdir(exist_ok=True)
    path = folder / "raw.jsonl"
    raw_cases(path, cases)
    command = ["--config=configs/dataset.py:endpoint", f"--config.workdir={folder}/run", f"--config.data.path={path}"]
    command += [f"--config.teacher.url={server.url}", "--config.teacher.model=m", "--config.teacher.key_env="]
    command += [
        "--config.teacher.retry_wait=0.01",
        "--config.words=5,100",
        "--config.benchmarks=",
        "--config.candidates=1",
    ]
    return main(command + list(more))


@pytest.mark.slow
@pytest.mark.parametrize("status", ["failed", "cancelled", "expired"])
def test_a_batch_that_ends_without_answers_is_one_line_and_is_asked_once(status, tmp_path, capsys):
    with Loopback(teaches) as server:
        server.batches.fails = (status, [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}])
        assert build(server, tmp_path, "--config.teacher.kind=batch") == 5
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "Enqueued token limit reached" in line and status in line
        submitted = len(server.batches.submitted)
        assert submitted == len(set(server.batches.submitted))  # not sent again at once
        server.batches.fails = None
        assert build(server, tmp_path, "--config.teacher.kind=batch") == 0
    assert (tmp_path / "run" / "export").is_dir()


@pytest.mark.slow
def test_a_teacher_whose_reasoning_stands_apart_is_built_from(tmp_path):
    """vLLM's parser keeps what stood in the tags in a field of its own: the same data set comes of it."""

    def apart(body):
        think, _, rest = teaches(body).partition("</think>")
        message = {"content": rest.strip(), "reasoning_content": think.replace("<think>", "").strip()}
        return reply(finish_reason="stop", message=message)

    built = []
    for number, settings in enumerate(({"answer": teaches}, {"raw": apart})):
        with Loopback(**settings) as server:
            assert build(server, tmp_path / str(number)) == 0
        built.append(json.loads((tmp_path / str(number) / "run" / "export" / "dataset" / "manifest.json").read_text()))
    assert built[0]["rows"] == built[1]["rows"] and built[0]["rows"]["train"]["all"] > 0


BROKEN = {  # a row of a file of raw cases, and the reason that it is refused for
    "no object": (["a"], "not-an-object"),
    "options as text": ({"question": "Q?", "options": "['x', 'y", "answer": "A"}, "unreadable"),
    "one option": ({"question": "Why this one?", "options": ["x"], "answer": "A"}, "few-options"),
    "no key": ({"question": "Why that one?", "options": ["x", "y"]}, "unreadable"),
    "no question": ({"question": " ", "options": ["x", "y"], "answer": "A"}, "empty-question"),
    "a picture that is none": (
        {"question": "Why there?", "options": ["x", "y"], "answer": "A", "images": ["raw.jsonl"]},
        "image-broken",
    ),
    "a picture that is away": (
        {"question": "Why here?", "options": ["x", "y"], "answer": "A", "images": ["z.png"]},
        "image-missing",
    ),
    "a number as an image": (
        {"question": "Why now?", "options": ["x", "y"], "answer": "A", "images": [5]},
        "image-missing",
    ),
    "a key beyond": ({"question": "Why so?", "options": ["x", "y"], "answer": "F"}, "no-such-key"),
    "null": (None, "not-an-object"),
    "nested options": ({"question": "Why nested?", "options": [["x"], {"y": 1}], "answer": "A"}, "unreadable"),
    "twins": ({"question": "Why twins?", "options": ["x", "X "], "answer": "A"}, "equal-options"),
}


@pytest.mark.slow
def test_a_broken_row_is_one_refused_row(tmp_path, capsys):
    with Loopback(teaches) as server:
        path = tmp_path / "raw.jsonl"
        raw_cases(path, 40)
        good = path.read_text()
        path.write_text(good + "".join(json.dumps(row) + "\n" for row, _ in BROKEN.values()))
        command = [
            "--config=configs/dataset.py:endpoint",
            f"--config.workdir={tmp_path}/run",
            f"--config.data.path={path}",
        ]
        command += [f"--config.teacher.url={server.url}", "--config.teacher.model=m", "--config.teacher.key_env="]
        command += ["--config.words=5,100", "--config.benchmarks=", "--config.candidates=1", "--config.stages=collect"]
        assert main(command) == 0, capsys.readouterr().err
    refused = [json.loads(line) for line in (tmp_path / "run" / "export" / "rejected.jsonl").read_text().splitlines()]
    assert {one["reason"] for one in refused} >= {reason for _, reason in BROKEN.values()} and len(refused) == len(
        BROKEN
    )
