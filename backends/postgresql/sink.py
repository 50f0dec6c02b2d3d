"""PostgresqlSink: a batch and its mark in one transaction, into a table that workers read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, LiteralString, Self

import msgspec
import psycopg

from owm_outbox import (
    URL,
    Batch,
    ConfigurationError,
    EntriesRejected,
    Entry,
    MarkConflict,
    OutboxInvalid,
    OutboxUnavailable,
    Sink,
    SinkUnavailable,
    retried,
)

from .address import conninfo_of, own_options, place_of
from .connection import Row, Session
from .errors import said
from .sink_table import SinkTable

__all__ = ["SINK_OPTIONS", "PostgresqlSink"]

_Name = Annotated[str, msgspec.Meta(min_length=1)]
SINK_OPTIONS: dict[str, Any] = {
    "schema": _Name,
    "table": _Name,
    "retries": Annotated[int, msgspec.Meta(ge=0, le=100)],
}
"""The options of the URL that are not libpq's, with their types."""

_HELD: LiteralString = "SELECT (SELECT mark FROM {marks} WHERE outbox_id = %s), {kept}"
_FIRST: LiteralString = (
    "INSERT INTO {marks} (outbox_id, mark) SELECT %(outbox)s, %(mark)s WHERE {kept} ON CONFLICT DO NOTHING"
)
_CHANGE: LiteralString = (
    "UPDATE {marks} SET mark = %(mark)s WHERE outbox_id = %(outbox)s AND mark = %(after)s AND {kept}"
)
_INSERT: LiteralString = "INSERT INTO {table} (task_id, headers, payload) VALUES (%s, %s, %s)"


class PostgresqlSink(Sink):
    """Adds each task to a table as a row: ``task_id``, ``headers`` and ``payload``. PostgreSQL 13 and later.

    ``postgresql://user:password@host:5432/database?table=tasks``. Options: ``table``, required; ``schema`` (public);
    ``retries`` (8) on lost connections; and all that libpq has (``sslmode``, ``passfile``, ``service``, …). That table
    and the one for the marks, ``tasks_marks``, are made with what ``owm-outbox schema --sink postgresql`` prints.

    Its mark per outbox changes in the transaction that adds the batch, and only from the mark that the batch follows.
    Workers take rows out by DELETE. What TRUNCATE takes out is lost, and with it the marks: a trigger says so.

    :param conninfo: a URL, or a connection string of libpq, without the options above.
    :raises ConfigurationError: the address cannot be understood.
    """

    def __init__(self, conninfo: str | URL, *, table: str, schema: str = "public", retries: int = 8) -> None:
        self._table = SinkTable(schema, table)
        info = conninfo_of(conninfo, SINK_OPTIONS)
        self._db = Session(info, place_of(info, self._table))
        self._retries = retries
        self._checked: psycopg.Connection[Row] | None = None

    @classmethod
    def from_url(cls, url: URL) -> Self:
        """Deliver to the table that ``postgresql://…?table=…`` names."""
        given = own_options(url, SINK_OPTIONS)
        if "table" not in given:
            raise ConfigurationError(f"{url} needs table=NAME, such as postgresql://host/database?table=tasks")
        return cls(url, **given)

    @staticmethod
    def schema_sql(*, schema: str = "public", table: str = "tasks") -> str:
        """Return what makes the tables, as plain SQL."""
        return SinkTable(schema, table).schema_sql()

    def mark(self, outbox_id: str) -> str:
        """Return the mark in the row of this outbox. The first call also looks whether the tables can keep one."""
        return retried(lambda: self._mark(outbox_id), retries=self._retries)

    def send(self, batch: Batch) -> None:
        """Change the mark and add the batch's rows, by COPY, in one transaction."""
        try:
            retried(lambda: self._send(batch), retries=self._retries)
        except _Unfit as error:
            reasons = retried(lambda: self._reasons(batch.entries), retries=self._retries)
            if not reasons:
                raise ConfigurationError(
                    f"{self._db.at} refuses the batch, but no entry of it alone: {error}"
                ) from error
            raise EntriesRejected(reasons) from error

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    # -- within

    def _mark(self, outbox_id: str) -> str:
        with self._transaction() as conn:
            return self._held(conn, outbox_id)

    def _held(self, conn: psycopg.Connection[Row], outbox_id: str) -> str:
        row = conn.execute(self._table.sql(_HELD), [outbox_id]).fetchone()
        assert row is not None  # noqa: S101 - a SELECT without FROM has one row
        mark, kept = row
        if not kept:
            self._table.check(conn, self._db.at)
        return "" if mark is None else str(mark)

    def _send(self, batch: Batch) -> None:
        with self._transaction() as conn:
            # Before the mark's row, as a TRUNCATE does it, or the two would wait for each other.
            conn.execute(self._table.sql("LOCK TABLE {table} IN ROW EXCLUSIVE MODE"))
            changed = conn.execute(
                self._table.sql(_CHANGE if batch.after else _FIRST),
                {"outbox": batch.outbox_id, "after": batch.after, "mark": batch.mark},
            )
            if not changed.rowcount:
                raise MarkConflict(self._held(conn, batch.outbox_id))
            try:
                with conn.cursor().copy(self._table.sql("COPY {table} (task_id, headers, payload) FROM STDIN")) as rows:
                    for entry in batch.entries:
                        rows.write_row(_row(entry))
            except (psycopg.Error, UnicodeError) as error:
                raise _Unfit(_reason(error)) if _blames_entry(error) else error from error

    def _reasons(self, entries: Sequence[Entry]) -> dict[int, str]:
        """Try each entry alone, and return what is wrong with those that are refused, by position."""
        reasons = {}
        with suppress(_Undo), self._transaction() as conn:
            for entry in entries:
                try:
                    with conn.transaction():
                        conn.execute(self._table.sql(_INSERT), _row(entry))
                except (psycopg.Error, UnicodeError) as error:
                    if not _blames_entry(error):
                        raise
                    reasons[entry.position] = _reason(error)
            raise _Undo
        return reasons

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[Row]]:
        """Make one commit in tables that can keep a mark, and raise a sink's errors."""
        try:
            with self._db.transaction() as conn:
                if conn is not self._checked:
                    self._table.check(conn, self._db.at)
                    self._checked = conn
                yield conn
        except OutboxUnavailable as error:
            raise SinkUnavailable(str(error)) from error
        except OutboxInvalid as error:
            self._check()  # says better what is wrong with a table that was dropped or changed meanwhile
            raise ConfigurationError(str(error)) from error

    def _check(self) -> None:
        with suppress(OutboxInvalid), self._db.transaction() as conn:
            self._table.check(conn, self._db.at)


class _Unfit(Exception):
    """The server refused a row for what is in it."""


class _Undo(Exception):
    """Ends a transaction that was only a trial."""


def _row(entry: Entry) -> tuple[str, str, str]:
    return entry.task_id, json.dumps(dict(entry.headers)), entry.payload.decode()


def _blames_entry(error: Exception) -> bool:
    """Tell whether another entry in the same place may be taken."""
    if isinstance(error, psycopg.errors.NotNullViolation):  # what we write is never null: it is the table's column
        return False
    # What is no valid value, breaks a constraint, is too large, or is refused by a trigger.
    kinds = (UnicodeError, psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)
    return isinstance(error, (*kinds, psycopg.errors.RaiseException))


def _reason(error: Exception) -> str:
    return said(error) if isinstance(error, psycopg.Error) else f"its payload is not UTF-8 ({error})"
