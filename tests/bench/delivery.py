"""Benchmark: how fast tasks get from an outbox to a Redis Stream, next to what the server can take. ``tox -e bench``.

The limit is ``redis-benchmark`` (where it is installed) with the same payload, 500 commands in a pipeline, on one
connection. Next to it stand what one writes first: a pipeline of 500 XADDs, and one XADD per call. ``send`` is the sink
alone, with batches ready-made; ``drain`` reads them from an SQLite outbox, sends, acknowledges and clears.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from owm_outbox import Batch, Entry, Mark, OutboxRelay
from owm_outbox.task import encode
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support.bench import make_tasks, rounds, show
from support.servers import Server, binaries, running

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
BATCH = 500
TASKS = make_tasks(COUNT)
PAYLOADS = [encode(task)[1] for task in TASKS]


def _cleared(server: Server) -> None:
    with server.client() as client:
        client.flushall()


def _redis_benchmark(server: Server) -> float:
    _cleared(server)
    tool = shutil.which("redis-benchmark")
    assert tool is not None
    command = ("XADD", "s", "*", "data", PAYLOADS[0].decode())
    done = subprocess.run(
        [tool, "-p", str(server.port), "-c", "1", "-P", "500", "-n", str(COUNT), "--csv", *command],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1].rpartition('}","')[2].split('","')[0].strip('"'))


def _pipeline(server: Server) -> float:
    _cleared(server)
    with server.client() as client:
        began = time.perf_counter()
        for at in range(0, COUNT, BATCH):
            with client.pipeline(transaction=False) as pipe:
                for payload in PAYLOADS[at : at + BATCH]:
                    pipe.xadd("s", {"data": payload})
                pipe.execute()
        return COUNT / (time.perf_counter() - began)


def _one_by_one(server: Server) -> float:
    _cleared(server)
    few = COUNT // 10
    with server.client() as client:
        began = time.perf_counter()
        for payload in PAYLOADS[:few]:
            client.xadd("s", {"data": payload})
        return few / (time.perf_counter() - began)


def _send(server: Server) -> float:
    _cleared(server)
    batches, after = [], Mark("")
    for at in range(0, COUNT, BATCH):
        entries = [Entry(at + n + 1, f"task-{at + n}", body) for n, body in enumerate(PAYLOADS[at : at + BATCH])]
        batches.append(Batch("bench", after, entries, after := Mark.of(entries[-1], "lease")))
    with RedisStreamSink(f"redis://{server.address}/0", stream="s", maxlen=0) as sink:
        sink.mark("bench")
        began = time.perf_counter()
        for batch in batches:
            sink.send(batch)
        return COUNT / (time.perf_counter() - began)


def _drain(server: Server) -> float:
    _cleared(server)
    with (
        tempfile.TemporaryDirectory() as folder,
        SqliteOutbox(Path(folder) / "tasks.db") as outbox,
        RedisStreamSink(f"redis://{server.address}/0", stream="s", maxlen=0) as sink,
    ):
        for at in range(0, COUNT, 10_000):
            outbox.append(TASKS[at : at + 10_000])
        began = time.perf_counter()
        assert OutboxRelay(outbox, sink).drain() == COUNT
        return COUNT / (time.perf_counter() - began)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, running(binaries()["valkey"], Path(folder)) as server:
        ways: dict[str, Callable[[], float]] = {
            "a pipeline of 500 XADDs": lambda: _pipeline(server),
            "one XADD per call": lambda: _one_by_one(server),
            "send: the sink alone": lambda: _send(server),
            "drain: from an SQLite outbox": lambda: _drain(server),
        }
        limit = "a pipeline of 500 XADDs"
        if shutil.which("redis-benchmark"):
            limit = "redis-benchmark -P 500 -c 1"
            ways = {limit: lambda: _redis_benchmark(server), **ways}
        show(f"delivery, {COUNT:,} tasks to Valkey", rounds(5, ways), limit)
