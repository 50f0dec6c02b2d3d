"""Rows of a SqliteOutbox's tables, and what they are to the outside."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from owm_outbox import NO_HEADERS, Entry, Key, Mark, NewEntry, OutboxStats, RunRecord

__all__ = [
    "INSERT",
    "RUN_COLUMNS",
    "acknowledged",
    "aware",
    "entry",
    "headers_of",
    "insert",
    "key_of",
    "last_position",
    "new_rows",
    "record",
    "replace",
    "runs_of",
    "stats_of",
    "storable",
]

RUN_COLUMNS = (
    "id, job, state, started_at, progressed_at, finished_at, checkpoint, expected, extracted, duplicates, rejected, "
    "unusable, report"
)

INSERT = (
    "INSERT INTO outbox_entries (run, key, task_id, payload, headers, stored_at) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)


def insert(conn: sqlite3.Connection, run: int | None, entries: Sequence[NewEntry], now: float) -> int:
    """Insert entries that a run does not have yet, and return how many."""
    before = conn.total_changes
    conn.executemany(INSERT, new_rows(run, entries, now))
    return conn.total_changes - before


def new_rows(run: int | None, entries: Sequence[NewEntry], now: float) -> Iterator[tuple[Any, ...]]:
    """Yield the values of `INSERT`."""
    return (
        (
            run,
            key if key is None else storable(key),
            task_id,
            payload,
            json.dumps(dict(headers)) if headers else None,
            now,
        )
        for key, task_id, headers, payload, _ in entries
    )


def replace(conn: sqlite3.Connection, run: int | None, entries: Sequence[NewEntry]) -> int:
    """Delete the records that never became a task, and whose key a task has now."""
    before = conn.total_changes
    conn.executemany(
        "DELETE FROM outbox_entries WHERE run = ? AND key = ? AND task_id IS NULL",
        ((run, storable(entry.key)) for entry in entries if entry.key is not None),
    )
    return conn.total_changes - before


def entry(position: int, task_id: str, payload: bytes, key: Any, headers: str | None) -> Entry:
    """Make an entry of its columns."""
    return Entry(position, task_id, payload, key_of(key), headers_of(headers))


def headers_of(stored: str | None) -> Mapping[str, str]:
    """Return the headers that are in a column."""
    found: Mapping[str, str] = json.loads(stored) if stored else NO_HEADERS
    return found


def record(row: Sequence[Any]) -> RunRecord:
    """Make a run of its columns, `RUN_COLUMNS`."""
    id_, job, state, started, progressed, finished, *rest = row
    ended = None if finished is None else aware(finished)
    return RunRecord(id_, job, state, aware(started), aware(progressed), ended, *rest)


def aware(seconds: float) -> datetime:
    """Make a time of the seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC)


def storable(key: Key) -> int | str | bytes:
    """Return what a key is in a column."""
    # SQLite's integers have 64 bits, its text is UTF-8; any other key is kept as bytes, which equal neither.
    if isinstance(key, int):
        return key if -(2**63) <= key < 2**63 else str(key).encode()
    try:
        key.encode()
    except UnicodeEncodeError:
        return b"text:" + key.encode(errors="surrogatepass")
    return key


def key_of(stored: int | str | bytes | None) -> Key | None:
    """Return the key that is in a column; see `storable`."""
    if not isinstance(stored, bytes):
        return stored
    if stored.startswith(b"text:"):
        return stored.removeprefix(b"text:").decode(errors="surrogatepass")
    return int(stored)


def acknowledged(conn: sqlite3.Connection) -> Mark:
    """Return the mark last acknowledged."""
    row = conn.execute("SELECT value FROM outbox_state WHERE name = 'acknowledged'").fetchone()
    return Mark(row[0].decode())


def last_position(conn: sqlite3.Connection) -> int:
    """Return the highest position ever given, as SQLite itself keeps it for AUTOINCREMENT."""
    row = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox_entries'").fetchone()
    return int(row[0]) if row else 0


def stats_of(conn: sqlite3.Connection) -> OutboxStats:
    """Return what the file holds."""
    mark = acknowledged(conn)
    pending, oldest = conn.execute(
        "SELECT count(*), min(stored_at) FROM outbox_entries WHERE position > ? AND reason IS NULL",
        (mark.position,),
    ).fetchone()
    dead = conn.execute("SELECT count(*) FROM outbox_entries WHERE reason IS NOT NULL").fetchone()[0]
    return OutboxStats(
        pending=pending,
        oldest=None if oldest is None else aware(oldest),
        dead=dead,
        acknowledged=mark,
        last_position=last_position(conn),
        runs=runs_of(conn, 10),
    )


def runs_of(conn: sqlite3.Connection, limit: int) -> Sequence[RunRecord]:
    """Return the newest runs, newest first."""
    rows = conn.execute(f"SELECT {RUN_COLUMNS} FROM outbox_runs ORDER BY number DESC LIMIT ?", (limit,))  # noqa: S608 - ours
    return tuple(map(record, rows.fetchall()))
