"""The job that holds training cases against test sets, through the command line."""

import csv
import json
from pathlib import Path

import pytest

from mmedexpert_jax.launch.cli import main

JOB = "--config=configs/contamination.py"


@pytest.fixture
def sets(tiny_cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [f"--config.{key}=mmedexpert_mini@{split}={tiny_cases}" for key, split in SETS]


SETS = (("training", "train"), ("benchmarks", "test"))


def test_pairs_are_written_counted_and_shown(sets, capsys):
    assert main([JOB, *sets]) == 0
    out = capsys.readouterr().out
    assert "8 of 8 training cases to drop; 0 unreadable images" in out  # the fixture's cases are one question
    assert "MMedExpert-mini: 8 items of 8 rows" in out
    rows = list(csv.DictReader(Path("runs/contamination-mini/export/contamination.csv").read_text().splitlines()))
    assert len(rows) == 64 and rows[0]["train_set"] == "mmedexpert_mini@train" and rows[0]["decision"] == "drop"
    assert "| 64 pairs of 8 cases |" in Path("runs/contamination-mini/table.md").read_text()


def test_two_files_of_ones_own_are_told_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "A man of 70 has had fever, a cough and chest pain for three days; which drug is given first of all to him?"
    row = {"options": ["Gout", "Flu"], "answer": "A", "specialty": "AM", "task": "t", "id": "1"}
    for name, question in {"clean": "How often is one vaccinated?", "leaked": f"{text} Now", "test": text}.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row | {"question": question}))
    training = ",".join(f"mmedexpert_mini@train={name}.jsonl" for name in ("clean", "leaked"))
    assert main([JOB, f"--config.training={training}", "--config.benchmarks=mmedexpert_mini=test.jsonl"]) == 0
    assert "1 of 2 training cases to drop" in capsys.readouterr().out
    [pair] = csv.DictReader(Path("runs/contamination-mini/export/contamination.csv").read_text().splitlines())
    assert pair["train_set"] == "mmedexpert_mini@train=leaked.jsonl" and pair["test_set"] == "mmedexpert_mini"


@pytest.mark.parametrize(
    ("field", "code", "words"),
    [
        ("--config.benchmarks=", 2, "config.benchmarks is empty"),
        ("--config.benchmarks=pmc_vqa", 2, "pmc_vqa needs a source"),
        ("--config.training=pmc_vqa@train=/no/such", 3, "no such directory or zip"),
    ],
)
def test_what_is_wrong_is_one_line(sets, capsys, field, code, words):
    assert main([JOB, *sets, field]) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
