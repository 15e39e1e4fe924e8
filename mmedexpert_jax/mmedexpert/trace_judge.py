"""An optional judge: a model that marks the reviewers' rubric. Its score orders the review and decides nothing."""

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmedexpert_jax.answers import lettered, spoken
from mmedexpert_jax.data.paradigms import PARADIGMS
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.local_teacher import Teacher
from mmedexpert_jax.mmedexpert.record import Judgement, Trace
from mmedexpert_jax.mmedexpert.review.rubric import RUBRIC
from mmedexpert_jax.remote import EndpointReply, Request

MOST = 50  # objects of a reply, from its end, that are looked at
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
    key = f"{case.answer}. {case.answer_text}" if case.options else " or ".join(case.golds)
    parts = [
        f"Case\n{case.question}\n{options}\nKey: {key}",
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
    """The judgement in a reply, the last where it holds several; None unless it marks every criterion with true or
    false, as JSON or Python writes it."""
    codes, said = [criterion.code for criterion in RUBRIC[paradigm]], spoken(text)
    for begin in [found.start() for found in re.finditer(r"\{", said)][: -MOST - 1 : -1]:
        marks = _marks(said[begin:])
        if all(isinstance(marks.get(code), bool) for code in codes):
            criteria = tuple((code, marks[code]) for code in codes)
            return Judgement(sum(met for _, met in criteria) / len(criteria), criteria, name)
    return None


def _marks(text: str) -> dict[str, Any]:
    """The object that a text begins with; {} of none. A mark may stand as a text, "true"."""
    try:
        marks = json.JSONDecoder().raw_decode(re.sub(r"\b(?:True|False)\b", lambda word: word[0].lower(), text))[0]
    except (ValueError, RecursionError):
        try:
            marks = ast.literal_eval(text[: text.find("}") + 1])
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return {}
    words = {"true": True, "false": False}
    return {key: words.get(str(mark).lower()) for key, mark in marks.items()} if isinstance(marks, dict) else {}
