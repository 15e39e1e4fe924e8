"""The store of answers: every answer once, under the content address of its request, and every attempt."""

import json
import os
import platform
import sqlite3
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.remote.database import Database
from mmedexpert_jax.remote.protocol import Attempt, EndpointReply, Usage

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL, started REAL NOT NULL, seconds REAL NOT NULL, status INTEGER NOT NULL,
  outcome TEXT NOT NULL, detail TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL, cost REAL NOT NULL, response_id TEXT NOT NULL,
  host TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS attempts_of_key ON attempts (key);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, host TEXT NOT NULL, collected INTEGER NOT NULL);
"""
CLAIM_SECONDS = 3600.0  # above what one request may take, its waits between tries included
_COLUMNS = (  # an Attempt's fields in their order, those of its Usage in the place of that
    "key, started, seconds, status, outcome, detail, prompt_tokens, completion_tokens, cached_tokens, "
    "reasoning_tokens, cost, response_id, host"
)
_said: set[tuple[Path, str]] = set()  # stores, and the hosts of their answers of which `say_elsewhere` has told


class Answers(Database):
    """Answers and attempts in one file.

    An answer is committed before anyone sees it, so a killed process loses no answer that came back. Nothing that
    could hold a key is written.
    """

    def __init__(self, path: str | Path):
        """Opens or creates the file. Raises DataError, ResourceError."""
        super().__init__(path, SCHEMA, "a store of answers")
        # a process number alone may come again after a reboot
        self._owner = f"{platform.node()} {os.getpid()} {_started(os.getpid())} {uuid.uuid4().hex[:8]}"

    def get(self, key: str) -> EndpointReply | None:
        """The stored answer, marked as stored; None where there is none."""
        rows = self.read("SELECT reply FROM answers WHERE key = ?", key)
        if not rows:
            return None
        values = border.parse_json(rows[0][0], f"{self.path}, an answer", dict[str, Any])
        values |= {"key": key, "usage": Usage(**values["usage"]), "stored": True}
        values |= {name: str(values.get(name, "")) for name in ("text", "finish", "reasoning", "model")}
        return EndpointReply(**values | {"left_out": tuple(values.get("left_out", ()))})

    def put(self, attempts: Iterable[Attempt], replies: Iterable[EndpointReply] = ()) -> None:
        """Stores attempts and the answers they gave, all or nothing. An answer that is there stays.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        rows = [_row(attempt) for attempt in attempts]
        answers = [(reply.key, json.dumps(asdict(replace(reply, stored=False)))) for reply in replies]

        def change(db: sqlite3.Connection) -> None:
            db.executemany(f"INSERT INTO attempts ({_COLUMNS}) VALUES ({', '.join('?' * 13)})", rows)
            db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", answers)
            db.executemany("DELETE FROM claims WHERE key = ? AND owner = ?", [(key, self._owner) for key, _ in answers])

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

    def served(self) -> list[tuple[str, tuple[str, ...], int]]:
        """(model that the server says has answered, fields that it refused, answers), the commonest first."""
        rows = self.read(
            "SELECT json_extract(reply, '$.model'), COALESCE(json_extract(reply, '$.left_out'), '[]'), COUNT(*) "
            "FROM answers GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
        )
        return [
            (str(model or ""), tuple(border.parse_json(left_out, str(self.path), list[str])), count)
            for model, left_out, count in rows
        ]

    def refused(self) -> int:
        """Answers that are a refusal, of the model or of a filter before or behind it."""
        found = self.read(
            "SELECT COUNT(*) FROM answers WHERE json_extract(reply, '$.finish') IN ('content_filter', 'refusal')"
        )
        return int(found[0][0])

    def say_elsewhere(self, host: str, keys: Iterable[str] | None = None) -> None:
        """Says, once, that stored answers, all or those of some keys, are of other hosts than the one asked now.

        A key has the model's name and no address, so that a server that moves is not paid twice; two servers may call
        two models alike.
        """
        answered = "SELECT DISTINCT host FROM attempts WHERE outcome = 'answered'"
        rows = (
            self.read(answered)
            if keys is None
            else [r for key in keys for r in self.read(f"{answered} AND key = ?", key)]
        )
        others = sorted(name for name in {name for (name,) in rows} - {host} if (self.path, name) not in _said)
        if others:
            print(
                f"{self.path}: answers of {', '.join(others)} stand for {host} too, where the model has the same name; "
                "if it is another model, choose another workdir or answers",
                flush=True,
            )
        _said.update((self.path, name) for name in others)

    def claim(self, key: str) -> bool:
        """Takes the right to ask for `key`; False where it is answered, or a living process has that right.

        Two runs on one store would otherwise both pay for what neither has an answer to yet.
        """
        taken = False

        def change(db: sqlite3.Connection) -> None:
            nonlocal taken
            if db.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone():
                return
            row = db.execute("SELECT owner, since FROM claims WHERE key = ?", (key,)).fetchone()
            if row and row[0] != self._owner and _is_alive(*row):
                return
            db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, self._owner, time.time()))
            taken = True

        self.write(change)
        return taken

    def release(self, key: str) -> None:
        """Gives the right to ask for `key` back."""
        self.write(lambda db: db.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner)))

    def release_all(self) -> None:
        """Gives all rights that `claim` took here back."""
        self.write(lambda db: db.execute("DELETE FROM claims WHERE owner = ?", (self._owner,)))

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


def _started(pid: int) -> str:
    """The start of a process, in ticks since boot; "-" where the system does not tell."""
    try:  # the fields after the name, which may hold spaces: the first is number 3, the start is number 22
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "-"


def _is_alive(owner: str, since: float) -> bool:
    """True while the process of a claim lives; on another machine, which cannot be looked at, for CLAIM_SECONDS."""
    node, pid, started, _ = owner.rsplit(" ", 3)
    if node != platform.node():
        return time.time() - since < CLAIM_SECONDS
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, under another user
    return _started(int(pid)) == started


def _row(attempt: Attempt) -> tuple[Any, ...]:
    *head, usage, cost, response_id, host = astuple(attempt)  # the Usage, too, is a tuple in it
    return (*head, *usage, cost, response_id, host)


def _attempt(*row: Any) -> Attempt:
    """The inverse of `_row`."""
    key, started, seconds, status, outcome, detail, *tokens, cost, response_id, host = row
    return Attempt(key, started, seconds, status, outcome, detail, Usage(*tokens), cost, response_id, host)
