"""PostgresqlLanes: a PostgresqlOutbox that several relays deliver from at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import NoReturn, Self, cast

import psycopg

from owm_outbox import (
    MAX_BYTES,
    NOTHING,
    RESUME_WITHIN,
    URL,
    Attendance,
    ConfigurationError,
    DeadLetter,
    Entry,
    LanedOutbox,
    Mark,
    NewEntry,
    Outbox,
    OutboxStats,
    RunRecord,
    RunReport,
    Stored,
)

from .address import LANE_BITS, own_options
from .connection import Row
from .lock import keep_alive
from .outbox import PostgresqlOutbox

__all__ = ["PostgresqlLanes"]

_HOLDERS = """
    SELECT (classid::bigint << 32) | objid::bigint AS key, count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    GROUP BY 1
"""


class PostgresqlLanes(PostgresqlOutbox, LanedOutbox):
    """Keeps tasks in PostgreSQL 13 or later, in lanes that several relays deliver from at once.

    ``postgresql://…?lanes=8``. This object is all of them: for those who append, and for what looks at the outbox as a
    whole. What is done under a lock is done per lane, by `LaneRelay` or ``owm-outbox relay``. A job's run needs an
    outbox with one lane, as it has one order.

    :param lanes: as many as the tables were made with.
    :param read_only: see `PostgresqlOutbox`.
    :raises ConfigurationError: they were made with another number.
    """

    def __init__(
        self,
        conninfo: str | URL,
        *,
        lanes: int,
        schema: str = "public",
        table: str = "outbox",
        create: bool = True,
        read_only: bool = False,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        super().__init__(conninfo, schema=schema, table=table, lanes=lanes, create=create, read_only=read_only, now=now)
        self._conninfo = conninfo
        self._now = now

    @classmethod
    def from_url(cls, url: URL, *, create: bool = True) -> Self:
        """Open the tables that ``postgresql://…?lanes=…`` names; those with one lane are a `PostgresqlOutbox`."""
        return cast(Self, cls._kind_of(url)(url, create=create, **own_options(url)))

    @classmethod
    def look_at(cls, url: URL) -> Outbox:
        """Open the tables to look at them; see `PostgresqlOutbox.look_at`."""
        return cls._kind_of(url)(url, read_only=True, **own_options(url))

    @classmethod
    def _kind_of(cls, url: URL) -> type[PostgresqlOutbox]:
        return cls if own_options(url).get("lanes", 1) > 1 else PostgresqlOutbox

    # -- lanes

    @property
    def lanes(self) -> int:
        """How many lanes there are."""
        return self._tables.lanes

    def lane(self, number: int) -> PostgresqlOutbox:
        """Open a lane, with connections of its own."""
        tables = self._tables
        return PostgresqlOutbox(
            self._conninfo,
            schema=tables.schema,
            table=tables.table,
            lane=number,
            lanes=tables.lanes,
            read_only=self._db.read_only,
            now=self._now,
        )

    @contextmanager
    def attend(self) -> Iterator[Callable[[], Attendance]]:
        """Share an advisory lock with all other relays; the server frees it when this process ends or stands still."""
        session = self._db.another_session()
        known: psycopg.Connection[Row] | None = None
        keys = {self._tables.lock_key_of(lane): lane for lane in range(self.lanes)}

        def attendance() -> Attendance:
            nonlocal known
            with session.connected() as conn:
                if conn is not known:
                    keep_alive(conn)
                    conn.execute("SELECT pg_advisory_lock_shared(%s)", [self._tables.attendance_key])
                    known = conn
                held: dict[int, int] = dict(conn.execute(_HOLDERS).fetchall())
            free = [lane for key, lane in keys.items() if key not in held]
            return Attendance(held.get(self._tables.attendance_key, 1), free)

        try:
            attendance()
            yield attendance
        finally:
            session.close()

    # -- the whole

    def store(
        self,
        entries: Sequence[NewEntry],
        *,
        run: str | None = None,
        checkpoint: bytes | None = None,
        expected: int | None = None,
    ) -> Stored:
        """Store entries, each in the lane of its key."""
        if run is not None or any(entry.reason is not None for entry in entries):
            self._refuse()
        return super().store(entries)

    def stats(self) -> OutboxStats:
        """Return what all lanes hold. There is no mark of the whole."""
        found = []
        for number in range(self.lanes):
            with self.lane(number) as lane:
                found.append(lane.stats())
        return OutboxStats(
            pending=sum(stats.pending for stats in found),
            oldest=min((stats.oldest for stats in found if stats.oldest is not None), default=None),
            dead=sum(stats.dead for stats in found),
            acknowledged=NOTHING,
            last_position=max(stats.last_position for stats in found),
        )

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Yield the dead letters of all lanes in order of position, lane by lane."""
        for number in range(self.lanes):
            with self.lane(number) as lane:
                yield from lane.dead_letters()

    def retry(self, positions: Iterable[int]) -> int:
        """Store these letters again as entries, each in its lane."""
        return sum(lane.retry(of_lane) for lane, of_lane in self._by_lane(positions))

    def drop(self, positions: Iterable[int]) -> int:
        """Delete these letters."""
        return sum(lane.drop(of_lane) for lane, of_lane in self._by_lane(positions))

    def _by_lane(self, positions: Iterable[int]) -> Iterator[tuple[PostgresqlOutbox, list[int]]]:
        known = sorted(position for position in set(positions) if 0 < position < self.lanes << LANE_BITS)
        for number, of_lane in itertools.groupby(known, lambda position: position - 1 >> LANE_BITS):
            with self.lane(number) as lane:
                yield lane, list(of_lane)

    # -- what only a lane has

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Refuse: each lane has a lock of its own."""
        self._refuse()
        yield  # type: ignore[unreachable]  # what makes it a context manager

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        """Refuse, as ``lock`` does."""
        self._refuse()

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        """Refuse, as ``lock`` does."""
        self._refuse()

    def acknowledge(self, mark: Mark) -> None:
        """Refuse, as ``lock`` does."""
        self._refuse()

    def reject(self, reasons: Mapping[int, str]) -> None:
        """Refuse, as ``lock`` does."""
        self._refuse()

    def finish_run(self, run: str, report: RunReport) -> None:
        """Refuse, as ``lock`` does."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigurationError(
            f"{self._db.at} has {self.lanes} lanes: deliver from it with owm-outbox relay; "
            "a job's run needs an outbox with one"
        )
