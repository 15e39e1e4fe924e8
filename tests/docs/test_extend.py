"""docs/extend.md does what it says: its diffs apply to a copy of the package, and its blocks run there in order."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
BLOCKS = FENCE.findall(PAGE)
SECTIONS = re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of package and configs with every diff applied and every file of the page written."""
    copy = tmp_path_factory.mktemp("changed")
    for folder in ("mmedexpert_jax", "configs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for kind, title, text in BLOCKS:
        file = copy / title
        if kind == "diff":
            file.write_text(applied(file, text), encoding="utf-8")
        elif title:
            assert not file.exists()
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
    return copy


def applied(file, text):
    """The text of a file with a diff applied."""
    lines = text.splitlines(keepends=True)
    old, new = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
    source = file.read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{file} does not hold, once:\n{old}"
    return source.replace(old, new)


def run(changed, script):
    environment = os.environ | {"PYTHONPATH": str(changed)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=changed, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_blocks_run_in_the_changed_package(changed):
    script = "".join(text for kind, title, text in BLOCKS if kind == "python" and not title)
    where = run(changed, f"{script}\nprint(mx.__file__)")
    assert where.strip() == str(changed / "mmedexpert_jax" / "__init__.py")


def test_the_changed_package_asks_and_answers_as_before_elsewhere(changed):
    """A paradigm more changes neither the embedded cases, nor what a teacher is asked under the others."""
    script = (
        "from mmedexpert_jax.data.embedded import generate\n"
        "from mmedexpert_jax.mmedexpert.teacher_prompts import rules\n"
        "print([(made.case, made.traces) for made in generate(0, 26, 'train')])\n"
        "print([rules(name, (40, 120)) for name in ('differential', 'intuitive', 'analytical', 'bayesian')])\n"
    )
    assert run(changed, script) == run(ROOT, script)


def test_the_table_of_files_has_those_that_are_shown():
    table = dict(re.findall(r"^\| ([a-z ]+) \| (.*?) \|$", PAGE, re.MULTILINE))
    for heading, text in SECTIONS:
        kind = heading.removeprefix("A ").removeprefix("An ")
        files = {title.removeprefix("mmedexpert_jax/") for _, title, _ in FENCE.findall(text) if "." in title}
        files = {file for file in files if not file.startswith("triage/")}  # what the benchmark reads
        assert set(re.findall(r"`([\w/]+\.\w+)`", table[kind])) == files, kind
