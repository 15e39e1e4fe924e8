"""Report of a review: coverage, verdicts, agreement by paradigm, pace. Numbers, and a text to read."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mmedexpert_jax.data.case import PARADIGMS
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.record import Trace
from mmedexpert_jax.mmedexpert.review.adjudication import Reviews, ReviewSettings, read_reviews, said, status
from mmedexpert_jax.mmedexpert.review.agreement import agreement
from mmedexpert_jax.mmedexpert.review.rubric import VERDICTS
from mmedexpert_jax.report import Figure

KEPT = ("kept", "rejected")  # accept and edit taken together, against reject


def ratings(reviews: Reviews, traces: Sequence[Trace]) -> list[dict[str, str]]:
    """Per trace, reviewer -> kind of the verdict; adjudicators, who saw the others, do not count."""
    return [{name: view.kind for name, view in said(reviews.get(t.id, {}), "reviewer").items()} for t in traces]


def summary(store: Store, traces: Sequence[Trace], settings: ReviewSettings | None = None) -> dict[str, Any]:
    """Figures of a review from its trail; `settings` None takes those that the trail holds.

    Agreement, in all and by paradigm, is on the three verdicts (`verdict`) and on kept against rejected (`kept`).
    """
    events, reviews, own = read_reviews(store)
    settings = settings or own
    groups: dict[str, list[Trace]] = {"all": list(traces)}
    groups |= {name: [t for t in traces if t.paradigm == name] for name in PARADIGMS}
    tables = {name: _agreements(ratings(reviews, chosen)) for name, chosen in groups.items() if chosen}
    states = Counter(status(reviews.get(t.id, {}), settings.needed(t.id)) for t in traces)
    by_name: dict[str, list[Any]] = {}
    for trace in traces:
        for name, review in reviews.get(trace.id, {}).items():
            if review.verdict:
                by_name.setdefault(name, []).append(review.verdict)
    people: dict[str, dict[str, Any]] = {}
    for name, views in sorted(by_name.items()):
        seconds = [view.seconds for view in views if view.seconds is not None]
        people[name] = {
            "verdicts": len(views),
            **{kind: sum(view.kind == kind for view in views) for kind in VERDICTS},
            "median_seconds": round(statistics.median(seconds), 1) if seconds else None,
        }
    reasons = Counter(code for views in by_name.values() for view in views for code in view.reasons)
    return {
        "traces": len(traces),
        "states": {state: states[state] for state in ("settled", "adjudicated", "conflict", "open")},
        "events": len(events),
        "agreement": tables,
        "people": people,
        "reasons": dict(reasons.most_common()),
    }


def _agreements(rated: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    kept = [{name: KEPT[kind == "reject"] for name, kind in one.items()} for one in rated]
    return {"verdict": asdict(agreement(rated, VERDICTS)), "kept": asdict(agreement(kept, KEPT))}


def markdown(figures: Mapping[str, Any]) -> str:
    """`summary` as a page of Markdown."""
    states = ", ".join(f"{count} {state}" for state, count in figures["states"].items())
    lines = [f"{figures['traces']} traces: {states}; {figures['events']} events.", ""]
    for kind, title in (("verdict", "accept, edit, reject"), ("kept", "kept (accept or edit) against rejected")):
        lines += [
            f"## Agreement: {title}",
            "",
            "| paradigm | traces | raters | raw | kappa | AC1 |",
            "|---|---|---|---|---|---|",
        ]
        lines += [f"| {name} | {_row(tables[kind])} |" for name, tables in figures["agreement"].items()]
        lines += [""]
    lines += [
        "95 % intervals: Wilson's for raw agreement, bootstrap over traces for the others. Kappa is Cohen's; with more",
        "than two raters it is Conger's, and raw agreement and AC1 are means over pairs (Gwet 2014). Traces with two",
        "reviewers or more count; adjudicators do not. - : not defined.",
        "",
        "## People",
        "",
        "| name | verdicts | accept | edit | reject | median seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in figures["people"].items():
        cells = " | ".join("-" if value is None else f"{value:g}" for value in row.values())
        lines.append(f"| {name.replace('|', '/')} | {cells} |")
    if figures["reasons"]:
        lines += ["", "Reasons: " + ", ".join(f"{code} {count}" for code, count in figures["reasons"].items()) + "."]
    return "\n".join(lines) + "\n"


def _row(values: Mapping[str, Any]) -> str:
    """The cells of an `Agreement`, as a dict."""
    cells = [str(values["traces"]), str(values["raters"])]
    for name in ("raw", "kappa", "ac1"):
        found = values[name]
        cells.append("-" if found["value"] is None else Figure(**found, decimals=3).short)
    return " | ".join(cells)
