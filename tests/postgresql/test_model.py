"""A Hypothesis state machine on PostgreSQL: whatever is done, and wherever a session ends, it agrees with a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from psycopg.sql import SQL, Identifier

from owm_outbox import Outbox

from support.outbox_machine import OutboxMachine
from support.postgres import PostgresServer, postgres_binaries, postgres_running
from support.postgres_outbox import Place

END = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


class PostgresqlMachine(OutboxMachine):
    """The machine on tables of its own, under the lock. A crash ends all sessions, one of them in a transaction."""

    server: PostgresServer

    def __init__(self) -> None:
        super().__init__()
        self.place = Place(self.server)
        self.stack = contextlib.ExitStack()

    def open(self) -> Outbox:
        """Open the tables, and take the lock."""
        outbox = self.stack.enter_context(self.place.open())
        self.stack.enter_context(outbox.lock())
        return outbox

    def crash(self) -> None:
        """End every session as the server does when a process is gone, with a transaction that was not committed."""
        left = self.server.client()
        left.execute("BEGIN")
        change = SQL("UPDATE {} SET acknowledged = 'x', last_position = 1000000")
        left.execute(change.format(Identifier(f"{self.place.table}_lanes")))
        while self.place.rows(END):
            continue
        left.close()
        self.stack.close()

    def teardown(self) -> None:
        """Drop the tables."""
        self.stack.close()
        for (name,) in self.place.rows("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE '{t}%'"):
            self.place.rows(f"DROP TABLE {name}")


@pytest.fixture(scope="module", autouse=True)
def running() -> Iterator[None]:
    """Run a server for all histories."""
    with postgres_running(postgres_binaries()["postgres-18"]) as PostgresqlMachine.server:
        yield


TestPostgresqlModel = pytest.mark.slow(PostgresqlMachine.TestCase)
TestPostgresqlModel.settings = settings(
    max_examples=int(os.environ.get("MODEL_EXAMPLES", "15")),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
