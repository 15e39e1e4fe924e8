"""The store of answers: every answer once, under the content address of its request, and every attempt."""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mmedexpert_jax.remote.database import Database
from mmedexpert_jax.remote.protocol import Attempt, Reply, Usage

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL, started REAL NOT NULL, seconds REAL NOT NULL, status INTEGER NOT NULL,
  outcome TEXT NOT NULL, detail TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL, cost REAL NOT NULL, response_id TEXT NOT NULL,
  host TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS attempts_of_key ON attempts (key);
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, host TEXT NOT NULL, collected INTEGER NOT NULL);
"""
_COLUMNS = "key, started, seconds, status, outcome, detail, prompt_tokens, completion_tokens, cached_tokens, "
_COLUMNS += "reasoning_tokens, cost, response_id, host"


class Answers(Database):
    """Answers and attempts in one file.

    An answer is committed before anyone sees it, so a killed process loses no answer that came back. Nothing that
    could hold a key is written.
    """

    def __init__(self, path: str | Path):
        """Opens or creates the file. Raises DataError, ResourceError."""
        super().__init__(path, SCHEMA, "a store of answers")

    def get(self, key: str) -> Reply | None:
        """The stored answer, marked as stored; None where there is none."""
        rows = self.read("SELECT reply FROM answers WHERE key = ?", key)
        if not rows:
            return None
        values = json.loads(rows[0][0])
        return Reply(**values | {"key": key, "usage": Usage(**values["usage"]), "stored": True})

    def put(self, attempts: Iterable[Attempt], replies: Iterable[Reply] = ()) -> None:
        """Stores attempts and the answers they gave, all or nothing. An answer that is there stays.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        rows = [
            (
                *(a.key, a.started, a.seconds, a.status, a.outcome, a.detail),
                *(a.usage.prompt, a.usage.completion, a.usage.cached, a.usage.reasoning, a.cost, a.response_id, a.host),
            )
            for a in attempts
        ]
        answers = [(reply.key, json.dumps(asdict(replace(reply, stored=False)))) for reply in replies]

        def change(db: sqlite3.Connection) -> None:
            db.executemany(f"INSERT INTO attempts ({_COLUMNS}) VALUES ({', '.join('?' * 13)})", rows)
            db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", answers)

        self.write(change)

    def attempts(self, key: str) -> list[Attempt]:
        """The history of a request, oldest first."""
        rows = self.read(f"SELECT {_COLUMNS} FROM attempts WHERE key = ? ORDER BY id", key)
        return [_attempt(*row) for row in rows]

    def spent(self) -> float:
        """Dollars of all attempts."""
        return float(self.read("SELECT COALESCE(SUM(cost), 0) FROM attempts")[0][0])

    def totals(self) -> dict[str, float]:
        """Sums over all attempts: "attempts", "prompt_tokens", "completion_tokens", "cost", and counts by outcome."""
        (sums,) = self.read(
            "SELECT COUNT(*), COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0), "
            "COALESCE(SUM(cost), 0) FROM attempts"
        )
        counts = self.read("SELECT outcome, COUNT(*) FROM attempts GROUP BY outcome ORDER BY outcome")
        return dict(zip(("attempts", "prompt_tokens", "completion_tokens", "cost"), sums, strict=True)) | dict(counts)

    def add_batch(self, id: str, host: str) -> None:
        """Remembers a submitted batch."""
        self.write(lambda db: db.execute("INSERT OR IGNORE INTO batches VALUES (?, ?, 0)", (id, host)))

    def close_batch(self, id: str) -> None:
        """Marks a batch as collected."""
        self.write(lambda db: db.execute("UPDATE batches SET collected = 1 WHERE id = ?", (id,)))

    def known_batches(self) -> set[str]:
        """Ids of all batches ever remembered."""
        return {id for (id,) in self.read("SELECT id FROM batches")}

    def open_batches(self, host: str) -> list[str]:
        """Ids of a host's batches that are not collected yet, oldest first."""
        rows = self.read("SELECT id FROM batches WHERE collected = 0 AND host = ? ORDER BY rowid", host)
        return [id for (id,) in rows]


def _attempt(*row: Any) -> Attempt:
    key, started, seconds, status, outcome, detail, *tokens, cost, response_id, host = row
    return Attempt(key, started, seconds, status, outcome, detail, Usage(*tokens), cost, response_id, host)
