"""A plan ends as the run would: broken data, rewards and models get the run's exit code, before anything is made."""

import json

import pytest

from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.launch.cli import main

ALL = ("train", "dev", "test")


def rows(**changes):
    """Sixteen cases of all specialties; `changes` go into the last one."""
    found = [
        {"id": f"c{i}", "question": "Her score?", "options": ["1", "2", "3"], "answer": "ABC"[i % 3], "task": "score",
         "specialty": SPECIALTIES[i % 4], "paradigm": "analytical", "trace": "Her rate is 32."}
        for i in range(16)
    ]  # fmt: skip
    found[-1] |= changes
    return found


def write(folder, cases, splits=("train", "dev", "test")):
    folder.mkdir(exist_ok=True)
    for split in splits:
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    return folder


@pytest.mark.parametrize(
    ("job", "cases", "splits", "code", "words"),
    [
        ("gba", rows(), ALL, 0, ""),
        ("gba", rows(images=["missing.png"]), ALL, 3, "missing.png"),
        ("gba", rows(answer="AB"), ALL, 3, "answer"),
        ("gba", rows(), ("train", "dev"), 3, "no split 'test'"),
        ("dsa", rows(), ALL, 0, ""),
        ("dsa", [row for row in rows() if row["specialty"] != "CSI"], ALL, 3, "no case of CSI"),
        ("dsa", rows(trace=""), ALL, 3, "trace"),
    ],
)
def test_a_plan_ends_as_the_run_would(tmp_path, capsys, job, cases, splits, code, words):
    data = write(tmp_path / "own", cases, splits)
    command = [f"--config=configs/{job}.py", f"--config.data.path={data}", f"--config.workdir={tmp_path / 'run'}"]
    assert main([*command, "--config.plan=True"]) == code
    out, error = capsys.readouterr()
    assert words in error and error.count("\n") == (code > 0)
    assert ("nothing was run" in out) == (code == 0)
    assert not (tmp_path / "run").exists()


def test_rewards_that_are_none_are_found_by_the_plan(tmp_path, capsys):
    command = ["--config=configs/gba.py", "--config.plan=True", "--config.rewards.functions=no_such_module.foo=1"]
    assert main(command) == 2
    assert "config.rewards.functions" in capsys.readouterr().err


def test_a_plan_is_one_screen_and_says_what_was_set_and_what_it_takes(capsys):
    command = ["--config=configs/gba.py:qwen2_vl_2b", "--config.plan=True", "--config.steps=100", "--config.price=2"]
    assert main([*command, "--config.plan_mesh=h100x8"]) in (0, 4)
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 40
    assert "set      steps = 100 (preset: 0)" in out
    assert "hours on 8 x h100, about" in out and "not measured" in out
    assert "lr 1e-06 (appendix B) hardly moves LoRA deltas" in out
