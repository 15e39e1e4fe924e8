"""A figure prints as people read it, and a chart says what it shows."""

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


def test_a_chart_is_well_formed_inside_its_frame_and_described():
    points = [(step, (step % 7) / 7) for step in range(1, 2001)]
    text = chart("Accuracy <b>", "share", {"held & out": points, "flat": [(1, 0.5)], "none": []}, "Good: rises.")
    root = ElementTree.fromstring(text)
    svg = root.find("svg")
    width, height = map(float, svg.get("viewBox").split()[2:])
    circles = list(root.iter("circle"))
    assert 300 < len(circles) < 500
    assert all(0 <= float(c.get("cx")) <= width and 0 <= float(c.get("cy")) <= height for c in circles)
    assert all(c.find("title").text for c in circles)
    assert svg.get("aria-label").startswith("Accuracy <b>: held & out from ") and "flat" in svg.get("aria-label")
    assert len(text) < 100_000 and chart("Empty", "", {"a": []}) == ""
