"""Open questions of another specialty than the four: trained, scored held out, with rewards for open answers."""

import json

import numpy as np
import pytest

from mmedexpert_jax.data import load_cases
from mmedexpert_jax.gba import rewards, trainer
from mmedexpert_jax.launch.held_out import evaluator
from mmedexpert_jax.runtime import Run

TRACE = "(1) Either a nodule or a scar. (2) A scar is ruled out by its round border."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Splits of open questions in radiology."""
    folder = tmp_path_factory.mktemp("open")
    for split, count in (("train", 4), ("test", 2)):
        rows = [
            {"id": f"{split}-{i}", "question": f"What is seen in film {i}?", "answer": "left lung nodule",
             "specialty": "Radiology", "task": "film", "difficulty": i}
            for i in range(count)
        ]  # fmt: skip
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_an_open_case_is_read_with_its_specialty_and_rewarded_for_its_form(folder):
    case = load_cases(str(folder), "train")[0]
    assert (case.kind, case.specialty, case.columns["difficulty"]) == ("open", "Radiology", 0)
    text = f"<think>{TRACE}</think><answer>Left lung nodule.</answer>"
    assert rewards.accuracy(case, text) == rewards.token_f1(case, text) == 1
    assert rewards.structure(case, text, paradigm="differential") == 1


def test_open_questions_are_trained_and_scored_held_out(folder, run_config, tmp_path):
    """F1, the exact match, similarity by the policy's own tower and a judge in process that talks nonsense."""
    overrides = {
        "data.path": str(folder), "steps": 1, "micro_batch": 0, "packing": 0, "samples_every": 1, "eval.every": 0,
        "rewards.token_f1": 1.0, "rewards.similarity.weight": 0.5, "rewards.judge.weight": 0.5,
        "rewards.judge.path": "policy", "curriculum": "difficulty", "advantage_weights": "specialty",
    }  # fmt: skip
    config = run_config(tmp_path / "run", **overrides)
    with Run.open(config.workdir, config) as run:
        path = trainer.train(config, run, evaluator(config, run))
        rows = run.metrics()
        table = [json.loads(line) for line in (run.path / "samples/completions/000001.jsonl").open()]
    (trained,) = [row for row in rows if "reward" in row]
    assert np.isfinite([trained["loss"], trained["grad_norm"]]).all() and trained["grad_norm"] > 0
    assert {"rewards/token_f1/mean", "rewards/similarity/mean", "specialties/Radiology/reward"} <= trained.keys()
    assert [row["eval/accuracy"] for row in rows if "eval/accuracy" in row] == [0.0, 0.0]
    assert {row["answer"] for row in table} == {"left lung nodule"} and {row["specialty"] for row in table} == {
        "Radiology"
    }
    assert all(row["rewards/judge"] is None for row in table)
    assert any(path.glob("*.safetensors"))
