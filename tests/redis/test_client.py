"""How the sink is configured, what the client does by itself, and how soon it gives up when asked to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from owm_outbox import URL, ConfigurationError, OutboxRelay, RunIncomplete, SinkUnavailable, Stop, Stopped
from owm_outbox.sink import pausing_with
from owm_outbox_backends.redis_stream.connection import Backoff, OwnRetry, connect
from owm_outbox_backends.redis_stream.sink import RedisStreamSink, marks_key
from owm_outbox_backends.sqlite import SqliteOutbox

from support.producer import BATCH, After, Producer
from support.servers import Server


@pytest.fixture
def settings() -> Iterator[Any]:
    """Return what a client made from a URL would connect with."""
    clients: list[redis.Redis] = []

    def settings_of(url: str) -> dict[str, Any]:
        clients.append(connect(URL(url), OwnRetry(Backoff(), 8)))
        found: dict[str, Any] = clients[-1].connection_pool.connection_kwargs
        return found

    yield settings_of
    for client in clients:
        client.close()


def test_timeouts_do_not_depend_on_the_version_of_the_client(settings: Any) -> None:
    """Where the URL says nothing, each wait for the server is 5 s at most."""
    found = settings("redis://localhost:1/0")
    assert (found["socket_timeout"], found["socket_connect_timeout"]) == (5.0, 5.0)


def test_the_url_counts_more_than_our_own_settings(settings: Any) -> None:
    """Timeouts and the protocol can be set by URL."""
    found = settings("redis://localhost:1/0?socket_timeout=0.5&socket_connect_timeout=7&protocol=3")
    assert [float(found[name]) for name in ("socket_timeout", "socket_connect_timeout", "protocol")] == [0.5, 7, 3]


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols_work(producer: Producer, server: Server, protocol: int) -> None:
    """RESP3 makes no difference to what is delivered."""
    producer.check_complete(server, producer.run(producer.url(server, protocol=protocol)))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://localhost:6379/0", "needs stream=NAME"),
        ("redis://localhost:6379/0?maxlen=10", "needs stream=NAME"),
        ("redis://localhost:6379/0?stream=", "stream="),
        ("redis:///0?stream=s", "has no host"),
        ("redis://localhost:6379/zero?stream=s", "number of a database"),
        ("redis://localhost:6379/0?stream=s&ssl_cert_reqs=none", "write rediss://"),
        ("redis://localhost:6379/0?stream=s&maxlne=5", "did you mean 'maxlen'"),
        ("redis://localhost:6379/0?stream=s&maxlen=-1", "maxlen="),
        ("redis://localhost:6379/0?stream=s&overflow=drop", "one of hold, trim"),
        ("redis://localhost:6379/0?stream=s&socket_timeout=0", "socket_timeout="),
        ("redis://localhost:6379/0?stream=s&retries=lots", "retries="),
    ],
)
def test_a_wrong_option_is_refused_without_connecting(url: str, says: str) -> None:
    """A mistake in the URL is named, with what to write instead."""
    with pytest.raises(ConfigurationError, match=says):
        RedisStreamSink.from_url(URL(url))


@pytest.mark.parametrize(
    ("stream", "key"), [("s", "{s}:positions"), ("{s}:x", "{s}:x:positions"), ("{}s", "{{}s}:positions")]
)
def test_marks_are_kept_in_the_slot_of_the_stream(stream: str, key: str) -> None:
    """The hash has the name that production rules name, with a hash tag of its own unless the stream has one."""
    assert marks_key(stream) == key


# -- stopping


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["a reply", "the next attempt"])
def test_a_stop_ends_a_call_to_a_hung_server(producer: Producer, own_server: Server, moment: str) -> None:
    """A stop ends the wait between two attempts within 5 s, and the one for a reply within 5 s of its timeout."""
    stop = Stop()
    timeout = 1.0 if moment == "a reply" else 0.05
    options = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "backoff_base": 60, "backoff_cap": 60}
    asked: list[float] = []

    def ask() -> None:
        asked.append(time.monotonic())
        stop.set()

    def hang() -> None:
        own_server.pause()
        later.start()

    later = threading.Timer(0.3, ask)
    with producer.sink(own_server, **options) as sink, SqliteOutbox(producer.path) as outbox:
        observers = [After(hang, batches=2)]
        relay = OutboxRelay(outbox, sink, batch_size=BATCH, stop=stop, observers=observers)
        with pytest.raises(RunIncomplete) as caught:
            relay.run(producer.job)
        took = time.monotonic() - asked[0]
    assert isinstance(caught.value.__cause__, Stopped)
    assert caught.value.exit_code == 143
    assert caught.value.report.delivered == 2 * BATCH
    assert took < timeout + 5
    own_server.resume()
    report = producer.run(producer.url(own_server))
    assert report.complete
    producer.check_once(own_server)


def test_a_copy_that_is_waited_for_does_not_delay_a_stop(producer: Producer, server: Server) -> None:
    """Waiting for replicas that are not there ends as soon as ``pause`` says so."""
    asked: list[float] = []

    def no_more(seconds: float) -> bool:
        asked.append(seconds)
        return False

    with (
        producer.sink(server, wait_replicas=1, socket_timeout=5) as sink,
        pausing_with(no_more),
        pytest.raises(SinkUnavailable, match="not enough copies"),
    ):
        sink.mark("box")
    assert len(asked) == 1
