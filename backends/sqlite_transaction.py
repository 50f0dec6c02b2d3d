"""Tasks in an application's own transaction: on which connection, and in which state it must be."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from owm_outbox import OutboxInvalid

__all__ = ["refuse_other_objects", "using"]

_GIVE = {
    "aiosqlite": "the sqlite3 connection that it was made with",
    "django": "connection.connection, within transaction.atomic()",
    "peewee": "database.connection()",
    "sqlite3": "its .connection",  # a cursor
    "sqlite_utils": "database.conn",
}
_GIVE_SQLALCHEMY = {
    "AsyncConnection": "the sqlite3 connection that aiosqlite was given",
    "AsyncSession": "the sqlite3 connection that aiosqlite was given",
    "Connection": "connection.connection.driver_connection",
    "Session": "session.connection().connection.driver_connection",
    "PoolProxiedConnection": "its .driver_connection",
    "scoped_session": "session.connection().connection.driver_connection",
}


def refuse_other_objects(connection: object) -> None:
    """Raise unless this is a connection of the sqlite3 module, and say which object to give instead.

    :raises TypeError: with that.
    """
    if isinstance(connection, sqlite3.Connection):
        return
    give = "one to the same file, such as outbox.connect() returns"
    for cls in reversed(type(connection).__mro__):
        package = cls.__module__.partition(".")[0]
        give = _GIVE_SQLALCHEMY.get(cls.__name__, give) if package == "sqlalchemy" else _GIVE.get(package, give)
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    raise TypeError(f"append(connection=…) takes a sqlite3.Connection, not a {kind}: give {give} (see docs/service.md)")


@contextmanager
def using(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Check that what is written within the block becomes part of the caller's transaction on this file.

    :raises OutboxInvalid: it is a connection to another file, one that commits each statement, or of no use here.
    """
    try:
        cursor = connection.cursor()
        cursor.row_factory = None  # the application's may make something else of a row
        (file,) = cursor.execute("SELECT file FROM pragma_database_list WHERE name = 'main'").fetchone()
        if not file or not os.path.samefile(file, path):
            raise OutboxInvalid(
                f"the connection is to {os.fsdecode(file) if file else 'memory'}, not to {path}: use outbox.connect()"
            )
        commits_itself = connection.isolation_level is None or getattr(connection, "autocommit", False) is True
        if commits_itself and not connection.in_transaction:
            raise OutboxInvalid("the connection commits each statement by itself: BEGIN a transaction first")
        yield
    except sqlite3.ProgrammingError as error:  # it is closed, or belongs to another thread
        raise OutboxInvalid(f"the connection to {path} cannot be used here: {error}") from error
