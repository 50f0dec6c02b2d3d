"""Dead letters of a SqliteOutbox: one per job, key and reason, which counts how often it was rejected."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from owm_outbox import DeadLetter, NewEntry

from .rows import aware, headers_of, key_of, storable

__all__ = ["insert_letters", "letters_after", "reject_entry", "retry_letter"]


def insert_letters(conn: sqlite3.Connection, run: int | None, records: Sequence[NewEntry], now: float) -> int:
    """Insert records that never became a task and that a run does not have yet, and return how many."""
    added = 0
    for key, task_id, _, payload, reason in records:
        done = conn.execute(
            "INSERT INTO outbox_entries "
            "(run, key, task_id, payload, stored_at, reason, rejected_at, first_rejected_at, times) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1) ON CONFLICT DO NOTHING",
            (run, None if key is None else storable(key), task_id, payload, now, reason, now, now),
        )
        if done.rowcount:
            added += 1
            _merge(conn, int(done.lastrowid or 0))
    return added


def reject_entry(conn: sqlite3.Connection, position: int, reason: str, now: float) -> None:
    """Turn the entry at this position into a dead letter; ignore it if there is none."""
    row = conn.execute("SELECT run FROM outbox_entries WHERE position = ? AND reason IS NULL", (position,)).fetchone()
    if row is None:
        return
    conn.execute(
        "UPDATE outbox_entries SET reason = ?, rejected_at = ?, "
        "first_rejected_at = coalesce(first_rejected_at, ?), times = times + 1 WHERE position = ?",
        (reason, now, now, position),
    )
    conn.execute("UPDATE outbox_runs SET rejected = rejected + 1 WHERE number = ?", row)
    _merge(conn, position)


def _merge(conn: sqlite3.Connection, position: int) -> None:
    """Let the letter of the newest run be the only one of this job, key, reason and kind.

    Not that of an older run: the newest one may be in progress, and needs its keys.
    """
    letters = conn.execute(
        "SELECT old.position, old.times, old.first_rejected_at, old.rejected_at FROM outbox_entries AS new "
        "JOIN outbox_runs AS its ON its.number = new.run "
        "JOIN outbox_entries AS old ON old.key = new.key AND old.reason = new.reason "
        "AND (old.task_id IS NULL) = (new.task_id IS NULL) "
        "JOIN outbox_runs AS other ON other.number = old.run AND other.job = its.job "
        "WHERE new.position = ? ORDER BY old.run",
        (position,),
    ).fetchall()
    if len(letters) < 2:
        return
    _, times, first, last = zip(*letters, strict=True)
    *others, kept = (letter[0] for letter in letters)
    conn.executemany("DELETE FROM outbox_entries WHERE position = ?", ((other,) for other in others))
    conn.execute(
        "UPDATE outbox_entries SET times = ?, first_rejected_at = ?, rejected_at = ? WHERE position = ?",
        (sum(times), min(first), max(last), kept),
    )


def letters_after(conn: sqlite3.Connection, position: int, limit: int) -> list[DeadLetter]:
    """Return the first dead letters beyond this position."""
    rows = conn.execute(
        "SELECT position, task_id, payload, reason, rejected_at, first_rejected_at, times, "
        "(SELECT id FROM outbox_runs WHERE number = run), key, headers FROM outbox_entries "
        "WHERE reason IS NOT NULL AND position > ? ORDER BY position LIMIT ?",
        (position, limit),
    )
    return [
        DeadLetter(
            at, task_id, payload, reason, aware(last), aware(first), times, run, key_of(key), headers_of(headers)
        )
        for at, task_id, payload, reason, last, first, times, run, key, headers in rows
    ]


def retry_letter(conn: sqlite3.Connection, position: int) -> bool:
    """Store a letter that is a task again as an entry, at a new position; return whether it is one."""
    row = conn.execute(
        "SELECT run, key, task_id, payload, headers, stored_at, first_rejected_at, times FROM outbox_entries "
        "WHERE position = ? AND reason IS NOT NULL AND task_id IS NOT NULL",
        (position,),
    ).fetchone()
    if row is None:
        return False
    conn.execute("DELETE FROM outbox_entries WHERE position = ?", (position,))
    conn.execute(
        "INSERT INTO outbox_entries (run, key, task_id, payload, headers, stored_at, first_rejected_at, times) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        row,
    )
    conn.execute("UPDATE outbox_runs SET rejected = rejected - 1 WHERE number = ?", row[:1])
    return True
