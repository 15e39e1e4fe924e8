"""Trace synthesis (section 3.2): candidates round by round, until one passes stage 1 or there are enough."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ml_collections import ConfigDict

from mmedexpert_jax import answers
from mmedexpert_jax.mmedexpert import filters, teacher_prompts
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.local_teacher import Teacher
from mmedexpert_jax.mmedexpert.record import RawCase, Trace, trace_id
from mmedexpert_jax.remote import EndpointReply, Request

# Reasoning at the beginning of a reply, in a group of each kind of marks.
_OWN_MARKS = re.compile(
    rf"\s*(?:{'|'.join(f'{re.escape(mark)}(.*?){re.escape(end)}' for mark, end in answers.REASONING_MARKS)})",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True)
class TraceSettings:
    """Settings of the requests for traces."""

    teacher: str  # name that stands in the traces
    candidates: int  # at most so many for a case and paradigm
    style: str  # of the prompts, "full" or "short"
    words: tuple[int, int]  # bounds of a trace's length

    @classmethod
    def from_config(cls, config: ConfigDict, teacher: str = "") -> "TraceSettings":
        """From a dataset job's config; a plan and a check need no teacher's name."""
        return cls(teacher, config.candidates, config.teacher.prompt, tuple(config.words))


@dataclass
class Tally:
    """Counts of the requests' outcomes, for reports."""

    asked: int = 0  # candidates that were answered
    given_up: Counter = field(default_factory=Counter)  # reason -> requests without an answer
    matched: int = 0  # candidates whose answer is the key, whatever else they lack
    by_luck: float = 0.0  # candidates that a blind choice among the options would have matched, expected
    passed: int = 0  # of stage 1
    reasons: Counter = field(default_factory=Counter)  # why candidates failed; one may have several


Pair = tuple[RawCase, str]
OnCount = Callable[[int], None]


def synthesise(
    pairs: Sequence[Pair], ask: Teacher, store: Store, settings: TraceSettings, on_count: OnCount = lambda count: None
) -> Tally:
    """Asks for the traces of `pairs` and stores every candidate with what stage 1 found.

    A pair whose candidate passes is not asked again; `on_count` hears how many pairs are through. Nothing here
    remembers what has been asked: the store of answers does, so that a second run comes to the same traces without
    asking.
    """
    tally, pending, settled = Tally(), list(pairs), 0
    for sample in range(settings.candidates):
        last = sample + 1 == settings.candidates  # after it a pair is through even where no candidate has passed

        def on_trace(passed: bool, over: bool = last) -> None:
            nonlocal settled
            if passed or over:
                settled += 1
                on_count(settled)

        passed = _round(pending, sample, ask, store, settings, tally, on_trace)
        pending = [pair for index, pair in enumerate(pending) if index not in passed]
        if not pending:
            break
    return tally


def _round(
    pairs: Sequence[Pair],
    sample: int,
    ask: Teacher,
    store: Store,
    settings: TraceSettings,
    tally: Tally,
    on_trace: Callable[[bool], None],
) -> set[int]:
    """One candidate for each pair; returns the indices of those that passed."""
    passed = set()

    def on_reply(index: int, reply: EndpointReply) -> None:
        if reply.error:
            tally.given_up[reply.error.partition(":")[0]] += 1
        else:
            trace = read(*pairs[index], sample, reply, settings)
            store.put_traces([trace])
            count(tally, trace)
            if trace.check.passed:
                passed.add(index)
        on_trace(index in passed)

    ask.ask([request(record, paradigm, sample, settings) for record, paradigm in pairs], on_reply)
    return passed


def request(record: RawCase, paradigm: str, sample: int, settings: TraceSettings) -> Request:
    """The request for one candidate."""
    return Request(teacher_prompts.conversation(record, paradigm, settings.style, settings.words), sample)


def read(record: RawCase, paradigm: str, sample: int, reply: EndpointReply, settings: TraceSettings) -> Trace:
    """The trace in a reply, checked."""
    response = whole(reply)
    check = filters.check(response, record, paradigm, settings.words, reply.finish)
    id = trace_id(record.id, paradigm, settings.teacher, sample, response)
    think = answers.parse(response).think or ""
    return Trace(id, record, paradigm, think, response, settings.teacher, sample, reply.key, check)


def whole(reply: EndpointReply) -> str:
    """The response with its think block, wherever the server put the reasoning.

    A parser of reasoning (vLLM's, for one) moves it to a field of its own; a template that pre-fills "<think>" leaves
    the closing tag alone; other models' own marks, "[THINK]" or "<thinking>", stand for ours, or before ours for
    nothing.
    """
    text = reply.text
    if own := _OWN_MARKS.match(text):
        rest = text[own.end() :]
        return rest if "<think>" in rest.lower() else f"<think>{''.join(filter(None, own.groups()))}</think>{rest}"
    if "<think>" in text.lower():
        return text
    if "</think>" in text.lower():
        return f"<think>{text}"
    return f"<think>{reply.reasoning}</think>\n{text}" if reply.reasoning.strip() else text


def count(tally: Tally, trace: Trace) -> None:
    """Adds a candidate to a tally, in place."""
    tally.asked += 1
    tally.matched += trace.check.matched
    tally.by_luck += 1 / len(trace.case.options) if trace.case.options else 0.0  # nobody hits upon words by luck
    tally.passed += trace.check.passed
    tally.reasons.update(trace.check.reasons)
