"""Events, verdicts and queues, without a server."""

import sqlite3
from collections import Counter
from dataclasses import replace

import pytest

from mmedexpert_jax.data.case import PARADIGMS, Case
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.mmedexpert import review
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.record import Judgement
from mmedexpert_jax.mmedexpert.review import review_report
from mmedexpert_jax.mmedexpert.review.adjudication import ReviewSettings
from mmedexpert_jax.mmedexpert.review.events import Event, append, new_id, since
from mmedexpert_jax.mmedexpert.review.review_queue import Person, ReviewQueue
from mmedexpert_jax.mmedexpert.review.review_traces import from_case

ANNA, BEN, CHIEF = Person("anna", "reviewer"), Person("ben", "reviewer"), Person("chief", "adjudicator")
TRACES = {
    "differential": "(1) Gout and sepsis compete. (2) Gout is unlikely without crystals. (3) Sepsis fits.",
    "intuitive": "(1) Fever with a hot joint. (2) This pattern is typical of sepsis.",
    "analytical": "(1) Fever means inflammation. (2) Crystals are absent, so it is sepsis.",
    "bayesian": "(1) The prior of sepsis is low. (2) Fever raises it. (3) The posterior favours sepsis.",
}


def trace(index: int):
    paradigm = PARADIGMS[index % 4]
    return from_case(
        Case(
            f"c{index}", f"Case {index}. What is it?", ("gout", "sepsis"), "B", "AM", "", (), paradigm, TRACES[paradigm]
        )
    )


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "review.sqlite")
    yield store
    store.close()


def make(store, count=8, overlap=1.0, reviewers=("anna", "ben"), adjudicators=("chief",), raters=2) -> ReviewQueue:
    desk = ReviewQueue(
        store, [trace(i) for i in range(count)], ReviewSettings(reviewers, adjudicators, overlap, raters)
    )
    desk.announce()
    return desk


def do(desk: ReviewQueue, person: Person, trace_id: str, kind: str, value: dict | None = None, seconds=None):
    answer = desk.submit(person, [Event(new_id(), "", "", trace_id, kind, value or {}, seconds)])[0]
    return answer


def say(
    desk: ReviewQueue, person: Person, trace_id: str, kind: str, text: str | None = None, reason: str = "medical_error"
):
    if kind == "reject":
        do(desk, person, trace_id, "reason", {"code": reason, "on": True})
    if text is not None:
        do(desk, person, trace_id, "edit", {"text": text})
    return do(desk, person, trace_id, "verdict", {"kind": kind}, 2.0)


def test_two_who_agree_settle_a_trace(store):
    desk = make(store)
    id = next(iter(desk.traces))
    assert say(desk, ANNA, id, "accept").result == "stored"
    assert review.verdicts(store) == {} and desk.status(id) == "open"
    assert set(review.waiting(store)) == {id}
    say(desk, BEN, id, "accept")
    assert review.verdicts(store) == {id: review.Verdict("accept", None, (), ("anna", "ben"))}


def test_where_two_differ_a_third_decides(store):
    desk = make(store)
    id = next(iter(desk.traces))
    assert desk.queue(CHIEF, 5) == []
    say(desk, ANNA, id, "accept")
    say(desk, BEN, id, "reject")
    assert desk.status(id) == "conflict" and review.verdicts(store) == {} and set(review.waiting(store)) == {id}
    assert [t.id for t in desk.queue(CHIEF, 5)] == [id]
    say(desk, CHIEF, id, "reject", reason="unsafe_advice")
    assert review.verdicts(store)[id] == review.Verdict("reject", None, ("unsafe_advice",), ("chief",))
    assert not review.waiting(store) and desk.queue(CHIEF, 5) == [] and desk.progress(CHIEF)["adjudicated"] == 1


def test_different_edits_are_a_conflict(store):
    desk = make(store)
    id = next(id for id, t in desk.traces.items() if t.paradigm == "analytical")
    first, second = (TRACES["analytical"] + f" (3) So the answer stands, {i}." for i in range(2))
    say(desk, ANNA, id, "accept", first)
    say(desk, BEN, id, "accept", second)
    assert desk.status(id) == "conflict"
    say(desk, CHIEF, id, "accept", second)
    assert review.verdicts(store)[id] == review.Verdict("edit", second, (), ("chief",))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("Sepsis, since it fits.", "numbered"),
        ("(1) <answer>A</answer> because. (2) So sepsis.", "tags"),
        ("(1) Hot joint. (2) Sepsis.", "moves of Analytical Reasoning"),
    ],
)
def test_an_edit_is_checked_again(store, text, why):
    desk = make(store)
    id = next(id for id, t in desk.traces.items() if t.paradigm == "analytical")
    answer = say(desk, ANNA, id, "accept", text)
    assert answer.result == "refused" and why in answer.why
    assert desk.review("anna", id).verdict is None and desk.review("anna", id).text == text


def test_undo_takes_back_what_stands_and_only_that(store):
    desk = make(store, overlap=0)
    id = next(iter(desk.traces))
    verdict = say(desk, ANNA, id, "reject").client_id
    assert id in review.verdicts(store)
    assert do(desk, ANNA, id, "undo", {"verdict": "another"}).result == "refused"
    assert do(desk, BEN, id, "undo", {"verdict": verdict}).result == "refused"
    assert do(desk, ANNA, id, "undo", {"verdict": verdict}).result == "stored"
    assert review.verdicts(store) == {} and desk.review("anna", id).reasons == ("medical_error",)
    assert Counter(event.kind for event in since(store)) == {"settings": 1, "reason": 1, "verdict": 1, "undo": 1}


def test_a_rejection_needs_a_reason_and_events_must_be_known(store):
    desk = make(store)
    id = next(iter(desk.traces))
    assert "reason" in do(desk, ANNA, id, "verdict", {"kind": "reject"}).why
    for kind, value in [
        ("dance", {}),
        ("verdict", {"kind": "perhaps"}),
        ("verdict", {}),
        ("reason", {"code": "dull", "on": True}),
        ("rubric", {"criterion": "prior-of-another", "met": True}),
        ("note", {"text": 3}),
    ]:
        assert do(desk, ANNA, id, kind, value).result == "refused", (kind, value)
    assert do(desk, ANNA, "nowhere", "skip").why == "no such trace"


def test_a_retry_is_stored_once(store):
    desk = make(store)
    id = next(iter(desk.traces))
    event = Event("one", "", "", id, "note", {"text": "x"})
    assert [desk.submit(ANNA, [event])[0].result for _ in range(3)] == ["stored", "known", "known"]
    append(store, [event])
    assert sum(e.kind == "note" for e in since(store)) == 1


def test_the_trail_is_append_only(store):
    desk = make(store)
    say(desk, ANNA, next(iter(desk.traces)), "accept")
    for change in ("UPDATE review_events SET value = '{}'", "DELETE FROM review_events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            store.write(lambda db, change=change: db.execute(change))
    assert store.read("PRAGMA journal_mode") == [("wal",)]


def test_the_overlap_goes_to_two_and_the_rest_to_one(store):
    desk = make(store, count=60, overlap=0.3, reviewers=("anna", "ben", "carl"))
    people = [ANNA, BEN, Person("carl", "reviewer")]
    while handed := [(person, one) for person in people for one in desk.queue(person, 1)]:
        for person, one in handed:
            assert say(desk, person, one.id, "accept").result == "stored"
    given = Counter(event.trace_id for event in since(store) if event.kind == "verdict")
    assert set(given) == set(desk.traces) and set(given.values()) == {1, 2}
    assert given == {id: desk.settings.needed(id) for id in desk.traces}
    progress = desk.progress(ANNA)
    assert progress["verdicts"] == progress["required"] == sum(given.values()) and progress["eta"] == 0
    assert len(review.verdicts(store)) == 60


def test_a_trace_in_hand_is_not_handed_to_another(store):
    desk = make(store, count=4, overlap=0)
    first, second = desk.queue(ANNA, 2), desk.queue(BEN, 4)
    assert len(first) == 2 and len(second) == 2 and not {t.id for t in first} & {t.id for t in second}
    assert desk.queue(ANNA, 4, holding=[t.id for t in first]) == []


def test_what_was_open_comes_first_and_what_was_put_off_last(store):
    desk = make(store, count=6, overlap=0)
    order = [t.id for t in desk.queue(ANNA, 6)]
    do(desk, ANNA, order[0], "skip")
    do(desk, ANNA, order[3], "opened")
    again = make(store, count=6, overlap=0)  # the server starts anew
    assert [t.id for t in again.queue(ANNA, 6)] == [order[3], order[1], order[2], order[4], order[5], order[0]]


def test_the_judge_orders_and_reviewers_differ_in_order(store):
    scores = (0.9, 0.1, 0.5, 0.5)
    traces = [replace(trace(i), judge=Judgement(score, (), "judge")) for i, score in enumerate(scores)]
    desk = ReviewQueue(store, traces, ReviewSettings(("anna", "ben"), (), 1.0))
    assert [t.judge.score for t in desk.queue(ANNA, 4)] == sorted(scores)
    many = ReviewQueue(store, [trace(i) for i in range(20)], ReviewSettings(("anna", "ben"), (), 1.0))
    assert [t.id for t in many.queue(ANNA, 20)] != [t.id for t in many.queue(BEN, 20)]


def test_whoever_adjudicates_is_another(store):
    with pytest.raises(ConfigError, match="anna is among the reviewers"):
        make(store, adjudicators=("anna",))


def test_another_process_may_append(store):
    desk, other = make(store), make(store)
    id = next(iter(desk.traces))
    say(desk, ANNA, id, "accept")
    assert other.review("anna", id).verdict.kind == "accept"


def test_the_report_says_who_agreed_on_what(store):
    desk = make(store)
    for i, id in enumerate(desk.traces):
        say(desk, ANNA, id, "accept")
        say(desk, BEN, id, "reject" if i == 0 else "accept")
    figures = review_report.summary(store, list(desk.traces.values()))
    assert figures["states"] == {"settled": 7, "adjudicated": 0, "conflict": 1, "open": 0}
    assert figures["agreement"]["all"]["kept"]["raw"]["value"] == 7 / 8
    assert figures["agreement"]["differential"]["verdict"]["traces"] == 2
    assert figures["people"]["ben"] == {"verdicts": 8, "accept": 7, "edit": 0, "reject": 1, "median_seconds": 2.0}
    assert figures["reasons"] == {"medical_error": 1}
    text = review_report.markdown(figures)
    assert "| all | 8 | 2 | 0.875 [" in text and "| bayesian | 2 | 2 | 1.000 [" in text
