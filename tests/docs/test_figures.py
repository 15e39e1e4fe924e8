"""What README and docs print of benchmarks is what docs/results says, and what differs is found."""

import inspect
import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mmedexpert_jax.runtime import plots

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


def test_learning_curve_of_seeds(figures, tmp_path):
    rows = ("rewards/accuracy/mean", "eval/accuracy")
    seeds = [[{"step": n} | dict.fromkeys(rows, gain * n) for n in range(6)] for gain in (0.1, 0.2, 0.3)]
    path = figures["learning_curve"]({"GBA": seeds, "one seed": seeds[:1]}, tmp_path / "curves" / "curve.png")
    assert Image.open(path).width == 960
    band = figures["_band"]([{1: 0.1, 2: 0.2}, {1: 0.3, 2: 0.6, 3: 1.0}])
    assert band == ([1, 2], [0.1, 0.2], [pytest.approx(0.2), pytest.approx(0.4)], [0.3, 0.6])


def doubled(value):
    if isinstance(value, dict):
        return {key: doubled(each) for key, each in value.items()}
    if isinstance(value, list):
        return [doubled(each) for each in value]
    return 2 * value if isinstance(value, float) else value


@pytest.mark.parametrize("name", ["dataset", "evaluate", "forward", "merge", "memory", "rollout", "update_mini"])
def test_a_table_follows_its_result(figures, tmp_path, name):
    file = tmp_path / "docs" / "results" / f"{name}.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"result": doubled(found["result"])}))
    assert "docs/benchmarks.md: a table is not that of docs/results" in list(figures["stale"]())


@pytest.mark.parametrize("name", ["against", "structure", "eight", "objectives", "terms", "batch", "rates"])
def test_the_page_of_the_ablation_follows_the_results_of_other_settings(figures, tmp_path, name):
    file = tmp_path / "docs" / "results" / f"{name}.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"result": doubled(found["result"])}))
    pages = [line.partition(":")[0] for line in figures["stale"]() if line.startswith("docs/") and ".md" in line]
    assert pages == ["docs/reproduction.md"]


def test_intervals_over_seeds_are_those_of_students_t(figures):
    gain = {"gain": -0.02, "low": -0.03, "high": -0.01}
    held_out = [(group, seed, 0.5 + step) for group, step in (("GBA", 0), ("GRPO", 0.01)) for seed in range(3)]
    runs = [
        {"group": group, "seed": seed, "sampled": right + seed / 100 * (group == "GRPO"), "greedy": right}
        for group, seed, right in held_out
    ]
    result = {"runs": runs, "GBA": {"runs": 3}} | {f"GBA beyond grpo, {kind}": gain for kind in ("sampled", "greedy")}
    about = {"date": "", "hardware": "", "versions": {}, "command": ""}
    table = figures["TABLES"]["against"][1](about | {"result": result})
    # 1, 2 and 3 points: 2 with 4.303 x 1 / sqrt(3) to each side; three times 1 point: no spread
    assert "| GRPO (`grpo`) | +2.0 [+1.0, +3.0] | [-0.5, +4.5] | +2.0 [+1.0, +3.0] | [+1.0, +1.0] |" in table


def test_seeds_for_a_half_width_are_those_of_a_table_of_t(figures):
    # t x 1 / sqrt(n) with t of a printed table: 2.571 / sqrt(6) = 1.05, 2.447 / sqrt(7) = 0.92
    even = [0.02, 0.0, 0.01, 0.01, -0.01, 0.5]  # of the first five: mean 0.6 points, standard deviation 1.14
    claims = [
        {"text": "one", "measure": "accuracy", "by_seed": even, "low": -0.005, "high": 0.015},
        {"text": "settled", "measure": "accuracy", "by_seed": [0.1, 0.11, 0.1], "low": 0.09, "high": 0.11},
        {"text": "no accuracy", "measure": "entropy", "by_seed": even, "low": -0.005, "high": 0.015},
    ]
    runs = [
        {"group": group, "seed": seed, "sampled": place * (seed - 1) / 100, "greedy": place * (seed - 1) / 50}
        for place, group in enumerate(("GBA", "GRPO"))
        for seed in range(3)
    ]
    pair = {"low": -0.01, "high": 0.01}
    eight = {"runs": runs} | {f"GBA beyond grpo, {kind}": pair for kind in ("sampled", "greedy")}
    more = [{**claims[0], "by_seed": [*even, *even], "low": -0.01, "high": 0.02}]  # 8.83 ± 2.201 x 19.25 / sqrt(12)
    rows = figures["TABLES"]["power"][1]({"claims": claims}, {"claims": more}, {"result": eight}).splitlines()[2:]
    assert rows == [
        "| ablation: one | 5 | 1.14 | 1.42 | 8 | 12 | +8.8 [-1.0, +2.0] | [-3.4, +21.1] |",
        "| 48 steps, sampled: GBA outperforms GRPO | 3 | 1.00 | 2.48 | 7 | 3 | +0.0 [-1.0, +1.0] | [-2.5, +2.5] |",
        "| 48 steps, greedy: GBA outperforms GRPO | 3 | 2.00 | 4.97 | 18 | 3 | +0.0 [-1.0, +1.0] | [-5.0, +5.0] |",
    ]


def test_a_table_says_what_is_not_measured_until_it_is(figures, tmp_path):
    (tmp_path / "docs" / "results" / "update.json").unlink()
    figures["draw"]()
    page = tmp_path / "docs" / "benchmarks.md"
    assert "Not measured yet: `python benchmarks/update.py`" in page.read_text()
    row = {"tokens": 96, "seconds": 0.5, "processor_seconds": 0.75, "samples_per_second": 16.0, "grad_norm": 0.25}
    line = {"model": "64x1x512", "prompts": 1, "samples": 8, "rows": {"trl": row}, "speedup": 3.0, "token_ratio": 2.0}
    figures["record"]("update", json.dumps(line))
    assert "docs/benchmarks.md: a table is not that of docs/results" in list(figures["stale"]())
    figures["draw"]()
    assert "| trl | 96 | 0.5 | 0.75 | 16 |  | 0.250000 |" in page.read_text()
    assert "3.00 times faster of 2.00 times fewer tokens, 1.50 of it." in page.read_text()


def test_changed_drawing_code_makes_images_stale(figures, tmp_path, monkeypatch):
    source = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda part: source(part) + "# new" * (part is plots))
    images = sorted(path.name for path in (tmp_path / "docs" / "images").glob("*.png"))
    assert sorted(line.partition(":")[0] for line in figures["stale"]()) == [f"docs/images/{name}" for name in images]


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
    page.write_text(page.read_text().replace("| GBA | 0 | 0.", "| GBA | 0 | 9.", 1))
    shutil.copy(tmp_path / "docs" / "images" / "learning.png", tmp_path / "docs" / "images" / "other.png")
    assert [line.partition(":")[0] for line in figures["stale"]()] == ["docs/benchmarks.md", "docs/images/other.png"]


def test_a_result_says_where_and_when_it_was_measured(figures, tmp_path):
    figures["record"]("update", '{"rows": []}')
    kept = json.loads((tmp_path / "docs" / "results" / "update.json").read_text())
    assert kept["result"] == {"rows": []} and kept["command"] == "python benchmarks/update.py"
    assert len(kept["date"]) == 10 and "GB" in kept["hardware"] and {"python", "jax"} <= set(kept["versions"])


@pytest.mark.parametrize("path", sorted(FILE.parent.glob("results/rollout*.json")), ids=lambda path: path.stem)
def test_a_recorded_command_asks_for_the_settings_of_its_result(path):
    kept = json.loads(path.read_text(encoding="utf-8"))
    settings = {
        name: value if isinstance(value, list) else [value] for name, value in kept["result"]["settings"].items()
    }
    given = re.findall(r"--([\w-]+)((?: [^-\s]\S*)*)", kept["command"])
    asked = {name.replace("-", "_"): values.split() or ["True"] for name, values in given}
    usual = {"dtype": ["float32"], "work": ["4x8x64", "16x8x256~48", "8x8x1024~300"]}
    for name in {*asked, *usual} & set(settings):
        assert (usual | asked)[name] == [str(value) for value in settings[name]], name
