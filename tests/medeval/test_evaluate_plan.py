"""A plan of an evaluation: every benchmark, model, prompt and backend, and how much would be asked."""

import pytest

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.medeval import eval_plan
from mmedexpert_jax.medeval.store import AnswerLog

QA = '"id": "Text-{0}", "question": "Which of {0}?", "options": {{"A": "x", "B": "y"}}, "label": "A"'


@pytest.fixture
def source(tmp_path):
    (tmp_path / "data" / "Text").mkdir(parents=True)
    lines = ("{" + QA.format(n) + "}\n" for n in range(6))
    (tmp_path / "data" / "Text" / "test.jsonl").write_text("".join(lines))
    return tmp_path / "data"


def planned(tmp_path, source, **fields):
    fields = {"benchmarks": (f"medxpertqa_text={source}",), "workdir": str(tmp_path / "run")} | fields
    return "\n".join(eval_plan.describe(load_config("configs/evaluate.py", fields))[0])


def test_every_model_and_benchmark_has_a_line(tmp_path, source):
    remote = {"compare": ("far=endpoint:m@http://127.0.0.1:9/v1",), "endpoint.price_output": 2.0}
    text = planned(tmp_path, source, num_samples=3, temperature=1.0, max_new_tokens=100, **remote)
    assert "benchmark  MedXpertQA-Text: 6 items of 6 rows" in text and "items 6 (2450)" in text
    assert "model      mini: mini on the JAX engine" in text and "far: m on http://127.0.0.1:9/v1" in text
    assert text.count("prompt think_answer: 6 questions x 3 = 18 answers") == 2
    assert "in all     36 answers" in text and "at most 3,600 of answers" in text
    assert "at most about $0.00 at the endpoint; no budget set" in text  # 18 x 100 tokens at $2 a million


def test_a_second_turn_counts_and_prompts_over_the_limit_are_named(tmp_path, source):
    text = planned(tmp_path, source, prompt="medxpertqa", max_prompt_length=8)
    assert "6 questions x 1 x 2 turns = 12 answers" in text
    assert "6 of 6 sampled prompts are over max_prompt_length=8" in text


def test_stored_answers_the_judge_and_shares_are_named(tmp_path, source):
    """Those of processes that share the work stand beside their folders, where the run looks too."""
    for folder in ("run/answers", "answers"):
        with AnswerLog(tmp_path / folder / "mini" / "medxpertqa-text") as answers:
            for number in range(len(folder)):
                answers.add("one", str(number), [])
    assert f"{len('run/answers')} lines of answers are stored" in planned(tmp_path, source)
    text = planned(tmp_path, source, processes=2, **{"judge.model": "j", "judge.what": "all"})
    assert f"{len('answers')} lines of answers are stored" in text and "1/2 of them by each process" in text
    assert "judge      j: at most 6 requests" in text and "$" not in text
    priced = {"judge.url": "http://127.0.0.1:9/v1", "judge.price_output": 10.0, "judge.budget": 2.0}
    text = planned(tmp_path, source, **{"judge.model": "j", "judge.what": "all"} | priced)
    assert "at most about $0.12, budget $2" in text  # 6 replies of 2,048 tokens at $10 a million


def test_controls_are_counted_and_an_unknown_one_is_refused(tmp_path, source):
    text = planned(tmp_path, source, controls=("blank", "shuffle", "pairs"), rotations=3)
    assert "12 questions x 1 = 12 answers" in text  # two options have one other order, and no item has an image
    assert "6 of 12 items are of controls" in text and "in all     12 answers" in text
    with pytest.raises(ConfigError, match="no control 'blind'"):
        planned(tmp_path, source, controls=("blind",))
