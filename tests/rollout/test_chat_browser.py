"""The chat page in headless Chromium: an answer as it comes, an image, a comparison and its vote."""

import shutil
import socket
import threading
import time

import pytest
import uvicorn
from PIL import Image

from mmedexpert_jax.remote import guard
from mmedexpert_jax.rollout import server

pytestmark = pytest.mark.slow


@pytest.fixture
def address(echo, tmp_path):
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    application = guard.Guard(server.application(echo, "secret", tmp_path / "votes.jsonl"), True)
    running = uvicorn.Server(uvicorn.Config(application, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    running.should_exit = True
    thread.join()


def test_chat_compare_and_vote(address, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "the slow tier needs a browser: apt-get install chromium"
    sync_api.expect.set_options(timeout=60_000)
    Image.new("RGB", (56, 56), (200, 30, 30)).save(tmp_path / "scan.png")
    with sync_api.sync_playwright() as started:
        page = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.set_default_timeout(60_000)
        page.goto(address)
        ask = lambda text: (page.fill("#question", text), page.click("#send"))  # noqa: E731
        page.fill("#key", "wrong")
        ask("Who are you?")
        sync_api.expect(page.locator("#status")).to_contain_text("key")  # no wait_for_function: the page forbids eval
        said.clear()  # the browser tells of status 401
        page.fill("#key", "secret")
        page.set_input_files("#images", tmp_path / "scan.png")
        ask("<b>Who</b> are you?")
        sync_api.expect(page.locator("article").nth(2)).to_contain_text("alpha")
        assert page.locator("article").nth(2).locator("div").inner_text() == "alpha"
        assert page.locator("article").nth(1).inner_text().endswith("<b>Who</b> are you?")  # as text
        assert page.locator("article img").evaluate("image => image.naturalWidth") == 56
        page.select_option("#model", label="two of them, unnamed until you vote")
        ask("And you?")
        page.wait_for_selector("#vote:not([hidden])")
        pair = page.locator(".pair article")
        assert [pair.nth(i).locator("h2").inner_text() for i in (0, 1)] == ["first", "second"]
        page.click("button[value=first]")
        page.wait_for_selector("#votes td")
        names = [pair.nth(i).locator("h2").inner_text() for i in (0, 1)]
        assert sorted(names) == ["alpha", "beta"] and names == [pair.nth(i).locator("div").inner_text() for i in (0, 1)]
        assert "alpha : beta" in page.inner_text("#votes") and page.is_hidden("#vote")
        assert len((tmp_path / "votes.jsonl").read_text().splitlines()) == 1 and not said
