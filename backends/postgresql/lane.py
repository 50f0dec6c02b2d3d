"""Database and Lane: the sessions of a PostgresqlOutbox, and the row that all writes of a relay go through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from owm_outbox import Mark, OutboxInvalid, StateStore

from .address import Tables, place_of
from .connection import Row, Session
from .lock import LaneLock
from .schema import check, missing_rights, prepare

__all__ = ["Database", "Lane", "LaneState"]

_NUMBERED_AT_ONCE = 10_000


@dataclass(slots=True)
class Lane:
    """A lane whose row this transaction has locked: nobody else gives positions in it meanwhile.

    :param last: the highest position ever given.
    :param acknowledged: the mark last acknowledged.
    :param now: the time, by the server's clock, which all machines share.
    """

    conn: psycopg.Connection[Row]
    tables: Tables
    last: int
    acknowledged: Mark
    now: datetime

    def number(self) -> None:
        """Give positions to some of what was appended and is visible, in the order of its inserts.

        With the lane's row locked, no higher position becomes visible before a lower one.
        """
        done = self.conn.execute(
            self.tables.sql(
                "WITH gone AS (DELETE FROM {incoming} WHERE ctid = ANY(ARRAY("
                "SELECT ctid FROM {incoming} WHERE lane = %s ORDER BY sequence LIMIT %s)) RETURNING lane, sequence) "
                "INSERT INTO {positions} (lane, position, sequence) "
                "SELECT lane, %s + row_number() OVER (ORDER BY sequence), sequence FROM gone"
            ),
            [self.tables.lane, _NUMBERED_AT_ONCE, self.last],
        )
        if done.rowcount:
            self.last += done.rowcount
            self.keep_last()

    def keep_last(self) -> None:
        """Store the highest position given."""
        self.conn.execute(
            self.tables.sql("UPDATE {lanes} SET last_position = %s WHERE lane = %s"), [self.last, self.tables.lane]
        )


class Database:
    """The tables of one outbox, open for one object. Safe to use from several threads.

    :param conninfo: what to connect with.
    :param read_only: it is only looked at.
    :param now: the time, instead of the server's.
    """

    def __init__(
        self,
        conninfo: Mapping[str, Any],
        tables: Tables,
        *,
        create: bool,
        read_only: bool,
        now: Callable[[], datetime] | None,
    ) -> None:
        self.tables = tables
        self.read_only = read_only
        self.now = now
        self._conninfo = conninfo
        self.at = place_of(conninfo, tables)
        self.writer = _Session(conninfo, self.at, tables)
        self._lock: LaneLock | None = None
        try:
            if read_only:
                check(self.writer, tables)
            else:
                prepare(self.writer, tables, create=create)
        except BaseException:
            self.writer.close()
            raise

    def another_session(self) -> Session:
        """Make a session of the caller's own."""
        return Session(self._conninfo, self.at)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lane; within the block, all but appends go through the session that has the lock."""
        lock = LaneLock(self._conninfo, self.at, self.tables)
        with lock.held(self.writer):
            self._lock = lock
            try:
                yield
            finally:
                self._lock = None

    @property
    def lock(self) -> LaneLock | None:
        """The lock, if this object holds it."""
        return self._lock

    @property
    def session(self) -> Session:
        """The session of the relay, if there is one, else that of all others."""
        return self._lock or self.writer

    @contextmanager
    def lane(self, *, fenced: bool = True) -> Iterator[Lane]:
        """Make one commit with the lane's row locked.

        :param fenced: it is the relay that writes, which must be the newest one.
        :raises OutboxLocked: it is not.
        """
        lock = self._lock if fenced else None
        with (lock or self.writer).transaction() as conn:
            row = conn.execute(
                self.tables.sql(
                    "SELECT last_position, acknowledged, epoch, clock_timestamp() FROM {lanes} "
                    "WHERE lane = %s FOR UPDATE"
                ),
                [self.tables.lane],
            ).fetchone()
            if row is None:
                raise OutboxInvalid(f"{self.at} has lost the row of lane {self.tables.lane}: restore it from a backup")
            last, acknowledged, epoch, now = row
            if lock is not None and lock.epoch != epoch:
                raise lock.lost("another relay has taken over")
            yield Lane(conn, self.tables, last, Mark(acknowledged.decode()), self.now() if self.now else now)

    @contextmanager
    def snapshot(self) -> Iterator[psycopg.Connection[Row]]:
        """Give a connection for several statements that read one state of the tables."""
        with self.session.transaction("REPEATABLE READ, READ ONLY") as conn:
            yield conn

    def close(self) -> None:
        """Close all sessions."""
        if self._lock is not None:
            self._lock.close()
        self.writer.close()


class _Session(Session):
    """A session that says which rights are missing."""

    def __init__(self, conninfo: Mapping[str, Any], at: str, tables: Tables) -> None:
        super().__init__(conninfo, at)
        self._tables = tables

    def advice(self, conn: psycopg.Connection[Row]) -> str:
        return missing_rights(conn, self._tables)


class LaneState(StateStore):
    """State in the tables themselves, of one lane."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, name: str) -> bytes | None:
        """Return the value last set under ``name``."""
        tables = self._db.tables
        with self._db.session.connected() as conn:
            row = conn.execute(
                tables.sql("SELECT value FROM {state} WHERE lane = %s AND name = %s"), [tables.lane, name]
            ).fetchone()
        return None if row is None else bytes(row[0])

    def set(self, name: str, value: bytes) -> None:
        """Keep ``value`` under ``name``, in a commit of its own."""
        with self._db.lane() as lane:
            lane.conn.execute(
                lane.tables.sql(
                    "INSERT INTO {state} (lane, name, value) VALUES (%s, %s, %s) "
                    "ON CONFLICT (lane, name) DO UPDATE SET value = excluded.value"
                ),
                [lane.tables.lane, name, value],
            )
