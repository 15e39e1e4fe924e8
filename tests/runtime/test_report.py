"""report.html: self-contained, escaped, and holding what the run directory holds."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from mmedexpert_jax.runtime import Run, report

NASTY = "</script><script>alert('x')</script> & <b>\"bold\"</b> \u2028 {{body}}"


class Page(HTMLParser):
    """Elements, attributes and text of a page; raises on nothing, as browsers do."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.data: list = []
        self._json = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._json = tag == "script" and dict(attrs).get("type") == "application/json"

    def handle_data(self, data):
        (self.data.append(json.loads(data)) if self._json else self.texts.append(data))
        self._json = False

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "gba"
    with Run.open(path, {"lr": 1e-3, "note": NASTY, "lora": {"rank": 4}}) as run:
        for step in range(1, 21):
            run.log(step, {"reward": step / 20, "step_time": 1.0})
        for step in (10, 20):
            rows = [
                {"id": f"case-{i}", "paradigm": "bayesian", "correct": i > 0, "completion": NASTY, "images": [picture]}
                for i, picture in enumerate([Image.new("L", (30, 20)), Image.new("RGB", (900, 30))])
            ]
            run.table("completions", step, rows)
        run.finish({"accuracy": 0.71234, "after": {"AM": 0.5}})
    return path


def test_the_page_of_a_run(folder):
    evaluation = report.Table(
        "Evaluation", [{"set": NASTY, "n": 300, "accuracy": 0.51239}, {"set": "CAH", "gain": None}]
    )
    page = Page(report.report_run(folder, [evaluation], title=NASTY).read_text())
    text = " ".join(page.texts)
    for expected in ("accuracy", "0.7123", "after.AM", "0.5124", "–", "lora.rank", "first tenth", "0.075", "0.975"):
        assert expected in text
    assert page.texts.count(NASTY) == 4  # head, heading, table, config
    # uPlot, the charts' script, the page's; data of the opening's chart, of two curves, of the completions
    assert [tag for tag, _ in page.tags].count("script") == 3 + len(page.data) == 6
    assert [attrs["aria-label"] for _, attrs in page.tags if attrs.get("role") == "img"] == [
        "Reward: reward from 0.05 to 0.9417; each step from 0.05 to 1"
    ] * 2


def test_it_reaches_outside_for_nothing(folder):
    text = report.report_run(folder).read_text()
    page = Page(text)
    for source in page.attributes("src"):
        assert source.startswith("data:image/png;base64,")
    assert all(link.startswith("#") for link in page.attributes("href"))
    assert not re.search(r"url\(|@import|fetch\(|https?://", text)
    assert any("default-src 'none'" in content for content in page.attributes("content"))
    assert any("width=device-width" in content for content in page.attributes("content"))


def test_the_browser_holds_every_completion(folder):
    *_, data = Page(report.report_run(folder).read_text()).data
    assert data["filters"] == ["step", "specialty", "paradigm", "correct"]
    assert [(row["step"], row["id"], row["correct"]) for row in data["rows"]] == [
        (10, "case-0", False), (10, "case-1", True), (20, "case-0", False), (20, "case-1", True),
    ]  # fmt: skip
    assert all(row["completion"] == NASTY for row in data["rows"])
    assert data["rows"][0]["images"][0].startswith("data:image/jpeg;base64,")


def test_many_completions_are_thinned_and_it_says_so(tmp_path):
    rows = [{"step": i, "completion": str(i)} for i in range(1000)]
    path = report.write_report(tmp_path / "report.html", "many", [report.CompletionBrowser("Completions", rows)])
    page = Page(path.read_text())
    assert [row["step"] for row in page.data[0]["rows"]] == list(range(0, 1000, 3))
    assert "334 of 1000 rows; all of them are in samples/." in page.texts


def test_samples_of_a_group_are_kept_together(tmp_path):
    rows = [{"step": 1, "id": f"case-{i // 8}", "prompt": "?", "completion": str(i)} for i in range(480)]
    path = report.write_report(tmp_path / "report.html", "groups", [report.CompletionBrowser("Completions", rows)])
    kept = [row["id"] for row in Page(path.read_text()).data[0]["rows"]]
    assert kept == [f"case-{group}" for group in range(0, 60, 2) for _ in range(8)]


def test_what_a_run_took():
    rows = [{"step": 0, "eval/accuracy": 0.5}]
    rows += [{"step": i, "step_time": 2.0, "time/rollout": 0.5, "num_tokens": 100 * i, "tokens_per_second": 9.0 + i}
             for i in (1, 2, 3)]  # fmt: skip
    assert report.run_cost({"cost": {"wall_seconds": 61.2}}, rows) == {
        "wall seconds": 61, "seconds of steps": 6.0, "seconds of rollouts": 1.5, "tokens, prompts counted": 300,
        "tokens per second, median step": 11.0,
    }  # fmt: skip
    assert report.run_cost({}, []) == {}


def test_a_run_without_anything_still_has_a_page(tmp_path):
    with Run.open(tmp_path, {}):
        pass
    assert "interrupted" in Page(report.report_run(tmp_path).read_text()).texts
    write = report.write_report(tmp_path / "r.html", "t", [report.Text("Log", NASTY), report.Facts("None", {})])
    assert NASTY in Page(write.read_text()).texts


def test_a_hint_stands_at_the_head_of_the_report(tmp_path):
    with Run.open(tmp_path / "run", {"job": "gba"}) as run:
        for step in range(1, 11):
            run.log(step, {"reward": 0.0, "frac_reward_zero_std": 0.95, "rewards/accuracy/mean": 0.0})
        run.finish({})
    text = report.report_run(tmp_path / "run").read_text()
    hint = "Hint: 95% of the groups have equal rewards and teach nothing (the cases are too hard)"
    assert text.count(hint) == 1 and hint in text[text.index("<main>") : text.index('id="summary"')]


def test_a_report_opens_with_sentences_and_two_charts(tmp_path):
    ends = {"before": 0.376, "after": 0.602, "gain": 0.227, "gain_low": 0.196, "gain_high": 0.258}
    with Run.open(tmp_path / "run", {"job": "gba"}) as run:
        for step in range(1, 21):
            run.log(step, {"reward": step / 10, "loss": 1e-5, "rewards/accuracy/mean": step / 20})
            if step in (1, 20):
                run.log(step, {"eval/accuracy": step / 40})
        run.finish({f"held_out/{name}": value for name, value in ends.items()})
    text = report.report_run(tmp_path / "run").read_text()
    opening = text[text.index("<main>") : text.index('id="summary"')]
    assert "Held-out accuracy 37.6 -&gt; 60.2 %: a paired gain of +22.7 [+19.6, +25.8] points." in opening
    assert opening.count('class="plot"') == 2 and opening.index("Accuracy</b>") < opening.index("Reward</b>")
    assert "Loss" not in opening and "from the first to the last tenth of 20 steps" in opening
