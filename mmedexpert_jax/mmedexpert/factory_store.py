"""The factory's data base, `factory.sqlite` in the run directory: cases, traces and the review's events."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.mmedexpert.record import Check, Judgement, RawCase, Trace
from mmedexpert_jax.processing.images import ImageRef
from mmedexpert_jax.remote.database import Database, read_once

FILE = "factory.sqlite"
# Keys of a stored case whose names differ from the attributes'; files that are there keep theirs.
RENAMED = {"kind": "asks", "subspecialty": "task"}
KEYS = (
    *("id", "source", "source_id", "split", "licence", "redistributable", "question", "options", "answer", "images"),
    *("step", "kind", "specialty", "specialty_by", "subspecialty", "paradigms", "field", "explanation", "flags"),
    "person",
)
TRACE_COLUMNS = "t.id, case_id, paradigm, text, response, teacher, sample, request, stage1, judge"
SCHEMA = """
CREATE TABLE IF NOT EXISTS images (sha256 TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cases (
  id TEXT PRIMARY KEY, position INTEGER NOT NULL, specialty TEXT NOT NULL, modality TEXT NOT NULL, record TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS traces (
  id TEXT PRIMARY KEY, case_id TEXT NOT NULL, paradigm TEXT NOT NULL, teacher TEXT NOT NULL, sample INTEGER NOT NULL,
  request TEXT NOT NULL, text TEXT NOT NULL, response TEXT NOT NULL, passed INTEGER NOT NULL, stage1 TEXT NOT NULL,
  judge TEXT
);
CREATE INDEX IF NOT EXISTS traces_of_case ON traces (case_id);
CREATE TABLE IF NOT EXISTS review_events (
  id INTEGER PRIMARY KEY, time TEXT NOT NULL, reviewer TEXT NOT NULL, role TEXT NOT NULL, trace_id TEXT NOT NULL,
  kind TEXT NOT NULL, value TEXT NOT NULL, seconds REAL, client_id TEXT UNIQUE
);
CREATE TRIGGER IF NOT EXISTS review_events_keep BEFORE UPDATE ON review_events
  BEGIN SELECT RAISE(ABORT, 'review_events is append-only'); END;
CREATE TRIGGER IF NOT EXISTS review_events_hold BEFORE DELETE ON review_events
  BEGIN SELECT RAISE(ABORT, 'review_events is append-only'); END;
"""


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Files and folders made in the block can be read by their owner alone: cases of patients stand in them."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@dataclass(frozen=True)
class StoredImage:
    """A picture in a factory's file."""

    path: Path
    sha256: str

    def __call__(self) -> bytes:
        """The encoded picture. Raises DataError where it has gone."""
        found = read_once(self.path, "SELECT data FROM images WHERE sha256 = ?", self.sha256)
        if not found:
            raise DataError(f"{self.path} holds the picture no longer; run the job again")
        return found[0][0]


class Store(Database):
    """The tables of one run.

    Replacing cases or traces never touches `review_events`: their trace ids stay valid, since an id is a function of
    what the trace says. `events` values are JSON. Answers, attempts and costs stand in tables that remote.Answers
    keeps, by default in the same file.
    """

    def __init__(self, path: str | Path):
        """Opens or creates the file. Raises DataError, ResourceError."""
        super().__init__(path, SCHEMA, "the factory's data base")

    def replace_cases(self, records: Iterable[RawCase]) -> None:
        """Makes `records`, in their order, the cases; traces of others go."""
        records = list(records)
        rows = [(r.id, i, r.specialty, r.modality, _record_json(r)) for i, r in enumerate(records)]
        pictures = {image.sha256: image.open() for record in records for image in record.images}

        def change(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM cases")
            db.execute("DELETE FROM images")
            db.executemany("INSERT INTO images VALUES (?, ?)", pictures.items())
            db.executemany("INSERT INTO cases VALUES (?, ?, ?, ?, ?)", rows)
            db.execute("DELETE FROM traces WHERE case_id NOT IN (SELECT id FROM cases)")

        self.write(change)

    def cases(self) -> list[RawCase]:
        """All records, in order."""
        return [self._record(text) for (text,) in self.read("SELECT record FROM cases ORDER BY position")]

    def count_cases(self) -> int:
        """The number of records, none of which is read for it."""
        return int(self.read("SELECT COUNT(*) FROM cases")[0][0])

    def case(self, case_id: str) -> RawCase:
        """One record. Raises DataError."""
        rows = self.read("SELECT record FROM cases WHERE id = ?", case_id)
        if not rows:
            raise DataError(f"{self.path}: no case {case_id}")
        return self._record(rows[0][0])

    def put_traces(self, traces: Iterable[Trace]) -> None:
        """Adds traces or replaces those with the same id."""
        rows = [
            (
                *(t.id, t.case.id, t.paradigm, t.teacher, t.sample, t.request, t.text, t.response),
                *(t.check.passed, json.dumps(asdict(t.check)), json.dumps(asdict(t.judge)) if t.judge else None),
            )
            for t in traces
        ]
        insert = f"INSERT OR REPLACE INTO traces VALUES ({', '.join('?' * 11)})"
        self.write(lambda db: db.executemany(insert, rows))

    def clear_traces(self) -> None:
        """Drops all traces; the answers they were read from stay, and so do review events."""
        self.write(lambda db: db.execute("DELETE FROM traces"))

    def traces(self, passed: bool | None = True) -> Iterator[Trace]:
        """Traces in the order of their cases, then paradigm and candidate; `passed` None gives all of them."""
        where = "" if passed is None else f"WHERE passed = {int(passed)}"
        records = {record.id: record for record in self.cases()}
        query = f"""SELECT {TRACE_COLUMNS} FROM traces t JOIN cases c ON c.id = t.case_id {where}
            ORDER BY position, paradigm, sample, t.id"""
        for row in self.read(query):
            yield _trace(row, records[row[1]])

    def trace(self, id: str) -> Trace:
        """One trace. Raises DataError."""
        rows = self.read(f"SELECT {TRACE_COLUMNS} FROM traces t WHERE t.id = ?", id)
        if not rows:
            raise DataError(f"{self.path}: no trace {id}")
        return _trace(rows[0], self.case(rows[0][1]))

    def put_fact(self, name: str, value: object) -> None:
        """Keeps a JSON value that a later stage needs, such as the counts of the collection."""
        text = json.dumps(value, ensure_ascii=False)
        self.write(lambda db: db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, text)))

    def fact(self, name: str) -> Any:
        """The value kept under a name; None for none."""
        rows = self.read("SELECT value FROM facts WHERE name = ?", name)
        return border.parse_json(rows[0][0], str(self.path)) if rows else None

    def _image(self, name: str, sha256: str) -> ImageRef:
        """A picture that stays in the file until it is asked for: those of all cases may be more than the memory."""
        image = ImageRef(name, StoredImage(self.path, sha256))
        image.__dict__["sha256"] = sha256  # the cached property, which would read the picture
        return image

    def _record(self, text: str) -> RawCase:
        values = border.parse_json(text, str(self.path))
        values["images"] = [self._image(name, sha) for name, sha in values["images"]]
        values["columns"] = {key: values.pop(key) for key in ("accepted",) if key in values}
        whole = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        fields: dict[str, Any] = {RENAMED.get(key, key): value for key, value in whole.items()}
        return RawCase(**fields)


def _record_json(record: RawCase) -> str:
    values = {key: getattr(record, RENAMED.get(key, key)) for key in KEYS}
    values["images"] = [(image.name, image.sha256) for image in record.images]
    if others := record.golds[1:]:
        values["accepted"] = others
    return json.dumps(values, ensure_ascii=False)


def _trace(row: tuple, record: RawCase) -> Trace:
    id, _, paradigm, text, response, teacher, sample, request, stage1, judge = row
    check = border.parse_json(stage1, f"stage 1 of trace {id}", Check)
    judgement = border.parse_json(judge, f"the judgement of trace {id}", Judgement) if judge else None
    return Trace(id, record, paradigm, text, response, teacher, sample, request, check, judgement)
