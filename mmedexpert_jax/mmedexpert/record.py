"""The factory's records: a case of any source in one form, a trace written for it, and what has been found of it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from mmedexpert_jax.data.case import LETTERS
from mmedexpert_jax.data.prompts import render
from mmedexpert_jax.processing.images import open_image

STEPS = ("", "step1", "step2&3")  # of the USMLE, where a source says
KINDS = ("diagnosis", "management", "mechanism", "other")  # of what a question asks


@dataclass(frozen=True)
class Picture:
    """An image file of a case.

    Attributes:
        name: file name that the source gave it.
        source: the encoded file, or a function that reads it: of a volume of a thousand slices none is held.
    """

    name: str
    source: bytes | Callable[[], bytes]

    @property
    def data(self) -> bytes:
        """The encoded file, as the source had it."""
        return self.source() if callable(self.source) else self.source

    @property
    def sha256(self) -> str:
        """Hash of the encoded file, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    def image(self) -> Image.Image:
        """The decoded image."""
        return open_image(self.data, self.name)


@dataclass(frozen=True)
class Record:
    """A raw case in canonical form (paper section 3.1).

    Attributes:
        id: "<source>-<hash>", a function of question and options alone, so that files may be reordered or split.
        source: format that was recognised, one of `sources.FORMATS`, or a name that the row itself gives.
        source_id: the row's own id, or "<file>:<row>".
        split: split that the source put the case in; "" where it says none.
        licence: of the source file.
        redistributable: whether the case may leave the machine of whoever holds it.
        question: vignette and question, without the options.
        options: option texts without letters, in order; 2 to 10, or none for an open question.
        answer: letter of the right option.
        images: in order; empty for text-only cases.
        step: one of STEPS.
        kind: what the question asks, one of KINDS; `eligibility` reads it.
        specialty: one of data.case.SPECIALTIES (section 3.3); "" before it is decided.
        specialty_by: rule or vote that decided it.
        subspecialty: a finer field, one of `specialties.SUBSPECIALTIES`; "" where none is told.
        paradigms: the paradigms that apply; empty where none does.
        field: what the source says about the field of medicine or body system; "".
        explanation: the source's own discussion; it tells the key and never enters a teacher's prompt. For judges
            and reviewers.
        flags: remarks that did not reject it, e.g. "mentions-picture", "negative-stem", "repaired:options-in-question".
    """

    id: str
    source: str
    source_id: str
    split: str
    licence: str
    redistributable: bool
    question: str
    options: tuple[str, ...]
    answer: str
    images: tuple[Picture, ...] = ()
    step: str = ""
    kind: str = "other"
    specialty: str = ""
    specialty_by: str = ""
    subspecialty: str = ""
    paradigms: tuple[str, ...] = ()
    field: str = ""
    explanation: str = ""
    flags: tuple[str, ...] = ()

    @property
    def modality(self) -> str:
        """ "image" or "text"."""
        return "image" if self.images else "text"

    @property
    def answer_text(self) -> str:
        """Text of the right option, or the reference answer."""
        return self.options[LETTERS.index(self.answer)] if self.options else self.answer

    @property
    def named(self) -> tuple[tuple[str, ...], int]:
        """The texts that a trace may name as answers, and the index of the right one: of an open question its reference
        alone."""
        return (self.options, LETTERS.index(self.answer)) if self.options else ((self.answer,), 0)


@dataclass(frozen=True)
class Check:
    """Stage 1's findings (section 3.2) in a response.

    Attributes:
        passed: no reason against it.
        answer: letter that the strict parser read; None for none.
        reasons: why it failed, of `filters.REASONS`; empty where it passed.
        flags: remarks that do not fail it, for whoever reviews it, of `filters.FLAGS`.
    """

    passed: bool
    answer: str | None
    reasons: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """A judge model's view of a trace. It orders the review and decides nothing.

    Attributes:
        score: share of the rubric's criteria that it holds met, 0 to 1.
        criteria: (criterion, met) in the rubric's order.
        model: name of the judge.
    """

    score: float
    criteria: tuple[tuple[str, bool], ...]
    model: str


@dataclass(frozen=True)
class Trace:
    """One reasoning trace of a case under one paradigm (section 3.2).

    Attributes:
        id: a function of case, paradigm, teacher and text, so that it survives a rebuild of the data base.
        case: the record.
        paradigm: one of data.case.PARADIGMS, the designated one.
        text: the reasoning, without tags.
        response: the teacher's whole answer.
        teacher: name of the model that wrote it.
        sample: number of the candidate, from 0.
        request: key of the answer in the store of answers, where attempts, tokens and costs stand.
        check: stage 1's result.
        judge: None where no judge was asked.
    """

    id: str
    case: Record
    paradigm: str
    text: str
    response: str
    teacher: str
    sample: int
    request: str
    check: Check
    judge: Judgement | None = None

    @property
    def specialty(self) -> str:
        """Of the case."""
        return self.case.specialty

    @property
    def subspecialty(self) -> str:
        """Of the case."""
        return self.case.subspecialty

    def with_text(self, text: str) -> str:
        """The response as it would read with an edited reasoning, for stage 1 to check again."""
        return render(text, self.check.answer or "")


def trace_id(case_id: str, paradigm: str, teacher: str, sample: int, response: str) -> str:
    """The id of a trace."""
    whole = "\x1f".join((case_id, paradigm, teacher, str(sample), response))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]
