"""The chat template of a checkpoint, and Qwen2-VL's for those that bring none."""

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


def find_template(directory: Path, tokenizer: Any, usual: str = QWEN2_VL_TEMPLATE) -> str:
    """A checkpoint's own chat template, in the order of transformers' processors; the `usual` where there is none."""
    if (file := directory / "chat_template.jinja").is_file():
        if not (text := border.read_text(file)).strip():
            raise DataError(f"{file}: is empty; copy it from the base")
        return text
    if (file := directory / "chat_template.json").is_file():
        found = border.read_json(file)
        if not isinstance(found, dict) or not isinstance(found.get("chat_template"), str):
            raise DataError(f"{file}: not a JSON object with the key chat_template; copy it from the base")
        return found["chat_template"]
    try:
        found = tokenizer.get_chat_template() if tokenizer.chat_template else usual
    except ValueError:  # several by name, and none called default
        found = None
    if not isinstance(found, str):
        file = directory / "tokenizer_config.json"
        raise DataError(f"{file}: chat_template is no text and holds none called default; copy the base model's")
    return found
