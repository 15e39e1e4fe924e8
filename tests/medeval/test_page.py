"""The page: what stands in it, and, in the slow tier, how a browser shows it from disk."""

import html.parser
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax.data.benchmarks import Benchmark, census, from_case
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.medeval import controls, eval_page
from mmedexpert_jax.medeval.controls import Control
from mmedexpert_jax.medeval.evaluate import Evaluation, judged
from mmedexpert_jax.medeval.finish import benchmark_tables
from mmedexpert_jax.medeval.results import Result
from mmedexpert_jax.report import Figure
from mmedexpert_jax.rollout import Reply
from mmedexpert_jax.runtime import files
from mmedexpert_jax.runtime.report import Table
from tests.accessibility import serious

EVIL = "</script><img src=x onerror=alert(1)> {{title}}"


@pytest.fixture(scope="module")
def results():
    """Thirty items; the first model is right on multiples of 3, the second on multiples of 2; item 4 has an image."""
    pixels = np.random.default_rng(0).integers(0, 255, (900, 40, 3), np.uint8)
    cases = [
        Case(
            id=f"case-{i}",
            question=f"Question {i}? {EVIL if i == 1 else ''}",
            options=("one", "two"),
            answer="B",
            specialty="AM" if i < 20 else "CSI",
            task="curb65",
            images=(Image.fromarray(pixels),) if i == 4 else (),
        )
        for i in range(30)
    ]
    items = tuple(from_case(case) for case in cases)

    def answers(divisor):
        def reply(i):
            if i == 5:
                return Reply("no tags", 96, True)
            return Reply(
                f"<think>(1) reasoning {i}</think><answer>{'B' if i % divisor == 0 else 'A'}</answer>", 9, False
            )

        return Evaluation(tuple(row for i, item in enumerate(items) for row in judged(item, [reply(i)])))

    benchmark = Benchmark(
        "mmedexpert_mini", "MMedExpert-mini", items, census=census.count("mini", items, 30, [], [], {})
    )
    plain = {"base": answers(3), "tuned": answers(2)}
    (rotated,) = controls.variants(items, "shuffle")
    blind = [Control("question_only", items, evaluation=answers(4)), replace(rotated, evaluation=answers(3))]
    return {"mmedexpert_mini": Result(benchmark, plain, {"tuned": blind})}


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    part = Table("Accuracy <all>", [{"model": "base", "accuracy": Figure.percent(0.333, 0.192, 0.512)}], "A note.")
    files.write_json(folder / "config.json", {"a": {"long": {"name_of_a_field": "value " * 40}}})
    (result,) = results.values()
    summaries = {name: evaluation.summary() for name, evaluation in result.evaluations.items()}
    parts = [part, *benchmark_tables(result, summaries)]
    eval_page.write(folder, parts, results, {"base": "think_answer", "tuned": "think_answer"}, None, 100)
    return folder


def data_of(folder):
    text = (folder / "report.html").read_text()
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_the_page_holds_items_answers_prompts_and_pictures(folder):
    shown = data_of(folder)["mmedexpert_mini"]
    assert len(shown["items"]) == shown["total"] == 30 and shown["models"] == ["base", "tuned"]
    item = shown["items"][4]
    answer = item["answers"]["tuned"][0]
    assert item["gold"] == "B" and answer["right"] and answer["said"] == "B"
    assert answer["verdicts"] == {"strict": True, "medevalkit": True}
    assert item["prompts"][answer["prompt"]].startswith("user: [image]\nQuestion 4?")
    with Image.open(folder / item["images"][0]) as picture:
        assert picture.size[1] == eval_page.SIDE
    assert shown["items"][5]["answers"]["base"][0]["said"] is None


def test_it_opens_with_sentences_and_charts_of_accuracies_paired_gains_and_controls(folder):
    """Fifteen of thirty against ten, a gain of five on the same items; without images 8 of the 15 remain."""
    opening = (folder / "report.html").read_text().split("<section")[1]
    assert 'id="in-short"' in opening
    said = re.findall(r'class="said">(.*?)</p>', opening)
    accuracies = "base 33.3 [19.2, 51.2] %; tuned 50.0 [33.2, 66.8] %; always B 100.0 [88.6, 100.0] %"
    assert said[0] == f"Accuracy: {accuracies}; chance (uniform guess) 50.0 %."
    assert re.fullmatch(r"tuned: gain over base \+16.7 \(.*\) points, which chance alone may give.", said[-1])
    shown = re.findall(r'role="img" aria-label="(.*?)"', opening)
    assert shown[0].startswith("Accuracy, % [Wilson] (bootstrap): base 33.3 [19.2, 51.2] (")
    assert "tuned, no image +" in shown[1] and "tuned, options rotated +16.7" in shown[1]
    assert shown[2].startswith("Paired comparison, points (95 % bootstrap interval): tuned +16.7 (")


def test_nothing_in_it_reaches_outside_or_runs(folder):
    text = (folder / "report.html").read_text()
    sources = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            sources.extend(value for name, value in attributes if name in ("src", "href"))
            assert tag != "img" and not any(name.startswith("on") for name, _ in attributes)

    Parser().feed(text)
    assert sources == ["#items"] and "Accuracy &lt;all&gt;" in text and text.count("</script>") == 2
    assert not re.search(r"https?://", text) and "default-src 'none'" in text


def test_of_many_items_the_wrong_ones_come_first(results, tmp_path):
    eval_page.write(tmp_path, [], results, {"base": "think_answer", "tuned": "think_answer"}, None, 27)
    shown = data_of(tmp_path)["mmedexpert_mini"]
    assert len(shown["items"]) == 27 and shown["total"] == 30
    both_right = [item["id"] for item in shown["items"] if all(a[0]["right"] for a in item["answers"].values())]
    assert len(both_right) == 2  # of five: multiples of six


@pytest.mark.slow
def test_in_a_browser_from_disk(folder, browser):
    context = browser.new_context(offline=True)
    tab = context.new_page()
    problems = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.on("dialog", lambda dialog: problems.append(dialog.message))
    tab.goto((folder / "report.html").as_uri())
    cards = tab.locator("article")
    assert tab.locator("#count").inner_text() == "20 of 20 items"  # wrong answers of the first model
    assert cards.count() == 20 and tab.locator("#more").is_hidden()
    tab.select_option("#outcome", "all")
    assert tab.locator("#count").inner_text() == "20 of 30 items" and cards.count() == 20
    tab.click("#more")
    assert cards.count() == 30 and tab.locator("#more").is_hidden()
    pairs = "Of 30 items both are right on 5, only base on 5, only tuned on 10, neither on 10."
    assert tab.locator("#pairs").inner_text() == pairs
    tab.select_option("#outcome", "lost")
    assert cards.count() == 10  # even, not multiples of three
    picture = tab.locator("article img")
    picture.scroll_into_view_if_needed()
    tab.wait_for_function("() => [...document.images].every(image => image.complete && image.naturalWidth > 0)")
    first = cards.first.inner_text()
    assert (
        "reasoning 2" in first and "gold: B" in first and "base: wrong, read as A" in first and "tuned: right" in first
    )
    tab.select_option("#label", "specialty")
    tab.select_option("#value", "CSI")
    assert tab.locator("#count").inner_text().startswith("4 of 4")  # 20, 22, 26, 28
    tab.select_option("#value", "")
    tab.select_option("#outcome", "unparsed")
    assert cards.count() == 1 and "cut off" in cards.first.inner_text()
    tab.select_option("#outcome", "all")
    tab.fill("#words", "question 17?")
    assert cards.count() == 1
    cards.first.locator("summary").first.click()
    assert "give the letter of the answer inside" in cards.first.inner_text()
    tab.fill("#words", "")
    tab.select_option("#second", "")
    assert tab.locator("#outcome option[value=lost]").count() == 0
    assert not problems
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everyone_can_read_it(folder, browser, scheme, width):
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.goto((folder / "report.html").as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(node => node.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert serious(tab) == []
    for track in tab.locator(".track").all():  # points and whiskers lie within it, as wide as a finger at least
        outer, marks = track.bounding_box(), [mark.bounding_box() for mark in track.locator("i").all()]
        assert outer["width"] > 60
        assert all(outer["x"] <= box["x"] and box["x"] + box["width"] <= outer["x"] + outer["width"] for box in marks)
    points = (
        tab.locator(".intervals").first.locator(".point").evaluate_all("all => all.map(e => getComputedStyle(e).left)")
    )
    assert float(points[0][:-2]) < float(points[1][:-2])  # a third lies left of a half
    tab.close()
