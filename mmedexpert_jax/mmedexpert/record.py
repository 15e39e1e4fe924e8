"""The factory's records: a case of any source in one form, a trace written for it, and what has been found of it."""

import hashlib
from dataclasses import dataclass
from functools import partial

from mmedexpert_jax.data.case import LETTERS, Case
from mmedexpert_jax.data.prompts import render
from mmedexpert_jax.processing.images import ImageRef

STEPS = ("", "step1", "step2&3")  # of the USMLE, where a source says
ASKS = ("diagnosis", "management", "mechanism", "other")  # what a question asks for


@dataclass(frozen=True)
class RawCase(Case):
    """A case with what the factory knows of its origin (section 3.1) and has found about it (sections 3.2 and 3.3).

    Its `id` is "<source>-<hash>" of question, options and images alone, so that files may be reordered or split. `task`
    is the sub-specialty, one of `specialties.SUBSPECIALTIES` or "". Images are in memory, as the source had them.
    """

    paradigms: tuple[str, ...] = ()  # that apply; none before that is decided, and where none does
    source: str = ""  # format that was recognised, one of `sources.FORMATS`, or a name that the row itself gives
    source_id: str = ""  # the row's own id, or "<file>:<row>"
    file: str = ""  # where it stands, as `named_files` calls it; known while cases are collected, not kept with them
    row: int = 0  # of that file, from 1
    split: str = ""  # split that the source put the case in; "" where it says none
    licence: str = ""  # of the source file
    redistributable: bool = False  # whether the case may leave the machine of whoever holds it
    step: str = ""  # one of STEPS
    asks: str = "other"  # what the question asks for, one of ASKS; `eligibility` reads it
    specialty_by: str = ""  # rule or vote that decided the specialty
    field: str = ""  # what the source says about the field of medicine or body system; ""
    # the source's own discussion; it tells the key and never enters a teacher's prompt. For judges and reviewers.
    explanation: str = ""
    person: str = ""  # a hash of the patient's number in the source, whose cases stay in one split; "" for none
    # remarks that did not reject it, e.g. "mentions-picture", "negative-stem", "repaired:options-in-question".
    flags: tuple[str, ...] = ()

    def named(self, text: str) -> tuple[tuple[str, ...], int]:
        """The texts that a trace may name as answers, and the index of the right one: of an open question the one of
        its right answers that stands in `text`, or else its reference."""
        if self.options:
            return self.options, LETTERS.index(self.answer)
        return (next((gold for gold in self.golds if gold.lower() in text.lower()), self.answer),), 0


def held(name: str, data: bytes) -> ImageRef:
    """A picture whose encoded file is in memory."""
    return ImageRef(name, partial(bytes, data))


@dataclass(frozen=True)
class Check:
    """Stage 1's findings (section 3.2) in a response."""

    passed: bool  # no reason against it
    answer: str | None  # letter that the strict parser read; None for none
    reasons: tuple[str, ...] = ()  # why it failed, of `filters.REASONS`; empty where it passed
    flags: tuple[str, ...] = ()  # remarks that do not fail it, for whoever reviews it, of `filters.FLAGS`

    @property
    def matched(self) -> bool:
        """True where the answer is the key, whatever else the response lacks."""
        return self.answer is not None and "wrong-answer" not in self.reasons


@dataclass(frozen=True)
class Judgement:
    """A judge model's view of a trace. It orders the review and decides nothing."""

    score: float  # share of the rubric's criteria that it holds met, 0 to 1
    criteria: tuple[tuple[str, bool], ...]  # (criterion, met) in the rubric's order
    model: str  # name of the judge


@dataclass(frozen=True)
class Trace:
    """One reasoning trace of a case under one paradigm (section 3.2)."""

    id: str  # a function of case, paradigm, teacher and text, so that it survives a rebuild of the data base
    case: RawCase
    paradigm: str  # one of data.case.PARADIGMS, the designated one
    text: str  # the reasoning, without tags
    response: str  # the teacher's whole answer
    teacher: str  # name of the model that wrote it
    sample: int  # number of the candidate, from 0
    request: str  # key of the answer in the store of answers, where attempts, tokens and costs stand
    check: Check  # stage 1's result
    judge: Judgement | None = None  # None where no judge was asked

    @property
    def specialty(self) -> str:
        """Of the case."""
        return self.case.specialty

    def with_text(self, text: str) -> str:
        """The response as it would read with an edited reasoning, for stage 1 to check again."""
        return render(text, self.check.answer or "")


def trace_id(case_id: str, paradigm: str, teacher: str, sample: int, response: str) -> str:
    """The id of a trace."""
    whole = "\x1f".join((case_id, paradigm, teacher, str(sample), response))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]
