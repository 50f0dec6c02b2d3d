"""SqliteOutbox: tasks in one file, written by one connection, synced at every commit."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Self

import msgspec

from owm_outbox import (
    MAX_BYTES,
    RESUME_WITHIN,
    URL,
    ConfigurationError,
    DeadLetter,
    DeadLetterStore,
    Entry,
    Mark,
    NewEntry,
    Outbox,
    OutboxInvalid,
    OutboxStats,
    RunRecord,
    RunReport,
    StateStore,
    Stored,
    TransactionalOutbox,
    may_resume,
)

from .connection import Database, FileState, is_in_use
from .file import absolute
from .letters import insert_letters, letters_after, reject_entry, retry_letter
from .look import ReadOnlyDatabase
from .rows import RUN_COLUMNS, acknowledged, aware, entry, insert, last_position, record, replace, runs_of, stats_of
from .transaction import insert_within, insert_within_async

__all__ = ["SqliteOutbox"]

_KEPT_RUNS = 100
_SLICE = 10_000  # rows per commit where delivered entries are cleared: bounds the WAL and each stall
_DELIVERED = "reason IS NULL AND (run IS NULL OR run NOT IN (SELECT number FROM outbox_runs WHERE state = 'open'))"


class SqliteOutbox(TransactionalOutbox, DeadLetterStore):
    """Keeps tasks in an SQLite file: durable at every commit (WAL, synchronous=FULL), readable by its owner only.

    ``sqlite:////absolute/path.db`` or ``sqlite:///relative/path.db``; options: ``timeout``, seconds to wait for
    another program that writes to the file (5); ``shared=true``, the file is an application's own database, in which
    the outbox has the tables whose names begin with ``outbox``. SQLite 3.34 or later.

    :param path: created if it does not exist; its folder must. ``path.lock`` next to it is what ``lock`` holds.
    :param read_only: only to look at it, see `ReadOnlyDatabase`; what writes raises OutboxInvalid.
    :param now: seconds since the epoch.
    :raises OutboxInvalid: the file cannot be created, is a symlink, belongs to somebody else, is not an outbox or one
        of a newer version. It is untouched then.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 5.0,
        shared: bool = False,
        create: bool = True,
        read_only: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.path = absolute(path)
        self._now = now
        self._db: Database
        if read_only:
            self._db = ReadOnlyDatabase(self.path, timeout=timeout, shared=shared)
            return
        self._db = Database(self.path, timeout=timeout, shared=shared, create=create)
        self._may_have_more = True  # delivered entries that a crash, or a closed run, left to be cleared
        self._begin_beyond_acknowledged()

    @classmethod
    def from_url(cls, url: URL, *, create: bool = True) -> Self:
        """Open the file that ``sqlite:///path`` names."""
        path, options = _file_of(url)
        return cls(path, create=create, **options)

    @classmethod
    def look_at(cls, url: URL) -> Outbox:
        """Open the file to look at it: whoever may read it can, and nothing in its folder changes.

        In a process that has it open anyway, as a relay that serves a page, it is opened as usual.
        """
        path, options = _file_of(url)
        if is_in_use(absolute(path)):
            return cls(path, create=False, **options)
        return cls(path, read_only=True, **options)

    # -- the contract

    @property
    def state(self) -> StateStore:
        """State in the same file."""
        return FileState(self._db)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold ``path.lock`` with flock: the kernel frees it when the process dies, however it dies."""
        with self._db.locked():
            yield

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        """Return the open run, or a new one."""
        with self._db.transaction() as conn:
            now = self._now()
            kept = (resume_within or RESUME_WITHIN).total_seconds()
            number = self._close_runs(conn, job, now, resume_within)
            if resumed := number is not None:
                conn.execute("UPDATE outbox_runs SET resume_within = ? WHERE number = ?", (kept, number))
            else:
                number = conn.execute(
                    "INSERT INTO outbox_runs (id, job, state, started_at, progressed_at, resume_within) "
                    "VALUES (?, ?, 'open', ?, ?, ?)",
                    (str(uuid.uuid4()), job, now, now, kept),
                ).lastrowid
                conn.execute(
                    "DELETE FROM outbox_runs WHERE state <> 'open' "
                    "AND number <= (SELECT max(number) FROM outbox_runs) - ? "
                    "AND number NOT IN (SELECT run FROM outbox_entries WHERE run IS NOT NULL)",
                    (_KEPT_RUNS,),
                )
            row = conn.execute(f"SELECT {RUN_COLUMNS} FROM outbox_runs WHERE number = ?", (number,)).fetchone()  # noqa: S608 - ours
        self._may_have_more = True  # of a run that was closed; not cleared before the sink's word is known
        return dataclasses.replace(record(row), resumed=resumed)

    def _close_runs(self, conn: sqlite3.Connection, job: str, now: float, resume_within: timedelta) -> int | None:
        """Close the open runs that nobody may resume any more, and return the number of the job's, if it may be."""
        found = None
        rows = conn.execute(
            "SELECT number, job, progressed_at, resume_within FROM outbox_runs WHERE state = 'open' ORDER BY number"
        ).fetchall()
        for number, other, progressed_at, own in rows:
            within = resume_within if other == job else timedelta(seconds=own)
            if may_resume(aware(progressed_at), aware(now), within):
                found = number if other == job else found
            else:
                conn.execute(
                    "UPDATE outbox_runs SET state = 'incomplete', finished_at = ? WHERE number = ?", (now, number)
                )
        return found

    def store(
        self,
        entries: Sequence[NewEntry],
        *,
        run: str | None = None,
        checkpoint: bytes | None = None,
        expected: int | None = None,
    ) -> Stored:
        """Store entries, and what they say of the run, in one commit."""
        now = self._now()
        with self._db.transaction() as conn:
            number, unusable = (None, 0) if run is None else self._run_number(conn, run)
            new = rejected = replaced = 0
            for is_dead, group in itertools.groupby(entries, lambda entry: entry.reason is not None):
                given = list(group)
                if (unusable or rejected) and not is_dead:
                    replaced += replace(conn, number, given)
                added = (insert_letters if is_dead else insert)(conn, number, given, now)
                new, rejected = (new, rejected + added) if is_dead else (new + added, rejected)
            duplicates = len(entries) - new - rejected
            if number is not None:
                conn.execute(
                    "UPDATE outbox_runs SET progressed_at = ?, checkpoint = coalesce(?, checkpoint), "
                    "expected = coalesce(?, expected), extracted = extracted + ?, duplicates = duplicates + ?, "
                    "rejected = rejected + ?, unusable = unusable + ? WHERE number = ?",
                    (now, checkpoint, expected, new, duplicates, rejected - replaced, rejected - replaced, number),
                )
        return Stored(new, rejected, duplicates, replaced)

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        """Return entries in order of position."""
        self._db.fold_wal()
        found: list[Entry] = []
        left = max_bytes
        with self._db.reading() as conn:
            rows = conn.execute(
                "SELECT position, task_id, payload, key, headers FROM outbox_entries "
                "WHERE position > ? AND reason IS NULL ORDER BY position LIMIT ?",
                (after, limit),
            )
            for row in rows:
                left -= len(row[2])
                if left < 0 and found:
                    break
                found.append(entry(*row))
            rows.close()
        if not found:  # a relay that waits for entries must not wait for those of a file that nobody finds any more
            self._db.check()
        return found

    def acknowledge(self, mark: Mark) -> None:
        """Note what the sink holds, and clear what no open run needs any more."""
        with self._db.transaction() as conn:
            before = acknowledged(conn)
            conn.execute("UPDATE outbox_state SET value = ? WHERE name = 'acknowledged'", (mark.encode(),))
            cleared = None
            if mark.position > before.position:
                cleared = _clear_slice(conn, 0 if self._may_have_more else before.position)
                self._may_have_more = False
        self._clear_on(cleared)

    def reject(self, reasons: Mapping[int, str]) -> None:
        """Turn entries into dead letters, where they are."""
        now = self._now()
        with self._db.transaction() as conn:
            for position, reason in reasons.items():
                reject_entry(conn, position, reason, now)

    def finish_run(self, run: str, report: RunReport) -> None:
        """Keep the report; if it is complete, close the run and clear its delivered entries."""
        cleared = None
        with self._db.transaction() as conn:
            number, _ = self._run_number(conn, run)
            conn.execute("UPDATE outbox_runs SET report = ? WHERE number = ?", (msgspec.json.encode(report), number))
            if report.complete:
                conn.execute(
                    "UPDATE outbox_runs SET state = 'complete', finished_at = ? WHERE number = ?",
                    (self._now(), number),
                )
                cleared = _clear_slice(conn, 0)
        if report.complete:
            self._clear_on(cleared)
            self._db.give_space_back()

    def stats(self) -> OutboxStats:
        """Return what the outbox holds."""
        return self._db.look(stats_of)

    def runs(self, limit: int) -> Sequence[RunRecord]:
        """Return the newest runs; a hundred are kept."""
        return self._db.look(lambda conn: runs_of(conn, limit))

    def close(self) -> None:
        """Close the file; the last one to do so folds the WAL into it."""
        self._db.close()

    # -- dead letters

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Yield the dead letters in order of position, a few at a time."""
        after = 0
        while True:
            letters = self._db.look(partial(letters_after, position=after, limit=100))
            if not letters:
                return
            yield from letters
            after = letters[-1].position

    def retry(self, positions: Iterable[int]) -> int:
        """Store these letters again as entries, at new positions."""
        with self._db.transaction() as conn:
            return sum(retry_letter(conn, position) for position in sorted(set(positions)))

    def drop(self, positions: Iterable[int]) -> int:
        """Delete these letters."""
        with self._db.transaction() as conn:
            before = conn.total_changes
            conn.executemany(
                "DELETE FROM outbox_entries WHERE position = ? AND reason IS NOT NULL",
                ((position,) for position in positions),
            )
            return conn.total_changes - before

    # -- in an application's own transaction

    def connect(self) -> sqlite3.Connection:
        """Open a connection to the same file, for an application's own tables and transactions.

        As durable as the outbox itself. It leaves folding the WAL into the file to the outbox, which does so whenever
        it appends or reads: two connections that do so at once can damage the file with SQLite before 3.51.3. Close it
        before the outbox. It may pass from thread to thread, as a pool hands connections out; one uses it at a time.
        """
        with self._db.translated():
            conn = self._db.connect(check_same_thread=False)
            conn.execute("PRAGMA synchronous = FULL")
            return conn

    def store_within(self, connection: object, entries: Sequence[NewEntry]) -> Stored:
        """Store entries in the transaction of a connection of sqlite3, SQLAlchemy or Django to the same file."""
        with self._within():
            return Stored(insert_within(connection, self.path, entries, self._now()))

    async def store_within_async(self, connection: object, entries: Sequence[NewEntry]) -> Stored:
        """Store entries in the transaction of a connection of aiosqlite or SQLAlchemy's asyncio to the same file."""
        with self._within():
            return Stored(await insert_within_async(connection, self.path, entries, self._now()))

    @contextmanager
    def _within(self) -> Iterator[None]:
        self._db.check()
        self._db.fold_wal()
        with self._db.translated():
            yield

    # -- within

    def _run_number(self, conn: sqlite3.Connection, run: str) -> tuple[int, int]:
        """Return the run's number, and how many of its dead letters never became a task."""
        row = conn.execute("SELECT number, unusable FROM outbox_runs WHERE id = ?", (run,)).fetchone()
        if row is None:
            raise OutboxInvalid(f"{self.path} has no run {run}: it is another outbox than the one the run started in")
        return int(row[0]), int(row[1])

    def _begin_beyond_acknowledged(self) -> None:
        """Let new positions be beyond what is acknowledged, whatever became of SQLite's own record of the last one."""
        with self._db.snapshot() as conn:
            position, last = acknowledged(conn).position, last_position(conn)
        if last < position:
            with self._db.transaction() as conn:
                conn.execute("DELETE FROM sqlite_sequence WHERE name = 'outbox_entries'")
                conn.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('outbox_entries', ?)", (position,))

    def _clear_on(self, after: int | None) -> None:
        """Delete what is left of what may be cleared beyond this position, a slice per commit."""
        while after is not None:
            with self._db.transaction() as conn:
                after = _clear_slice(conn, after)


def _file_of(url: URL) -> tuple[str, dict[str, Any]]:
    options = url.options(timeout=Annotated[float, msgspec.Meta(ge=0, le=600)], shared=bool)
    if url.hostname or not url.path.strip("/"):
        raise ConfigurationError(f"{url} has no file: write sqlite:////absolute/path or sqlite:///relative/path")
    return url.path.removeprefix("/"), options


def _clear_slice(conn: sqlite3.Connection, after: int) -> int | None:
    """Delete some of what is acknowledged and belongs to no open run; return where to continue, ``None`` at the end."""
    held = acknowledged(conn).position
    (first,) = conn.execute("SELECT min(position) FROM outbox_entries WHERE position > ?", (after,)).fetchone()
    if first is None or first > held:
        return None
    last = min(int(first) + _SLICE - 1, held)
    conn.execute(
        f"DELETE FROM outbox_entries WHERE position BETWEEN ? AND ? AND {_DELIVERED}",  # noqa: S608 - ours
        (first, last),
    )
    return last if last < held else None
