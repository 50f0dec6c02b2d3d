"""What all tests of a sink share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import ClassVar

import pytest

from owm_outbox.sink import Sink
from owm_outbox.testing.capabilities import Capabilities
from owm_outbox.testing.destination import Destination

__all__ = ["SinkFixtures", "needs_mark"]

needs_mark = pytest.mark.usefixtures("_holds_mark")
"""For a test that only makes sense where the sink holds a mark."""


class SinkFixtures:
    """The fixtures of `SinkContract`."""

    capabilities: ClassVar[Capabilities] = Capabilities()

    patience: ClassVar[float] = 10.0
    """Seconds within which a sink whose target cannot be reached must have given up, when it is told to."""

    settling: ClassVar[float] = 2.0
    """Seconds for which a server may still be at work on what a client sent that was killed."""

    @pytest.fixture
    def destination(self) -> Destination:
        """Give the destination, new and empty; every subclass has its own."""
        raise NotImplementedError("give your subclass a fixture named destination, see owm_outbox.testing")

    @pytest.fixture
    def sink(self, destination: Destination) -> Iterator[Sink]:
        """Open the sink under test."""
        with destination.open() as sink:
            yield sink

    @pytest.fixture
    def outbox_id(self) -> str:
        """Name an outbox that no sink has heard of."""
        return str(uuid.uuid4())

    @pytest.fixture
    def _holds_mark(self) -> None:
        """Skip the test where the sink does not hold a mark."""
        self.capabilities.need("holds_mark")
