"""Tables of a PostgresqlOutbox to try it with, and a failure in the middle of what is written to them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier

from owm_outbox import URL
from owm_outbox.testing import Storage

from .address import Tables, conninfo_of, own_options
from .connection import Row
from .errors import refusal
from .failures import refusing
from .outbox import PostgresqlOutbox

__all__ = ["dropped", "failing", "scratch", "within"]

_CHANGED = ("entries", "incoming", "positions", "runs", "lanes", "state")


@contextmanager
def dropped(url: URL) -> Iterator[Tables]:
    """Give names of tables next to those that a URL names, and drop them in the end."""
    schema = own_options(url).get("schema", "public")
    tables = Tables(schema, f"check_{uuid.uuid4().hex[:12]}")
    # What is wrong shows here, once: a server that is down or refuses us, a schema that is missing, or no right in it.
    PostgresqlOutbox(url, schema=tables.schema, table=tables.table).close()
    try:
        yield tables
    finally:
        with _connected(url, tables) as conn:
            for name in tables.names.values():
                conn.execute(SQL("DROP TABLE IF EXISTS {}").format(Identifier(schema, name)))


@contextmanager
def failing(url: URL, tables: Tables) -> Iterator[None]:
    """Have the server refuse what is written after some rows."""
    names = [tables.names[what] for what in _CHANGED]
    with _connected(url, tables) as conn, refusing(conn, tables.schema, tables.table, names):
        yield


@contextmanager
def within(url: URL, open_outbox: Callable[[], PostgresqlOutbox]) -> Iterator[Callable[[Sequence[Any]], object]]:
    """Give a function that appends in a transaction of its own, which is committed at the end of the block."""
    with open_outbox() as outbox, _connected(url, Tables()) as conn, conn.transaction():
        yield lambda tasks: outbox.append(tasks, connection=conn)


@contextmanager
def _connected(url: URL, tables: Tables) -> Iterator[psycopg.Connection[Row]]:
    try:
        conn = psycopg.connect(**conninfo_of(url), autocommit=True)  # type: ignore[arg-type]  # options of libpq are texts and numbers
    except psycopg.Error as error:
        raise refusal(error, str(tables)) from error
    with conn:
        yield conn


@contextmanager
def scratch(url: URL) -> Iterator[Storage]:
    """Give tables of their own, next to those that ``postgresql://…?schema=…&table=…`` names."""

    def opened() -> PostgresqlOutbox:
        return PostgresqlOutbox(url, schema=tables.schema, table=tables.table)

    with dropped(url) as tables:
        yield Storage(
            open=opened,
            interrupt=lambda: failing(url, tables),
            transaction=lambda: within(url, opened),
        )
