"""Appending to a PostgresqlOutbox: one statement, on a connection of any driver, in whatever transaction it is in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from owm_outbox import NewEntry, OutboxInvalid, async_driver_connection, driver_connection, kind_of, lane_of

from .address import Tables
from .connection import Row
from .errors import meaning_of_state
from .rows import columns

__all__ = ["append", "append_async", "append_within"]

# The rows have no position, and the commit is on disk. The lock of a relay that is asleep says that there is one to
# wake: a NOTIFY in every append would cost three tenths of the appends per second. Where none is asleep, our own lock
# keeps it from falling asleep before we commit.
_FORM: LiteralString = (
    "WITH new AS (INSERT INTO {entries} (lane, key, task_id, headers, payload, stored_at) "
    "SELECT lane, key, task_id, headers, payload, coalesce(%(now)s::timestamptz, clock_timestamp()) FROM <given> "
    "RETURNING lane, sequence), "
    "incoming AS (INSERT INTO {incoming} (lane, sequence) SELECT lane, sequence FROM new RETURNING 1) "
    "SELECT count(*), CASE WHEN <awake> THEN NULL ELSE pg_notify(%(channel)s, '') END, "
    "set_config('synchronous_commit', CASE "
    "WHEN current_setting('synchronous_commit') = 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true) "
    "FROM incoming"
)
_MANY: LiteralString = _FORM.replace(
    "<given>",
    "unnest(%(lane)s::smallint[], %(key)s::text[], %(id)s::text[], %(headers)s::json[], %(payload)b::bytea[]) "
    "WITH ORDINALITY AS given (lane, key, task_id, headers, payload, number) ORDER BY number",
).replace(
    "<awake>", "(SELECT bool_and(pg_try_advisory_xact_lock_shared(key)) FROM unnest(%(asleep)s::bigint[]) AS key)"
)
# For a single task, which is what most applications append: psycopg takes a sixth of the whole to write six arrays.
_ONE: LiteralString = _FORM.replace(
    "<given>",
    "(VALUES (%(lane)s::smallint, %(key)s::text, %(id)s::text, %(headers)s::json, %(payload)b::bytea)) "
    "AS given (lane, key, task_id, headers, payload)",
).replace("<awake>", "pg_try_advisory_xact_lock_shared(%(asleep)s::bigint)")
_TAKES = "of psycopg, SQLAlchemy or Django, and append_async one of psycopg, asyncpg or SQLAlchemy's asyncio"


def append(conn: psycopg.Connection[Row], tables: Tables, entries: Sequence[NewEntry], now: datetime | None) -> int:
    """Insert entries, and return how many."""
    with conn.cursor(row_factory=tuple_row) as cursor:  # the application's may make something else of a row
        cursor.execute(*_statement(tables, entries, now))
    return len(entries)


def append_within(connection: object, tables: Tables, entries: Sequence[NewEntry], now: datetime | None) -> int:
    """Insert entries in the transaction of an application.

    :raises TypeError: ``connection`` is of another kind.
    :raises OutboxInvalid: it is closed, in a transaction that failed, or commits each statement by itself.
    """
    found = driver_connection(connection)
    if not isinstance(found, psycopg.Connection):
        raise TypeError(
            f"append(connection=…) takes a connection {_TAKES}, not {kind_of(found)}: see docs/postgresql.md"
        )
    _check(found)
    return append(found, tables, entries, now)


async def append_async(connection: object, tables: Tables, entries: Sequence[NewEntry], now: datetime | None) -> int:
    """Do the same in a transaction of psycopg's AsyncConnection, asyncpg, or SQLAlchemy's asyncio extension."""
    found: Any = await async_driver_connection(connection)
    statement, values = _statement(tables, entries, now)
    if isinstance(found, psycopg.AsyncConnection):
        _check(found)
        async with found.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(statement, values)
    elif type(found).__module__.partition(".")[0] == "asyncpg" and hasattr(found, "is_in_transaction"):
        if found.is_closed():
            raise OutboxInvalid("the connection is closed: give one that is in a transaction")
        if not found.is_in_transaction():
            raise OutboxInvalid(
                "the connection commits each statement by itself: use `async with connection.transaction():`"
            )
        numbered, names = _numbered(statement.decode())
        try:
            await found.execute(numbered, *(values[name] for name in names))
        except Exception as error:
            state = getattr(error, "sqlstate", None)
            if state is None:  # not the server's
                raise
            raise meaning_of_state(state, str(error), str(tables)) from error
    else:
        raise TypeError(
            "append_async(connection=…) takes a connection of psycopg, asyncpg or SQLAlchemy's asyncio, "
            f"not {kind_of(found)}: see docs/postgresql.md"
        )
    return len(entries)


def _statement(tables: Tables, entries: Sequence[NewEntry], now: datetime | None) -> tuple[bytes, dict[str, Any]]:
    """Return the statement that appends, and its parameters."""
    keys, ids, headers, payloads = columns(entries)
    lanes = [_lane(entry, tables) for entry in entries]
    given: dict[str, list[Any]] = {
        "lane": lanes,
        "key": keys,
        "id": ids,
        "headers": headers,
        "payload": payloads,
        "asleep": [tables.asleep_key_of(lane) for lane in set(lanes)],
    }
    always = {"now": now, "channel": tables.channel}
    if len(entries) == 1:
        return tables.sql(_ONE), always | {name: value[0] for name, value in given.items()}
    return tables.sql(_MANY), always | given


def _lane(entry: NewEntry, tables: Tables) -> int:
    if tables.lanes == 1:
        return tables.lane
    return lane_of(entry.task_id or "" if entry.key is None else entry.key, tables.lanes)


def _check(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    if connection.closed:
        raise OutboxInvalid("the connection is closed: give one that is in a transaction")
    status = connection.info.transaction_status
    if status == TransactionStatus.INERROR:
        raise OutboxInvalid("the connection is in a transaction that failed: roll it back first")
    if connection.autocommit and status == TransactionStatus.IDLE:
        raise OutboxInvalid("the connection commits each statement by itself: use `with connection.transaction():`")


def _numbered(statement: str) -> tuple[str, list[str]]:
    """Turn psycopg's ``%(name)s`` into asyncpg's ``$1``, and return the names in the order of their numbers."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    return re.sub(r"%\((\w+)\)[sb]", number, statement), names
