"""Where the contract kit may write: tables next to those that a URL names, dropped afterwards."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString

import psycopg

from owm_outbox import URL
from owm_outbox.testing import Destination

from .address import conninfo_of, place_of
from .connection import Row
from .errors import refusal, translated
from .failures import refusing
from .sink import SINK_OPTIONS, PostgresqlSink
from .sink_table import SinkTable

__all__ = ["scratch"]

_PAYLOADS: LiteralString = "SELECT payload::text FROM {table} ORDER BY id"


@contextmanager
def scratch(url: URL) -> Iterator[Destination]:
    """Give tables of their own, next to the one that ``postgresql://…?table=…`` names."""
    with PostgresqlSink.from_url(url) as sink:
        sink.mark("check")  # what is wrong with the tables that are there shows here
    schema = url.options(**SINK_OPTIONS).get("schema", "public")
    table = SinkTable(schema, f"check_{uuid.uuid4().hex[:12]}")
    conninfo = conninfo_of(url, SINK_OPTIONS)
    at = place_of(conninfo, table)
    try:
        conn: psycopg.Connection[Row] = psycopg.connect(**conninfo, autocommit=True)  # type: ignore[arg-type]  # options of libpq are texts and numbers
    except psycopg.Error as error:
        raise refusal(error, at) from error
    with conn, translated(at):
        conn.execute(table.schema_sql().encode())
        try:
            yield Destination(
                open=lambda: PostgresqlSink(url, schema=schema, table=table.table, retries=0),
                payloads=lambda: [text.encode() for (text,) in conn.execute(table.sql(_PAYLOADS)).fetchall()],
                poison=b'{"task_id": "\xff"}',
                interrupt=lambda: refusing(conn, schema, table.table, [table.table, table.marks]),
                unreachable=lambda: PostgresqlSink("host=127.0.0.1 port=1", table=table.table, retries=0),
                lose=lambda: conn.execute(table.sql("TRUNCATE {table}")),
            )
        finally:
            conn.execute(table.sql("DROP TABLE {table}, {marks}"))
            conn.execute(table.sql("DROP FUNCTION {forget}()"))
