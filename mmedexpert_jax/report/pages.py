"""Self-contained pages: templates over one base, which has the head, the style and the landmarks that all share."""

import functools
from typing import Any

import jinja2


def render(template: str, **parts: Any) -> str:
    """A template of the package, such as "merging/merge_page.html", filled; HTML escapes text, and `Markup` not."""
    return _templates().get_template(template).render(parts)


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("mmedexpert_jax", "."),
        autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined,
    )
