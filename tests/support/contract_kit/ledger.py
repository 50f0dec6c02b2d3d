"""A sink in a database that keeps every promise, also to other processes: entries and mark in one transaction."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from owm_outbox import Batch, MarkConflict, Sink, SinkUnavailable

__all__ = ["LedgerSink", "ledger_payloads", "lose_ledger"]

_OPENING = threading.Lock()

_TABLES = """
    CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS marks (outbox_id TEXT PRIMARY KEY, mark TEXT NOT NULL, last INTEGER NOT NULL);
"""


class LedgerSink(Sink):
    """Does all that the contract asks, with a table of entries and one of marks."""

    one_thread = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def mark(self, outbox_id: str) -> str:
        """Return the mark in the table, unless the last entry of its batch is no longer there."""
        with self.connected() as connection:
            return self.held(connection, outbox_id)

    def send(self, batch: Batch) -> None:
        """Compare, insert and set the mark within one transaction."""
        with self.connected() as connection, self.transaction(connection):
            self.refuse_conflict(connection, batch)
            self.insert(connection, batch)
            self.move(connection, batch)

    def close(self) -> None:
        """Close the database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def held(self, connection: sqlite3.Connection, outbox_id: str) -> str:
        """Look up the mark."""
        row = connection.execute(
            "SELECT mark FROM marks JOIN entries ON number = last WHERE outbox_id = ?", (outbox_id,)
        ).fetchone()
        return str(row[0]) if row else ""

    def refuse_conflict(self, connection: sqlite3.Connection, batch: Batch) -> None:
        """Compare the held mark with the batch's start."""
        held = self.held(connection, batch.outbox_id)
        if held != batch.after:
            raise MarkConflict(held)

    def insert(self, connection: sqlite3.Connection, batch: Batch) -> None:
        """Insert the entries."""
        connection.executemany(
            "INSERT INTO entries (payload) VALUES (?)", [(entry.payload,) for entry in batch.entries]
        )

    def move(self, connection: sqlite3.Connection, batch: Batch) -> None:
        """Set the mark."""
        connection.execute(
            "INSERT OR REPLACE INTO marks SELECT ?, ?, max(number) FROM entries", (batch.outbox_id, str(batch.mark))
        )

    @contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        """Give the connection; whatever goes wrong with it means that the sink is not available."""
        try:
            if self._connection is None:
                with _OPENING:  # of several that turn it into a WAL database at once, all but one would fail
                    self._connection = self._open()
            yield self._connection
        except sqlite3.Error as error:
            raise SinkUnavailable(f"{self.path} cannot be used ({error})") from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=10, check_same_thread=self.one_thread)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")  # no power is cut here
        connection.executescript(_TABLES)
        return connection

    @contextmanager
    def transaction(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Commit at the end, or roll back."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def ledger_payloads(path: Path) -> list[bytes]:
    """Return all payloads in order."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        return [bytes(row[0]) for row in connection.execute("SELECT payload FROM entries ORDER BY number")]


def lose_ledger(path: Path) -> None:
    """Delete the entries, and leave the marks."""
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        connection.execute("DELETE FROM entries")
