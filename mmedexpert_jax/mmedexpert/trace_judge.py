"""An optional judge: a model that marks the reviewers' rubric. Its score orders the review and decides nothing."""

import ast
import contextlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.answers import lettered, spoken
from mmedexpert_jax.data.paradigms import PARADIGMS
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.local_teacher import Teacher
from mmedexpert_jax.mmedexpert.record import Judgement, Trace
from mmedexpert_jax.mmedexpert.review.rubric import RUBRIC
from mmedexpert_jax.remote import EndpointReply, Request

MOST = 50  # opening braces of a reply that are tried, from the last
SYSTEM = (
    "You check a clinician's written reasoning against a rubric. Be strict: a criterion is met only if the text shows "
    'it. Answer with one JSON object and nothing else: {"<code>": true or false, ...}, one entry for each criterion.'
)


def judge(traces: Sequence[Trace], ask: Teacher, name: str, store: Store) -> int:
    """Has traces judged and stores the judgements; returns how many replies could be read."""
    read = 0

    def on_reply(index: int, reply: EndpointReply) -> None:
        nonlocal read
        if found := judgement(reply.text, traces[index].paradigm, name):
            read += 1
            store.put_traces([replace(traces[index], judge=found)])

    ask.ask([Request(conversation(trace)) for trace in traces], on_reply)
    return read


def conversation(trace: Trace) -> list[dict[str, Any]]:
    """The conversation that asks for a judgement; the source's discussion is part of it where there is one."""
    case, known = trace.case, PARADIGMS[trace.paradigm]
    options = "\n".join(lettered(case.options))
    criteria = "\n".join(f"{criterion.code}: {criterion.text}" for criterion in RUBRIC[trace.paradigm])
    parts = [
        f"Case\n{case.question}\n{options}\nKey: {case.answer}. {case.answer_text}",
        f"Discussion by the source\n{case.explanation}" if case.explanation else "",
        f"Way of reasoning: {known.title}. {known.definition}",
        f"Reasoning\n{trace.text}",
        f"Criteria\n{criteria}",
    ]
    text = "\n\n".join(part for part in parts if part)
    images = [{"type": "image", "image": picture.open()} for picture in case.images]
    content = [*images, {"type": "text", "text": text}]
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


def judgement(text: str, paradigm: str, name: str) -> Judgement | None:
    """The judgement in a reply, the last of several; None unless one marks every criterion with true or false."""
    codes = [criterion.code for criterion in RUBRIC[paradigm]]
    said = spoken(text)
    for start in [found.start() for found in re.finditer(r"\{", said)][: -MOST - 1 : -1]:
        held = _object(said[start:])
        marks = [_mark(held.get(code)) for code in codes]
        if None not in marks:
            criteria = tuple((code, bool(mark)) for code, mark in zip(codes, marks, strict=True))
            return Judgement(sum(met for _, met in criteria) / len(criteria), criteria, name)
    return None


def _object(text: str) -> dict[str, Any]:
    """The object that a text begins with, as JSON or as Python writes it; empty where it begins with none."""
    for end in itertools.islice(re.finditer(r"\}", text), 3):  # a brace may stand in a note
        part = text[: end.end()]
        with contextlib.suppress(DataError):
            return border.parse_json(re.sub(r"\b(?:True|False)\b", _small, part), "the judgement", dict[str, Any])
        with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            found = ast.literal_eval(re.sub(r"\b(?:true|false)\b", _great, part))
            return found if isinstance(found, dict) else {}
    return {}


def _small(found: re.Match) -> str:
    return found[0].lower()


def _great(found: re.Match) -> str:
    return found[0].capitalize()


def _mark(value: Any) -> bool | None:
    """True or false, also where it stands as a text; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None
