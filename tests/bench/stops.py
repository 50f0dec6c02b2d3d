"""Benchmark: how long one call of the sink stops the server for everybody else, next to a plain batch.

``python tests/bench/stops.py 5`` (rounds, 9 at most). A client in a process of its own sends PING after PING, and notes
its longest round trip while the sink sends batches of 500. The aim is at most 5 times that of a plain batch, however
long the stream is, and whatever its group has not acknowledged. Three processes share the cores, so the longest round
trip is also that of who had to wait for one: a row without any call tells how much of it. What half of the calls take
at most, by the server's own clock, is beside it.
"""

from __future__ import annotations

import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import redis

from owm_outbox import Batch, Entry, Mark
from owm_outbox.task import encode
from owm_outbox_backends.redis_stream import RedisStreamSink

from support.bench import make_tasks
from support.servers import Server, binaries, running

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
BATCH = 500
CALLS = 20  # a round
MAXLEN = 100_000
BEYOND = 1_000_000
PENDING = 100_000
PLAIN = "plain"
PAYLOADS = [encode(task)[1] for task in make_tasks(BATCH)]


def _ping(port: int, pipe: Connection) -> None:
    """Between two words, send PING after PING, and answer with the longest round trip in seconds."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while pipe.recv():
            pipe.send(None)
            longest = 0.0
            while not pipe.poll():
                began = time.perf_counter()
                connection.sendall(b"PING\r\n")
                connection.recv(64)
                longest = max(longest, time.perf_counter() - began)
            pipe.recv()
            pipe.send(longest)


@dataclass
class _Case:
    """A stream in some state, and what is called."""

    name: str
    call: Callable[[], object]
    ready: Callable[[], object] = lambda: None
    longest: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)

    def measure(self, client: redis.Redis, pipe: Connection) -> None:
        self.ready()
        client.config_resetstat()
        pipe.send(True)
        pipe.recv()
        for _ in range(CALLS):
            self.call()
        pipe.send(None)
        self.longest.append(pipe.recv())
        counted: Any = client.info("latencystats")
        if calls := counted.get("latency_percentiles_usec_evalsha"):
            self.served.append(calls["p50"] / 1e6)


class _Sender:
    """Sends batches to a stream, one a call."""

    def __init__(self, server: Server, stream: str, maxlen: int = 0) -> None:
        self._outbox_id = f"bench {maxlen}"
        self.sink = RedisStreamSink(f"redis://{server.address}/0", stream=stream, maxlen=maxlen)
        self._mark = Mark(self.sink.mark(self._outbox_id))
        self._sent = 0

    def __call__(self) -> None:
        entries = [Entry(number, "a task", payload) for number, payload in enumerate(PAYLOADS, self._sent + 1)]
        batch = Batch(self._outbox_id, self._mark, entries, Mark.of(entries[-1], "lease"))
        self.sink.send(batch)
        self._mark, self._sent = batch.mark, self._sent + BATCH

    def ask(self) -> None:
        self.sink.mark(self._outbox_id)


def _fill(server: Server, stream: str, count: int) -> None:
    send = _Sender(server, stream)
    for _ in range(0, count, BATCH):
        send()
    send.sink.close()


def _has_read_all(client: redis.Redis, stream: str) -> None:
    client.xgroup_setid(stream, "workers", "$")


def _take(client: redis.Redis, stream: str, count: int) -> Iterator[list[bytes]]:
    """Have the group read so many entries, and yield their ids."""
    for _ in range(0, count, 10_000):
        reply: Any = client.xreadgroup("workers", "worker", {stream: ">"}, count=10_000)
        yield [entry_id for entry_id, _ in reply[0][1]]


def _cases(server: Server, client: redis.Redis) -> list[_Case]:
    done = BATCH * CALLS * ROUNDS  # what is trimmed by all calls of a case
    sizes = {"full": MAXLEN, "beyond": MAXLEN + BEYOND, "pending": done, "holes": 2 * PENDING, "both": 4 * PENDING}
    for stream, size in sizes.items():
        _fill(server, stream, size)
        client.xgroup_create(stream, "workers", "0" if stream in ("holes", "both") else "$")
    _fill(server, "pending", PENDING)
    assert sum(map(len, _take(client, "pending", PENDING))) == PENDING
    for stream, every in (("holes", 2), ("both", 4)):
        for ids in _take(client, stream, every * PENDING):
            gone = set(ids[every - 1 :: every])
            client.xdel(stream, *gone)
            client.xack(stream, "workers", *(entry_id for entry_id in ids if entry_id not in gone))
    beyond = _Sender(server, "beyond", MAXLEN)
    return [
        _Case("nothing but PING", lambda: time.sleep(0.003)),
        _Case(PLAIN, _Sender(server, "plain")),
        _Case("full", _Sender(server, "full", MAXLEN), lambda: _has_read_all(client, "full")),
        _Case(f"{BEYOND:,} beyond maxlen", beyond, lambda: _has_read_all(client, "beyond")),
        _Case(f"full, {PENDING:,} pending", _Sender(server, "pending", done + PENDING)),
        _Case(f"full, {PENDING:,} pending, all deleted", _Sender(server, "holes", PENDING)),
        _Case(
            f"beyond, {PENDING:,} pending, all deleted",
            _Sender(server, "both", 1000),
            lambda: _has_read_all(client, "both"),
        ),
        _Case("mark", beyond.ask),
    ]


def main() -> None:
    """Print the table."""
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder, running(binaries()["valkey"], Path(folder)) as server:
        pings = multiprocessing.get_context("spawn").Process(target=_ping, args=(server.port, theirs), daemon=True)
        pings.start()
        with server.client() as client:
            client.config_set("latency-tracking-info-percentiles", "50")
            cases = _cases(server, client)
            for _ in range(ROUNDS):
                for case in cases:
                    case.measure(client, ours)
            assert client.xlen("beyond") > MAXLEN
        ours.send(False)
        pings.join()
    plain = next(case for case in cases if case.name == PLAIN)
    print(
        f"stops of the server in ms, {ROUNDS} rounds of {CALLS} calls: the longest PING; a call by the server's clock"
    )
    print(f"{'':40}{'longest':>9}{'median':>9}{'ratio':>7}{'a call':>9}{'ratio':>7}")
    for case in cases:
        median = statistics.median(case.longest)
        row = f"{max(case.longest) * 1000:9.2f}{median * 1000:9.2f}{median / statistics.median(plain.longest):7.1f}"
        if case.served:
            call = statistics.median(case.served)
            row += f"{call * 1000:9.2f}{call / statistics.median(plain.served):7.1f}"
        print(f"{case.name:40}{row}")


if __name__ == "__main__":
    main()
