"""Checks of an edited trace: stage 1 again, with the shared parser and the paradigm's structure."""

from itertools import chain

from mmedexpert_jax import answers
from mmedexpert_jax.data.paradigms import COUNTS, PARADIGMS, statements
from mmedexpert_jax.data.prompts import render
from mmedexpert_jax.mmedexpert import filters, paradigm_rules
from mmedexpert_jax.mmedexpert.record import Trace

MAX_CHARACTERS = 20_000


def problems(trace: Trace, text: str) -> list[str]:
    """The reasons why `text` cannot stand as the reasoning of `trace`, a sentence each; empty for none.

    A teacher's trace goes through stage 1 as it did when it was written; one of a data set, whose making is not known,
    through the shared parser and the shared rule of its paradigm.
    """
    if not text.strip():
        return ["The trace is empty."]
    if len(text) > MAX_CHARACTERS:
        return [f"The trace has {len(text)} characters; at most {MAX_CHARACTERS} are kept."]
    response = render(text, trace.case.answer)
    if not answers.parse(response).well_formed:
        return ["The trace must not hold <think> or <answer> tags."]
    if not answers.is_right(response, trace.case.options, trace.case.answer):
        return ["The parser does not read the key as the answer."]
    if (count := len(statements(text))) not in COUNTS:
        return [f"2 to 12 statements numbered (1), (2), ... are needed; {count or 'none'} can be counted."]
    if trace.teacher:
        return [
            _sentence(reason, trace.paradigm) for reason in filters.check(response, trace.case, trace.paradigm).reasons
        ]
    paradigm = PARADIGMS[trace.paradigm]
    if not paradigm.follows(text, trace.case.named(text)[0]):
        return [f"The moves of {paradigm.title} are not found. {paradigm.definition}"]
    return []


def _sentence(reason: str, paradigm: str) -> str:
    """A reason of stage 1 in words; for a move, the demand that is not met."""
    name, _, lack = reason.partition(":")
    moves = (*chain(*paradigm_rules.moves(paradigm)), paradigm_rules.CONCLUSION)
    demands = [move.demand for move in moves if move.name == lack.rpartition(":")[2]]
    return demands[0] if demands else f"{filters.REASONS[name].capitalize()}."
