"""From events to verdicts: what each reviewer has said of a trace, and what follows from all of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmedexpert_jax.data.order import seeded
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.review.events import ROLES, Event, since
from mmedexpert_jax.mmedexpert.review.rubric import REASONS, VERDICTS


@dataclass(frozen=True)
class Said:
    """A verdict of one person."""

    kind: str  # one of rubric.VERDICTS
    text: str | None  # the edited reasoning; None unless kind is "edit"
    reasons: tuple[str, ...]  # codes of rubric.REASONS
    note: str  # free text
    rubric: dict[str, bool]  # criterion code -> met
    client_id: str  # of the event
    seconds: float | None  # time on the page; None where it was not measured


@dataclass(frozen=True)
class Review:
    """One person's work on one trace: a draft that every action changes, and the verdict that stands."""

    role: str  # "reviewer" or "adjudicator"
    rubric: dict[str, bool]  # criterion code -> met, as far as marked
    reasons: tuple[str, ...] = ()  # codes, in the order of marking
    note: str = ""  # free text
    text: str | None = None  # edited reasoning; None while it is as written
    skipped: bool = False  # put off to the end of the queue
    verdict: Said | None = None  # None before one is given or after it is undone


@dataclass(frozen=True)
class Verdict:
    """The review's finding on a trace."""

    kind: str  # "accept", "edit" or "reject"
    text: str | None  # the edited reasoning; None unless kind is "edit"
    reasons: tuple[str, ...]  # codes of rubric.REASONS, of all whose verdict it is
    reviewers: tuple[str, ...]  # names; the adjudicator alone where one decided


@dataclass(frozen=True)
class ReviewSettings:
    """The settings of the last server; stored as an event, so that the trail alone gives the verdicts."""

    reviewers: tuple[str, ...] = ()  # names
    adjudicators: tuple[str, ...] = ()  # names
    overlap: float = 0.0  # share of the traces that several reviewers see
    raters: int = 2  # reviewers of each such trace
    seed: int = 0  # of the choice and of the order

    def needed(self, trace_id: str) -> int:
        """Reviewers that a trace asks for: `raters` for the overlap, as far as there are so many, else 1."""
        double = hash_fraction(self.seed, trace_id) < self.overlap
        return max(1, min(self.raters, len(self.reviewers))) if double else 1


def hash_fraction(seed: int, text: str) -> float:
    """A number in [0, 1) that depends on the seed and the text alone."""
    return int.from_bytes(seeded(seed, text)[:8], "big") / 2**64


def fold(review: Review | None, event: Event) -> Review:
    """The review after one more event of its reviewer."""
    review, value = review or Review(event.role, {}), event.value
    if event.kind == "rubric":
        rubric = {k: v for k, v in review.rubric.items() if k != value["criterion"]}
        return replace(review, rubric=rubric | ({} if value["met"] is None else {value["criterion"]: value["met"]}))
    if event.kind == "reason":
        others = tuple(code for code in review.reasons if code != value["code"])
        return replace(review, reasons=(*others, value["code"]) if value["on"] else others)
    if event.kind == "note":
        return replace(review, note=value["text"])
    if event.kind == "edit":
        return replace(review, text=value["text"])
    if event.kind == "skip":
        return replace(review, skipped=True)
    if event.kind == "verdict":
        standing = Said(
            value["kind"],
            value["text"],
            tuple(value["reasons"]),
            value.get("note", ""),  # a trail of another place may lack it, and the rubric
            value.get("rubric", {}),
            event.client_id,
            event.seconds,
        )
        return replace(review, verdict=standing, skipped=False)
    if event.kind == "undo" and review.verdict and review.verdict.client_id == value["verdict"]:
        return replace(review, verdict=None)
    return review


def misfit(event: Event, **own: Callable[[], bool]) -> str:
    """The reason why `fold` cannot take an event; "" for none. `own`: stricter tests by kind."""
    texts = (event.client_id, event.reviewer, event.role, event.trace_id, event.kind, event.time)
    if not all(isinstance(text, str) for text in texts):
        return "client_id, reviewer, role, trace_id, kind and time must be texts"
    if event.role not in ROLES and event.kind != "settings":  # a server's own
        return f"the role is one of {', '.join(ROLES)}"
    if not isinstance(event.seconds, (int, float, type(None))):
        return "seconds must be a number or null"
    value = event.value
    tests: dict[str, Callable[[], bool]] = {
        "settings": lambda: True,
        "opened": lambda: True,
        "skip": lambda: True,
        "rubric": lambda: isinstance(value["criterion"], str) and value["met"] in (True, False, None),
        "reason": lambda: value["code"] in REASONS and value["on"] in (True, False),
        "note": lambda: isinstance(value["text"], str),
        "edit": lambda: isinstance(value["text"], (str, type(None))),
        "verdict": lambda: _is_verdict(value),
        "undo": lambda: isinstance(value["verdict"], str),
    }
    right = (tests | own).get(event.kind)
    try:
        return "" if right and isinstance(value, dict) and right() else f"no such event: {event.kind}"
    except (KeyError, TypeError):
        return f"an event of kind {event.kind} lacks a field"


def _is_verdict(value: dict[str, Any]) -> bool:
    return (
        value["kind"] in VERDICTS
        and isinstance(value["text"], str if value["kind"] == "edit" else type(None))
        and isinstance(value["reasons"], list)
        and all(code in REASONS for code in value["reasons"])
        and isinstance(value.get("note", ""), str)
        and isinstance(value.get("rubric", {}), dict)
    )


Reviews = dict[str, dict[str, Review]]  # trace id -> reviewer -> review


def add(reviews: Reviews, event: Event) -> None:
    """Takes one event into the reviews, in place."""
    if event.trace_id:
        of_trace = reviews.setdefault(event.trace_id, {})
        review = fold(of_trace.get(event.reviewer), event)
        if event.kind == "verdict":  # the order is that of the verdicts, of which an adjudicator's last one counts
            of_trace.pop(event.reviewer, None)
        of_trace[event.reviewer] = review


def settings_of(events: Iterable[Event]) -> ReviewSettings:
    """The last settings among the events; the defaults where there are none."""
    values = [event.value for event in events if event.kind == "settings"]
    if not values:
        return ReviewSettings()
    last = values[-1]
    return ReviewSettings(**last | {name: tuple(last[name]) for name in ("reviewers", "adjudicators")})


def said(of_trace: Mapping[str, Review], role: str) -> dict[str, Said]:
    """Verdicts that stand, by name, of one role."""
    return {name: r.verdict for name, r in of_trace.items() if r.verdict and r.role == role}


def status(of_trace: Mapping[str, Review], needed: int) -> str:
    """ "adjudicated"; "conflict": two reviewers differ; "settled": as many as needed agree; else "open"."""
    if said(of_trace, "adjudicator"):
        return "adjudicated"
    views = said(of_trace, "reviewer").values()
    if len({(view.kind, view.text) for view in views}) > 1:
        return "conflict"
    return "settled" if len(views) >= needed else "open"


def verdict(of_trace: Mapping[str, Review], needed: int) -> Verdict | None:
    """The verdict on a trace; None while it is open or in conflict."""
    found = status(of_trace, needed)
    if found in ("open", "conflict"):
        return None
    views = said(of_trace, "adjudicator" if found == "adjudicated" else "reviewer")
    last = list(views.values())[-1]
    reasons = tuple(dict.fromkeys(code for view in views.values() for code in view.reasons))
    return Verdict(last.kind, last.text, last.reasons if found == "adjudicated" else reasons, tuple(views))


def verdicts(store: Store) -> dict[str, Verdict]:
    """Verdicts by trace id, from the audit trail alone; traces that are open or in conflict are left out."""
    _, reviews, settings = read_reviews(store)
    found = {id: verdict(of_trace, settings.needed(id)) for id, of_trace in reviews.items()}
    return {id: v for id, v in found.items() if v is not None}


def waiting(store: Store) -> dict[str, str]:
    """Traces that somebody has given a verdict on and that wait for more: "open" for another reviewer, "conflict" for
    an adjudicator."""
    _, reviews, settings = read_reviews(store)
    states = {id: status(of_trace, settings.needed(id)) for id, of_trace in reviews.items()}
    return {
        id: state for id, state in states.items() if state in ("open", "conflict") and said(reviews[id], "reviewer")
    }


def read_reviews(store: Store) -> tuple[list[Event], Reviews, ReviewSettings]:
    """The whole trail, the reviews that it adds up to, and the settings that it holds."""
    events, reviews = since(store), Reviews()
    for event in events:
        add(reviews, event)
    return events, reviews, settings_of(events)
