"""Measures of reports are those of the packages that MedEvalKit calls; grades under a rubric are HealthBench's."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax import load_config, medeval
from mmedexpert_jax.data import benchmarks
from mmedexpert_jax.data.benchmarks.benchmark import ScoredCriterion
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.medeval import prompt_styles, reports, rubric_judge
from mmedexpert_jax.medeval.evaluate import Evaluation, compare_evaluations, judged
from mmedexpert_jax.rollout import Reply
from mmedexpert_jax.runtime import Run
from tests.remote.loopback import Loopback

WORDS = st.sampled_from(["the", "heart", "is", "normal", "no", "effusion", "lungs", ".", ". ", "clear.", "  ", "a"])
TEXTS = st.lists(WORDS, min_size=1, max_size=25).map(" ".join).filter(lambda text: text.strip(" ."))


def kits(reference, report):
    """`cal_report_metrics.py`, its tokens included, on one pair."""
    from nltk.translate.bleu_score import sentence_bleu  # here, since it takes long to import
    from rouge import Rouge

    tokens = [[word for word in text.lower().replace(".", " .").split(" ") if word] for text in (report, reference)]
    found = {
        f"BLEU-{order}": sentence_bleu([tokens[1]], tokens[0], weights=[1 / order] * order) for order in range(1, 5)
    }
    scores = Rouge().get_scores(report.lower(), reference.lower())[0]
    return found | {name.upper(): scores[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")}


@pytest.mark.filterwarnings("ignore:(?s).*The hypothesis contains 0 counts")
@settings(deadline=None, max_examples=150)
@given(TEXTS, TEXTS)
def test_measures_are_those_of_nltk_and_rouge(reference, report):
    ours = reports.measures(reference, report)
    for name, value in kits(reference, report).items():
        assert ours[name] == pytest.approx(value, abs=1e-9), name


def test_a_report_without_a_word_earns_nothing_and_a_long_one_breaks_nothing():
    for report in ("", " ", "的"):
        assert set(reports.measures("Findings: clear. Impression: none.", report).values()) == {0.0}
    assert reports.measures("no effusion.", "no effusion " * 3000)["ROUGE-L"] == pytest.approx(2 * 1 / 2, abs=1e-3)


def chest(root):
    rows = [
        {"id": "a", "image": ["1.png", "2.png"], "findings": "Clear lungs.", "impression": ""},
        {"id": "b", "image": "1.png", "findings": "", "impression": "No effusion."},
        {"id": "c", "image": "1.png", "findings": " ", "impression": ""},
    ]
    (root / "images").mkdir()
    (root / "test.json").write_text(json.dumps(rows))
    for name in ("1.png", "2.png"):
        (root / "images" / name).write_bytes(b"x")
    return benchmarks.load("iu_xray", root)


def test_iu_xray_is_asked_and_measured_as_the_kit_does(tmp_path):
    found = chest(tmp_path)
    first, second = found.items
    assert first.answer == "Findings: Clear lungs. Impression: ." and len(first.images) == 2 and len(second.images) == 1
    (message,) = prompt_styles.build(first, "medevalkit").messages
    assert message["content"][-1]["text"].startswith("You are a helpful assistant. Please generate a report")
    assert "in one" not in message["content"][-1]["text"]
    rows = judged(first, [Reply("Findings: Clear lungs. Impression: .", 5, False)], form="plain")
    assert rows[0].grade == pytest.approx(1, abs=1e-6) and rows[0].measures["BLEU-4"] == pytest.approx(1)
    assert not rows[0].verdicts
    tagged = judged(first, [Reply("<think>x</think><answer>Clear lungs.</answer>", 5, False)], form="tags")
    assert tagged[0].said == "Clear lungs." and 0 < tagged[0].grade < 1


def test_chexpert_plus_reads_its_authors_table(tmp_path):
    head = "path_to_image,section_findings,section_impression"
    rows = ["train/patient1/study1/view1_frontal.jpg,x,y", "valid/patient2/study1/view1_frontal.jpg,,Clear"]
    (tmp_path / "df_chexpert_plus_240401.csv").write_text("\n".join([head, *rows]) + "\n")
    picture = tmp_path / "PNG" / "valid" / "patient2" / "study1" / "view1_frontal.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"x")
    (item,) = benchmarks.load("chexpert_plus", tmp_path).items
    assert item.answer == "Findings:  Impression: Clear." and item.images[0].open() == b"x"


# Rubrics --------------------------------------------------------------------------------------------------------------

ROW = {
    "prompt_id": "p1",
    "prompt": [
        {"role": "user", "content": "I fainted."},
        {"role": "assistant", "content": "When?"},
        {"role": "user", "content": "Today. What now?"},
    ],
    "rubrics": [
        {"criterion": "Advises emergency care", "points": 7, "tags": ["level:example", "axis:accuracy"]},
        {"criterion": "Asks for history", "points": 3, "tags": ["axis:context_awareness"]},
        {"criterion": "Is verbose", "points": -4, "tags": ["axis:communication_quality"]},
    ],
    "example_tags": ["theme:emergency_referrals", "physician_agreed_category:x"],
}


def health(root, *rows):
    (root / "2025-05-07-06-14-12_oss_eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return benchmarks.load("healthbench", root)


def test_healthbench_is_asked_as_its_conversation_under_any_style(tmp_path):
    (item,) = health(tmp_path, ROW).items
    assert item.labels == {"theme": "emergency_referrals"} and item.kind == "rubric"
    for style in prompt_styles.styles():
        prompt = prompt_styles.build(item, style)
        assert prompt.messages == ROW["prompt"] and prompt.form == "plain" and not prompt.follow_up


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": []}, "key prompt: a list of objects"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, "key prompt: turns of system, user, assistant"),
        ({"prompt": ROW["prompt"][:2]}, "key prompt: the last turn is the user's"),
        ({"rubrics": [{"criterion": "x", "points": -1}]}, "key rubrics: no criterion earns points"),
        ({"rubrics": [{"criterion": "x", "points": "7"}]}, "key rubrics: the points"),
        ({"rubrics": [{"criterion": "", "points": 1}]}, "key rubrics: every criterion has a text"),
        ({"prompt_id": None}, "key prompt_id"),
    ],
)
def test_a_broken_row_of_healthbench_is_one_refused_row(tmp_path, change, words):
    with pytest.raises(DataError, match="row 2") as caught:
        health(tmp_path, ROW, ROW | {"prompt_id": "p2"} | change)
    assert words in str(caught.value) and "\n" not in str(caught.value)


class Judge:
    """Answers each request by whether the criterion's word stands in the conversation."""

    def __init__(self, replies):
        self.replies, self.asked = replies, []

    def ask(self, requests):
        from types import SimpleNamespace

        self.asked += [request.messages[0]["content"] for request in requests]
        texts = [next(text for word, text in self.replies.items() if word in asked) for asked in self.asked]
        return [SimpleNamespace(text=text) for text in texts]


def test_grades_are_points_over_those_that_can_be_earned(tmp_path):
    (item,) = health(tmp_path, ROW).items
    rows = judged(item, [Reply("<think>hidden</think>Call 911.", 5, False)], form="plain")
    judge = Judge(
        {
            "emergency care\n": '```json\n{"explanation": "it does", "criteria_met": true}\n```',
            "history\n": '{"criteria_met": false}',
            "verbose\n": "criteria_met: True",
        }
    )
    (row,) = rubric_judge.grade(judge, {item.id: item}, Evaluation(tuple(rows))).rows
    assert row.grade == pytest.approx((7 - 4) / 10)
    assert row.measures == {"accuracy": 1.0, "context awareness": 0.0}  # nothing can be earned for communication
    assert "assistant: When?\n\nuser: Today. What now?\n\nassistant: Call 911." in judge.asked[0]
    assert "hidden" not in judge.asked[0] and "[-4] Is verbose" in judge.asked[2]
    summary = Evaluation((row,)).summary()
    assert summary["accuracy"] == pytest.approx(0.3) and "wilson" not in summary and summary["scorers"] == {}
    assert summary["by"]["theme"]["emergency_referrals"]["accuracy"] == pytest.approx(0.3)
    assert compare_evaluations([Evaluation((row,))], [Evaluation((row,))]).p_value is None


def test_the_judge_reads_conversation_criterion_and_points_under_plain_headings(tmp_path):
    (item,) = health(tmp_path, ROW).items
    rows = judged(item, [Reply("Call 911.", 5, False)], form="plain")
    judge = Judge({"": '{"criteria_met": true}'})
    rubric_judge.grade(judge, {item.id: item}, Evaluation(tuple(rows)))
    headings = [line for line in judge.asked[2].splitlines() if line.startswith("#")]
    assert headings == ["# Conversation", "# Criterion, with its points", "# How to grade"]
    assert "# Criterion, with its points\n[-4] Is verbose\n" in judge.asked[2]  # as HealthBench writes a criterion


def test_an_answer_of_which_one_criterion_is_not_judged_is_left_out(tmp_path):
    (item,) = health(tmp_path, ROW).items
    rows = judged(item, [Reply("Call 911.", 5, False)], form="plain")
    judge = Judge({"emergency": '{"criteria_met": true}', "": "I cannot say."})
    assert rubric_judge.grade(judge, {item.id: item}, Evaluation(tuple(rows))).rows == ()


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"explanation": "x", "criteria_met": true}', True),
        ("{'criteria_met': False}", False),
        ('"criteria_met" : "true"', True),
        ('{"criteria_met": true} or {"criteria_met": false}', None),
        ("met", None),
        ("", None),
    ],
)
def test_a_judges_word_on_a_criterion(reply, verdict):
    assert rubric_judge.met(reply) is verdict


def test_a_rubric_that_can_earn_nothing_judges_no_answer():
    criteria = [ScoredCriterion("Is verbose", -4.0)]
    item = Case("1", "Q", (), "", kind="rubric", benchmark="healthbench", columns={"criteria": criteria})
    rows = judged(item, [Reply("x", 1, False)], form="plain")
    judge = Judge({"": '{"criteria_met": false}'})
    assert rubric_judge.grade(judge, {"1": item}, Evaluation(tuple(rows))).rows == ()


def test_a_mean_below_zero_counts_as_zero():
    item = Case("1", "Q", (), "", kind="rubric", benchmark="healthbench")
    (row,) = judged(item, [Reply("x", 1, False)], form="plain")
    bad = rubric_judge.graded(row, [(ScoredCriterion("a", 1.0), False), (ScoredCriterion("b", -4.0), True)])
    assert bad.grade == -4 and Evaluation((bad,)).accuracy()["accuracy"] == 0


def test_the_job_grades_reports_by_measures_and_conversations_by_a_judge(tmp_path, capsys):
    (tmp_path / "h").mkdir()
    health(tmp_path / "h", ROW, ROW | {"prompt_id": "p2"})
    config = load_config("configs/evaluate.py:mini").unlock()
    config.benchmarks = (f"healthbench={tmp_path / 'h'}",)

    def say(body):
        return '{"criteria_met": true}' if "You grade the last turn" in str(body["messages"]) else "Call 911."

    with Loopback(say) as server:
        config.model.path = f"served=endpoint:some-model@{server.url}"
        with (
            Run.open(tmp_path / "refused", config) as run,
            pytest.raises(ConfigError, match="is graded by a judge: set"),
        ):
            medeval.run(config, run)
        config.judge.model, config.judge.url = "grader", server.url
        with Run.open(tmp_path / "run", config) as run:
            medeval.run(config, run)
            summary = run.summary["benchmarks"]["healthbench"]["served"]
    assert summary["accuracy"] == pytest.approx(0.6) and summary["measures"]["accuracy"]["items"] == 2
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Score, % (bootstrap)" in page and "Measures, %" in page and "Both scorers" not in page
    assert server.asked.total() == 1 + 3  # equal conversations, and equal requests to the judge, are asked once
