"""The page's view of a trace, without anything that a blinded reviewer must not see."""

from typing import Any

from mmedexpert_jax.data.case import LETTERS
from mmedexpert_jax.data.paradigms import PARADIGMS
from mmedexpert_jax.mmedexpert.record import Trace
from mmedexpert_jax.mmedexpert.review.adjudication import Review, Said, said
from mmedexpert_jax.mmedexpert.review.checks import problems
from mmedexpert_jax.mmedexpert.review.review_queue import Person, ReviewQueue
from mmedexpert_jax.mmedexpert.review.rubric import REASONS, RUBRIC


def session(person: Person, desk: ReviewQueue, blind: bool) -> dict[str, Any]:
    """The values that the page reads once."""
    return {
        "name": person.name,
        "role": person.role,
        "blind": blind,
        "reasons": [{"code": code, "text": text} for code, text in REASONS.items()],
        "progress": desk.progress(person),
    }


def item(trace: Trace, person: Person, desk: ReviewQueue, blind: bool) -> dict[str, Any]:
    """A trace as the page shows it to someone; other people's reviews only to an adjudicator, without names."""
    review, case = desk.review(person.name, trace.id), trace.case
    paradigm = PARADIGMS[trace.paradigm]
    shown = {
        "id": trace.id,
        "question": case.question,
        "options": [{"letter": letter, "text": text} for letter, text in zip(LETTERS, case.options, strict=False)],
        "answer": " or ".join(case.golds),
        "explanation": case.explanation,
        "specialty": " / ".join(name for name in (case.specialty, case.task) if name),
        "images": len(case.images),
        "flags": list(trace.check.flags),
        "paradigm": {"name": paradigm.name, "title": paradigm.title, "definition": paradigm.definition},
        "rubric": [{"code": c.code, "text": c.text} for c in RUBRIC[trace.paradigm]],
        "trace": trace.text,
        "problems": problems(trace, trace.text if review.text is None else review.text),
        "draft": draft(review),
    }
    if person.role == "adjudicator":
        views = said(desk.reviews(trace.id), "reviewer")
        shown["reviews"] = [opinion(view, "" if blind else name) for name, view in sorted(views.items())]
    if not blind:
        shown["teacher"] = trace.teacher
        shown["judge"] = trace.judge.score if trace.judge else None
    return shown


def draft(review: Review) -> dict[str, Any]:
    """Someone's marks and texts so far."""
    return {
        "rubric": review.rubric,
        "reasons": list(review.reasons),
        "note": review.note,
        "text": review.text,
        "verdict": {"kind": review.verdict.kind, "id": review.verdict.client_id} if review.verdict else None,
    }


def opinion(view: Said, name: str) -> dict[str, Any]:
    """A reviewer's verdict as an adjudicator sees it."""
    return {
        "name": name,
        "kind": view.kind,
        "reasons": [REASONS[code] for code in view.reasons if code in REASONS],
        "note": view.note,
        "text": view.text,
        "rubric": view.rubric,
    }
