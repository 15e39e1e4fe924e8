"""The review page in headless Chromium, by keyboard. Needs Debian's `chromium` (apt-get install chromium).

The page's policy forbids evaluated strings: conditions to wait for are functions.
"""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax.data.case import PARADIGMS
from mmedexpert_jax.mmedexpert import review
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.review.events import since
from mmedexpert_jax.processing.images import decode
from tests.accessibility import serious

pytestmark = pytest.mark.slow
TRACES = {
    "differential": "(1) Gout and sepsis compete. (2) Gout is unlikely without crystals. (3) Sepsis fits.",
    "intuitive": "(1) Fever with a hot joint. (2) This pattern is typical of sepsis.",
    "analytical": "(1) Fever means inflammation. (2) Crystals are absent, so it is sepsis.",
    "bayesian": "(1) The prior of sepsis is low. (2) Fever raises it. (3) The posterior favours sepsis.",
}
SHOWN = "document.querySelector('#main').dataset.trace"


class Site:
    """The job on a port of its own, over `count` traces, every other one with two images; `long`: with long texts."""

    def __init__(self, folder: Path, count: int, *arguments: str, long: bool = False, slices: int = 0, volume=None):
        Image.linear_gradient("L").save(folder / "scan.png")
        rows = [
            {
                "id": f"c{i}",
                "question": f"Case {i}: a hot joint and fever. {'It began a week ago. ' * 40 * long}What is it?",
                "options": ["gout", "sepsis"],
                "answer": "B",
                "specialty": "AM",
                "paradigm": PARADIGMS[i % 4],
                "trace": TRACES[PARADIGMS[i % 4]],
                "images": [volume] if volume else ["scan.png"] * (slices or 2 * (i % 2)),
            }
            for i in range(count)
        ]
        (folder / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder = folder
        self.command = [sys.executable, "-m", "mmedexpert_jax.launch", "--config=configs/review.py"]
        self.command += [f"--config.workdir={folder}/run", f"--config.data.path={folder}", f"--config.port={port}"]
        self.command += arguments
        self.links: dict[str, str] = {}
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if found := re.match(r"\w+ (\w+): (http\S+)", line):
                self.links[found[1]] = found[2]
            if "every action is saved" in line:
                return
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def events(self, kind: str):
        store = Store(self.folder / "run" / "review.sqlite")
        try:
            return [event for event in since(store) if event.kind == kind]
        finally:
            store.close()

    def verdicts(self):
        store = Store(self.folder / "run" / "review.sqlite")
        try:
            return review.verdicts(store)
        finally:
            store.close()


@pytest.fixture
def site(tmp_path):
    sites = []

    def make(*arguments, **settings):
        sites.append(Site(tmp_path, *arguments, **settings))
        return sites[-1]

    yield make
    for one in sites:
        one.kill()


@pytest.fixture
def visit(browser):
    contexts = []

    def open_page(link: str, width=1280, height=800, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on(
            "request", lambda r: r.url.startswith(("http://127.0.0.1", "blob:", "data:")) or page.problems.append(r.url)
        )
        page.on("console", lambda m: "Content Security" in m.text and page.problems.append(m.text))
        page.goto(link)
        page.wait_for_selector("#main:not([hidden]), #empty:not([hidden])")
        return page

    yield open_page
    for context in contexts:
        context.close()


def press(page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def reach_images(page):
    """Accepts until a case with a picture is open."""
    while page.is_hidden("#viewer"):
        decide(page, "a")


def decide(page, key: str) -> str:
    """Presses a verdict's key and waits for the next trace."""
    page.wait_for_selector("#main:not([aria-busy])")
    before = page.evaluate(SHOWN)
    page.keyboard.press(key)
    page.wait_for_function(f"before => {SHOWN} !== before || !document.querySelector('#empty').hidden", arg=before)
    return before


def saved(page) -> None:
    page.wait_for_function("() => document.querySelector('#saved').textContent === 'Saved'", timeout=60_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everyone_can_use_the_page(site, visit, scheme, width):
    page = visit(site(4).links["reviewer"], width=width, color_scheme=scheme)
    press(page, "ArrowRight")
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_200_keyboard_verdicts_while_the_server_is_killed(site, visit):
    served = site(200)
    page = visit(served.links["reviewer"])
    seen = []
    for number in range(200):
        if number in (30, 90, 150):
            served.kill()
        if number in (33, 93, 153):  # some verdicts are given while nobody listens
            served.start()
        if number == 60:
            page.reload()
            page.wait_for_selector("#main:not([hidden])")
        if number % 5 == 4:
            press(page, "3")
            seen.append(decide(page, "r"))
        else:
            seen.append(decide(page, "a"))
    page.wait_for_selector("#empty:not([hidden])")
    saved(page)
    verdicts = served.events("verdict")
    assert [event.trace_id for event in verdicts] == seen and len(set(seen)) == 200
    assert len({event.client_id for event in verdicts}) == 200
    assert sum(event.value["kind"] == "reject" for event in verdicts) == 40
    assert len(served.verdicts()) == 200 and not page.problems


def test_drafts_survive_a_reload_and_a_killed_server(site, visit):
    served = site(6)
    page = visit(served.links["reviewer"])
    trace = page.evaluate(SHOWN)
    press(page, "2", "z", "x", "x", "n")
    page.keyboard.type("look again, a r u 1")  # keys are text while typing
    press(page, "Escape")
    served.kill()
    press(page, "e", "Control+End")
    page.keyboard.type(" Fever is high.")
    page.wait_for_function("() => document.querySelector('#saved').textContent.startsWith('Server away')")
    served.start()
    page.reload()  # at once: what was typed may not have been sent yet
    page.wait_for_selector("#main:not([hidden])")
    saved(page)
    assert page.evaluate(SHOWN) == trace
    assert page.input_value("#note") == "look again, a r u 1"
    assert page.input_value("#editor").endswith(" Fever is high.")
    assert page.locator("#reasons [aria-pressed=true]").count() == 1
    assert page.locator("#rubric .met").count() == 1 and page.locator("#rubric .unmet").count() == 1
    assert page.locator("#trace ins").inner_text().strip() == "Fever is high."
    assert not served.events("verdict") and not page.problems


def test_an_edit_is_checked_and_undo_returns(site, visit):
    served = site(4)
    page = visit(served.links["reviewer"])
    trace = page.evaluate(SHOWN)
    press(page, "e", "Control+A")
    page.keyboard.type("Sepsis.")
    page.wait_for_selector("#check.fails")
    press(page, "Control+Enter")
    page.wait_for_selector("#message:not([hidden])")
    assert "does not pass" in page.inner_text("#message") and page.evaluate(SHOWN) == trace
    page.click("#revert")
    page.wait_for_selector("#check:not(.fails)")
    press(page, "Control+End")
    page.keyboard.type(" Done.")
    press(page, "Control+Enter")
    page.wait_for_function(f"before => {SHOWN} !== before", arg=trace)
    saved(page)
    assert served.verdicts()[trace].kind == "edit" and served.verdicts()[trace].text.endswith(" Done.")
    press(page, "u")
    page.wait_for_function(f"before => {SHOWN} === before", arg=trace)
    saved(page)
    assert served.verdicts() == {} and page.is_hidden("#verdict-badge")
    press(page, "r")
    page.wait_for_selector("#message:not([hidden])")
    assert "reason" in page.inner_text("#message")
    press(page, "k")
    assert "first" in page.inner_text("#message")
    assert not page.problems


def test_several_reviewers_and_an_adjudicator(site, visit):
    served = site(2, "--config.reviewers=anna,ben", "--config.adjudicators=chief", "--config.overlap=1")
    anna, ben, chief = (visit(served.links[name]) for name in ("anna", "ben", "chief"))
    assert chief.is_visible("#empty")
    for page, key in ((anna, "a"), (ben, "r")):
        for _ in range(2):
            press(page, "1")
            assert page.is_hidden("#reviews-box")
            decide(page, key)
        saved(page)
    chief.wait_for_selector("#main:not([hidden])", timeout=20_000)
    assert chief.locator("#reviews article").count() == 2
    text = chief.inner_text("main")
    assert "anna" not in text and "ben" not in text and "Wrong paradigm" in text
    press(chief, "1")
    decide(chief, "r")
    decide(chief, "a")
    saved(chief)
    found = served.verdicts().values()
    assert {verdict.reviewers for verdict in found} == {("chief",)} and len(found) == 2
    assert not (anna.problems + ben.problems + chief.problems)


def test_images_zoom_pan_and_brightness_by_keyboard(site, visit):
    served = site(4)
    page = visit(served.links["reviewer"])
    reach_images(page)
    page.wait_for_function("() => document.querySelector('#image').width === 256")
    press(page, "+", "+", "ArrowLeft", "]", "}")
    style = page.get_attribute("#image", "style")
    assert "scale(1.5625)" in style and "translate(40px, 0px)" in style and "brightness(110%) contrast(110%)" in style
    page.hover("#stage")
    page.mouse.wheel(0, -600)
    assert float(page.inner_text("#zoom").rstrip(" %")) > 1000
    press(page, ".")
    page.wait_for_function("() => document.querySelector('#stage').ariaLabel.startsWith('Image 2 of 2')")
    assert page.inner_text("#zoom") == "100 %"
    assert not page.problems


def test_two_fingers_zoom_one_pans_and_taps_decide_on_a_tablet(site, visit):
    served = site(4)
    page = visit(served.links["reviewer"], 820, 1180, has_touch=True)
    while page.is_hidden("#viewer"):
        page.tap("#accept")
        page.wait_for_selector("#main:not([aria-busy])")
    page.wait_for_function("() => document.querySelector('#image').width === 256")
    box = page.locator("#stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    devices = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        fingers = [{"x": x + dx, "y": y + dy, "id": i} for i, (dx, dy) in enumerate(points)]
        devices.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})

    touch("touchStart", (-40, 0), (40, 0))
    for spread in (60, 90, 120):
        touch("touchMove", (-spread, 0), (spread, 0))
    touch("touchEnd")
    assert page.inner_text("#zoom") == "300 %"
    assert page.evaluate("visualViewport.scale") == 1  # the image is zoomed, not the page
    touch("touchStart", (0, 0))
    touch("touchMove", (20, 10))
    touch("touchMove", (60, 30))
    touch("touchEnd")
    style = page.get_attribute("#image", "style")
    assert "translate(60px, 30px) scale(3)" in style and page.inner_text("#zoom") == "300 %"
    page.tap("#films button:nth-child(2)")
    page.wait_for_function("() => document.querySelector('#stage').ariaLabel.startsWith('Image 2 of 2')")
    before = page.evaluate(SHOWN)
    page.tap("#reasons button:nth-child(6)")
    page.tap("[data-key=r].reject")
    page.wait_for_function(f"before => {SHOWN} !== before || !document.querySelector('#empty').hidden", arg=before)
    while page.is_hidden("#empty"):
        page.tap("#accept")
        page.wait_for_selector("#main:not([aria-busy]), #empty:not([hidden])")
    page.tap("#empty-actions [data-key=u]")
    page.wait_for_selector("#main:not([hidden])")
    saved(page)
    assert served.verdicts()[before].kind == "reject" and len(served.verdicts()) == 3 and not page.problems


def test_long_texts_are_scrolled_and_the_check_stays_in_sight_by_keyboard(site, visit):
    served = site(4, long=True)
    page = visit(served.links["reviewer"])
    reach_images(page)
    last, tools = page.locator("#options li:last-child"), page.locator(".tools").bounding_box()
    assert tools["height"] < 50  # one line
    footer = page.locator("#bar").bounding_box()["y"]
    assert last.bounding_box()["y"] > footer
    press(page, *["PageDown"] * 4)
    page.wait_for_timeout(100)
    assert last.bounding_box()["y"] + last.bounding_box()["height"] <= footer
    press(page, *["PageUp"] * 4, "e", "Control+A")
    page.keyboard.type("Sepsis.")
    page.wait_for_selector("#check.fails")
    check = page.locator("#check").bounding_box()
    assert check["y"] + check["height"] <= footer and not page.problems


@pytest.mark.parametrize(("width", "height", "touch"), [(1280, 800, False), (820, 1180, True), (1180, 820, True)])
def test_all_is_in_sight_and_can_be_reached(site, visit, width, height, touch, tmp_path):
    served = site(4)
    page = visit(served.links["reviewer"], width, height, has_touch=touch)
    reach_images(page)
    page.wait_for_timeout(300)
    page.screenshot(path=tmp_path / "page.png")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for id in ("#accept", "#note", "#progress-text", "#trace-heading"):
        box = page.locator(id).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        if width > 900 or id != "#trace-heading":  # on a narrow screen the trace stands below the case
            assert box["y"] >= 0 and box["y"] + box["height"] <= height
    small = page.evaluate(
        "[...document.querySelectorAll('footer button')].filter(b => b.getBoundingClientRect().height < 24).length"
    )
    assert small == 0
    names = page.evaluate("[...document.querySelectorAll('button')].map(b => b.innerText || b.ariaLabel || '')")
    assert all(name.strip() for name in names)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.dataset.key"))
    assert {"accept", "note", "stage", "brightness", "r", "u"} <= reached
    press(page, "?")
    assert page.is_visible("#help")
    press(page, "Escape")
    assert page.is_hidden("#help") and not page.problems


def test_the_bar_leaves_a_phone_its_screen(site, visit):
    page = visit(site(4).links["reviewer"], 390, 700, has_touch=True)
    assert page.locator("#bar").bounding_box()["height"] <= 0.3 * 700
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and not page.problems
    for id in ("#accept", "[data-key=r].reject"):
        box = page.locator(id).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_what_is_loaded_ahead_is_drawn_while_the_server_is_away(site, visit):
    served = site(4)
    page = visit(served.links["reviewer"])
    reach_images(page)
    page.wait_for_function("() => document.querySelector('#image').width === 256")
    page.wait_for_timeout(500)  # the next ones are on their way
    served.kill()
    page.evaluate("() => { pictures.delete([...pictures.keys()].find((key) => key.includes('/1/'))); }")
    press(page, ".")  # a picture that cannot come now
    decide(page, "a")
    reach_images(page)
    page.wait_for_function("() => document.querySelector('#image').width === 256", timeout=5000)
    assert not page.problems


def test_slices_of_a_volume_are_turned_and_windowed_and_few_are_loaded(site, visit):
    page = visit(site(1, slices=200).links["reviewer"])
    page.wait_for_function("() => document.querySelector('#slice-number').textContent === '101 / 200'")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    press(page, *[","] * 5, ".")
    page.hover("#stage")
    page.mouse.wheel(0, 100)
    page.wait_for_function("() => document.querySelector('#slice-number').textContent === '98 / 200'")
    page.keyboard.down("Shift")
    page.mouse.down()
    page.mouse.move(*[value + 40 for value in _middle(page)])
    page.mouse.up()
    page.keyboard.up("Shift")
    style = page.get_attribute("#image", "style")
    assert "contrast(100%)" not in style and "scale(1)" in style
    assert len([url for url in asked if "/api/image" in url]) < 20 and not page.problems


def test_window_and_level_are_of_the_values_in_the_file(site, visit, tmp_path):
    """By key, by mouse and typed: the page shows what the decoder returns for the window that the fields name."""
    values = np.linspace(-1000, 1000, 32 * 16, dtype=np.float32).reshape(32, 16, 1) + np.arange(10, dtype=np.float32)
    nibabel = pytest.importorskip("nibabel")
    (tmp_path / "scan.nii").write_bytes(nibabel.Nifti1Image(values, np.eye(4)).to_bytes())
    page = visit(site(1, volume={"path": "scan.nii", "slices": 10, "window": [0, 2000]}).links["reviewer"])
    seen = set()

    def shown(index: int) -> tuple[float, float]:
        window = tuple(float(page.input_value(name)) for name in ("#level", "#width"))
        asked = ",".join(f"{value:g}" for value in window)
        page.wait_for_function(
            "([at, asked]) => { const it = document.querySelector('#image').dataset;"
            " return it.shown === String(at + 1) && it.window === asked; }",
            arg=[index, asked],
        )
        pixels = np.array(page.evaluate(PIXELS), np.uint8).reshape(16, 32, 4)
        (right,) = decode(tmp_path / "scan.nii", slices=[index], window=window)
        np.testing.assert_array_equal(pixels[..., :3], np.asarray(right))
        seen.add(pixels.tobytes())
        return window

    page.wait_for_function("() => document.querySelector('#image').width === 32")
    assert shown(5) == (0, 2000) and page.is_hidden("#brightness") and serious(page) == []
    press(page, "]", "}")
    darker = shown(5)
    assert darker[0] < 0 and darker[1] < 2000
    page.hover("#stage")
    page.keyboard.down("Shift")
    page.mouse.down()
    page.mouse.move(*[value + 60 for value in _middle(page)], steps=5)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert shown(5)[1] > darker[1]
    press(page, ".")
    page.fill("#level", "-600")
    page.fill("#width", "300")
    assert shown(6) == (-600, 300)
    page.press("#width", "Enter")
    press(page, ",", ",")
    assert shown(4) == (-600, 300)  # a volume's window stays
    press(page, "0")
    page.wait_for_function("() => document.querySelector('#image').dataset.window === '0,2000'")
    assert shown(4) == (0, 2000) and len(seen) == 6 and not page.problems


PIXELS = """() => {
    const canvas = document.querySelector('#image');
    return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def test_a_thousand_slices_leave_the_page_below_300_mb(site, visit, browser, tmp_path):
    """Every slice of a CT of 1,000 x 512 x 512 is shown once, windowed on the way, and few are held at a time."""
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60, (512, 512, 8), np.uint8)
    volume = nibabel.Nifti1Image(np.concatenate([noise + np.uint8(part) for part in range(125)], 2), np.eye(4))
    (tmp_path / "scan.nii").write_bytes(volume.to_bytes())
    served = site(1, volume={"path": "scan.nii", "slices": 1000, "window": [90, 180]})
    page = visit(served.links["reviewer"])
    page.wait_for_function("() => document.querySelector('#slice-number').textContent === '501 / 1000'")
    page.locator("#slice").fill("1")
    most = 0.0
    for last in range(20, 1001, 20):
        page.evaluate(SCROLL, last)
        press(page, "]" if last % 40 else "[")
        most = max(most, page_megabytes(browser))
    server = resident(served.process.pid, "VmHWM")
    print(f"the page took {most:.0f} MB at most, the server {server:.0f} MB")
    assert most < 300 and not page.problems


# Turns slice by slice, each awaited until it is drawn.
SCROLL = """async last => {
    const image = document.querySelector('#image');
    const drawn = () => new Promise((done) => requestAnimationFrame(done));
    for (;;) {
        const number = Number(document.querySelector('#slice').value);
        while (image.dataset.shown !== String(number) || image.width !== 512) await drawn();
        if (number === last) return;
        document.dispatchEvent(new KeyboardEvent('keydown', { key: '.', bubbles: true }));
    }
}"""


def page_megabytes(browser) -> float:
    """Memory of the largest renderer in MB: what its pages alone hold and its part of what is shared (PSS)."""
    session = browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return max(resident(one["id"], "Pss") for one in processes if one["type"] == "renderer")


def resident(process: int, key: str) -> float:
    """A figure of a process's memory in MB."""
    name = "smaps_rollup" if key == "Pss" else "status"
    found = re.search(rf"^{key}:\s*(\d+) kB", Path(f"/proc/{process}/{name}").read_text(), re.M)
    return int(found[1]) / 1000


def _middle(page) -> tuple[float, float]:
    box = page.locator("#stage").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
