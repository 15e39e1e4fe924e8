"""A figure prints as people read it, and a chart says what it shows."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from mmedexpert_jax.report import Figure, chart


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure.percent(0.573, 0.545, 0.6, other=(0.546, 0.601)), "57.3 [54.5, 60.0] (54.6, 60.1)"),
        (Figure.percent(0.227, 0.196, 0.258, signed=True), "+22.7 [+19.6, +25.8]"),
        (Figure.percent(-0.0001, -0.01, 0.01, signed=True), "+0.0 [-1.0, +1.0]"),
        (Figure(1.5), "1.5"),
        (Figure(float("nan")), "–"),
    ],
)
def test_it_prints_as_people_read_it(figure, text):
    assert str(figure) == text
    numbers = re.sub("<small>(.*?)</small>", r" \1", figure.__html__())
    assert numbers == str(figure)


def test_a_difference_is_settled_where_its_interval_leaves_zero_out():
    assert Figure(0.2, 0.1, 0.3).settled and Figure(-0.2, -0.3, -0.1).settled
    assert not Figure(0.2, -0.1, 0.3).settled and not Figure(0.2).settled


def test_a_chart_holds_its_points_and_says_what_it_shows():
    points = [(step, (step % 7) / 7) for step in range(1, 2001)]
    lines = {"held & out </script>": points, "flat": [(1, 0.5)], "none": []}
    text = chart("Accuracy <b>", "share", lines, "Good: rises.", dots=("flat",))
    root = ElementTree.fromstring(text)
    plot, script = root.find("div"), root.find("script")
    data = json.loads(script.text)
    assert 300 < len(data["x"]) < 500 and data["x"] == sorted(data["x"]) and data["x"][-1] == 2000
    assert [line["label"] for line in data["lines"]] == ["held & out </script>", "flat"]
    drawn = zip(data["x"], data["values"][0], strict=True)
    assert {step: value for step, value in drawn if value is not None}.items() <= dict(points).items()
    assert [value for value in data["values"][1] if value is not None] == [0.5] and data["lines"][1]["dots"]
    assert plot.get("aria-label").startswith("Accuracy <b>: held & out") and "flat" in plot.get("aria-label")
    assert "</script>" not in script.text and len(text) < 100_000 and chart("Empty", "", {"a": []}) == ""
