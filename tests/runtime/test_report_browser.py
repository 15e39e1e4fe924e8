"""report.html in headless Chromium, on a desktop and on a phone: nothing overflows, groups can be read."""

import pytest
from PIL import Image

from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.launch import pipeline_result
from mmedexpert_jax.medeval.eval_job import MINI
from mmedexpert_jax.medeval.evaluate import AnswerRow, Evaluation
from mmedexpert_jax.medeval.results import rows_path
from mmedexpert_jax.runtime import Run, files, report
from tests.accessibility import serious

pytestmark = pytest.mark.slow
SIZES = {"desktop": (1280, 800), "tablet": (820, 1180), "phone": (390, 844)}
PARADIGMS = ("bayesian", "analytical")
FOLDERS = ("merged", "gba", "final", "evaluate")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The report of a run with curves, a wide table, and two groups of four completions at each of two steps."""
    path = tmp_path_factory.mktemp("runs") / "gba"
    _gba(path, {"lr": 1e-3, "a": {"long": {"name_of_a_field": "value " * 40}}})
    wide = report.Table("Held-out accuracy", [{f"column {i}": "71.2 [68.6, 73.6]" for i in range(9)}])
    return report.report_run(path, [wide])


@pytest.fixture(scope="module")
def pipeline_file(tmp_path_factory):
    """The report of a pipeline whose stages trained for a few steps and answered forty questions."""
    path = tmp_path_factory.mktemp("runs") / "pipeline"
    Run.open(path, {"job": "pipeline", "price": 2.0}).close()  # the stages' runs are made inside it
    dsa = {"job": "dsa", "batch_size": 2, "accumulation": 4, "epochs": 1}
    for number, name in enumerate(SPECIALTIES):
        with Run.open(path / "experts" / name, dsa | {"specialty": name}) as run:
            for step in range(1, 13):
                run.log(step, {"loss": (2 + number) / step})
            run.finish({"steps": 12})
    _gba(path / "gba", {"job": "gba", "prompts_per_step": 2})
    for name, job in (("merged", "merge"), ("final", "merge"), ("evaluate", "evaluate")):
        with Run.open(path / name, {"job": job}) as run:
            run.finish({})
    models = ["base", *SPECIALTIES, "merged experts", "GBA", "final"]
    for number, name in enumerate(models):
        rows = rows_path(path / "evaluate", MINI, name)
        rows.parent.mkdir(parents=True, exist_ok=True)
        Evaluation(tuple(_answer(item, item % 8 < number) for item in range(40))).write(rows)
    files.write_json(path / "evaluate" / "export" / "summary.json", {MINI: {}})
    stages = [*(path / "experts" / name for name in SPECIALTIES), *(path / name for name in FOLDERS)]
    with Run.open(path, {"job": "pipeline", "price": 2.0}) as run:
        pipeline_result.finish(run, stages, models, 2.0)
    return path / "report.html"


def _answer(item, right):
    labels = {"specialty": SPECIALTIES[item % 4]}
    verdicts = {"strict": right, "medevalkit": right}
    return AnswerRow(f"item-{item}", 0, "<answer>A</answer>", "A", "A", right, 5, False, labels, verdicts)


def _gba(path, config):
    with Run.open(path, config) as run:
        for step in range(1, 13):
            row = {"reward": step / 12, "rewards/accuracy/mean": step / 12, "kl": 0.01, "entropy": 1 / step}
            row |= {f"paradigms/{name}/reward": step / 12 for name in PARADIGMS}
            row |= {"sampling/logp_difference/mean": 1e-7, "sampling/logp_difference/max": 1e-5}
            run.log(step, row | {"completions/mean_length": 60.0, "tokens_per_second": 900.0, "step_time": 1.0})
        for step in (6, 12):
            run.table("completions", step, _completions())
        run.finish({"rewards/accuracy/mean/first_tenth": 0.1, "rewards/accuracy/mean/last_tenth": 1.0})


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


def _opened(browser, file, size, scheme="light"):
    """The page of a file on a screen of that size, which logs nothing."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.goto(file.as_uri())
    assert not problems
    return page


@pytest.mark.parametrize("size", SIZES)
def test_the_report_can_be_read(browser, page_file, size, tmp_path):
    width, height = SIZES[size]
    page = _opened(browser, page_file, size)
    assert page.evaluate("document.documentElement.scrollWidth") == width  # no sideways scrolling of the page
    figures = page.locator("#curves .chart")
    assert figures.count() == len(list((page_file.parent / "plots").glob("*.png"))) >= 9
    assert figures.locator("canvas").count() == figures.count()
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in map(_box, figures.all()))
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")

    cards = page.locator(".card")
    assert cards.count() == 2 and cards.first.locator(".answer").count() == 4  # of the last step, by group
    assert cards.first.locator("img").count() == 1 and cards.first.locator("pre").count() == 5  # the prompt once
    page.locator(".filters").get_by_label("paradigm").select_option("analytical")
    assert cards.count() == 1 and "Which lobe 1?" in cards.inner_text()
    page.locator(".filters").get_by_label("step").select_option("")
    page.locator(".filters").get_by_label("correct").select_option("true")
    assert page.locator(".answer.right").count() == 4 and page.locator(".answer.wrong").count() == 0

    page.get_by_text("Config", exact=True).last.click()
    assert page.get_by_text("a.long.name_of_a_field").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    shot = tmp_path / f"{size}.png"
    page.screenshot(path=shot)
    assert Image.open(shot).size == (width, height)


@pytest.mark.parametrize("size", SIZES)
def test_the_report_of_a_pipeline_can_be_read(browser, pipeline_file, size, tmp_path):
    width, height = SIZES[size]
    page = _opened(browser, pipeline_file, size)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert 8 <= page.locator("#summary dl div").count() <= 12  # the models' accuracies, state and dates
    assert page.locator("section").first.evaluate("box => box.offsetHeight") < height  # what follows is soon in sight

    table = page.locator("table").first
    assert table.locator("tbody tr").count() == 8
    heights = table.locator("tbody td small").evaluate_all("cells => cells.map(cell => cell.getClientRects().length)")
    assert heights and set(heights) == {1}  # an interval is not broken into lines
    rows = table.locator("tbody tr").evaluate_all("rows => rows.map(row => row.offsetHeight)")
    assert max(rows) < 100

    names = [chart.get_attribute("aria-label").partition(":")[0] for chart in page.locator("#gba .plot").all()]
    assert {"Rewards by function", "Reward by paradigm", "Completion length", "KL to the reference"} <= {*names}
    assert page.locator(".figures img").get_attribute("alt") == "experts"
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.locator(".card").count() == 2 and page.locator(".card img").count() == 2

    costs = page.locator("#cost-of-the-stages").inner_text()
    for text in ("DSA, an expert", "merge", "GBA", "evaluation", "0.4 h for 1,000 samples, $0.80", "$26.00"):
        assert text in costs
    page.screenshot(path=tmp_path / f"{size}.png", full_page=True)


def test_a_chart_is_read_off_and_zoomed(browser, page_file):
    page = _opened(browser, page_file, "desktop")
    chart = page.locator("#curves .chart").filter(has_text="Reward").first
    over = chart.locator(".u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    values = chart.locator(".u-value").all_inner_texts()
    assert values[0] in ("6", "7") and 0.1 < float(values[1]) < 0.7, values

    def colours():
        script = "canvas => { const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
        return chart.locator("canvas").evaluate(script + "let sum = 0; for (const x of all) sum += x; return sum }")

    whole = colours()
    page.mouse.down()
    page.mouse.move(middle[0] + box["width"] / 4, middle[1])
    page.mouse.up()
    page.wait_for_timeout(100)
    assert colours() != whole  # zoomed in
    over.dblclick()
    page.mouse.move(0, 0)
    page.wait_for_timeout(100)
    assert colours() == whole
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)
    assert colours() != whole  # drawn anew in the colours of the dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("file", ["page_file", "pipeline_file"])
def test_everyone_can_read_it(browser, file, size, scheme, request):
    page = _opened(browser, request.getfixturevalue(file), size, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(node => node.open = true)")
    assert serious(page) == []


def _box(locator):
    return locator.bounding_box()
