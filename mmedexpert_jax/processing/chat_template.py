"""The chat template of a checkpoint, and Qwen2-VL's for those that bring none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.errors import DataError

TEMPLATES = Path(__file__).parents[1] / "assets" / "templates"
SYSTEM = "You are a helpful assistant."  # said where a conversation has no system message


def shipped(name: str) -> str:
    """A template of assets/templates, or the head of several."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


QWEN2_VL_TEMPLATE = shipped("qwen2_vl")


def syntax_fault(template: str) -> str:
    """The reason why a chat template is no Jinja, with its line; empty where it is some."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template  # whose tags are more than Jinja's

    try:
        render_jinja_template([[]], chat_template=template)
    except TemplateSyntaxError as error:
        return f"{str(error.message).rstrip(chr(46))}, line {error.lineno}"
    except Exception:  # of an empty conversation, which a template may refuse
        return ""
    return ""


def find_template(places: Sequence[Path], usual: str = QWEN2_VL_TEMPLATE, tokenizers: bool = True) -> str:
    """The chat template of the first folder that has one, in the order of transformers' processors within each; the
    `usual` where none has. That of a tokenizer_config.json counts where `tokenizers` know of images. Raises DataError.
    """
    for place in places:
        if (file := place / "chat_template.jinja").is_file():
            if not (text := border.read_text(file)).strip():
                raise DataError(f"{file}: is empty; copy it from the base")
            return text
        if (file := place / "chat_template.json").is_file():
            found = border.read_json(file)
            if not isinstance(found, dict) or not isinstance(found.get("chat_template"), str):
                raise DataError(f"{file}: not a JSON object with the key chat_template; copy it from the base")
            return found["chat_template"]
        file = place / "tokenizer_config.json"
        settings = border.read_json(file, dict[str, Any]) if tokenizers and file.is_file() else {}
        if found := settings.get("chat_template"):
            if isinstance(found, list):  # several by name
                found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}.get("default")
            if not isinstance(found, str):
                raise DataError(
                    f"{file}: chat_template is no text and holds none called default; copy the base model's"
                )
            return found
    return usual
