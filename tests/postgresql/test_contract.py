"""PostgresqlOutbox and PostgresqlSink keep their contracts, on each version of the server."""

from __future__ import annotations

import pytest

from owm_outbox.testing import Capabilities, Destination, OutboxContract, SinkContract, Storage
from owm_outbox_backends.postgresql.sink import PostgresqlSink

from support.contract_kit.outboxes import Clock
from support.postgres_outbox import Place
from support.postgres_table import Table


class TestPostgresqlOutbox(OutboxContract):
    """PostgresqlOutbox does all that the contract asks."""

    capabilities = Capabilities(interruptible=True, settable_clock=True, transactions=True)

    @pytest.fixture
    def storage(self, place: Place) -> Storage:
        """Open the same tables each time; have the server refuse what is written."""
        clock = Clock()
        return Storage(
            open=lambda: place.open(now=clock.now),
            interrupt=place.failing,
            transaction=place.begin,
            turn_clock=clock.turn,
        )


class TestPostgresqlSink(SinkContract):
    """PostgresqlSink does all that the contract asks."""

    capabilities = Capabilities(rejects=True, interruptible=True, remote=True, notices_loss=True)

    @pytest.fixture
    def destination(self, table: Table) -> Destination:
        """Deliver to a table that nobody reads; have the server refuse what is written."""
        return Destination(
            open=table.open,
            payloads=table.payloads,
            poison=b'{"task_id": "\xff"}',
            interrupt=table.failing,
            unreachable=lambda: PostgresqlSink("host=127.0.0.1 port=1", table="tasks", retries=0),
            lose=lambda: table.rows("TRUNCATE {t}"),
        )
