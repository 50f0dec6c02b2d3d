"""wait_replicas and wait_aof: a batch counts as held once enough copies have it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from owm_outbox import ConfigurationError, PositionConflict, SinkUnavailable
from owm_outbox.testing import parcel_batch
from owm_outbox_backends.redis_stream import RedisStreamSink

from support.servers import Server, running

QUICK = {"retries": 1, "backoff_base": 0.01}


@pytest.fixture
def replica(own_server: Server, tmp_path: Path) -> Iterator[Server]:
    """Run a second server of the same kind, which is no replica yet."""
    with running(own_server.binary, tmp_path / "replica") as server:
        yield server


def _follow(replica: Server, primary: Server) -> None:
    """Make one server the other's replica, and return once it is in step."""
    with primary.client() as client, replica.client() as follower:
        client.config_set("repl-diskless-sync-delay", 0)
        follower.replicaof("127.0.0.1", primary.port)
        while client.wait(1, 1000) < 1:  # type: ignore[operator]  # redis-py types it as perhaps awaitable
            client.set("x", "x")


def test_a_batch_is_held_once_a_replica_has_it(own_server: Server, replica: Server, stream: str) -> None:
    """With wait_replicas=1 a batch that send returns from is on the replica, too."""
    _follow(replica, own_server)
    with RedisStreamSink(f"redis://{own_server.address}/0", stream=stream, wait_replicas=1) as sink:
        sink.send(parcel_batch("box", 0, 5))
        assert sink.position("box") == 5
    with replica.client() as client:
        assert client.xlen(stream) == 5


def test_without_a_replica_nothing_counts_as_held(own_server: Server, stream: str) -> None:
    """A batch that no replica confirms is no success, and neither is its position, however often it is asked for."""
    with RedisStreamSink(f"redis://{own_server.address}/0", stream=stream, wait_replicas=1, **QUICK) as sink:
        for _ in range(2):
            with pytest.raises(SinkUnavailable, match="not enough copies"):
                sink.send(parcel_batch("box", 0, 5))
        with pytest.raises(SinkUnavailable, match="not enough copies"):
            sink.position("box")


def test_a_batch_is_confirmed_late(own_server: Server, replica: Server, stream: str) -> None:
    """A batch taken before a replica was there is not added again once there is one: its position is confirmed."""
    with RedisStreamSink(f"redis://{own_server.address}/0", stream=stream, wait_replicas=1, **QUICK) as sink:
        with pytest.raises(SinkUnavailable):
            sink.send(parcel_batch("box", 0, 5))
        _follow(replica, own_server)
        with pytest.raises(PositionConflict) as conflict:
            sink.send(parcel_batch("box", 0, 5))
        assert conflict.value.held == sink.position("box") == 5
    with replica.client() as client:
        assert client.xlen(stream) == 5


def test_a_batch_is_held_once_it_is_on_disk(own_server: Server, stream: str) -> None:
    """With wait_aof=1 a batch survives the server's death, or the server is said not to be up to it."""
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
        held = sink.position("box")
        sink.send(parcel_batch("box", held, 5))
        own_server.kill()
        own_server.start("--appendonly", "yes")
        assert sink.position("box") == held + 5
