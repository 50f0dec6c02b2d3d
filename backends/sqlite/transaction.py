"""Tasks in an application's own transaction: on which connection, and in which state it must be."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from owm_outbox import NewEntry, OutboxInvalid, async_driver_connection, driver_connection, kind_of

from .rows import INSERT, new_rows

__all__ = ["insert_within", "insert_within_async"]

_FILE = "SELECT file FROM pragma_database_list WHERE name = 'main'"
_NO_ROW = "DELETE FROM outbox_entries WHERE 0"  # a write all the same, with which a transaction begins
_TAKES = "of sqlite3, SQLAlchemy or Django, and append_async one of aiosqlite or of SQLAlchemy's asyncio"


def insert_within(connection: object, path: Path, entries: Sequence[NewEntry], now: float) -> int:
    """Insert entries, without a run, in the transaction of an application.

    :raises TypeError: ``connection`` is of another kind.
    :raises OutboxInvalid: it is to another file, commits each statement by itself, or is of no use here.
    """
    found = driver_connection(connection)
    if not isinstance(found, sqlite3.Connection):
        raise TypeError(f"append(connection=…) takes a connection {_TAKES}, not {kind_of(found)}: see docs/service.md")
    with _usable(path):
        cursor = found.cursor()
        cursor.row_factory = None  # the application's may make something else of a row
        _check_file(cursor.execute(_FILE).fetchone()[0], path)
        cursor.execute(_NO_ROW)
        _check_transaction(found)
        before = found.total_changes
        cursor.executemany(INSERT, new_rows(None, entries, now))
        return found.total_changes - before


async def insert_within_async(connection: object, path: Path, entries: Sequence[NewEntry], now: float) -> int:
    """Do the same in a transaction of aiosqlite, or of SQLAlchemy's asyncio extension."""
    found: Any = await async_driver_connection(connection)
    if type(found).__module__.partition(".")[0] != "aiosqlite" or not hasattr(type(found), "total_changes"):
        raise TypeError(
            f"append_async(connection=…) takes a connection of aiosqlite or of SQLAlchemy's asyncio, "
            f"not {kind_of(found)}: see docs/service.md"
        )
    with _usable(path):
        async with await found.cursor() as cursor:
            cursor.row_factory = None
            await cursor.execute(_FILE)
            _check_file((await cursor.fetchone())[0], path)
            await cursor.execute(_NO_ROW)
            _check_transaction(found)
            before = found.total_changes
            await cursor.executemany(INSERT, list(new_rows(None, entries, now)))
            return int(found.total_changes - before)


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.ProgrammingError, ValueError) as error:  # it is closed, or belongs to another thread
        raise OutboxInvalid(f"the connection to {path} cannot be used here: {error}") from error


def _check_file(file: str | bytes, path: Path) -> None:
    if not file or not os.path.samefile(file, path):
        raise OutboxInvalid(
            f"the connection is to {os.fsdecode(file) if file else 'memory'}, not to {path}: use outbox.connect()"
        )


def _check_transaction(connection: Any) -> None:
    if not connection.in_transaction:
        raise OutboxInvalid("the connection commits each statement by itself: BEGIN a transaction first")
