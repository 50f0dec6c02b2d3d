"""PostgresqlOutbox: tasks in tables of a PostgreSQL server, for services on several machines."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Self

import msgspec
import psycopg

from owm_outbox import (
    MAX_BYTES,
    RESUME_WITHIN,
    URL,
    DeadLetter,
    DeadLetterStore,
    Entry,
    Mark,
    NewEntry,
    Outbox,
    OutboxInvalid,
    OutboxStats,
    OutboxUnavailable,
    RunRecord,
    RunReport,
    StateStore,
    Stop,
    Stored,
    TransactionalOutbox,
    may_resume,
)

from .address import Tables, conninfo_of, own_options
from .append import append, append_async, append_within
from .connection import Row
from .errors import translated
from .lane import Database, Lane, LaneState
from .letters import insert_letters, letters_after, reject_entries, retry_letters
from .rows import SELECT_RUNS, clear, entry, insert, record, runs_of, stats_of
from .rows import replace as replace_records
from .schema import schema_sql

__all__ = ["PostgresqlOutbox"]

_KEPT_RUNS = 100
_SLICE = 10_000  # rows per commit where delivered entries are cleared: bounds each stall


class PostgresqlOutbox(TransactionalOutbox, DeadLetterStore):
    """Keeps tasks in PostgreSQL 13 or later: any number of machines append, one relay at a time delivers.

    ``postgresql://user:password@host:5432/database``; options: ``schema`` (public), ``table`` (outbox), what the names
    of the tables begin with, and ``lanes`` (1), see `PostgresqlLanes`; and all that libpq has (``sslmode``,
    ``passfile``, ``service``, …).

    :param conninfo: a URL, or a connection string of libpq, without ``schema`` and ``table``.
    :param lane: which of several independent sequences of the same tables this is.
    :param lanes: how many there are; those who append to several use `PostgresqlLanes`.
    :param create: whether tables that do not exist are made.
    :param read_only: only to look at it: the right to read is enough, and nothing is made, upgraded or numbered.
    :param now: the time, timezone-aware, instead of the server's.
    :raises ConfigurationError: the address is wrong, or the server refuses the user.
    :raises OutboxInvalid: there are no tables, they are not ours, or of a newer version; they are untouched then.
    :raises OutboxUnavailable: the server cannot be reached.
    """

    def __init__(
        self,
        conninfo: str | URL,
        *,
        schema: str = "public",
        table: str = "outbox",
        lane: int = 0,
        lanes: int = 1,
        create: bool = True,
        read_only: bool = False,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        tables = Tables(schema, table, lane, lanes)
        self._db = Database(conninfo_of(conninfo), tables, create=create, read_only=read_only, now=now)
        self._tables = self._db.tables
        self._may_have_more = True  # delivered entries that a crash, or a closed run, left to be cleared

    @classmethod
    def from_url(cls, url: URL, *, create: bool = True) -> Self:
        """Open the tables that ``postgresql://…?schema=…&table=…`` names."""
        return cls(url, create=create, **own_options(url))

    @classmethod
    def look_at(cls, url: URL) -> Outbox:
        """Open the tables to look at them: a role that may read them can, and nothing in them changes."""
        return cls(url, read_only=True, **own_options(url))

    @staticmethod
    def schema_sql(*, schema: str = "public", table: str = "outbox") -> str:
        """Return what makes the tables, as plain SQL, for those who make them with a tool of their own."""
        return schema_sql(Tables(schema, table))

    # -- the contract

    @property
    def state(self) -> StateStore:
        """State in the same tables."""
        return LaneState(self._db)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold an advisory lock: the server frees it when the process ends, or its machine is cut off."""
        with self._db.locked():
            yield

    def wait(self, seconds: float, stop: Stop) -> None:
        """Return as soon as somebody appended; see `Outbox.wait`."""
        lock = self._db.lock
        if lock is None:
            stop.wait(seconds)
        else:
            lock.wait(seconds, stop)

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        """Return the open run, or a new one."""
        kept = (resume_within or RESUME_WITHIN).total_seconds()
        with self._db.lane() as lane:
            number = self._close_runs(lane, job, resume_within)
            if resumed := number is not None:
                lane.conn.execute(
                    self._tables.sql("UPDATE {runs} SET resume_within = %s WHERE number = %s"), [kept, number]
                )
            else:
                number = self._new_run(lane, job, kept)
            row = lane.conn.execute(self._tables.sql(SELECT_RUNS + "WHERE number = %s"), [number]).fetchone()
        assert row is not None  # noqa: S101 - it is there
        self._may_have_more = True  # of a run that was closed; not cleared before the sink's word is known
        return replace(record(row), resumed=resumed)

    def _new_run(self, lane: Lane, job: str, kept: float) -> int:
        number = lane.conn.execute(
            self._tables.sql(
                "INSERT INTO {runs} (lane, id, job, state, started_at, progressed_at, resume_within) "
                "VALUES (%s, %s, %s, 'open', %s, %s, %s) RETURNING number"
            ),
            [self._tables.lane, str(uuid.uuid4()), job, lane.now, lane.now, kept],
        ).fetchone()
        lane.conn.execute(
            self._tables.sql(
                "DELETE FROM {runs} AS r WHERE lane = %s AND state <> 'open' AND number <= ("
                "SELECT number FROM {runs} WHERE lane = %s ORDER BY number DESC OFFSET %s LIMIT 1) "
                "AND NOT EXISTS (SELECT FROM {entries} AS e WHERE e.run = r.number)"
            ),
            [self._tables.lane, self._tables.lane, _KEPT_RUNS],
        )
        assert number is not None  # noqa: S101 - it was inserted
        return int(number[0])

    def _close_runs(self, lane: Lane, job: str, resume_within: timedelta) -> int | None:
        """Close the open runs that nobody may resume any more, and return the number of the job's, if it may be."""
        found = None
        rows = lane.conn.execute(
            self._tables.sql(
                "SELECT number, job, progressed_at, resume_within FROM {runs} "
                "WHERE lane = %s AND state = 'open' ORDER BY number"
            ),
            [self._tables.lane],
        ).fetchall()
        for number, other, progressed_at, own in rows:
            within = resume_within if other == job else timedelta(seconds=own)
            if may_resume(progressed_at, lane.now, within):
                found = number if other == job else found
            else:
                lane.conn.execute(
                    self._tables.sql("UPDATE {runs} SET state = 'incomplete', finished_at = %s WHERE number = %s"),
                    [lane.now, number],
                )
        return found

    def store_within(self, connection: object, entries: Sequence[NewEntry]) -> Stored:
        """Store entries in the transaction of a connection of psycopg, SQLAlchemy or Django to the same database."""
        with translated(self._db.at):
            return Stored(append_within(connection, self._tables, entries, self._db.now and self._db.now()))

    async def store_within_async(self, connection: object, entries: Sequence[NewEntry]) -> Stored:
        """Store entries in the transaction of a connection of psycopg, asyncpg or SQLAlchemy's asyncio."""
        with translated(self._db.at):
            return Stored(await append_async(connection, self._tables, entries, self._db.now and self._db.now()))

    def store(
        self,
        entries: Sequence[NewEntry],
        *,
        run: str | None = None,
        checkpoint: bytes | None = None,
        expected: int | None = None,
    ) -> Stored:
        """Store entries, and what they say of the run, in one commit."""
        if run is None and not any(entry.reason is not None for entry in entries):
            with self._db.writer.statement() as conn:
                return Stored(append(conn, self._tables, entries, self._db.now and self._db.now()))
        with self._db.lane(fenced=run is not None) as lane:
            lane.number()  # what was appended before is before these
            number, unusable = (None, 0) if run is None else self._run_number(lane.conn, run)
            new = rejected = replaced = 0
            for is_dead, group in itertools.groupby(entries, lambda entry: entry.reason is not None):
                given = list(group)
                if (unusable or rejected) and not is_dead:
                    replaced += replace_records(lane, number, given)
                added = (insert_letters if is_dead else insert)(lane, number, given)
                new, rejected = (new, rejected + added) if is_dead else (new + added, rejected)
            lane.keep_last()
            duplicates = len(entries) - new - rejected
            lane.conn.execute(
                self._tables.sql(
                    "UPDATE {runs} SET progressed_at = %s, checkpoint = coalesce(%s, checkpoint), "
                    "expected = coalesce(%s, expected), extracted = extracted + %s, duplicates = duplicates + %s, "
                    "rejected = rejected + %s, unusable = unusable + %s WHERE number = %s"
                ),
                [lane.now, checkpoint, expected, new, duplicates, rejected - replaced, rejected - replaced, number],
            )
        return Stored(new, rejected, duplicates, replaced)

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        """Return entries in order of position, after giving one to what has none where they do not suffice."""
        found, full = self._read(after, limit, max_bytes)
        if full or not self._number():
            return found
        return self._read(after, limit, max_bytes)[0]

    def _read(self, after: int, limit: int, max_bytes: int) -> tuple[list[Entry], bool]:
        """Return what is numbered, and whether that is as much as was asked for."""
        found: list[Entry] = []
        left = max_bytes
        with self._db.snapshot() as conn, conn.cursor(binary=True) as cursor:
            while len(found) < limit:
                chunk = min(limit - len(found), 1_000)
                rows = cursor.execute(
                    self._tables.sql(
                        "SELECT p.position, task_id, payload, key, headers FROM (SELECT position, sequence "
                        "FROM {positions} WHERE lane = %s AND position > %s ORDER BY position LIMIT %s) AS p "
                        "JOIN {entries} AS e ON e.sequence = p.sequence ORDER BY p.position"
                    ),
                    [self._tables.lane, found[-1].position if found else after, chunk],
                ).fetchall()
                for row in rows:
                    left -= len(row[2])
                    if left < 0 and found:
                        return found, True
                    found.append(entry(*row))
                if len(rows) < chunk:
                    return found, False
        return found, True

    def _number(self) -> bool:
        """Give positions to what was appended; return whether there was anything."""
        with self._db.session.connected() as conn:
            if (
                conn.execute(
                    self._tables.sql("SELECT FROM {incoming} WHERE lane = %s LIMIT 1"), [self._tables.lane]
                ).fetchone()
                is None
            ):
                return False
        with self._db.lane() as lane:
            before = lane.last
            lane.number()
            return lane.last > before

    def acknowledge(self, mark: Mark) -> None:
        """Note what the sink holds, and clear what no open run needs any more."""
        with self._db.lane() as lane:
            before = lane.acknowledged
            lane.conn.execute(
                self._tables.sql("UPDATE {lanes} SET acknowledged = %s WHERE lane = %s"),
                [mark.encode(), self._tables.lane],
            )
            lane.acknowledged = mark
            cleared = None
            if mark.position > before.position:
                cleared = clear(lane, 0 if self._may_have_more else before.position, _SLICE)
                self._may_have_more = False
        self._clear_on(cleared)

    def reject(self, reasons: Mapping[int, str]) -> None:
        """Turn entries into dead letters, where they are."""
        with self._db.lane() as lane:
            reject_entries(lane, reasons)

    def finish_run(self, run: str, report: RunReport) -> None:
        """Keep the report; if it is complete, close the run and clear its delivered entries."""
        cleared = None
        with self._db.lane() as lane:
            number, _ = self._run_number(lane.conn, run)
            lane.conn.execute(
                self._tables.sql("UPDATE {runs} SET report = %s WHERE number = %s"),
                [msgspec.json.encode(report), number],
            )
            if report.complete:
                lane.conn.execute(
                    self._tables.sql("UPDATE {runs} SET state = 'complete', finished_at = %s WHERE number = %s"),
                    [lane.now, number],
                )
                cleared = clear(lane, 0, _SLICE)
        self._clear_on(cleared)

    def stats(self) -> OutboxStats:
        """Return what the outbox holds."""
        # A standby and a full disk can be looked at as well; what has no position is counted all the same.
        if not self._db.read_only:
            with suppress(OutboxUnavailable):
                self._number()
        with self._db.snapshot() as conn:
            return stats_of(conn, self._tables, self._db.at, may_lack_lane=self._db.read_only)

    def runs(self, limit: int) -> Sequence[RunRecord]:
        """Return the newest runs; a hundred are kept."""
        with self._db.snapshot() as conn:
            return runs_of(conn, self._tables, limit)

    def close(self) -> None:
        """Close the connections."""
        self._db.close()

    # -- dead letters

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Yield the dead letters in order of position, a few at a time."""
        after = 0
        while True:
            with self._db.session.connected() as conn:
                letters = letters_after(conn, self._tables, after, 100)
            if not letters:
                return
            yield from letters
            after = letters[-1].position

    def retry(self, positions: Iterable[int]) -> int:
        """Store these letters again as entries, at new positions."""
        with self._db.lane() as lane:
            return retry_letters(lane, sorted(set(positions)))

    def drop(self, positions: Iterable[int]) -> int:
        """Delete these letters."""
        with self._db.lane() as lane:
            return lane.conn.execute(
                self._tables.sql("DELETE FROM {entries} WHERE lane = %s AND position = ANY(%s) AND reason IS NOT NULL"),
                [self._tables.lane, list(positions)],
            ).rowcount

    # -- within

    def _run_number(self, conn: psycopg.Connection[Row], run: str) -> tuple[int, int]:
        """Return the run's number, and how many of its dead letters never became a task."""
        row = conn.execute(
            self._tables.sql("SELECT number, unusable FROM {runs} WHERE lane = %s AND id = %s"),
            [self._tables.lane, run],
        ).fetchone()
        if row is None:
            raise OutboxInvalid(f"{self._db.at} has no run {run}: it is another outbox than the one the run started in")
        return int(row[0]), int(row[1])

    def _clear_on(self, after: int | None) -> None:
        """Delete what is left of what may be cleared beyond this position, a slice per commit."""
        while after is not None:
            with self._db.lane() as lane:
                after = clear(lane, after, _SLICE)
