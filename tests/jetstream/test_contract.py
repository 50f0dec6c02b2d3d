"""JetStreamSink keeps the contract of a sink, with nothing special."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from owm_outbox import URL
from owm_outbox.testing import Capabilities, Destination, SinkContract, lose_replies
from owm_outbox_backends.jetstream.scratch import scratch

from support.nats import NatsServer

pytestmark = [pytest.mark.slow]


class TestJetStreamSink(SinkContract):
    """JetStreamSink does all that the contract asks, on a server as it comes."""

    capabilities = Capabilities(bounded=True, rejects=True, interruptible=True, remote=True, notices_loss=True)

    @pytest.fixture
    def destination(self, nats: NatsServer) -> Iterator[Destination]:
        """Deliver to the stream that ``owm-outbox check`` makes."""
        with scratch(URL(nats.url("TASKS", "tasks"))) as destination:
            yield destination


class TestJetStreamSinkWhoseRepliesAreLost(SinkContract):
    """The promises are the same when it is the replies that are lost."""

    capabilities = Capabilities(interruptible=True)

    @pytest.fixture
    def destination(self, nats: NatsServer) -> Iterator[Destination]:
        """Deliver to the same."""
        with scratch(URL(nats.url("TASKS", "tasks"))) as destination:
            yield replace(destination, interrupt=lose_replies)
