"""Our own backends keep the contracts, with nothing special."""

from __future__ import annotations

from pathlib import Path

import pytest

from owm_outbox import Sink
from owm_outbox.testing import (
    Capabilities,
    Destination,
    OutboxContract,
    SinkContract,
    Storage,
    cut_requests,
    full_disk,
    lose_replies,
)
from owm_outbox_backends.jsonl import JsonLinesSink
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support.contract_kit.outboxes import Clock, within
from support.servers import Server
from support.streams import entries


class TestSqliteOutbox(OutboxContract):
    """SqliteOutbox does all that the contract asks."""

    capabilities = Capabilities(interruptible=True, settable_clock=True, transactions=True)

    @pytest.fixture
    def clock(self) -> Clock:
        """Give the clock that the outbox goes by."""
        return Clock()

    @pytest.fixture
    def storage(self, tmp_path: Path, clock: Clock) -> Storage:
        """Open the same file each time; leave no room for its WAL."""
        return Storage(
            open=lambda: SqliteOutbox(tmp_path / "tasks.db", now=lambda: clock.now().timestamp()),
            interrupt=lambda: full_disk(tmp_path / "tasks.db-wal"),
            transaction=lambda: within(tmp_path / "tasks.db"),
            turn_clock=clock.turn,
        )


class TestMemoryOutbox(OutboxContract):
    """MemoryOutbox does all but outlive the process."""

    capabilities = Capabilities(durable=False, settable_clock=True)

    @pytest.fixture
    def clock(self) -> Clock:
        """Give the clock that the outbox goes by."""
        return Clock()

    @pytest.fixture
    def storage(self, clock: Clock) -> Storage:
        """Give the same object each time: there is nowhere else to open it from."""
        outbox = MemoryOutbox(now=clock.now)
        return Storage(open=lambda: outbox, turn_clock=clock.turn)


class TestRedisStreamSink(SinkContract):
    """RedisStreamSink does all that the contract asks, on every server."""

    capabilities = Capabilities(bounded=True, rejects=True, interruptible=True, remote=True, notices_loss=True)

    @pytest.fixture
    def destination(self, server: Server, stream: str) -> Destination:
        """Deliver to a stream that holds 10,000 entries, with a consumer group that reads nothing."""
        with server.client() as client:
            client.xgroup_create(stream, "workers", id="0", mkstream=True)
            client.config_set("proto-max-bulk-len", 1024 * 1024)

        def fill() -> None:
            with server.client() as client, client.pipeline() as pipe:
                for _ in range(9_980):
                    pipe.xadd(stream, {"data": "{}"})
                pipe.execute()

        def lose() -> None:
            with server.client() as client:
                client.delete(stream)

        return Destination(
            open=lambda: RedisStreamSink(f"redis://{server.address}/0", stream=stream, maxlen=10_000, retries=0),
            payloads=lambda: [fields[b"data"] for fields in entries(server, stream)],
            fill=fill,
            poison=b'{"task_id": "' + b"x" * 2 * 1024 * 1024 + b'"}',
            interrupt=cut_requests,
            unreachable=lambda: RedisStreamSink("redis://127.0.0.1:1/0", stream=stream, retries=0),
            lose=lose,
        )


@pytest.mark.slow
class TestRedisStreamSinkWithoutGroups(SinkContract):
    """Without a consumer group, and without a bound, the promises are the same; also when replies are lost."""

    capabilities = Capabilities(interruptible=True)

    @pytest.fixture
    def destination(self, server: Server, stream: str) -> Destination:
        """Deliver to a stream that nobody reads."""
        return Destination(
            open=lambda: RedisStreamSink(f"redis://{server.address}/0", stream=stream, maxlen=0, retries=0),
            payloads=lambda: [fields[b"data"] for fields in entries(server, stream)],
            interrupt=lose_replies,
        )


class TestJsonLinesSink(SinkContract):
    """JsonLinesSink does all but hold a mark."""

    capabilities = Capabilities(holds_mark=False, interruptible=True, remote=True)

    @pytest.fixture
    def destination(self, tmp_path: Path) -> Destination:
        """Deliver to a file."""
        path = tmp_path / "tasks.jsonl"

        def unreachable() -> Sink:
            folder = tmp_path / "unmounted"
            folder.mkdir()
            sink = JsonLinesSink(folder / "tasks.jsonl")
            folder.rmdir()
            return sink

        return Destination(
            open=lambda: JsonLinesSink(path),
            payloads=lambda: path.read_bytes().splitlines() if path.exists() else [],
            interrupt=lambda: full_disk(path),
            unreachable=unreachable,
        )
