"""Transactions of the stores: all or nothing, and one line where the disk takes nothing more."""

import sqlite3

import pytest

from mmedexpert_jax.errors import DataError, ResourceError
from mmedexpert_jax.remote import Answers, EndpointReply
from mmedexpert_jax.remote.database import Database
from mmedexpert_jax.remote.protocol import Attempt


def attempt(**fields) -> Attempt:
    return Attempt(**{"key": "k", "started": 0.0, "seconds": 0.0, "status": 200, "outcome": "answered"} | fields)


def test_after_a_failure_the_next_answer_is_stored(answers):
    with pytest.raises(sqlite3.IntegrityError):
        answers.put([attempt(), attempt(outcome=None)], [EndpointReply("k")])
    assert answers.attempts("k") == [] and answers.get("k") is None
    answers.put([attempt()], [EndpointReply("k", "B")])
    assert answers.attempts("k") == [attempt()] and answers.get("k").text == "B"


def test_a_full_disk_is_one_line_and_what_was_stored_stays(answers):
    answers.put([attempt()], [EndpointReply("k", "B")])
    (pages,) = answers.read("PRAGMA page_count")[0]
    answers.read(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(ResourceError, match=r"cannot write .*answers\.sqlite: .* full; free some space"):
        answers.put([attempt(key="l")], [EndpointReply("l", "x" * 10**6)])
    assert answers.get("k").text == "B" and answers.get("l") is None
    answers.read("PRAGMA max_page_count = 100000")
    answers.put([attempt(key="l")], [EndpointReply("l", "C")])
    assert answers.get("l").text == "C" and len(answers.attempts("l")) == 1


def test_what_is_no_data_base_or_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "text.sqlite").write_text("no data base" * 99)
    with pytest.raises(DataError, match=r"text\.sqlite is not a store of answers"):
        Answers(tmp_path / "text.sqlite")
    with pytest.raises(ResourceError, match=r"cannot write .*a\.sqlite: unable to open"):
        Database(tmp_path / "nowhere" / "a.sqlite", "", "a store")
