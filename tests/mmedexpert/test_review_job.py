"""The job through the command line, on the embedded set and on a dataset run's store."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mmedexpert_jax.data import load_cases
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.mmedexpert import review
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.record import Check
from mmedexpert_jax.mmedexpert.review.checks import problems
from mmedexpert_jax.mmedexpert.review.events import Event, append
from mmedexpert_jax.mmedexpert.review.review_job import build_command
from mmedexpert_jax.mmedexpert.review.review_traces import from_case

JOB = "--config=configs/review.py"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_embedded_set_is_reviewed_where_nothing_else_is_given(folder, capsys):
    assert main([JOB, "--config.plan=True", "--config.reviewers=anna,ben", "--config.overlap=1"]) == 0
    out = capsys.readouterr().out
    assert "320 of mini, 320 of them for 2 reviewers" in out and "verdicts 640 in all" in out


def test_report_export_and_import(folder, capsys):
    arguments = [JOB, "--config.limit=8", "--config.reviewers=anna,ben", "--config.overlap=1"]
    traces = [from_case(case, "mini/dev") for case in load_cases("mini", "dev", limit=8)]
    Path("runs/review-mini").mkdir(parents=True)
    store = Store("runs/review-mini/review.sqlite")
    value = {"kind": "accept", "text": None, "reasons": []}
    append(store, [Event(f"e{i}", "anna", "reviewer", trace.id, "verdict", value) for i, trace in enumerate(traces)])
    store.close()
    assert main([*arguments, "--config.action=report"]) == 0
    assert json.loads(Path("runs/review-mini/agreement.json").read_text())["people"]["anna"]["verdicts"] == 8
    assert main([*arguments, "--config.action=export"]) == 0
    assert len(Path("runs/review-mini/export/verdicts.jsonl").read_text().splitlines()) == 8
    for tool in ("label_studio", "argilla"):
        assert main([*arguments, "--config.action=export", f"--config.exchange.tool={tool}"]) == 0
    back = [*arguments, "--config.action=import", "--config.workdir=other"]
    assert main([*back, "--config.exchange.path=runs/review-mini/export/events.jsonl"]) == 0
    assert "8 stored" in capsys.readouterr().out
    assert main([*arguments, "--config.fresh=True"]) == 2 and "never deleted" in capsys.readouterr().err
    assert main(back) == 2 and "exchange.path is empty" in capsys.readouterr().err
    assert main([*back, "--config.exchange.path=nowhere"]) == 3
    assert main([*back, "--config.exchange.path=runs", "--config.exchange.names=anna"]) in (2, 3)
    assert main([JOB, "--config.overlap=2"]) == 2 and "at least 0 and at most 1" in capsys.readouterr().err
    assert main([JOB, "--config.action=dance"]) == 2


def test_a_dataset_run_is_reviewed_in_its_own_store(folder, capsys):
    case = next(case for case in load_cases("mini", "dev") if case.paradigm == "analytical")
    trace = from_case(case)
    right = replace(trace, teacher="model", request="r")
    wrong = replace(right, id="wrong", check=Check(False, "A", ("wrong-answer",)))
    Path("runs/dataset-mini").mkdir(parents=True)
    store = Store("runs/dataset-mini/factory.sqlite")
    store.replace_cases([trace.case])
    store.put_traces([right, wrong])
    assert main([JOB, "--config.plan=True"]) == 0
    assert "1 of runs/dataset-mini" in capsys.readouterr().out
    value = {"kind": "reject", "text": None, "reasons": ["other"]}
    append(store, [Event("e", "anna", "reviewer", trace.id, "verdict", value)])
    assert review.verdicts(store)[trace.id].kind == "reject"
    store.put_traces([right])  # a rebuild keeps what people said
    assert review.verdicts(store)[trace.id].reviewers == ("anna",)
    assert "Link cause and effect" in " ".join(problems(right, "(1) A finding. (2) Another finding."))
    store.close()


def test_the_command_that_builds_from_the_verdicts_is_that_of_the_run(tmp_path):
    assert build_command(tmp_path) == ""
    arguments = "--config configs/dataset.py:endpoint --config.workdir=runs/own --config.data.path='my cases.jsonl'"
    lines = ["# 2026-01-01", f"/usr/bin/python -m mmedexpert_jax.launch {arguments} --config.stages=trace"]
    (tmp_path / "cmd.txt").write_text("\n".join(lines) + "\n")
    expected = arguments.replace("--config.data.path='my cases.jsonl'", "'--config.data.path=my cases.jsonl'")
    end = "--config.stages=build --config.reviewed=accepted"
    assert build_command(tmp_path) == f"python -m mmedexpert_jax.launch {expected} {end}"
    apart = f"{arguments} --config.stages collect,trace --config.plan --config.plan_mesh=a100x8 --config.fresh"
    (tmp_path / "cmd.txt").write_text(f"/usr/bin/python -m mmedexpert_jax.launch {apart}\n")
    assert build_command(tmp_path) == f"python -m mmedexpert_jax.launch {expected} --config.plan_mesh=a100x8 {end}"
    (tmp_path / "cmd.txt").write_text("# then\npython notebook.py\n")
    assert build_command(tmp_path) == ""


def test_traces_without_a_paradigm_are_left_out_and_a_set_of_these_is_refused(folder, capsys):
    Path("set").mkdir()
    rows = [
        {"id": f"{i}", "question": f"q{i}?", "options": ["x", "y"], "answer": "A", "trace": "(1) a because b. (2) c."}
        for i in range(2)
    ]
    Path("set/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [JOB, "--config.data.path=set", "--config.split=train", "--config.action=export"]
    assert main(arguments) == 3 and "give the rows paradigm" in capsys.readouterr().err
    Path("set/train.jsonl").write_text("\n".join(map(json.dumps, [rows[0] | {"paradigm": "analytical"}, rows[1]])))
    assert main([*arguments, "--config.exchange.tool=argilla"]) == 0
    assert "1 traces without a paradigm are left out" in capsys.readouterr().out
