"""An SQLite file that threads share and several processes may have open (WAL), readable by its owner alone."""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from mmedexpert_jax.errors import DataError, ResourceError

_FIXES = {
    sqlite3.SQLITE_FULL: "free some space, then run the same command to resume",
    sqlite3.SQLITE_IOERR: "see to the disk, then run the same command to resume",
    sqlite3.SQLITE_READONLY: "choose a workdir that this user may write",
    sqlite3.SQLITE_CANTOPEN: "choose a workdir that this user may write",
    sqlite3.SQLITE_BUSY: "another process holds it; end that one, then run the same command to resume",
}


class Database:
    """The tables of `schema`, which is run whenever the file is opened."""

    def __init__(self, path: str | Path, schema: str, what: str):
        """Opens or creates the file.

        Args:
            schema: statements that make what is missing.
            what: the file is meant to be, for errors.

        Raises:
            DataError: it is no SQLite data base.
            ResourceError: it cannot be written.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        self._make_private()
        try:
            self._db = sqlite3.connect(self.path, check_same_thread=False, timeout=60.0, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(schema)
        except sqlite3.Error as error:
            raise self._unwritable(error) or DataError(
                f"{path} is not {what} ({error}); choose another workdir"
            ) from None

    def _make_private(self) -> None:
        """Makes the file, or sets its mode, before SQLite does: cases of patients stand in it, and SQLite's own
        journal files take the mode that they find."""
        if str(self.path) == ":memory:":
            return
        with contextlib.suppress(OSError):  # what is wrong with the path, connect says
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600))
            self.path.chmod(0o600)

    def close(self) -> None:
        """Closes the connection."""
        self._db.close()

    def write(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """Runs `change` inside one transaction: all of it is stored, or nothing. Raises ResourceError."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                change(self._db)
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if unwritable := self._unwritable(error):
                    raise unwritable from error
                raise

    def read(self, query: str, *values: object) -> list[tuple]:
        """Rows of a SELECT."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _unwritable(self, error: BaseException) -> ResourceError | None:
        """The error of a disk that takes nothing more; None for an error of another kind."""
        fix = _FIXES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)  # the low byte: without the details
        return ResourceError(f"cannot write {self.path}: {error}; {fix}") if fix else None


def read_once(path: Path, query: str, *values: object) -> list[tuple]:
    """Rows of a SELECT by a connection of its own, in any thread. Raises DataError where the file has gone."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=60.0)) as db:
            return db.execute(query, values).fetchall()
    except sqlite3.OperationalError as error:
        raise DataError(f"{path} cannot be read ({error}); run the job again") from None
