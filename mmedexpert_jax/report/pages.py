"""Self-contained pages: templates over one base, which has the head, the style and the landmarks that all share."""

import functools
import html
import re
from typing import Any

import jinja2

_FIGURE = re.compile(r"([-+]?[\d.]+(?: ± [\d.]+)?)(?: (\[[-+\d., ]+\]))?(?: (\([-+\d., ]+\)))?")


def render(template: str, **parts: Any) -> str:
    """A template of the package, such as "merging/merge_page.html", filled; text is escaped, `Markup` is not."""
    return _templates().get_template(template).render(parts)


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("mmedexpert_jax", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )


def scrolled(inner: str, name: str = "table") -> str:
    """Content that may be wider than a phone, in a box that scrolls sideways, by keys too (WCAG 2.1.1)."""
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{html.escape(name)}">{inner}</div>'


def cell(text: str) -> str:
    """A cell of a table as HTML, a figure's intervals small and on lines of their own."""
    figure, *intervals = map(html.escape, split(text))
    return figure + "".join(f"<small>{interval}</small>" for interval in intervals)


def split(text: str) -> list[str]:
    """A figure and each of its intervals: "57.3 [54.5, 60.0] (54.6, 60.1)"; any other text whole."""
    found = _FIGURE.fullmatch(text)
    return [part for part in found.groups() if part] if found else [text]
