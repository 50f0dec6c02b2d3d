"""LaneLock: one relay at a time works on a lane, and one that lost its place writes nothing any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg

from owm_outbox import ConfigurationError, OutboxLocked, OutboxUnavailable, OwmOutboxError, Stop

from .address import Tables
from .connection import Row, Session, readable
from .errors import translated

__all__ = ["LaneLock", "keep_alive"]

_BEAT = 5.0  # seconds between two signs of life
_SLICE = 0.2  # seconds within which a stop is noticed that does not wake anybody

# The server frees the lock of a machine that was cut off, or of a process that was stopped, within half a minute.
_KEEP_ALIVE = (
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; "
    "SET tcp_user_timeout = 25000"
)
_IDLE_TIMEOUT = "SET idle_session_timeout = '25s'"  # PostgreSQL 14

_HOLDER: LiteralString = """
    SELECT l.pid, a.application_name, host(a.client_addr), a.backend_start
    FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (l.classid::bigint << 32) | l.objid::bigint = %s
"""


def keep_alive(conn: psycopg.Connection[Row]) -> None:
    """Let the server end this session, and free its locks, soon after its process stopped or was cut off."""
    conn.execute(_KEEP_ALIVE, prepare=False)
    if conn.info.server_version >= 140_000:
        conn.execute(_IDLE_TIMEOUT, prepare=False)


class LaneLock(Session):
    """Holds a lane by an advisory lock of a session of its own, on which the relay also writes.

    The lock is the session's: what is written on it was written while the lock was held. The epoch, which taking the
    lock increases, says the same where a pooler or an operator separated the two.
    """

    def __init__(self, conninfo: Mapping[str, Any], at: str, tables: Tables) -> None:
        super().__init__(conninfo, at, warns=False)
        self.epoch: int | None = None
        self._tables = tables
        self._locked = self._taken = False
        self._lost = ""
        self._end = threading.Event()
        self._heart = threading.Thread(target=self._beat, name=f"{at} lock", daemon=True)

    @contextmanager
    def held(self, other: Session) -> Iterator[None]:
        """Hold the lock.

        :param other: another session with the same server, which tells whether there is a pooler between.
        :raises OutboxLocked: another relay holds it.
        :raises ConfigurationError: a pooler hands the session to others.
        """
        try:
            self._take()
            self._refuse_pooler(other)
            self._heart.start()
            self._taken = True
            yield
        finally:
            self._end.set()
            self._free()  # behind a pooler, to close our connection ends no session
            self.close()

    def wait(self, seconds: float, stop: Stop) -> None:
        """Return once an append notified, after so many seconds, or when a stop is asked for."""
        key = self._tables.asleep_key_of(self._tables.lane)
        asleep = False
        try:
            with self.connected() as conn:
                # Refused while an append is under way that took us to be awake: then the time decides when to look.
                asleep = _one(conn, "SELECT pg_try_advisory_lock(%s)", key)
                if asleep and _one(
                    conn, self._tables.sql("SELECT 1 FROM {incoming} WHERE lane = %s LIMIT 1"), self._tables.lane
                ):
                    seconds = 0  # committed since we looked, and notified nobody
            self._listen(seconds, stop)
        finally:
            if asleep and self.is_open:
                with self.connected() as conn:
                    conn.execute("SELECT pg_advisory_unlock(%s)", [key])

    def _listen(self, seconds: float, stop: Stop) -> None:
        until = time.monotonic() + seconds
        while not stop.is_set() and (left := until - time.monotonic()) > 0:
            with self.connected() as conn:
                socket = conn.fileno()
                for _ in conn.notifies(timeout=0, stop_after=1):
                    return
            # Not while the connection is ours: whoever asks how the outbox stands shall not wait for it.
            readable(socket, min(left, _SLICE))

    def lost(self, why: str) -> OutboxLocked | OutboxUnavailable:
        """Note that the lock is not held any more, and return the error that ends the relay."""
        if not self._taken:
            return OutboxUnavailable(f"{self.at}: the connection was lost while the lock was taken: run again")
        self._lost = self._lost or why
        return OutboxLocked(f"{self.at}: {self._lost}; this relay wrote nothing since, and what is left stays there")

    # -- within

    def _open(self) -> psycopg.Connection[Row]:
        if self._lost:
            raise self.lost("")
        if self._locked and not self.is_open:  # a new connection would not hold the lock
            raise self.lost("the connection that held the lock was lost, and another relay may have taken over")
        return super()._open()

    def _checked(self) -> psycopg.Connection[Row]:
        return self._open()  # what arrived unasked is a notification, and a lost connection is not made again

    def _take(self) -> None:
        with self.connected() as conn:
            keep_alive(conn)
            if not _one(conn, "SELECT pg_try_advisory_lock(%s)", self._tables.lock_key):
                raise OutboxLocked(f"{self.at} is in use by another relay: {self._holder(conn)}")
            self._locked = True
        with self.transaction() as conn:
            self.epoch = _one(
                conn,
                self._tables.sql("UPDATE {lanes} SET epoch = epoch + 1 WHERE lane = %s RETURNING epoch"),
                self._tables.lane,
            )
        with self.connected() as conn:
            conn.execute(self._tables.sql("LISTEN {channel}"), prepare=False)

    def _holder(self, conn: psycopg.Connection[Row]) -> str:
        row = conn.execute(_HOLDER, [self._tables.lock_key]).fetchone()
        if row is None:
            return "it let go a moment ago; run again"
        pid, name, address, since = row
        shown = f"backend {pid}"
        if name:
            shown += f", {name}"
        if address:
            shown += f", from {address}"
        return shown + (f", since {since:%Y-%m-%d %H:%M:%S} UTC" if since else "")

    def _refuse_pooler(self, other: Session) -> None:
        """Refuse a pooler that gives our session's server to others: a session's lock would then be anybody's."""
        seen = set()
        for _ in range(2):
            with self.transaction() as conn:
                seen.add((_one(conn, "SELECT pg_backend_pid()"), bool(self._is_ours(conn))))
        with other.transaction() as conn:  # a pooler by transactions gives it the server that is free: ours
            elsewhere = _one(conn, "SELECT pg_backend_pid()")
        backends = {backend for backend, _ in seen}
        if len(backends) > 1 or elsewhere in backends or not all(ours for _, ours in seen):
            raise ConfigurationError(
                f"{self.at} is behind a pooler that changes the server between transactions (such as pgbouncer with "
                "pool_mode = transaction), which a relay's lock does not survive: "
                "connect to PostgreSQL itself, or use a pool with pool_mode = session"
            )

    def _is_ours(self, conn: psycopg.Connection[Row]) -> bool:
        row = conn.execute(_HOLDER, [self._tables.lock_key]).fetchone()
        return row is not None and row[0] == _one(conn, "SELECT pg_backend_pid()")

    def _beat(self) -> None:
        """Give a sign of life now and then: without any, the server frees the lock of a process that was stopped."""
        while not self._end.wait(_BEAT):
            try:
                with self.connected() as conn:
                    conn.execute("SELECT 1")
            except OwmOutboxError:  # the relay's own next call says so
                return

    def _free(self) -> None:
        if not (self._locked and self.is_open):
            return
        with self.mutex, _silent(self.at):
            assert self._conn is not None  # noqa: S101 - it is open
            self._conn.execute("SELECT pg_advisory_unlock(%s)", [self._tables.lock_key])


@contextmanager
def _silent(at: str) -> Iterator[None]:
    """Let nothing out: closing the connection frees the lock as well."""
    try:
        with translated(at):
            yield
    except OwmOutboxError:
        return


def _one(conn: psycopg.Connection[Row], query: Any, *parameters: object) -> Any:
    row = conn.execute(query, parameters or None).fetchone()
    return None if row is None else row[0]
