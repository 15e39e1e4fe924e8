"""The data base that stages and review share, the local teacher, and the embedded raw cases."""

import pickle
import sqlite3
from dataclasses import replace

import pytest

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.mmedexpert import raw_embedded
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.local_teacher import LocalTeacher
from mmedexpert_jax.mmedexpert.record import Check, Judgement, RawCase, Trace, held
from mmedexpert_jax.mmedexpert.sources import collect
from mmedexpert_jax.mmedexpert.sources.raw_collection import EMBEDDED
from mmedexpert_jax.remote import Answers, Request

ORIGIN = {"source": "x", "source_id": "1", "licence": "MIT", "redistributable": True, "task": "urology"}
RECORD = RawCase("x-1", "What is it?", ("a", "b"), "A", images=(held("p.png", b"abc"),), asks="diagnosis", **ORIGIN)
TRACE = Trace("t-1", RECORD, "intuitive", "text", "response", "teacher", 0, "key", Check(True, "A", (), ("flag",)))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "factory.sqlite")


def test_records_and_traces_come_back_as_they_went_in(store):
    judged = replace(TRACE, id="t-2", sample=1, judge=Judgement(0.5, (("facts", True), ("grounded", False)), "j"))
    failed = replace(TRACE, id="t-3", sample=2, check=Check(False, None, ("malformed",)))
    store.replace_cases([RECORD])
    store.put_traces([failed, judged, TRACE])
    assert store.cases() == [RECORD] and store.case("x-1") == RECORD
    assert store.case("x-1").images[0].plain() == b"abc"
    assert list(store.traces()) == [TRACE, judged] and store.trace("t-3") == failed
    assert len(list(store.traces(passed=None))) == 3
    with pytest.raises(DataError, match="no trace t-9"):
        store.trace("t-9")


def test_pictures_of_cases_stay_in_the_file(store):
    large = held("p.png", bytes(1 << 20))
    store.replace_cases([replace(RECORD, images=(large,))])
    (found,) = store.cases()[0].images
    assert len(pickle.dumps(found)) < 2000 and found.sha256 == large.sha256
    assert pickle.loads(pickle.dumps(found)).open() == large.open()
    store.replace_cases([])
    with pytest.raises(DataError, match="holds the picture no longer"):
        found.open()


def test_cases_keep_their_order_and_traces_of_others_go(store):
    others = [replace(RECORD, id=f"x-{i}", images=()) for i in (3, 2)]
    store.replace_cases([RECORD])
    store.put_traces([TRACE])
    store.replace_cases(others)
    assert [record.id for record in store.cases()] == ["x-3", "x-2"] and store.count_cases() == 2
    assert not list(store.traces(passed=None))


def test_review_events_can_only_be_added(store):
    columns = "time, reviewer, role, trace_id, kind, value"
    store.write(lambda db: db.execute(f"INSERT INTO review_events ({columns}) VALUES (1, 2, 3, 4, 5, 6)"))
    for change in ("UPDATE review_events SET time = 0", "DELETE FROM review_events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            store.write(lambda db, change=change: db.execute(change))
    store.clear_traces()
    assert store.read("SELECT COUNT(*) FROM review_events") == [(1,)]


def test_a_broken_file_is_one_line(tmp_path):
    (tmp_path / "factory.sqlite").write_bytes(b"no data base at all" * 99)
    with pytest.raises(DataError, match="not the factory's data base"):
        Store(tmp_path / "factory.sqlite")


def test_a_local_teacher_answers_whole_parts_once(tmp_path):
    parts = []

    def answer(conversations, ids):
        parts.append(len(conversations))
        return [
            (f"{turns[0]['content']} {id % 7}", 3, index == 0)
            for index, (turns, id) in enumerate(zip(conversations, ids, strict=True))
        ]

    answers = Answers(tmp_path / "a.sqlite")
    requests = [Request([{"role": "user", "content": str(i)}]) for i in range(10)]
    teacher = LocalTeacher("m", {"temperature": 0.7}, answer, answers, batch_size=4)
    first = teacher.ask(requests)
    assert parts == [4, 4, 2] and [r.finish for r in first][:2] == ["length", "stop"]
    assert [r.text for r in teacher.ask(requests)] == [r.text for r in first] and len(parts) == 3
    assert answers.totals()["completion_tokens"] == 30
    LocalTeacher("m", {"temperature": 0.9}, answer, answers, batch_size=4).ask(requests[:1])
    assert parts[3:] == [1]


def test_the_embedded_raw_cases_are_what_their_recipe_makes(tmp_path):
    raw_embedded.write(tmp_path)
    for name in ("text.jsonl", "images.parquet"):
        assert (tmp_path / name).read_bytes() == (EMBEDDED / name).read_bytes()


def test_the_embedded_raw_cases_show_what_a_collection_counts():
    found = collect(["embedded"])
    whats = {what for _, what in found.counts}
    assert {"rejected:no-such-key", "repaired:options-in-question", "kept", "read"} <= whats
    assert all(record.redistributable and record.licence and not record.specialty for record in found.records)
