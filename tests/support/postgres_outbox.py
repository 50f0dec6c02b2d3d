"""A PostgresqlOutbox for one test: tables of its own on a server that many tests share."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from owm_outbox import URL
from owm_outbox_backends.postgresql import PostgresqlLanes, PostgresqlOutbox
from owm_outbox_backends.postgresql.address import Tables
from owm_outbox_backends.postgresql.scratch import failing, within

from support.postgres import PostgresServer

__all__ = ["Note", "Place", "note", "place_on"]


@dataclass
class Note:
    """A task."""

    task_id: uuid.UUID
    text: str


def note(text: str) -> Note:
    """Make a task."""
    return Note(uuid.uuid4(), text)


@dataclass(frozen=True)
class Place:
    """Tables of an outbox, which need not exist yet."""

    server: PostgresServer
    table: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:10]}")

    @property
    def url(self) -> str:
        """The outbox's URL."""
        return self.server.url(table=self.table)

    def needs(self, version: int, why: str) -> None:
        """Skip the test on a server of an older version, which can only be one from PATH."""
        with self.server.client() as client:
            if client.info.server_version < version * 10_000:
                pytest.skip(why)

    def open(self, **options: Any) -> PostgresqlOutbox:
        """Open the outbox."""
        return PostgresqlOutbox(self.server.url(), table=self.table, **options)

    def open_lanes(self, lanes: int) -> PostgresqlLanes:
        """Open the outbox as one with lanes."""
        return PostgresqlLanes(self.server.url(), table=self.table, lanes=lanes)

    def failing(self) -> AbstractContextManager[None]:
        """Make a block within which the server refuses what is written after some rows."""
        return failing(URL(self.url), Tables(table=self.table))

    def begin(self) -> AbstractContextManager[Callable[[Sequence[Any]], object]]:
        """Begin a transaction of an application's, which is committed at the end of the block."""
        return within(URL(self.url), self.open)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the server; ``{t}`` is what the names of the tables begin with."""
        with self.server.client() as client:
            cursor = client.execute(query.format(t=self.table).encode())
            return cursor.fetchall() if cursor.description else []


@contextmanager
def place_on(server: PostgresServer) -> Iterator[Place]:
    """Give a place, and drop what was made there."""
    place = Place(server)
    yield place
    for what in Tables(table=place.table).names:
        place.rows(f"DROP TABLE IF EXISTS {{t}}_{what}")
