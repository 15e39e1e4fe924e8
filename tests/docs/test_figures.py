"""What README and docs print of benchmarks is what docs/results says, and what differs is found."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "docs" / "figures.py"


@pytest.fixture
def figures(tmp_path):
    """The script's names in a copy of what it reads and writes."""
    for name in ("README.md", "docs"):
        source, target = FILE.parents[1] / name, tmp_path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return runpy.run_path(str(tmp_path / "docs" / "figures.py"))


def test_every_figure_is_what_the_results_say(figures):
    assert list(figures["stale"]()) == [], "run `python docs/figures.py`"


def test_a_changed_result_is_found_and_drawn_anew(figures, tmp_path):
    file = tmp_path / "docs" / "results" / "learning.json"
    found = json.loads(file.read_text())
    found["result"]["GBA"]["sampled"]["gain"] = 0.9
    file.write_text(json.dumps(found))
    stale = list(figures["stale"]())
    assert [line.partition(":")[0] for line in stale] == ["README.md", "docs/benchmarks.md", "docs/images/learning.png"]
    figures["draw"]()
    assert list(figures["stale"]()) == []
    assert all("+90.0 [" in (tmp_path / page).read_text() for page in ("README.md", "docs/benchmarks.md"))


def test_a_changed_sweep_is_found_and_drawn_anew(figures, tmp_path):
    file = tmp_path / "docs" / "results" / "ablation.json"
    found = json.loads(file.read_text())
    found["rows"][0]["accuracy"]["mean"] = 0.123
    file.write_text(json.dumps(found))
    stale = [line.partition(":")[0] for line in figures["stale"]()]
    assert stale[0] == "docs/reproduction.md" and all(name.startswith("docs/images/figure3") for name in stale[1:])
    figures["draw"]()
    assert list(figures["stale"]()) == []


def test_an_edited_table_and_a_foreign_image_are_found(figures, tmp_path):
    page = tmp_path / "docs" / "benchmarks.md"
    page.write_text(page.read_text().replace("| GBA | 0 | 0.370 |", "| GBA | 0 | 0.470 |"))
    shutil.copy(tmp_path / "docs" / "images" / "learning.png", tmp_path / "docs" / "images" / "other.png")
    assert [line.partition(":")[0] for line in figures["stale"]()] == ["docs/benchmarks.md", "docs/images/other.png"]


def test_a_result_says_where_and_when_it_was_measured(figures, tmp_path):
    figures["record"]("update", '{"rows": []}')
    kept = json.loads((tmp_path / "docs" / "results" / "update.json").read_text())
    assert kept["result"] == {"rows": []} and kept["command"] == "python benchmarks/update.py"
    assert len(kept["date"]) == 10 and "GB" in kept["hardware"] and {"python", "jax"} <= set(kept["versions"])
