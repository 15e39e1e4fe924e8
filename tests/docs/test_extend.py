"""docs/extend.md does what it says: its blocks run in their order, its diffs apply to the source as it is."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mmedexpert_jax.data import paradigms
from mmedexpert_jax.data.benchmarks import registry
from mmedexpert_jax.gba import advantages, objective, rewards, trainer
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.merging import methods
from mmedexpert_jax.models import config, network

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
BLOCKS = FENCE.findall((ROOT / "docs" / "extend.md").read_text(encoding="utf-8"))
DIFFS = [(title, text) for kind, title, text in BLOCKS if kind == "diff"]
TABLES = (
    rewards.REWARDS,
    objective.SURROGATES,
    objective.TERMS,
    advantages.ESTIMATORS,
    paradigms.PARADIGMS,
    registry._SPECS,
    config.FAMILIES,
    config.MODULES,
    network.NETWORKS,
    methods.METHODS,
)


@pytest.fixture
def tables(monkeypatch):
    """The tables that the page adds to, which are as they were afterwards."""
    registry._discover()
    before = [dict(table) for table in TABLES]
    yield
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)


def applied(title, text):
    """The source file with a diff applied."""
    lines = text.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if not line.startswith("+"))
    new = "".join(line[1:] for line in lines if not line.startswith("-"))
    source = (ROOT / title).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{title} does not hold, once:\n{old}"
    return source.replace(old, new)


def module_from(name, file, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_blocks_run_in_their_order(tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for kind, title, text in BLOCKS:
        if title and kind != "diff":
            file = tmp_path / title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            if kind == "python":
                name = title.removesuffix(".py").replace("/", ".")
                package, _, short = name.rpartition(".")
                monkeypatch.setattr(sys.modules[package], short, module_from(name, file, monkeypatch), raising=False)
        elif kind == "python":
            exec(compile(text, "docs/extend.md", "exec"), names)


@pytest.mark.parametrize(
    ("title", "text"), DIFFS, ids=[f"{i}-{Path(title).stem}" for i, (title, _) in enumerate(DIFFS)]
)
def test_a_diff_applies_and_is_python(title, text):
    compile(applied(title, text), title, "exec")


def test_a_new_rule_of_merging_joins_as_the_page_says(tmp_path, monkeypatch):
    file = tmp_path / "methods_with_median.py"
    source = (ROOT / "mmedexpert_jax/merging/methods.py").read_text(encoding="utf-8")
    for title, text in DIFFS:
        if title.endswith("merging/methods.py"):
            lines = text.splitlines(keepends=True)
            old, new = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
            source = source.replace(old, new)
    file.write_text(source, encoding="utf-8")
    changed = module_from("methods_with_median", file, monkeypatch)
    how = changed.setting("median", 3)
    rows = [np.array(row, np.float32) for row in ([1, 5], [2, -9], [30, 6])]
    _, merged = changed.combine(np.zeros(2, np.float32), rows, 0, changed.Fitted(), how)
    np.testing.assert_array_equal(merged, [2, 5])


def test_an_objective_is_one_file(tmp_path, monkeypatch):
    """With the page's change of objective.py alone its name is a value of the field, and a job begins with it."""
    (change,) = [(title, text) for title, text in DIFFS if title.endswith("gba/objective.py")]
    file = tmp_path / "objective_with_dual_clip.py"
    file.write_text(applied(*change), encoding="utf-8")
    changed = module_from("objective_with_dual_clip", file, monkeypatch)
    for name in ("Objective", "Tokens", "policy_terms"):
        monkeypatch.setattr(trainer, name, getattr(changed, name))
    config = load_config("configs/gba.py", {"surrogate": "dual_clip"})
    trainer.preflight(config, [])
    chosen = changed.Objective.from_config(config)
    loss = chosen.surrogate(np.array([[7.0]]), np.zeros((1, 1)), np.array([[-1.0]]), 0.8, 1.2)[0]
    np.testing.assert_array_equal(loss, [[3.0]])  # the clip alone gives 7
