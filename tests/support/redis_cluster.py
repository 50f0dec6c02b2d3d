"""A cluster of real servers, and servers with Sentinels, on this machine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from support.servers import Server, binaries, free_port, running

QUICK = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
# In milliseconds. A Sentinel that was not run for TILT-TRIGGER, 2 s by default, would do nothing for half a minute.
# PUBLISH-PERIOD stays: one that hears of a failover after four times as long has made the new primary a replica again.
PERIODS = ("INFO-PERIOD", 200, "ASK-PERIOD", 200, "TILT-TRIGGER", 3_600_000)
SLOTS = 16_384


def until(what: Callable[[], object], seconds: float = 90, *, why: str = "") -> None:
    """Wait until a condition is true; a server that does not answer yet is one for which it is not."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
            if what():
                return
        assert time.monotonic() < deadline, why or "it did not happen in time"
        threading.Event().wait(0.02)


def ask(server: Server, *command: object) -> Any:
    """Send one command on a connection of its own, once, and return the reply as it is."""
    with redis.Redis("127.0.0.1", server.port, socket_timeout=10, protocol=2, retry=Retry(NoBackoff(), 0)) as client:
        client.response_callbacks.clear()
        return client.execute_command(*command)


def copied(replica: Server, stream: str) -> int:
    """Return how many entries of a stream a replica has."""
    with replica.client() as client, client.pipeline(transaction=False) as pipe:
        pipe.execute_command("READONLY")  # in a cluster, it would send us to its primary
        pipe.xlen(stream)
        return int(pipe.execute(raise_on_error=False)[1])


class Node(Server):
    """A node of a cluster: its bus has a port of its own, so any port will do."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.bus = free_port()
        super().__init__(
            binaries()["valkey"],
            folder,
            *("--cluster-enabled", "yes", "--cluster-port", str(self.bus), "--cluster-node-timeout", "1000"),
            *("--cluster-replica-validity-factor", "0", "--cluster-allow-replica-migration", "no"),
            *QUICK,
            *options,
        )

    @property
    def id(self) -> str:
        """The name that the cluster knows it by."""
        return str(ask(self, "CLUSTER", "MYID").decode())


class Cluster:
    """Primaries, each with an equal part of the slots, and their replicas.

    :param replicas: of each primary.
    """

    def __init__(self, folder: Path, primaries: int, replicas: int, *options: str) -> None:
        self.nodes = [Node(folder / str(number), *options) for number in range(primaries * (1 + replicas))]
        self._primaries = primaries

    @property
    def primaries(self) -> list[Node]:
        """Those that began as primaries."""
        return self.nodes[: self._primaries]

    def start(self) -> None:
        """Start the nodes, and return once all of them agree."""
        for node in self.nodes:
            node.start()
        first, count = self.nodes[0], self._primaries
        for number, node in enumerate(self.nodes):
            if number < count:
                ask(node, "CLUSTER", "ADDSLOTSRANGE", SLOTS * number // count, SLOTS * (number + 1) // count - 1)
                ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                ask(first, "CLUSTER", "MEET", "127.0.0.1", node.port, node.bus)
        until(lambda: all(len(self._view(node)) == len(self.nodes) for node in self.nodes), why="nodes did not meet")
        for number, node in enumerate(self.nodes[count:]):
            ask(node, "CLUSTER", "REPLICATE", self.nodes[number % count].id)
        self.settle()

    def suspect_after(self, milliseconds: int) -> None:
        """Say for how long a node may be silent; one that is started anew is suspected after 1 s."""
        for node in self.nodes:
            ask(node, "CONFIG", "SET", "cluster-node-timeout", milliseconds)

    def settle(self) -> None:
        """Wait until every node is up, knows the same owners as all others, and follows its primary."""
        until(self._is_settled, 90, why="the nodes of the cluster did not come to agree")

    def _is_settled(self) -> bool:
        infos = [ask(node, "CLUSTER", "INFO") for node in self.nodes]
        if not all(b"cluster_state:ok" in info and b"cluster_slots_ok:16384" in info for info in infos):
            return False
        views = [self._view(node) for node in self.nodes]
        owners = {tuple(sorted((ident, words[8:]) for ident, words in map(_parts, view))) for view in map(tuple, views)}
        flags = {
            tuple(sorted((line.split()[0], line.split()[2].replace("myself,", "")) for line in view)) for view in views
        }
        links = [ask(node, "INFO", "replication") for node in self.nodes]
        followed = all(b"role:master" in link or b"master_link_status:up" in link for link in links)
        return len(flags) == 1 and "fail" not in str(flags) and len(owners) == 1 and followed

    @staticmethod
    def _view(node: Server) -> list[str]:
        return [str(line) for line in ask(node, "CLUSTER", "NODES").decode().splitlines()]

    def url(self, stream: str, *, nodes: Sequence[Server] = (), **options: object) -> str:
        """Return a sink URL that names all nodes, or these."""
        query = "".join(f"&{name}={value}" for name, value in options.items())
        return f"redis+cluster://{','.join(node.address for node in nodes or self.nodes)}?stream={stream}{query}"

    def owner(self, key: str) -> Node:
        """Return the node that has a key now, as most nodes that answer see it."""
        found: list[int] = []
        for node in self.nodes:
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                found += [
                    int(primary[1])
                    for start, end, primary, *_ in ask(node, "CLUSTER", "SLOTS")
                    if start <= key_slot(key.encode()) <= end
                ]
        port = max(set(found), key=found.count)
        return next(node for node in self.nodes if node.port == port)

    def replica(self, primary: Node) -> Node:
        """Return the first replica of a node."""
        ports = [int(line.split()[1].partition("@")[0].rpartition(":")[2]) for line in self._replicas(primary)]
        return next(node for node in self.nodes if node.port in ports)

    def _replicas(self, primary: Node) -> list[str]:
        return [line for line in self._view(primary) if line.split()[3] == primary.id]

    def fail_over(self, dead: Node, key: str) -> Node:
        """Wait until another node has what a node that was killed had, and return it."""
        until(lambda: self.owner(key) is not dead, why="no replica took over")
        return self.owner(key)

    def others(self, node: Node) -> list[Node]:
        """Return the other primaries."""
        return [
            other for other in self.nodes if other is not node and b"role:master" in ask(other, "INFO", "replication")
        ]

    def moving(self, key: str, target: Node) -> Iterator[None]:
        """Move the slot of a key to another primary, one step at a time: announced, without its keys, done."""
        slot, source = key_slot(key.encode()), self.owner(key)
        ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        yield
        while keys := ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.migrate(source, target, *keys)
        yield
        for node in (target, source):
            ask(node, "CLUSTER", "SETSLOT", slot, "NODE", target.id)
        yield

    def move(self, key: str, target: Node) -> None:
        """Move the slot of a key to another primary with all its keys."""
        for _ in self.moving(key, target):
            pass

    @staticmethod
    def migrate(source: Node, target: Node, *keys: str | bytes) -> None:
        """Move keys of a slot that is on its way."""
        ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def empty(self) -> None:
        """Remove all keys."""
        for node in self.nodes:
            if b"role:master" in ask(node, "INFO", "replication"):
                ask(node, "FLUSHALL")

    def kill(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.kill()


def _parts(line: str) -> tuple[str, tuple[str, ...]]:
    words = line.split()
    return words[0], tuple(words)


@contextlib.contextmanager
def running_cluster(folder: Path, primaries: int = 3, replicas: int = 1, *options: str) -> Iterator[Cluster]:
    """Run a cluster for the length of a block.

    :param options: of each server.
    """
    cluster = Cluster(folder, primaries, replicas, *options)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()


SERVICE = "tasks"


class Guarded:
    """A primary with a replica, and three Sentinels that look after them.

    :param servers: the two; which of them is the primary changes.
    """

    def __init__(self, servers: Sequence[Server], sentinels: Sequence[Server]) -> None:
        self.servers = servers
        self.sentinels = sentinels

    def url(self, stream: str, *, sentinels: Sequence[Server] = (), **options: object) -> str:
        """Return a sink URL that names all Sentinels, or these."""
        query = "".join(f"&{name}={value}" for name, value in options.items())
        hosts = ",".join(one.address for one in sentinels or self.sentinels)
        return f"redis+sentinel://{hosts}/0?service={SERVICE}&stream={stream}{query}"

    @property
    def primary(self) -> Server:
        """The server that the Sentinels name; fails while they do not agree."""
        found = {int(ask(one, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1]) for one in self.sentinels}
        (port,) = found
        return next(server for server in self.servers if server.port == port)

    @property
    def replica(self) -> Server:
        """The other server."""
        return next(server for server in self.servers if server is not self.primary)

    def suspect_after(self, milliseconds: int) -> None:
        """Say for how long the primary may be silent."""
        for one in self.sentinels:
            ask(one, "SENTINEL", "SET", SERVICE, "down-after-milliseconds", milliseconds)

    def settle(self) -> None:
        """Wait until the replica follows, and all Sentinels know it, one another, and the same primary."""
        until(self._is_settled, 90, why="the Sentinels did not come to agree")

    def _is_settled(self) -> bool:
        for one in self.sentinels:
            state = _pairs(ask(one, "SENTINEL", "MASTER", SERVICE))
            if (state["flags"], state["num-slaves"], state["num-other-sentinels"]) != ("master", "1", "2"):
                return False
            (replica,) = map(_pairs, ask(one, "SENTINEL", "REPLICAS", SERVICE))
            if replica["flags"] != "slave" or replica["master-link-status"] != "ok":
                return False
        if len({int(ask(one, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1]) for one in self.sentinels}) > 1:
            return False
        return b"role:master" in ask(self.primary, "INFO", "replication") and b"state=online" in ask(
            self.primary, "INFO", "replication"
        )

    def fail_over(self, dead: Server) -> None:
        """Wait until the Sentinels name another server than one that was killed."""
        until(
            lambda: all(
                int(ask(one, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1]) != dead.port for one in self.sentinels
            ),
            why="the Sentinels did not fail over",
        )
        self.suspect_after(30_000)  # or a busy machine has them fail over once more

    def switch(self) -> None:
        """Have the two servers change places; a Sentinel may give a failover up, and is then asked again."""
        before = self.primary

        def switched() -> bool:
            asked = [ask(one, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE) for one in self.sentinels]
            return all(int(port) != before.port for _, port in asked) and (
                b"role:slave" in ask(before, "INFO", "replication")
            )

        for _ in range(3):
            with contextlib.suppress(redis.ResponseError):  # one is under way
                ask(self.sentinels[0], "SENTINEL", "FAILOVER", SERVICE)
            with contextlib.suppress(AssertionError):
                return until(switched, 40)
        raise AssertionError("the Sentinel did not fail over")


def _pairs(flat: list[bytes]) -> dict[str, str]:
    texts = [item.decode() for item in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


@contextlib.contextmanager
def watching(folder: Path, address: str, count: int = 1, *lines: str) -> Iterator[list[Server]]:
    """Run Sentinels for the length of a block.

    :param address: of the primary.
    :param lines: more of their configuration.
    """
    host, _, port = address.partition(":")
    with contextlib.ExitStack() as stack:
        found: list[Server] = []
        for number in range(count):
            home = folder / f"sentinel-{number}"
            home.mkdir(parents=True)
            of_service = (
                f"monitor {SERVICE} {host} {port} {count // 2 + 1}",
                f"down-after-milliseconds {SERVICE} 1000",
                f"failover-timeout {SERVICE} 4000",
            )
            config = [*(f"sentinel {line}" for line in of_service), *lines]
            (home / "sentinel.conf").write_text("".join(f"{line}\n" for line in config))
            one = Sentinel(binaries()["valkey"], home)
            stack.callback(one.kill)
            one.start()
            found.append(one)
        yield found


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[Guarded]:
    """Run two servers and three Sentinels for the length of a block, and return once all of them agree."""
    binary = binaries()["valkey"]
    with running(binary, folder / "one", *QUICK) as first, running(binary, folder / "two", *QUICK) as second:
        ask(second, "REPLICAOF", "127.0.0.1", first.port)
        with watching(folder, first.address, 3) as sentinels:
            found = Guarded([first, second], sentinels)
            found.settle()
            yield found


class Sentinel(Server):
    """A Sentinel; it keeps what it learned in its file."""

    def command(self) -> list[str]:
        """Say how it is started: its file comes first."""
        return [self.binary, str(self.folder / "sentinel.conf"), "--sentinel", *super().command()[1:]]

    def start(self, *options: str) -> None:
        """Start it, and make it quick and patient, which is not kept in its file."""
        super().start(*options)
        ask(self, "SENTINEL", "DEBUG", *PERIODS)
