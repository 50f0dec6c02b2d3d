"""The primary dies or hangs, Sentinels are gone, replies are lost: each task is in the stream exactly once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import Batch, Entry, Mark, SinkUnavailable
from owm_outbox.plugins import open_sink
from owm_outbox.sink import pausing_with
from owm_outbox_backends.redis_stream.sink import MARK_SCRIPT, SEND_SCRIPT

from support import struck
from support.producer import BATCH, CALM, COUNT, After, Each, Producer
from support.proxy import EVERY, FaultProxy
from support.redis_cluster import SERVICE, Guarded, ask, copied, until, watching
from support.servers import Server, binaries, free_port, running
from support.streams import length

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PATIENT: dict[str, Any] = {"retries": 100, "backoff_base": 0.05, "backoff_cap": 0.2, "socket_timeout": 2}
ONE = Batch("box", Mark(""), [Entry(1, "a", b"{}")], Mark("1 lease a"))
TWO = Batch("box", ONE.mark, [Entry(2, "b", b"{}")], Mark("2 lease b"))


def _fails_over(servers: Guarded) -> None:
    """Kill the primary, and start it again as the replica of the other one."""
    dead, other = servers.primary, servers.replica
    servers.suspect_after(1000)
    dead.kill()
    servers.fail_over(dead)
    dead.start("--replicaof", "127.0.0.1", str(other.port))


def test_the_primary_dies_and_its_replica_takes_over(producer: Producer, servers: Guarded, stream: str) -> None:
    """With ``wait_replicas=1``, the run waits for the failover and loses nothing: exactly once."""
    failover = threading.Thread(target=_fails_over, args=[servers])
    report = producer.run(servers.url(stream, wait_replicas=1, **PATIENT), After(failover.start, batches=2))
    failover.join()
    servers.settle()
    producer.check_complete(servers.primary, report)


def test_what_a_failover_lost_is_sent_again(producer: Producer, servers: Guarded, stream: str) -> None:
    """Without it, the replica may lack batches that were acknowledged: its older mark tells, they are sent again."""
    primary, replica = servers.primary, servers.replica
    servers.suspect_after(1000)

    def steps() -> Iterator[None]:
        until(lambda: copied(replica, stream) == BATCH)
        ask(replica, "REPLICAOF", "127.0.0.1", free_port())  # it gets no more
        yield
        primary.kill()
        yield

    report = producer.run(servers.url(stream, **PATIENT), Each(steps()))
    servers.fail_over(primary)
    assert servers.primary is replica
    producer.check_complete(replica, report, redelivered=BATCH)
    primary.start("--replicaof", "127.0.0.1", str(replica.port))
    servers.settle()
    assert copied(primary, stream) == COUNT


def test_the_primary_hangs(producer: Producer, servers: Guarded, stream: str) -> None:
    """A primary that stops answering is left for its replica; when it comes back, it takes nothing any more."""
    hung = servers.primary
    servers.suspect_after(1000)
    report = producer.run(servers.url(stream, wait_replicas=0, **PATIENT), After(hung.pause, batches=2))
    servers.fail_over(hung)
    hung.resume()
    assert servers.primary is not hung
    producer.check_complete(servers.primary, report, redelivered=report.redelivered)
    until(lambda: b"role:slave" in ask(hung, "INFO", "replication"))
    servers.settle()
    assert copied(hung, stream) == COUNT


def test_a_sink_that_is_connected_to_a_primary_that_was_demoted(servers: Guarded, stream: str) -> None:
    """READONLY from an open connection leads to the new primary, with the next attempt."""
    with open_sink(servers.url(stream, **PATIENT)) as sink:
        sink.send(ONE)
        before = servers.primary
        until(lambda: copied(servers.replica, stream) == 1)
        servers.switch()
        sink.send(TWO)
    servers.settle()
    assert servers.primary is not before
    assert length(servers.primary, stream) == 2


@pytest.mark.parametrize("was", ["demoted", "hanging", "never one"])
def test_the_primary_changes_within_a_call(tmp_path: Path, stream: str, was: str) -> None:
    """A Sentinel that names another primary between two attempts of a call is believed by the next attempt."""
    calm = f"sentinel down-after-milliseconds {SERVICE} 60000"
    with (
        running(binaries()["valkey"], tmp_path / "old") as old,
        running(binaries()["valkey"], tmp_path / "new") as new,
        watching(tmp_path, old.address, 1, calm) as (sentinel,),
    ):
        ask(new, "REPLICAOF", "127.0.0.1", old.port)
        until(lambda: b"master_link_status:up" in ask(new, "INFO", "replication"))
        waits = 0

        def wait(seconds: float) -> bool:
            nonlocal waits
            waits += 1
            if waits == 2:
                ask(sentinel, "SENTINEL", "REMOVE", SERVICE)
                ask(sentinel, "SENTINEL", "MONITOR", SERVICE, "127.0.0.1", new.port, 1)
            return True

        url = Guarded([old, new], [sentinel]).url(stream, retries=6, socket_timeout=2)
        with open_sink(url) as sink, pausing_with(wait):
            if was != "never one":
                sink.send(ONE)
                until(lambda: copied(new, stream) == 1)
            ask(new, "REPLICAOF", "NO", "ONE")
            if was == "hanging":
                old.pause()
            else:
                ask(old, "REPLICAOF", "127.0.0.1", new.port)
            sink.send(ONE if was == "never one" else TWO)
        assert waits == 2
        assert length(new, stream) == (1 if was == "never one" else 2)


def test_two_sentinels_are_gone(producer: Producer, servers: Guarded, stream: str) -> None:
    """One Sentinel that answers is enough to find the primary; without any, 75."""
    url = servers.url(stream, **PATIENT)
    for one in servers.sentinels[:2]:
        one.kill()
    report = producer.run(url)
    servers.sentinels[2].kill()
    with open_sink(servers.url(stream, retries=1, backoff_base=0.01)) as sink, pytest.raises(SinkUnavailable):
        sink.mark("box")
    for one in servers.sentinels:
        one.start()
    servers.settle()
    producer.check_complete(servers.primary, report)


# -- messages


@dataclass
class Proxied:
    """A server that its Sentinel knows by the port of a proxy."""

    server: Server
    proxy: FaultProxy
    sentinel: Server
    of_sentinel: FaultProxy

    def url(self, stream: str, **options: object) -> str:
        """Return a sink URL that names the proxy of the Sentinel."""
        query = "".join(f"&{name}={value}" for name, value in options.items())
        return f"redis+sentinel://{self.of_sentinel.address}/0?service={SERVICE}&stream={stream}{query}"


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Proxied]:
    """Run a server and a Sentinel, each behind a proxy."""
    scripts = {
        hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest(): name
        for script, name in ((MARK_SCRIPT, "MARK"), (SEND_SCRIPT, "SEND"))
    }
    with (
        running(binaries()["valkey"], tmp_path / "server") as server,
        FaultProxy("127.0.0.1", server.port, scripts=scripts) as proxy,
        watching(tmp_path, proxy.address, 1, f"sentinel down-after-milliseconds {SERVICE} 60000") as (sentinel,),
        FaultProxy("127.0.0.1", sentinel.port) as of_sentinel,
    ):
        yield Proxied(server, proxy, sentinel, of_sentinel)


def test_every_seventh_reply_is_lost(producer: Producer, proxied: Proxied, stream: str) -> None:
    """Whatever the lost reply was to, and whether the server's or the Sentinel's, nothing is there twice."""

    def begin() -> None:  # not before: the question for the user's rights alone has more than seven replies
        for proxy in (proxied.proxy, proxied.of_sentinel):
            proxy.lose_reply(at=range(7, 1_000_000, 7))

    with producer.relay(proxied.url(stream, **CALM), After(begin, batches=1), batch_size=5) as relay:
        report = relay.run(producer.job)
    producer.check_complete(proxied.server, report)


@pytest.mark.parametrize("lost", ["SEND", "SENTINEL"])
def test_attempts_are_not_multiplied(proxied: Proxied, stream: str, lost: str) -> None:
    """What loses each reply is asked once, and then as often as ``retries`` says; all waits are ours."""
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return True

    proxy = proxied.proxy if lost == "SEND" else proxied.of_sentinel
    with open_sink(proxied.url(stream, **{**CALM, "retries": 4})) as sink, pausing_with(wait):
        sink.send(ONE)
        asked = proxy.requests[lost]
        if lost == "SENTINEL":
            proxied.proxy.cut_all()
            proxied.proxy.cut_connection(at=EVERY)
        fault = proxy.lose_reply(at=EVERY, command=lost)
        with pytest.raises(SinkUnavailable):
            sink.send(TWO)
        assert len(waits) == 4
        assert proxy.requests[lost] - asked == fault.count == 5


def test_a_producer_is_killed_ten_times(servers: Guarded, stream: str, tmp_path: Path) -> None:
    """Our process is killed ten times, and the primary once: each city exactly once."""
    wanted = struck.produce(
        tmp_path,
        servers.url(stream, wait_replicas=1, maxlen=0, **PATIENT),
        lambda: length(servers.primary, stream),
        {5: lambda: _fails_over(servers)},
    )
    servers.settle()
    struck.check_once(servers.primary, stream, wanted)
