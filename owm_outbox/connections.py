"""The driver's own connection under what an application's library hands out, found without importing any library."""

from __future__ import annotations

from typing import Any

__all__ = ["async_driver_connection", "driver_connection", "kind_of"]

_GIVE = {"peewee": "database.connection()", "sqlite_utils": "database.conn"}


def driver_connection(connection: object) -> object:
    """Return the connection of the driver in which an application's transaction is.

    :param connection: SQLAlchemy's ``Session``, ``scoped_session`` or ``Connection``; Django's ``connection``, within
        ``transaction.atomic()``. Anything else is returned as it is: it may be a driver's own.
    :raises TypeError: it has to be awaited, is in no transaction, or is another object that has a connection to give;
        the message says which.
    """
    library, name = _origin(connection)
    found: Any = connection
    if library == "sqlalchemy":
        if name.lower().startswith("async"):
            raise TypeError(f"{kind_of(connection)} has to be awaited: use append_async(connection=…)")
        if name in ("Session", "scoped_session"):
            found, name = found.connection(), "Connection"
        return (found.connection if name == "Connection" else found).driver_connection
    if library == "django":
        if not found.in_atomic_block:
            raise TypeError("Django's connection commits each statement by itself: append within transaction.atomic()")
        found.ensure_connection()
        return found.connection
    if library in _GIVE:
        raise TypeError(f"{kind_of(connection)} is not a connection: give {_GIVE[library]}")
    return connection


async def async_driver_connection(connection: object) -> object:
    """Return the same of SQLAlchemy's ``AsyncSession``, ``async_scoped_session`` or ``AsyncConnection``.

    Anything else is returned as it is.
    """
    library, name = _origin(connection)
    if library != "sqlalchemy" or not name.lower().startswith("async"):
        return connection
    found: Any = connection
    if name != "AsyncConnection":
        found = await found.connection()
    await found.exec_driver_sql("SELECT 1")  # with asyncpg, SQLAlchemy begins its transaction only now
    return (await found.get_raw_connection()).driver_connection


def kind_of(connection: object) -> str:
    """Name the class of an object, for a message."""
    cls = type(connection)
    return f"a {cls.__module__}.{cls.__qualname__}"


def _origin(connection: object) -> tuple[str, str]:
    """Return the library that an object is of, and the name that its class, or one it inherits from, has there."""
    for cls in type(connection).__mro__:
        library = cls.__module__.partition(".")[0]
        if library in ("sqlalchemy", "django", *_GIVE):
            return library, cls.__name__
    return "", ""
