"""Prompts of the teacher: the paradigm as hard constraints, two worked examples, the case. Never the key."""

import hashlib
from collections.abc import Sequence
from typing import Any

from mmedexpert_jax.answers import lettered
from mmedexpert_jax.data import prompts as shared
from mmedexpert_jax.data.paradigms import PARADIGMS
from mmedexpert_jax.mmedexpert.exemplars import EXEMPLARS
from mmedexpert_jax.mmedexpert.paradigm_rules import CONCLUSION, moves
from mmedexpert_jax.mmedexpert.record import RawCase

STYLES = ("full", "short")
SYSTEM = (
    "You are an experienced clinician who writes down, for learners, how you reason about a case. You reason in one "
    "designated way, keep to its rules, use only findings that the case gives, and invent nothing."
)
FORMAT = (
    "Write the reasoning as 2 to 12 numbered statements, (1), (2), ..., inside <think></think>, {words} words in all, "
    "then only {answer} inside <answer></answer>. Reason towards the answer: do not state it first. "
    "Do not mention these rules, the name of a method that was asked for, or that an answer might be known."
)
LOOK = "Describe in words the finding in the image that you rely on."


def conversation(record: RawCase, paradigm: str, style: str, words: tuple[int, int]) -> list[dict[str, Any]]:
    """The conversation that asks for a trace.

    Args:
        record: the case; its key and explanation do not enter.
        paradigm: the designated one.
        style: "full": rules and examples, for instruction-tuned teachers; "short": the prompt that our own models are
            trained on, which fits a small context.
        words: bounds of the trace's length.
    """
    if style == "short":
        return shared.conversation(record, paradigm)
    demanded = rules(paradigm, words, is_open=not record.options)
    turns = [{"role": "system", "content": f"{SYSTEM}\n\n{demanded}"}]
    for exemplar in EXEMPLARS:
        turns.append({"role": "user", "content": _posed(exemplar.question, exemplar.options)})
        turns.append({"role": "assistant", "content": shared.render(exemplar.traces[paradigm], exemplar.answer)})
    images = [{"type": "image", "image": picture.open()} for picture in record.images]
    text = _posed(record.question, record.options) + (f"\n\n{LOOK}" if images else "")
    return [*turns, {"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def rules(paradigm: str, words: tuple[int, int], is_open: bool = False) -> str:
    """The paradigm's constraints and the answer's format."""
    known = PARADIGMS[paradigm]
    required, forbidden = moves(paradigm)
    demands = [move.demand for move in (*required, *forbidden, CONCLUSION)]
    listed = "\n".join(f"- {demand}" for demand in demands)
    answer = "your answer, in as few words as it takes," if is_open else "the letter of your answer"
    length = FORMAT.format(words=f"{words[0]} to {words[1]}", answer=answer)
    return f"Way of reasoning: {known.title}. {known.definition}\n{listed}\n\n{length}"


def version(style: str, words: tuple[int, int]) -> str:
    """Hash of all that a prompt holds beside the case, for the manifest."""
    probe = RawCase("", "?", ("a", "b"), "A")
    texts = [str(conversation(probe, paradigm, style, words)) for paradigm in PARADIGMS]
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]


def _posed(question: str, options: Sequence[str]) -> str:
    return "\n".join([question, *lettered(options)])
