"""Self-contained pages: a template of a package, filled, with the style and script that all pages share."""

import html
import re
from collections.abc import Mapping
from importlib import resources

_FIGURE = re.compile(r"([-+]?[\d.]+(?: ± [\d.]+)?)(?: (\[[-+\d., ]+\]))?(?: (\([-+\d., ]+\)))?")


def render(package: str, template: str, parts: Mapping[str, str]) -> str:
    """The template with each {{name}} replaced by `parts[name]`, which is HTML; {{style}} and {{script}} are shared.

    All in one pass, so that nothing in the parts is taken for a name.
    """
    own = "mmedexpert_jax.runtime"
    parts = {"style": _read(own, "page.css"), "script": _read(own, "page.js"), **parts}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read(package, template))


def cell(text: str) -> str:
    """A cell of a table as HTML, a figure's intervals small and on lines of their own."""
    figure, *intervals = map(html.escape, split(text))
    return figure + "".join(f"<small>{interval}</small>" for interval in intervals)


def split(text: str) -> list[str]:
    """A figure and each of its intervals: "57.3 [54.5, 60.0] (54.6, 60.1)"; any other text whole."""
    found = _FIGURE.fullmatch(text)
    return [part for part in found.groups() if part] if found else [text]


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
