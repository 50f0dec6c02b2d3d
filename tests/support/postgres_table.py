"""Tables of a PostgresqlSink for one test, on a server that many tests share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from owm_outbox import Batch, Entry, Mark
from owm_outbox_backends.postgresql.failures import refusing
from owm_outbox_backends.postgresql.sink import PostgresqlSink

from support.postgres import PostgresServer

__all__ = ["Table", "batch", "table_on"]


def batch(*payloads: bytes, first: int = 1, after: str = "") -> Batch:
    """Make a batch whose positions begin at ``first``."""
    entries = [Entry(n, f"task-{n}", payload) for n, payload in enumerate(payloads, first)]
    return Batch("box", Mark(after), entries, Mark.of(entries[-1], "lease"))


@dataclass(frozen=True)
class Table:
    """A table that workers read, made as ``owm-outbox schema --sink postgresql`` says."""

    server: PostgresServer
    name: str = field(default_factory=lambda: f"s{uuid.uuid4().hex[:10]}")

    def make(self) -> None:
        """Make both tables."""
        self.rows(PostgresqlSink.schema_sql(table=self.name))

    def url(self, **options: object) -> str:
        """Return the sink's URL."""
        return self.server.url(table=self.name, **options)

    def open(self, **options: Any) -> PostgresqlSink:
        """Open a sink that tries nothing twice, unless told to."""
        return PostgresqlSink(self.server.url(), table=self.name, **({"retries": 0} | options))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the server; ``{t}`` is the name of the table."""
        with self.server.client() as client:
            cursor = client.execute(query.replace("{t}", self.name).encode())
            return cursor.fetchall() if cursor.description else []

    def payloads(self) -> list[bytes]:
        """Return the payloads that it holds, in the order in which they came."""
        return [text.encode() for (text,) in self.rows("SELECT payload::text FROM {t} ORDER BY id")]

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Have the server refuse what is written after some rows."""
        with self.server.client() as client, refusing(client, "public", self.name, [self.name, f"{self.name}_marks"]):
            yield


@contextmanager
def table_on(server: PostgresServer) -> Iterator[Table]:
    """Give a table, and drop what was made."""
    table = Table(server)
    table.make()
    yield table
    table.rows("DROP TABLE IF EXISTS {t}, {t}_marks; DROP FUNCTION IF EXISTS {t}_forget()")
