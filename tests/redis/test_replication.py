"""wait_replicas and wait_aof: a batch counts as held once enough copies have it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import ConfigurationError, MarkConflict, SinkUnavailable
from owm_outbox.testing.parcels import parcel_batch, parcel_mark
from owm_outbox_backends.redis_stream import RedisStreamSink

from support.servers import Server, running

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"retries": 1, "backoff_base": 0.01}


@pytest.fixture
def replica(own_server: Server, tmp_path: Path) -> Iterator[Server]:
    """Run a second server of the same kind, which is not a replica yet."""
    with running(own_server.binary, tmp_path / "replica") as server:
        yield server


def _follow(replica: Server, primary: Server) -> None:
    """Make one server the other's replica, and return once it is in step."""
    with primary.client() as client, replica.client() as follower:
        client.config_set("repl-diskless-sync-delay", 0)
        follower.replicaof("127.0.0.1", primary.port)
        while client.wait(1, 1000) < 1:
            client.set("x", "x")


def test_a_batch_is_held_once_a_replica_has_it(own_server: Server, replica: Server, stream: str) -> None:
    """With wait_replicas=1 a batch that send returns from is on the replica, too."""
    _follow(replica, own_server)
    with RedisStreamSink(f"redis://{own_server.address}/0", stream=stream, wait_replicas=1) as sink:
        sink.send(parcel_batch("box", 0, 5))
        assert sink.mark("box") == parcel_mark("box", 5)
    with replica.client() as client:
        assert client.xlen(stream) == 5


def test_without_a_replica_nothing_counts_as_held(own_server: Server, stream: str) -> None:
    """A batch that no replica confirms is not a success, and neither is its mark, however often it is asked for."""
    with RedisStreamSink(f"redis://{own_server.address}/0", stream=stream, wait_replicas=1, **QUICK) as sink:
        for _ in range(2):
            with pytest.raises(SinkUnavailable, match="not enough copies"):
                sink.send(parcel_batch("box", 0, 5))
        with pytest.raises(SinkUnavailable, match="not enough copies"):
            sink.mark("box")


def test_a_batch_is_confirmed_late(own_server: Server, replica: Server, stream: str) -> None:
    """A batch taken before a replica was there is not added again once there is one: its mark is confirmed."""
    with RedisStreamSink(f"redis://{own_server.address}/0", stream=stream, wait_replicas=1, **QUICK) as sink:
        with pytest.raises(SinkUnavailable):
            sink.send(parcel_batch("box", 0, 5))
        _follow(replica, own_server)
        with pytest.raises(MarkConflict) as conflict:
            sink.send(parcel_batch("box", 0, 5))
        assert conflict.value.held == sink.mark("box") == parcel_mark("box", 5)
    with replica.client() as client:
        assert client.xlen(stream) == 5


def test_a_batch_is_held_once_it_is_on_disk(own_server: Server, stream: str) -> None:
    """With wait_aof=1 a batch survives the server's death, or the message says that the server cannot do that."""
    with own_server.client() as client:
        version = client.info("server")
    can = "valkey_version" in version or str(version["redis_version"]) >= "7.2"
    with RedisStreamSink(f"redis://{own_server.address}/0", stream=stream, wait_aof=1, **QUICK) as sink:
        with pytest.raises(ConfigurationError, match="wait_aof does not work"):
            sink.send(parcel_batch("box", 0, 5))
        if not can:
            return
        with own_server.client() as client:
            client.config_set("appendonly", "yes")
            client.config_set("appendfsync", "everysec")
        sink.mark("box")  # what was taken before is confirmed now
        sink.send(parcel_batch("box", 5, 5))
        own_server.kill()
        own_server.start("--appendonly", "yes")
        assert sink.mark("box") == parcel_mark("box", 10)
