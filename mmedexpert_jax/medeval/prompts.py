"""Prompts of the evaluation kits and of the paper's models: an item becomes one conversation, or two turns of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmedexpert_jax.data import prompts as training
from mmedexpert_jax.data.benchmarks import Item
from mmedexpert_jax.data.case import LETTERS
from mmedexpert_jax.errors import ConfigError

Messages = list[dict[str, Any]]

FORMS = ("tags", "boxed", "plain")


@dataclass(frozen=True)
class Prompt:
    """What a model is asked about one item.

    Attributes:
        style: one of `styles()`.
        messages: the conversation, a Hugging Face message list; an image part holds an `ImageRef`.
        form: what the answer is asked to stand in, one of FORMS; `scoring.score` takes it.
        follow_up: the user's second turn; "" where there is none. The answer to the second turn is the one scored.
    """

    style: str
    messages: Messages
    form: str
    follow_up: str = ""

    def then(self, response: str) -> Messages:
        """The conversation of the second turn, after `response` to the first."""
        answered = {"role": "assistant", "content": response.strip()}
        return [*self.messages, answered, {"role": "user", "content": self.follow_up}]


def opened(messages: Messages) -> Messages:
    """The same conversation with the bytes of its images in place of their references. Raises DataError."""
    return [
        message
        if isinstance(message["content"], str)
        else {**message, "content": [_opened(part) for part in message["content"]]}
        for message in messages
    ]


def _opened(part: Mapping[str, Any]) -> dict[str, Any]:
    return {**part, "image": part["image"].open()} if part["type"] == "image" else dict(part)


def styles() -> tuple[str, ...]:
    """Names that `build` takes."""
    return tuple(STYLES)


def build(item: Item, style: str, paradigm: str | None = None) -> Prompt:
    """The prompt of an item in a style.

    Args:
        item: what to ask.
        style: one of `styles()`.
        paradigm: adds the instruction of one of the paper's paradigms; only "think_answer" has a place for it.

    Raises:
        ConfigError: an unknown style, or a paradigm where there is no place for it.
    """
    if style not in STYLES:
        raise ConfigError(f"no prompt {style!r}: choose one of {', '.join(STYLES)}")
    if paradigm and style != "think_answer":
        raise ConfigError(f"the prompt {style} has no place for a paradigm: use think_answer")
    return _think_answer(item, paradigm) if style == "think_answer" else STYLES[style](item)


def _user(item: Item, text: str) -> dict[str, Any]:
    images = [{"type": "image", "image": image} for image in item.images]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def _think_answer(item: Item, paradigm: str | None = None) -> Prompt:
    """The prompt of this project's training (`data.prompts`), after the paper's form of answer (figures 4 and 5)."""
    return Prompt("think_answer", [_user(item, training.question(item, paradigm))], "tags")


def lettered(item: Item) -> list[str]:
    """Options as "A. text"."""
    return [f"{letter}. {text}" for letter, text in zip(LETTERS, item.options, strict=False)]


STYLES: dict[str, Callable[[Item], Prompt]] = {"think_answer": _think_answer}
