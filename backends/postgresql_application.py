"""Tasks in an application's own transaction: which objects are taken, and in which state they must be."""

from __future__ import annotations

import psycopg
from psycopg.pq import TransactionStatus

from owm_outbox import OutboxInvalid

from .postgresql_connection import Row

__all__ = ["connection_of"]

# What to give instead, by the package of what was given, and by its class in SQLAlchemy.
_GIVE = {
    "django": "connection.connection, within transaction.atomic()",
    "psycopg": "the psycopg.Connection that it belongs to",  # a cursor, an asynchronous connection
    "psycopg2": "a connection of psycopg 3",
    "psycopg_pool": "a connection of it, as `with pool.connection() as connection` gives",
}
_GIVE_SQLALCHEMY = {
    "Connection": "connection.connection.driver_connection",
    "Session": "session.connection().connection.driver_connection",
    "PoolProxiedConnection": "its .driver_connection",
    "scoped_session": "session.connection().connection.driver_connection",
}


def connection_of(given: object) -> psycopg.Connection[Row]:
    """Return the connection on which the caller's transaction is.

    :raises TypeError: this is another kind of object; the message says which one to give.
    :raises OutboxInvalid: it is closed, in a transaction that failed, or commits each statement by itself.
    """
    if not isinstance(given, psycopg.Connection):
        raise TypeError(_refusal(given))
    if given.closed:
        raise OutboxInvalid("the connection is closed: give one that is in a transaction")
    status = given.info.transaction_status
    if status == TransactionStatus.INERROR:
        raise OutboxInvalid("the connection is in a transaction that failed: roll it back first")
    if given.autocommit and status == TransactionStatus.IDLE:
        raise OutboxInvalid("the connection commits each statement by itself: use `with connection.transaction():`")
    return given


def _refusal(given: object) -> str:
    give = "a psycopg.Connection to the same database"
    for cls in reversed(type(given).__mro__):
        package = cls.__module__.partition(".")[0]
        give = _GIVE_SQLALCHEMY.get(cls.__name__, give) if package == "sqlalchemy" else _GIVE.get(package, give)
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    return f"append(connection=…) takes a psycopg.Connection, not a {kind}: give {give} (see docs/service.md)"
