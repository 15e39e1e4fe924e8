"""A sweep against merges one by one; the report as a page that stands alone."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import jax
import numpy as np
import pytest

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging import merge_with_report
from mmedexpert_jax.merging.blockwise import Merge
from mmedexpert_jax.merging.interference import Interference
from mmedexpert_jax.merging.merge_page import page, write_page
from mmedexpert_jax.merging.parameters import Parameters
from mmedexpert_jax.merging.settings import PRESETS
from mmedexpert_jax.merging.sweep import at, search, sweep
from mmedexpert_jax.merging.vectors import Expert
from mmedexpert_jax.models.tree import flatten, nest
from tests.accessibility import serious


def models(layers=2, seed=0):
    rng = np.random.default_rng(seed)
    names = [f"model.layers.{i}.mlp.{part}_proj.weight" for i in range(layers) for part in ("up", "down")]
    base = {name: rng.standard_normal((7, 9)).astype(np.float32) for name in names}
    return base, {e: {n: t + rng.standard_normal(t.shape).astype(np.float32) for n, t in base.items()} for e in "abc"}


@pytest.mark.parametrize(
    ("preset", "method"),
    [
        ("paper", "ties"),
        ("official", "ties"),
        (replace(PRESETS["mergekit"], rescale="l1"), "ties"),
        (replace(PRESETS["paper"], normalize="tensor"), "ties"),
        ("paper", "dots"),
    ],
)
def test_a_sweep_is_the_merges_one_by_one(preset, method):
    base, experts = models()
    how = Parameters(method, tuple(experts), preset, names=tuple(base))
    job = Merge(base, tuple(Expert(name, weights) for name, weights in experts.items()), how)
    found = sweep(job, (0.1, 0.5), (1.0, 0.3), score=lambda density, scale: {"accuracy": density - scale})
    assert [(row["density"], row["scale"]) for row in found.rows] == [(0.1, 1.0), (0.1, 0.3), (0.5, 1.0), (0.5, 0.3)]
    assert found.best()["density"] == 0.5 and found.best()["scale"] == 0.3
    for row in found.rows:
        trees = {name: nest(weights) for name, weights in experts.items()}
        numbers = {"density": row["density"], "scale": row["scale"]}
        merged, report = merge_with_report(nest(base), trees, method=method, preset=preset, **numbers)
        moved = sum(float(np.sum((t - base[n]) ** 2)) for n, t in flatten(merged).items()) ** 0.5
        assert row["norm"] == pytest.approx(moved, rel=1e-4)
        assert row["sign conflict"] == report.rates()["conflict"]
        assert row["kept mass"] == pytest.approx(np.mean(list(report.rates()["kept_mass"].values())))
    assert sweep(job, (0.5,), (1.0,)).best() is None


@pytest.mark.parametrize(
    "numbers",
    [
        {"density": {"": [{"filter": "mlp", "value": 0.01}, {"value": 0.2}]}},
        {"density": {"a": 0.9, "b": 0.01}},
        {"scale": {"": [0.1, 0.9]}},
    ],
)
def test_numbers_that_a_sweep_would_pass_over_are_refused(numbers):
    with pytest.raises(ConfigError, match=r"a sweep has one (density|scale) for all"):
        at(Parameters("ties", ("a", "b"), numbers=numbers), 0.1, 1.0)
    same = Parameters("ties", ("a", "b"), numbers={"density": {"a": 0.5, "b": 0.5}})
    assert at(same, 0.1, 1.0).number("density", "a", "x") == 0.1


def test_a_search_begins_at_the_weights_that_its_start_was_scored_with():
    """Nothing is better than the start, so that every trial is a step from it."""
    start = {"density": 0.2, "scale": 1.0, "accuracy": 1.0}

    def score(density, scale, weights):
        return {"accuracy": 0.0}

    of_ones, of_own = (search("ab", start, 5, 0, score, weights) for weights in (None, {"a": 0.5, "b": 2.0}))
    for one, own in zip(of_ones, of_own, strict=True):
        expected = np.clip([one["weights"]["a"] * 0.5, one["weights"]["b"] * 2], 0.05, 4)
        np.testing.assert_allclose([own["weights"]["a"], own["weights"]["b"]], expected, atol=2e-3)


def test_rates_of_a_merge_worked_by_hand():
    base = {"w.weight": np.zeros((1, 4), np.float32)}
    first, second = np.array([[2.0, 1, 0, 0]], np.float32), np.array([[-1.0, 1, 0, 3]], np.float32)
    experts = {"a": nest({"w.weight": first}), "b": nest({"w.weight": second})}
    rates = merge_with_report(nest(base), experts, density=1.0)[1].rates()
    assert rates["conflict"] == pytest.approx(1 / 3) and rates["shared"] == pytest.approx(2 / 3)
    assert rates["cancellation"] == pytest.approx(1 - (1 + 2 + 3) / (3 + 2 + 3))
    assert rates["cosine"][0][1] == pytest.approx((-2 + 1) / np.sqrt(5 * 11))
    assert rates["merged_norm"] == pytest.approx(np.sqrt(2**2 + 1 + 3**2)) and rates["vanished"] == 0


def test_what_bf16_output_loses_is_told():
    import ml_dtypes

    base = np.ones((4, 4), ml_dtypes.bfloat16)
    moved = np.ones((4, 4), np.float32) + np.float32(1e-3)  # half a step of bf16 at 1 is 3.9e-3
    report = merge_with_report({"w": {"weight": base}}, {"a": {"w": {"weight": moved}}}, density=1.0)[1]
    assert report.rates()["vanished"] == 1 and report.rates()["rounding_error"] == pytest.approx(1)


class Outside(HTMLParser):
    """Collects what a page would load or run, and how deep its tags are left open."""

    def __init__(self):
        super().__init__()
        self.found, self.cells = [], 0

    def handle_starttag(self, tag, attributes):
        self.cells += tag == "rect"
        self.found += [(tag, key, value) for key, value in attributes if key in ("src", "href") or key.startswith("on")]
        self.found += [(tag, "", "")] if tag in ("script", "link", "iframe") else []


def test_the_page_of_a_7b_model_with_five_experts(tmp_path):
    rng = np.random.default_rng(0)
    kinds = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    experts = ("AM", "CAH", "BS", "CSI", "R<L>")
    sums = {}
    for name in (f"model.layers.{i}.{kind}.weight" for i in range(28) for kind in kinds):
        factors = rng.standard_normal((5, 8))
        many = rng.integers(1, 100, 3)
        sums[name] = {
            "gram": factors @ factors.T, "mass": np.full(5, 10.0), "kept_mass": rng.uniform(1, 10, 5), "net": 5.0,
            "wanted": 100.0, "shared": many[0], "conflict": many[1], "squared": 2.0, "lost": 0.1, "changed": 100.0,
            "vanished": many[2],
        }  # fmt: skip
    path = write_page(tmp_path / "merge_report.html", Interference(experts, sums), {"method": "ties"})
    text = path.read_text()
    reader = Outside()
    reader.feed(text)
    assert reader.found == [] and len(text) < 2_000_000
    assert "color-scheme: light dark" in text and "{{" not in text  # the style of all pages, filled
    assert reader.cells == 28 * 7 * (4 + 5 + 10)  # rates, mass by expert, cosine by pair
    assert "R&lt;L&gt;" in text and "R<L>" not in text
    assert set(re.findall(r">([a-z_.]+_proj)<", text)) == set(kinds)
    assert "model.layers.27.mlp.down_proj.weight: " in text


def test_tensors_outside_the_layers_have_a_place():
    base = {"model.embed_tokens.weight": np.zeros((3, 2), np.float32), **models()[0]}
    experts = {"a": nest({n: t + np.float32(1) for n, t in base.items()})}
    text = page(merge_with_report(nest(base), experts)[1], {})
    assert "model.embed_tokens.weight: 0.0000" in text


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everyone_can_read_the_page(browser, tmp_path, scheme, width):
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((2, 2, 16, 16)).astype(np.float32)
    experts = {
        name: nest({f"model.layers.{i}.mlp.up_proj.weight": one for i, one in enumerate(own)})
        for name, own in zip(("SFT", "RL"), weights, strict=True)
    }
    report = merge_with_report(jax.tree.map(np.zeros_like, experts["SFT"]), experts, density=0.5)[1]
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.goto(write_page(tmp_path / "merge_report.html", report, {"method": "ties"}).as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(node => node.open = true)")
    assert serious(tab) == []
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    tab.close()
