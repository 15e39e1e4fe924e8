"""The first hour of five people: each section of docs/hours.md, typed as it stands into an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "hours.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
# What each finds in the end: files, and words that the commands said.
FOUND = {
    "On a laptop": (["runs/first/report.html"], ["is already finished", "held-out ", "state", "done: runs/second"]),
    "With one GPU": (["runs/export/export/adapter/adapter_model.safetensors"], ["on 1 x h100, about", "dollars"]),
    "Changing the objective": (["runs/gba-mini/report.html"], ["did you mean config.lr?"]),
    "In a clinic": (["my_scans/train.jsonl", "runs/review-mini/report.md"], ["3 cases good, 0 rows with faults"]),
    "Evaluating": (["runs/scored/report.html", "runs/pair/table.md"], ["unsettled", "done: runs/scored"]),
}


def test_every_person_is_there():
    assert list(SECTIONS) == list(FOUND)


@pytest.mark.slow
@pytest.mark.parametrize("person", FOUND)
def test_the_first_hour_as_the_page_has_it(person, tmp_path):
    command = tmp_path / "bin" / "mmedexpert"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m mmedexpert_jax "$@"\n')
    command.chmod(0o755)
    paths = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    said = ""
    for kind, title, text in FENCE.findall(SECTIONS[person]):
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
            continue
        typed = ["bash", "-ec", text] if kind == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(
            typed, cwd=tmp_path, env=os.environ | paths, capture_output=True, text=True, timeout=3000, check=False
        )
        said += done.stdout + done.stderr
        assert done.returncode == 0, said[-3000:]
    files, words = FOUND[person]
    assert all((tmp_path / file).exists() for file in files) and all(word in said for word in words), said
    assert "Traceback" not in said
