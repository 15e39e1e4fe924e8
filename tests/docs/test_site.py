"""The site as mkdocs builds it, in Chromium: its first page, a job's, its fields, the gallery, on three screens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.accessibility import serious

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SIZES = {"desktop": (1280, 800), "tablet": (820, 1180), "phone": (390, 844)}
PAGES = ("index.html", "gba/index.html", "config/gba/index.html", "gallery/index.html", "hours/index.html")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_everyone_can_read_the_site(browser, site, size, scheme):
    width, height = SIZES[size]
    faults = {}
    for name in PAGES:
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.goto((site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        if found := serious(page):  # axe names one place a rule
            faults[name] = found
        page.close()
    assert not faults
