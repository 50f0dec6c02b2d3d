"""Nodes that die, slots that move, replies that are lost: each task is in the stream exactly once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Container, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import Batch, Entry, Mark, SinkUnavailable
from owm_outbox.plugins import open_sink
from owm_outbox.sink import pausing_with
from owm_outbox.testing import parcel_batch, parcel_mark

from support import struck
from support.producer import BATCH, CALM, COUNT, After, Each, Producer
from support.proxy import EVERY, Fault, FaultProxy
from support.redis_cluster import Cluster, Node, ask, copied, running_cluster, until
from support.streams import length

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PATIENT: dict[str, Any] = {"retries": 100, "backoff_base": 0.05, "backoff_cap": 0.2, "socket_timeout": 2}


def _redirected(cluster: Cluster, word: str) -> int:
    """Count the answers of this kind that the nodes gave."""
    counts = [ask(node, "INFO", "errorstats") for node in cluster.nodes]
    return sum(int(text.partition(f"errorstat_{word}:count=".encode())[2].split(b"\r")[0] or 0) for text in counts)


def _fails_over(cluster: Cluster, stream: str) -> None:
    dead = cluster.owner(stream)
    cluster.suspect_after(1000)
    dead.kill()
    cluster.fail_over(dead, stream)
    dead.start()


# -- nodes


def test_a_node_dies_and_its_replica_takes_over(producer: Producer, cluster: Cluster, stream: str) -> None:
    """With ``wait_replicas=1``, the run waits for the failover and loses nothing: exactly once."""
    failover = threading.Thread(target=_fails_over, args=[cluster, stream])
    report = producer.run(cluster.url(stream, wait_replicas=1, **PATIENT), After(failover.start, batches=2))
    failover.join()
    cluster.settle()
    producer.check_complete(cluster.owner(stream), report)


def test_what_a_failover_lost_is_sent_again(producer: Producer, cluster: Cluster, stream: str) -> None:
    """Without it, the replica may lack batches that were acknowledged: its older mark tells, they are sent again."""
    owner = cluster.owner(stream)
    replica = cluster.replica(owner)
    cluster.suspect_after(1000)

    def steps() -> Iterator[None]:
        until(lambda: copied(replica, stream) == BATCH)
        ask(replica, "SAVE")
        replica.kill()
        yield
        owner.kill()
        replica.start()
        yield

    observer = Each(steps())
    report = producer.run(cluster.url(stream, **PATIENT), observer)
    (replica.folder / "dump.rdb").unlink()
    assert cluster.owner(stream) is replica
    producer.check_complete(replica, report, redelivered=BATCH)
    owner.start()  # now it follows
    cluster.settle()
    assert copied(owner, stream) == COUNT


def test_a_node_of_the_url_is_gone(producer: Producer, cluster: Cluster, stream: str) -> None:
    """Any node of the URL that answers will do."""
    owner = cluster.owner(stream)
    dead, other = cluster.replica(owner), cluster.others(owner)[0]
    dead.kill()
    url = cluster.url(stream, nodes=[dead, other])
    report = producer.run(url)
    dead.start()
    producer.check_complete(cluster.owner(stream), report)


def test_a_slot_that_no_node_serves(producer: Producer, tmp_path: Path, stream: str) -> None:
    """Where the node with the stream has no replica, the cluster is down: 75, and complete once the node is back."""
    with running_cluster(tmp_path / "small", 3, 0, "--appendonly", "yes", "--appendfsync", "always") as cluster:
        owner = cluster.owner(stream)
        other = cluster.others(owner)[0]
        producer.fails(cluster.url(stream, retries=2), After(owner.kill, batches=2), because=SinkUnavailable)
        until(lambda: b"cluster_state:fail" in ask(other, "CLUSTER", "INFO"))
        error = producer.fails(cluster.url(stream, nodes=[other], retries=0), because=SinkUnavailable)
        assert "cannot be used now" in str(error)
        owner.start()
        cluster.settle()
        producer.check_complete(owner, producer.run(cluster.url(stream)))


# -- slots


def test_the_slot_moves_under_load(producer: Producer, cluster: Cluster, stream: str) -> None:
    """While the slot is announced, without keys, and moved, each batch goes to the node that takes it: ASK, MOVED."""
    before = {word: _redirected(cluster, word) for word in ("ASK", "MOVED")}
    target = cluster.others(cluster.owner(stream))[0]
    observer = Each(cluster.moving(stream, target))
    report = producer.run(cluster.url(stream), observer)
    assert observer.taken == COUNT // BATCH
    cluster.settle()
    assert cluster.owner(stream) is target
    producer.check_complete(target, report)
    assert all(_redirected(cluster, word) > count for word, count in before.items())


def test_the_slot_moves_with_copies_waited_for(producer: Producer, cluster: Cluster, stream: str) -> None:
    """WAIT follows the script to the node that the slot is moving to, on the same connection."""
    target = cluster.others(cluster.owner(stream))[0]
    report = producer.run(cluster.url(stream, wait_replicas=1), Each(cluster.moving(stream, target)))
    cluster.settle()
    producer.check_complete(target, report)
    assert copied(cluster.replica(target), stream) == COUNT


def test_a_stream_without_its_marks(cluster: Cluster, stream: str) -> None:
    """While the stream has moved and its marks have not, the cluster says TRYAGAIN: the batch waits for them."""
    source = cluster.owner(stream)
    target = cluster.others(source)[0]
    with open_sink(cluster.url(stream, **PATIENT)) as sink:
        sink.send(parcel_batch("box", 0, 5))
        steps = cluster.moving(stream, target)
        next(steps)
        cluster.migrate(source, target, stream)
        before = _redirected(cluster, "TRYAGAIN")

        def go_on() -> None:
            until(lambda: _redirected(cluster, "TRYAGAIN") > before)
            next(steps)

        mover = threading.Thread(target=go_on)
        mover.start()
        sink.send(parcel_batch("box", 5, 5))
        mover.join()
        next(steps)
        assert sink.mark("box") == parcel_mark("box", 10)
    cluster.settle()
    assert length(target, stream) == 10


def test_a_slot_moves_to_a_node_that_had_none(producer: Producer, tmp_path: Path, stream: str) -> None:
    """A new node, which no node names as an owner yet, is found by ASK, and followed."""
    with running_cluster(tmp_path / "small", 1, 0) as cluster:
        new = Node(tmp_path / "new")
        new.start()
        try:
            ask(cluster.nodes[0], "CLUSTER", "MEET", "127.0.0.1", new.port, new.bus)
            cluster.nodes.append(new)
            until(lambda: all(b"cluster_known_nodes:2" in ask(node, "CLUSTER", "INFO") for node in cluster.nodes))
            until(lambda: b"cluster_state:ok" in ask(new, "CLUSTER", "INFO"))
            url = cluster.url(stream, nodes=cluster.nodes[:1])
            producer.check_complete(new, producer.run(url, Each(cluster.moving(stream, new))))
        finally:
            new.kill()


# -- messages

ONE = Batch("box", Mark(""), [Entry(1, "a", b"{}")], Mark("1 lease a"))
TWO = Batch("box", ONE.mark, [Entry(2, "b", b"{}")], Mark("2 lease b"))


class Proxied:
    """Three nodes, each of which announces the port of a proxy."""

    def __init__(self, cluster: Cluster, proxies: dict[Node, FaultProxy]) -> None:
        self.cluster, self.proxies = cluster, proxies
        self._rules: list[tuple[FaultProxy, Fault]] = []

    def lose_replies(self, proxy: FaultProxy, at: Container[int] = EVERY, command: str | None = None) -> Fault:
        """Let a proxy lose replies until the test ends."""
        fault = proxy.lose_reply(at=at, command=command)
        self._rules.append((proxy, fault))
        return fault

    def lose_no_more(self) -> None:
        """Remove the rules."""
        for proxy, fault in self._rules:
            proxy.remove(fault)
        self._rules.clear()

    def url(self, stream: str, **options: object) -> str:
        """Return a sink URL that names the proxies."""
        hosts = ",".join(proxy.address for proxy in self.proxies.values())
        return f"redis+cluster://{hosts}?stream={stream}" + "".join(f"&{key}={one}" for key, one in options.items())

    def before(self, stream: str) -> FaultProxy:
        """Return the proxy of the node with the stream."""
        return self.proxies[self.node(stream)]

    def node(self, stream: str) -> Node:
        """Return the node with the stream."""
        announced = {proxy.port: node for node, proxy in self.proxies.items()}
        slot = ask(self.cluster.nodes[0], "CLUSTER", "KEYSLOT", stream)
        return next(
            announced[int(primary[1])]
            for start, end, primary, *_ in ask(self.cluster.nodes[0], "CLUSTER", "SLOTS")
            if start <= slot <= end
        )


def _announced(node: Node, ports: set[int]) -> bool:
    return {int(part[2][1]) for part in ask(node, "CLUSTER", "SLOTS")} == ports


@pytest.fixture(scope="module")
def shared_proxied(tmp_path_factory: pytest.TempPathFactory, scripts: dict[str, str]) -> Iterator[Proxied]:
    """Run a cluster behind proxies."""
    with running_cluster(tmp_path_factory.mktemp("proxied"), 3, 0) as cluster, contextlib.ExitStack() as stack:
        proxies = {
            node: stack.enter_context(FaultProxy("127.0.0.1", node.port, scripts=scripts)) for node in cluster.nodes
        }
        ports = {proxy.port for proxy in proxies.values()}
        for node, proxy in proxies.items():
            ask(node, "CONFIG", "SET", "cluster-announce-port", proxy.port)
        for node in cluster.nodes:
            until(partial(_announced, node, ports))
        yield Proxied(cluster, proxies)


@pytest.fixture
def proxied(shared_proxied: Proxied) -> Iterator[Proxied]:
    """Give a cluster behind proxies that lose nothing yet."""
    yield shared_proxied
    shared_proxied.lose_no_more()


def test_every_seventh_reply_is_lost(producer: Producer, proxied: Proxied, stream: str) -> None:
    """Whatever the lost reply was to, nothing is there twice."""
    faults: list[Fault] = []

    def begin() -> None:  # not before: the question for the user's rights alone has more than seven replies
        every_seventh = range(7, 1_000_000, 7)
        faults.extend(proxied.lose_replies(proxy, every_seventh) for proxy in proxied.proxies.values())

    with producer.relay(proxied.url(stream, **CALM), After(begin, batches=1), batch_size=5) as relay:
        report = relay.run(producer.job)
    assert sum(fault.count for fault in faults) >= 20
    producer.check_complete(proxied.node(stream), report)


@pytest.mark.parametrize("command", ["SEND", None])
def test_attempts_are_not_multiplied(proxied: Proxied, stream: str, command: str | None) -> None:
    """A node that loses each reply is tried once, and then as often as ``retries`` says; all waits are ours."""
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return True

    proxy = proxied.before(stream)
    with open_sink(proxied.url(stream, **{**CALM, "retries": 4})) as sink, pausing_with(wait):
        sink.send(ONE)
        sent, connected = proxy.requests["SEND"], proxy.connections
        fault = proxied.lose_replies(proxy, command=command)
        with pytest.raises(SinkUnavailable):
            sink.send(TWO)
        assert len(waits) == 4
        assert proxy.connections - connected <= 2 * 5, "per attempt, one connection for the batch, one for the slots"
        if command is not None:
            assert proxy.requests["SEND"] - sent == fault.count == 5
            proxied.lose_no_more()
            sink.send(Batch("box", TWO.mark, [Entry(3, "c", b"{}")], Mark("3 lease c")))
    if command is not None:
        assert length(proxied.node(stream), stream) == 3


def test_without_time_for_another_attempt(proxied: Proxied, stream: str) -> None:
    """Where ``pause`` says that there is no time, one attempt is made."""
    fault = proxied.lose_replies(proxied.before(stream), command="SEND")
    with open_sink(proxied.url(stream, **CALM)) as sink, pausing_with(lambda seconds: False):
        with pytest.raises(SinkUnavailable):
            sink.send(ONE)
        assert fault.count == 1


def test_a_producer_is_killed_ten_times(cluster: Cluster, stream: str, tmp_path: Path) -> None:
    """Our process is killed ten times, the node with the stream once, and its slot moves: each city exactly once."""

    def move() -> None:
        cluster.settle()
        cluster.move(stream, cluster.others(cluster.owner(stream))[0])

    wanted = struck.produce(
        tmp_path,
        cluster.url(stream, wait_replicas=1, maxlen=0, **PATIENT),
        lambda: length(cluster.owner(stream), stream),
        {4: lambda: _fails_over(cluster, stream), 8: move},
    )
    cluster.settle()
    struck.check_once(cluster.owner(stream), stream, wanted)
