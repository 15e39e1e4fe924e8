"""Verdicts from and for other tools: what Label Studio and Argilla share, and the trail itself as JSON lines."""

import base64
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.answers import lettered
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.record import Trace
from mmedexpert_jax.mmedexpert.review.adjudication import misfit, read_reviews, said, status, verdict
from mmedexpert_jax.mmedexpert.review.checks import problems
from mmedexpert_jax.mmedexpert.review.events import Event, append, dumps, since
from mmedexpert_jax.mmedexpert.review.review_traces import encoded
from mmedexpert_jax.mmedexpert.review.rubric import REASONS, VERDICTS

NAMESPACE = uuid.UUID("6f0f8f8e-3c0d-4d0a-9a53-6f7a4e0f7a11")  # of ids that are a function of what they name


@dataclass(frozen=True)
class Opinion:
    """A verdict that comes from another tool."""

    trace_id: str  # of the trace
    reviewer: str  # name
    kind: str  # one of rubric.VERDICTS; "accept" with a changed text counts as "edit"
    text: str | None  # reasoning as the tool holds it; None where it has none
    reasons: tuple[str, ...] = ()  # codes of rubric.REASONS
    note: str = ""  # free text
    seconds: float | None = None  # time taken; None where the tool does not say


def take_in(store: Store, traces: Sequence[Trace], opinions: Iterable[Opinion], tool: str) -> dict[str, int]:
    """Appends opinions to the trail as verdicts; the same opinion twice is stored once.

    Returns:
        Counts: "stored", "known", and by reason those left out.
    """
    by_id = {trace.id: trace for trace in traces}
    trail, reviews, settings = read_reviews(store)
    known = {event.client_id: event for event in trail}
    counts: Counter[str] = Counter()
    events = []
    opinions = list(opinions)
    last = {(opinion.trace_id, opinion.reviewer): place for place, opinion in enumerate(opinions)}
    for place, opinion in enumerate(opinions):
        trace = by_id.get(opinion.trace_id)
        if trace is None:
            counts["no such trace"] += 1
            continue
        value, why = _value(trace, opinion)
        if opinion.reviewer in settings.adjudicators:
            why = "of an adjudicator, who decides on the page"
        if why:
            counts[why] += 1
            continue
        id = str(uuid.uuid5(NAMESPACE, dumps([tool, opinion.reviewer, trace.id, value])))
        value |= {"from": tool}
        standing = said(reviews.get(trace.id, {}), "reviewer").get(opinion.reviewer)
        if id in known and standing and last[trace.id, opinion.reviewer] == place:
            before = known[standing.client_id].value
            if before.get("from") == tool and before != value:  # a verdict that was changed there, and changed back
                id = str(uuid.uuid5(NAMESPACE, dumps([id, standing.client_id])))
        event = Event(id, opinion.reviewer, "reviewer", trace.id, "verdict", value, opinion.seconds)
        counts["known" if id in known else "stored"] += 1
        known.setdefault(id, event)
        events.append(event)
    append(store, events)
    return dict(counts)


def _value(trace: Trace, opinion: Opinion) -> tuple[dict[str, Any], str]:
    """The value of the verdict's event, and why it cannot be taken ("" if it can)."""
    if opinion.kind not in VERDICTS:
        return {}, "no verdict"
    if not _is_typed(opinion):
        return {}, "not readable"
    if any(code not in REASONS for code in opinion.reasons):
        return {}, "unknown reason code"
    kind, text = opinion.kind, (opinion.text or "").strip()
    if kind != "reject":
        kind = "edit" if text and text.split() != trace.text.split() else "accept"  # tools set spaces of their own
    if kind == "accept" and opinion.kind == "edit":
        return {}, "an edit that changes nothing"
    if kind == "edit" and problems(trace, text):
        return {}, "an edit that does not pass the checks"
    value = {"kind": kind, "text": text if kind == "edit" else None, "reasons": list(opinion.reasons)}
    return value | {"note": opinion.note, "rubric": {}}, ""


def _is_typed(opinion: Opinion) -> bool:
    """True where what another tool wrote is of the types, and can be stored."""
    texts = (opinion.reviewer, opinion.text or "", opinion.note, *opinion.reasons)
    seconds = opinion.seconds
    timed = seconds is None or (type(seconds) in (int, float) and 0 <= seconds < 1e9)
    return timed and all(isinstance(text, str) and text.encode("utf-8", "ignore").decode() == text for text in texts)


def given(store: Store) -> dict[str, dict[str, Opinion]]:
    """Verdicts that stand, by trace and reviewer, in the form that is passed on; adjudicators are left out."""
    return {
        id: {
            name: Opinion(id, name, view.kind, view.text, view.reasons, view.note, view.seconds)
            for name, view in said(of_trace, "reviewer").items()
        }
        for id, of_trace in read_reviews(store)[1].items()
    }


def case_text(trace: Trace) -> str:
    """Question, lettered options and the answer, for tools that show one text."""
    options = lettered(trace.case.options)
    return "\n".join([trace.case.question, *options, f"Answer: {' or '.join(trace.case.golds)}"])


def image_uris(trace: Trace) -> list[str]:
    """The images as data URIs."""
    found = (encoded(picture) for picture in trace.case.images)
    return [f"data:{kind};base64,{base64.b64encode(data).decode()}" for data, kind in found]


def read_list(path: Path) -> list[Any]:
    """The list in a JSON file. Raises DataError."""
    values = border.read_json(path)
    if not isinstance(values, list):
        raise DataError(f"{path} holds no list; export it again as JSON")
    return values


def write_trail(store: Store, traces: Sequence[Trace], folder: Path) -> list[Path]:
    """Writes verdicts.jsonl, a line per trace with its state, and events.jsonl, the whole trail."""
    events, reviews, settings = read_reviews(store)
    rows = []
    for trace in traces:
        of_trace, needed = reviews.get(trace.id, {}), settings.needed(trace.id)
        row = {"trace_id": trace.id, "case_id": trace.case.id, "paradigm": trace.paradigm, "specialty": trace.specialty}
        found = verdict(of_trace, needed)
        empty: dict[str, Any] = {"kind": None, "text": None, "reasons": [], "reviewers": []}
        rows.append(row | {"status": status(of_trace, needed)} | (asdict(found) if found else empty))
    paths = [folder / "verdicts.jsonl", folder / "events.jsonl"]
    for path, lines in zip(paths, (rows, [asdict(event) for event in events]), strict=True):
        border.write_jsonl(path, lines)
    return paths


def read_trail(store: Store, path: Path) -> dict[str, int]:
    """Appends the events of an events.jsonl from another place to the trail; those known already are left out, and of
    one reviewer's verdicts on a trace the later counts, wherever it was given.

    Raises:
        DataError: a line that is no event, named by its number; nothing is stored then.
    """
    events = []
    for number, values in border.read_jsonl(path, dict[str, Any]):
        try:
            event = Event(**values | {"id": 0})
            if why := misfit(event):
                raise ValueError(why)
            event = replace(event, time=_utc(event.time))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number}: no event of a review ({border.cut(str(error))})") from None
        if event.kind != "settings":
            events.append(event)
    known = {event.client_id for event in since(store)}
    append(store, events)
    new = len({event.client_id for event in events} - known)
    return {"stored": new, "known": len(events) - new}


def _utc(time: str) -> str:
    """A time as the trail writes it; "" for none. Raises ValueError."""
    if not time:
        return ""
    found = datetime.fromisoformat(time)
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return found.astimezone(UTC).isoformat(timespec="milliseconds")


def user_id(name: str) -> str:
    """An id for a name in tools that want UUIDs."""
    return str(uuid.uuid5(NAMESPACE, name))
