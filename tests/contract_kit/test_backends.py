"""Our own backends keep the contracts, with nothing special."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from owm_outbox import Outbox
from owm_outbox.testing import Capabilities, OutboxContract, Place, SinkContract
from owm_outbox_backends.jsonl import JsonLinesSink
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support.servers import Server
from support.streams import entries


class TestSqliteOutbox(OutboxContract):
    """SqliteOutbox does all that the contract asks."""

    @pytest.fixture
    def open_outbox(self, tmp_path: Path) -> Callable[[], Outbox]:
        """Open the same file each time."""
        return lambda: SqliteOutbox(tmp_path / "tasks.db")


class TestMemoryOutbox(OutboxContract):
    """MemoryOutbox does all but outlive the process."""

    capabilities = Capabilities(durable=False)

    @pytest.fixture
    def open_outbox(self) -> Callable[[], Outbox]:
        """Give the same object each time: there is nowhere else to open it from."""
        outbox = MemoryOutbox()
        return lambda: outbox


class TestRedisStreamSink(SinkContract):
    """RedisStreamSink does all that the contract asks, on every server."""

    capabilities = Capabilities(bounded=True, rejects=True)

    @pytest.fixture
    def place(self, server: Server, stream: str) -> Place:
        """Deliver to a stream that holds 100 entries, with a consumer group that reads nothing."""
        with server.client() as client:
            client.xgroup_create(stream, "workers", id="0", mkstream=True)
            client.config_set("proto-max-bulk-len", 1024 * 1024)

        def fill() -> None:
            with server.client() as client:
                while client.xlen(stream) < 80:
                    client.xadd(stream, {"data": "{}"})

        return Place(
            open=lambda: RedisStreamSink(f"redis://{server.address}/0", stream=stream, maxlen=100, retries=0),
            held=lambda: [fields[b"data"] for fields in entries(server, stream)],
            fill=fill,
            poison=b'{"task_id": "' + b"x" * 2 * 1024 * 1024 + b'"}',
        )


class TestRedisStreamSinkWithoutGroups(SinkContract):
    """Without a consumer group, and without a bound, the promises are the same."""

    @pytest.fixture
    def place(self, server: Server, stream: str) -> Place:
        """Deliver to a stream that nobody reads."""
        return Place(
            open=lambda: RedisStreamSink(f"redis://{server.address}/0", stream=stream, maxlen=0),
            held=lambda: [fields[b"data"] for fields in entries(server, stream)],
        )


class TestJsonLinesSink(SinkContract):
    """JsonLinesSink does all but track its position."""

    capabilities = Capabilities(tracks_position=False)

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        """Deliver to a file."""
        path = tmp_path / "tasks.jsonl"
        return Place(open=lambda: JsonLinesSink(path), held=lambda: path.read_bytes().splitlines())
