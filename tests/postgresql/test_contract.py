"""PostgresqlOutbox keeps the contract of an outbox, on each version of the server."""

from __future__ import annotations

import pytest

from owm_outbox.testing import Capabilities, OutboxContract, Storage

from support.contract_kit.outboxes import Clock
from support.postgres_outbox import Place


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
