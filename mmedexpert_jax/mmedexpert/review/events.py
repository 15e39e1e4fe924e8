"""The audit trail: one event per action of a person, appended to `review_events` and never changed."""

import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.mmedexpert.factory_store import Store

ROLES = ("reviewer", "adjudicator")


@dataclass(frozen=True)
class Event:
    """One action."""

    client_id: str  # made by whoever acted, unique; a retry carries the same one and is stored once
    reviewer: str  # name; "" for the server itself
    role: str  # one of ROLES; "" for the server itself
    trace_id: str  # the trace that it is about; "" for settings
    kind: str  # "opened", "rubric", "reason", "note", "edit", "verdict", "undo", "skip", or "settings" of the server
    value: dict[str, Any] = field(default_factory=dict)  # what was done, JSON
    seconds: float | None = None  # time spent on the page with this trace before a verdict; None for other kinds
    time: str = ""  # UTC, when it was first stored
    id: int = 0  # position in the trail; 0 before it is stored


def append(store: Store, events: Iterable[Event]) -> None:
    """Stores events in one transaction, those whose client_id is known already left out.

    An event without a time gets the present one, or the last of the trail where a clock was set back meanwhile: what
    is done here comes after all that is there.
    """
    insert = """INSERT INTO review_events (time, reviewer, role, trace_id, kind, value, seconds, client_id)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (client_id) DO NOTHING"""
    events = list(events)

    def write(db: Any) -> None:
        [[last]] = db.execute("SELECT max(time) FROM review_events").fetchall()
        time = max(datetime.now(UTC).isoformat(timespec="milliseconds"), last or "")
        rows = [
            (e.time or time, e.reviewer, e.role, e.trace_id, e.kind, dumps(e.value), e.seconds, e.client_id)
            for e in events
        ]
        db.executemany(insert, rows)

    store.write(write)


def since(store: Store, id: int = 0) -> list[Event]:
    """Events stored after position `id`, in the order in which they happened: those of another place may come late."""
    rows = store.read(
        """SELECT client_id, reviewer, role, trace_id, kind, value, seconds, time, id FROM review_events
        WHERE id > ? ORDER BY time, id""",
        id,
    )
    return [
        Event(c, who, role, trace, kind, border.parse_json(v, f"{store.path}, event {n}", dict[str, Any]), secs, t, n)
        for c, who, role, trace, kind, v, secs, t, n in rows
    ]


def new_id() -> str:
    """A fresh client_id."""
    return str(uuid.uuid4())


def dumps(value: Any) -> str:
    """Strict JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
