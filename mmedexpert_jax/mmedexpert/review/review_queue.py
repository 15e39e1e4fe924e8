"""The review queue: it hands out traces, takes the reviewers' events, and counts what is left."""

import itertools
import statistics
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.record import Trace
from mmedexpert_jax.mmedexpert.review import events as trail
from mmedexpert_jax.mmedexpert.review.adjudication import (
    Review,
    Reviews,
    ReviewSettings,
    add,
    hash_fraction,
    misfit,
    said,
    status,
)
from mmedexpert_jax.mmedexpert.review.checks import MAX_CHARACTERS, problems
from mmedexpert_jax.mmedexpert.review.events import Event
from mmedexpert_jax.mmedexpert.review.rubric import RUBRIC

HELD_SECONDS = 600.0  # a trace handed out stays with its reviewer for so long after it was last asked for
RECENT = 50  # verdicts that a reviewer's pace is taken from


@dataclass(frozen=True)
class Person:
    """A reviewer's identity: a name and a role, "reviewer" or "adjudicator"."""

    name: str
    role: str


@dataclass(frozen=True)
class EventOutcome:
    """The outcome of an event: "stored", "known" (a retry) or "refused", and in that case why."""

    client_id: str
    result: str
    why: str = ""


class ReviewQueue:
    """Reviews of one set of traces. Threads share it; another process may append to the same trail.

    Order: the judge's score where there is one, the doubtful first; within it an own random order for everybody, so
    that two reviewers rarely meet and no position is favoured.
    """

    def __init__(self, store: Store, traces: Sequence[Trace], settings: ReviewSettings):
        both = set(settings.reviewers) & set(settings.adjudicators)
        if both:
            raise ConfigError(
                f"config.adjudicators: {min(both)} is among the reviewers; whoever adjudicates is another"
            )
        self.store = store
        self.settings = settings
        self.traces = {trace.id: trace for trace in traces}
        self._needed = {id: settings.needed(id) for id in self.traces}
        self._held: dict[str, dict[str, float]] = {}  # by trace: name -> when it was handed out
        self._orders: dict[str, list[str]] = {}
        self._lock = threading.RLock()
        self._begin()
        self._refresh()

    def _begin(self) -> None:
        """The state before the first event."""
        self._reviews: Reviews = {}
        self._known: set[str] = set()
        self._last, self._time = 0, ""  # position and time of the last event
        self._opened: dict[str, list[str]] = {}  # by name: traces, the last opened last
        self._paces: dict[str, list[float]] = {}  # by name: seconds of verdicts
        self._states = dict.fromkeys(self.traces, "open")  # as in adjudication.status
        self._given = dict.fromkeys(self.traces, 0)  # reviewers whose verdict stands
        self._decided: dict[str, set[str]] = {}  # by name: traces with a verdict that stands

    def announce(self) -> None:
        """Writes the settings to the trail, from which `adjudication.verdicts` reads them."""
        trail.append(self.store, [Event(trail.new_id(), "", "", "", "settings", asdict(self.settings))])

    def submit(self, person: Person, events: Sequence[Event]) -> list[EventOutcome]:
        """Stores events in their order; each is answered for once it is on disk, or refused with the reason."""
        with self._lock:
            self._refresh()
            return [self._take(person, event) for event in events]

    def queue(self, person: Person, count: int = 1, holding: Collection[str] = ()) -> list[Trace]:
        """The next traces for someone, who keeps `holding`; the one they had open and did not decide comes first."""
        with self._lock:
            self._refresh()
            now = time.monotonic()
            for id in holding:
                self._held.setdefault(id, {})[person.name] = now
            waiting = (id for id in self._candidates(person) if id not in holding and self._free(person, id, now))
            chosen = list(itertools.islice(waiting, count))
            for id in chosen:
                self._held.setdefault(id, {})[person.name] = now
            return [self.traces[id] for id in chosen]

    def review(self, name: str, trace_id: str) -> Review:
        """Someone's review of a trace so far."""
        with self._lock:
            self._refresh()
            return self._reviews.get(trace_id, {}).get(name) or Review("reviewer", {})

    def reviews(self, trace_id: str) -> dict[str, Review]:
        """Everybody's reviews of a trace so far."""
        with self._lock:
            self._refresh()
            return dict(self._reviews.get(trace_id, {}))

    def history(self, person: Person) -> list[tuple[str, str | None]]:
        """Traces that someone opened, each once, the last opened last, with the client_id of a standing verdict."""
        with self._lock:
            self._refresh()
            opened = self._opened.get(person.name, [])
            found = [(id, self._reviews[id][person.name].verdict) for id in opened]
            return [(id, verdict.client_id if verdict else None) for id, verdict in found]

    def status(self, trace_id: str) -> str:
        """As in adjudication.status."""
        return self._states[trace_id]

    def progress(self, person: Person | None = None) -> dict[str, Any]:
        """Counts of traces and verdicts, and the seconds left at the recent pace of everybody (None before any)."""
        with self._lock:
            self._refresh()
            counts = Counter(self._states.values())
            done = missing = 0
            for id, needed in self._needed.items():
                state, given = self._states[id], self._given[id]
                done += min(given, needed) + (state == "adjudicated")
                missing += (needed - given if state == "open" else 0) + (state == "conflict")
            paces = [pace for seconds in self._paces.values() for pace in seconds[-RECENT:]]
            pace = statistics.median(paces) if paces else None
            mine = len(self._decided.get(person.name, ())) if person else 0
            people = max(1, len(self.settings.reviewers))
            eta = pace * missing / people if pace is not None else None
            states = {state: counts[state] for state in ("open", "settled", "conflict", "adjudicated")}
            totals = {"traces": len(self.traces), "verdicts": done, "required": done + missing, "mine": mine}
            return totals | {"pace": pace, "eta": eta} | states

    def _refresh(self) -> None:
        """Takes in what has been appended to the trail, by this process or another."""
        events = trail.since(self.store, self._last)
        if events and events[0].time < self._time:  # of another place, taken in late: all is read again in order
            self._begin()
            events = trail.since(self.store)
        for event in events:
            self._last, self._time = max(self._last, event.id), event.time
            self._known.add(event.client_id)
            if event.trace_id not in self.traces:
                continue
            add(self._reviews, event)
            self._count(event)
            if event.kind == "opened":
                opened = self._opened.setdefault(event.reviewer, [])
                if event.trace_id in opened:
                    opened.remove(event.trace_id)
                opened.append(event.trace_id)
            elif event.kind == "verdict" and event.seconds is not None:
                self._paces.setdefault(event.reviewer, []).append(event.seconds)

    def _count(self, event: Event) -> None:
        id, of_trace = event.trace_id, self._reviews[event.trace_id]
        self._states[id] = status(of_trace, self._needed[id])
        self._given[id] = len(said(of_trace, "reviewer"))
        decided = self._decided.setdefault(event.reviewer, set())
        (decided.add if of_trace[event.reviewer].verdict else decided.discard)(id)

    def _take(self, person: Person, event: Event) -> EventOutcome:
        if event.client_id in self._known:
            return EventOutcome(event.client_id, "known")
        event = replace(event, reviewer=person.name, role=person.role)
        trace = self.traces.get(event.trace_id)
        why = "no such trace" if trace is None else _malformed(trace, event)
        if not why and trace is not None and event.kind in ("verdict", "undo"):
            event, why = self._decide(trace, event)
        if why:
            return EventOutcome(event.client_id, "refused", why)
        trail.append(self.store, [event])
        self._refresh()
        if event.kind == "verdict":
            self._held.get(event.trace_id, {}).pop(event.reviewer, None)
        return EventOutcome(event.client_id, "stored")

    def _decide(self, trace: Trace, event: Event) -> tuple[Event, str]:
        """A verdict with all that it rests on, so that its event can be read by itself; an undo as it is."""
        review = self._reviews.get(trace.id, {}).get(event.reviewer) or Review(event.role, {})
        if event.kind == "undo":
            standing = review.verdict.client_id if review.verdict else None
            return event, "" if event.value["verdict"] == standing else "this verdict does not stand any more"
        kind, text = event.value["kind"], review.text
        if kind == "accept" and text is not None and text.strip() != trace.text.strip():
            if found := problems(trace, text):
                return event, f"the edited trace does not pass: {found[0]}"
            kind = "edit"
        if kind == "reject" and not review.reasons:
            return event, "a rejection needs a reason"
        value = {"kind": kind, "text": text.strip() if kind == "edit" and text else None}
        value |= {"reasons": list(review.reasons), "note": review.note, "rubric": review.rubric}
        return replace(event, value=value), ""

    def _candidates(self, person: Person) -> Iterator[str]:
        """Traces that wait for someone, in their order: what they had open, then the rest, then what they put off."""
        name = person.name
        if name not in self._orders:
            self._orders[name] = sorted(self.traces, key=lambda id: self._rank(name, id))
        wanted = "conflict" if person.role == "adjudicator" else "open"
        decided, later = self._decided.get(name, set()), []
        last = self._opened.get(name, [])[-1:]
        for id in itertools.chain(last, (id for id in self._orders[name] if id not in last)):
            if self._states[id] != wanted or id in decided:
                continue
            review = self._reviews.get(id, {}).get(name)
            if review and review.skipped:
                later.append(id)
            else:
                yield id
        yield from later

    def _rank(self, name: str, trace_id: str) -> tuple[float, float]:
        judge = self.traces[trace_id].judge
        return judge.score if judge else 0.0, hash_fraction(self.settings.seed, f"{name}:{trace_id}")

    def _free(self, person: Person, id: str, now: float) -> bool:
        """True for a trace that still lacks someone, counting those who have it before them."""
        given = said(self._reviews.get(id, {}), person.role)
        holders = (name for name, at in self._held.get(id, {}).items() if now - at < HELD_SECONDS)
        others = (name for name in holders if name != person.name and name not in given)
        decides = person.role == "adjudicator"
        before = [name for name in others if (name in self.settings.adjudicators) == decides]
        needed = 1 if decides else self._needed[id]
        return len(given) + len(before) < needed


def _malformed(trace: Trace, event: Event) -> str:
    """The reason why an event of the page cannot be taken; "" for none."""
    value, text = event.value, event.value.get("text")
    criteria = {criterion.code for criterion in RUBRIC[trace.paradigm]}
    return misfit(
        event,
        opened=lambda: not value,
        skip=lambda: not value,
        rubric=lambda: value["criterion"] in criteria and value["met"] in (True, False, None),
        note=lambda: isinstance(text, str) and len(text) <= MAX_CHARACTERS,
        edit=lambda: text is None or (isinstance(text, str) and len(text) <= MAX_CHARACTERS),
        verdict=lambda: value["kind"] in ("accept", "reject"),
        settings=lambda: False,
    )
