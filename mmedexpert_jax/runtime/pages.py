"""Self-contained pages: a template of a package, filled, with the style and script that all pages share."""

import re
from collections.abc import Mapping
from importlib import resources


def render(package: str, template: str, parts: Mapping[str, str]) -> str:
    """The template with each {{name}} replaced by `parts[name]`, which is HTML; {{style}} and {{script}} are shared.

    All in one pass, so that nothing in the parts is taken for a name.
    """
    own = "mmedexpert_jax.runtime"
    parts = {"style": _read(own, "page.css"), "script": _read(own, "page.js"), **parts}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read(package, template))


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
