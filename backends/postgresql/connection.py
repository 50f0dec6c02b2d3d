"""Session: a connection to PostgreSQL that one thread at a time uses, by whole transactions."""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

from owm_outbox import OutboxInvalid, OutboxUnavailable

from .errors import meaning, refusal, said, translated
from .patience import Patience

__all__ = ["OLDEST", "Row", "Session", "readable"]

log = logging.getLogger("owm_outbox.postgresql")

Row = tuple[Any, ...]

OLDEST = 13
"""The first version of PostgreSQL that an outbox works with."""

# In the transaction itself, so that a pooler between us and the server, or a default of the user's, changes nothing.
# No statement waits longer than a stop may take; one that stands still (a process that was stopped) locks nobody out.
_BEGIN = (
    "BEGIN ISOLATION LEVEL {isolation}; SET LOCAL synchronous_commit = {durability}; "
    "SET LOCAL lock_timeout = '4s'; SET LOCAL idle_in_transaction_session_timeout = '20s'"
)


def readable(fd: int, seconds: float) -> bool:
    """Wait this long for something to read; return whether there is, be it that another thread closed it.

    Not by ``select``, which takes no descriptor from 1,024 on, and raises for one that was closed.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class Session:
    """A connection that is made when it is needed, and made again when it was lost between two transactions.

    :param conninfo: what to connect with.
    :param at: the outbox, as messages name it.
    :param warns: of a server that is not durable; once.
    """

    def __init__(self, conninfo: Mapping[str, Any], at: str, *, warns: bool = True) -> None:
        self.at = at
        self.mutex = threading.RLock()
        self._conninfo = conninfo
        self._conn: psycopg.Connection[Row] | None = None
        self._patience = Patience()
        self._durability = "on"
        self._warns = warns
        self._closed = False

    @contextmanager
    def transaction(self, isolation: str = "READ COMMITTED") -> Iterator[psycopg.Connection[Row]]:
        """Make one commit, which is on the server's disk once the block is left."""
        with self._alone():
            conn = self._begun(isolation)
            try:
                yield conn
                self._commit(conn)
            except BaseException as error:
                self._roll_back(conn)
                if isinstance(error, psycopg.errors.InsufficientPrivilege):
                    raise self._denied(error, conn) from error
                raise

    @contextmanager
    def statement(self) -> Iterator[psycopg.Connection[Row]]:
        """Give the connection for one statement that writes, and is a transaction of its own: one round trip."""
        with self._alone():
            conn = self._checked()
            try:
                yield conn
            except psycopg.OperationalError as error:
                if conn.closed:
                    raise self._unknown(error) from error
                raise
            except psycopg.errors.InsufficientPrivilege as error:
                raise self._denied(error, conn) from error

    @contextmanager
    def connected(self) -> Iterator[psycopg.Connection[Row]]:
        """Give the connection for statements that only read, outside of any transaction."""
        with self._alone():
            conn = self._checked()
            try:
                yield conn
            except psycopg.errors.InsufficientPrivilege as error:
                raise self._denied(error, conn) from error

    def advice(self, conn: psycopg.Connection[Row]) -> str:
        """Return what to do where a right is missing."""
        return f"grant it to the role {conn.info.user}"

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that is not known to be lost."""
        return self._conn is not None and not self._conn.closed

    def close(self) -> None:
        """Close the connection; it is not made again."""
        self._closed = True
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connection, if there is one."""
        conn, self._conn = self._conn, None
        if conn is not None:
            with suppress(psycopg.Error):  # what matters is that it is closed, however that ends
                conn.close()
        self._patience.detach()

    # -- within

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other thread use the connection, wait for the server as long as makes sense, and raise our errors."""
        with self.mutex, translated(self.at), self._patience.waiting():
            yield

    def _begun(self, isolation: str) -> psycopg.Connection[Row]:
        conn = self._open()
        begin = _BEGIN.format(isolation=isolation, durability=self._durability).encode()
        try:
            conn.execute(begin, prepare=False)
        except psycopg.OperationalError:
            if not conn.closed:
                self._roll_back(conn)
                raise
            # It was lost since it was last used, with a restart of the server for instance: nothing was begun.
            conn = self._reopened()
            conn.execute(begin, prepare=False)
        return conn

    def _commit(self, conn: psycopg.Connection[Row]) -> None:
        try:
            conn.execute("COMMIT", prepare=False)
        except psycopg.OperationalError as error:
            if not conn.closed:
                raise
            raise self._unknown(error) from error

    def _unknown(self, error: psycopg.Error) -> OutboxUnavailable:
        return OutboxUnavailable(
            f"the connection to {self.at} was lost during a commit, and whether that was made is not known "
            f"({said(error)}): run again"
        )

    def _denied(self, error: psycopg.Error, conn: psycopg.Connection[Row]) -> OutboxInvalid:
        return OutboxInvalid(f"{meaning(error, self.at)}: {self.advice(conn)}")

    def _checked(self) -> psycopg.Connection[Row]:
        """Return a connection that was not lost while it was idle: nothing that writes may be sent twice."""
        conn = self._open()
        if readable(conn.fileno(), 0):  # the server said something unasked, at most that it ends
            try:
                conn.execute("SELECT 1")
            except psycopg.OperationalError:
                conn = self._reopened()
        return conn

    def _roll_back(self, conn: psycopg.Connection[Row]) -> None:
        if conn.closed:
            self._conn = None if self._conn is conn else self._conn
            return
        try:
            conn.execute("ROLLBACK", prepare=False)
        except psycopg.Error:  # then the server does so, when it notices that nobody is there
            self.disconnect()

    def _open(self) -> psycopg.Connection[Row]:
        if self._closed:
            raise OutboxInvalid(f"{self.at} was closed: open it again")
        if self._conn is None or self._conn.closed:
            self._conn = self._connect()
        return self._conn

    def _reopened(self) -> psycopg.Connection[Row]:
        self.disconnect()
        return self._open()

    def _connect(self) -> psycopg.Connection[Row]:
        try:
            conn: psycopg.Connection[Row] = psycopg.connect(**self._conninfo, autocommit=True)
        except psycopg.Error as error:
            raise refusal(error, self.at) from error
        self._patience.attach(conn.fileno())
        try:
            self._durability = self._settled(conn)
        except BaseException:
            conn.close()
            raise
        return conn

    def _settled(self, conn: psycopg.Connection[Row]) -> str:
        """Check what the server is, agree on how it speaks, and return how durable a commit has to be."""
        if conn.info.server_version < OLDEST * 10_000:
            raise OutboxInvalid(f"{self.at} is PostgreSQL {conn.info.server_version // 10_000}: use {OLDEST} or later")
        encoding = conn.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise OutboxInvalid(
                f"{self.at} has the encoding {encoding}, which cannot hold every text: use a database with UTF8"
            )
        with translated(self.at):
            conn.execute("SET DateStyle = 'ISO'; SET TimeZone = 'UTC'; SET lock_timeout = '4s'", prepare=False)
            row = conn.execute(
                "SELECT current_setting('synchronous_commit'), current_setting('fsync'), pg_backend_pid()"
            ).fetchone()
        assert row is not None  # noqa: S101 - a SELECT without FROM has one row
        durability, fsync, backend = row
        if fsync != "on" and self._warns:
            self._warns = False
            log.warning("%s has fsync = %s: stored tasks may be lost when its machine fails", self.at, fsync)
        if backend != conn.info.backend_pid:  # a pooler, whose servers know nothing of statements that we prepared
            conn.prepare_threshold = None
        return durability if durability == "remote_apply" else "on"
