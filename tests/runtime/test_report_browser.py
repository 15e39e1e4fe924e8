"""report.html in headless Chromium, on a desktop and on a phone: nothing overflows, groups can be read."""

import shutil

import pytest
from PIL import Image

from mmedexpert_jax.runtime import Run, report

pytestmark = pytest.mark.slow
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
PARADIGMS = ("bayesian", "analytical")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The report of a run with curves, a wide table, and two groups of four completions at each of two steps."""
    path = tmp_path_factory.mktemp("runs") / "gba"
    with Run.open(path, {"lr": 1e-3, "a": {"long": {"name_of_a_field": "value " * 40}}}) as run:
        for step in range(1, 13):
            row = {"reward": step / 12, "rewards/accuracy/mean": step / 12, "kl": 0.01, "entropy": 1 / step}
            row |= {f"paradigms/{name}/reward": step / 12 for name in PARADIGMS}
            row |= {"sampling/logp_difference/mean": 1e-7, "sampling/logp_difference/max": 1e-5}
            run.log(step, row | {"completions/mean_length": 60.0, "tokens_per_second": 900.0, "step_time": 1.0})
        for step in (6, 12):
            run.table("completions", step, _completions())
        run.finish({"rewards/accuracy/mean/first_tenth": 0.1, "rewards/accuracy/mean/last_tenth": 1.0})
    wide = report.Table("Held-out accuracy", [{f"column {i}": "71.2 [68.6, 73.6]" for i in range(9)}])
    return report.report_run(path, [wide])


def _completions():
    for i, paradigm in enumerate(PARADIGMS):
        for sample in range(4):
            yield {
                "id": f"case-{i}",
                "paradigm": paradigm,
                "prompt": f"Which lobe {i}?\nA. upper\nB. lower",
                "image": Image.new("RGB", (300, 200), "navy") if not sample else None,
                "completion": f"<think>(1) {'word ' * 30}</think><answer>A</answer> {sample}",
                "correct": sample > 1,
                "advantage": float(sample),
            }


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "the slow tier needs a browser: apt-get install chromium"
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("size", SIZES)
def test_the_report_can_be_read(browser, page_file, size, tmp_path):
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.goto(page_file.as_uri())
    assert not problems
    assert page.evaluate("document.documentElement.scrollWidth") == width  # no sideways scrolling of the page
    figures = page.locator(".figures img")
    assert figures.count() == len(list((page_file.parent / "plots").glob("*.png"))) >= 9
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in map(_box, figures.all()))
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")

    cards = page.locator(".card")
    assert cards.count() == 2 and cards.first.locator(".answer").count() == 4  # of the last step, by group
    assert cards.first.locator("img").count() == 1 and cards.first.locator("pre").count() == 5  # the prompt once
    page.get_by_label("paradigm").select_option("analytical")
    assert cards.count() == 1 and "Which lobe 1?" in cards.inner_text()
    page.get_by_label("step").select_option("")
    page.get_by_label("correct").select_option("true")
    assert page.locator(".answer.right").count() == 4 and page.locator(".answer.wrong").count() == 0

    page.get_by_text("Config", exact=True).last.click()
    assert page.get_by_text("a.long.name_of_a_field").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    shot = tmp_path / f"{size}.png"
    page.screenshot(path=shot)
    assert Image.open(shot).size == (width, height)


def _box(locator):
    return locator.bounding_box()
