"""Benchmark: how fast a backlog in SQLite is drained to each kind of sink, next to its client's plain way.

``python tests/bench/sinks.py 34006``. The plain ways keep no mark, and begin with payloads that are ready: a pipeline
of 500 XADDs; ``executemany`` of 500 INSERTs in a transaction; 500 ``js.publish`` at once, each awaited.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nats

from owm_outbox import OutboxRelay
from owm_outbox.plugins import open_sink
from owm_outbox.task import encode
from owm_outbox_backends.sqlite import SqliteOutbox

from support import nats as nats_server
from support.bench import make_tasks, rounds, show
from support.postgres import postgres_binaries, postgres_running
from support.postgres_table import Table
from support.servers import Server, binaries, running

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 34_006
BATCH = 500
TASKS = make_tasks(COUNT)
PAYLOADS = [encode(task)[1] for task in TASKS]


def _drain(url: str) -> float:
    with tempfile.TemporaryDirectory() as folder, SqliteOutbox(Path(folder) / "t.db") as outbox, open_sink(url) as sink:
        for at in range(0, COUNT, 10_000):
            outbox.append(TASKS[at : at + 10_000])
        began = time.perf_counter()
        assert OutboxRelay(outbox, sink).drain() == COUNT
        return COUNT / (time.perf_counter() - began)


def _parts() -> Iterator[list[bytes]]:
    for at in range(0, COUNT, BATCH):
        yield PAYLOADS[at : at + BATCH]


def _redis(server: Server) -> dict[str, Callable[[], float]]:
    def plain() -> float:
        with server.client() as client:
            client.flushall()
            began = time.perf_counter()
            for part in _parts():
                pipe = client.pipeline(transaction=False)
                for payload in part:
                    pipe.xadd("plain", {"data": payload})
                pipe.execute()
            return COUNT / (time.perf_counter() - began)

    def ours() -> float:
        with server.client() as client:
            client.flushall()
        return _drain(server.url("s", maxlen=0))

    return {"a pipeline of 500 XADDs": plain, "drain to Redis": ours}


def _postgresql(table: Table) -> dict[str, Callable[[], float]]:
    def plain() -> float:
        table.rows("TRUNCATE {t}")
        with table.server.client() as client:
            began = time.perf_counter()
            for part in _parts():
                with client.transaction(), client.cursor() as cursor:
                    cursor.executemany(
                        f"INSERT INTO {table.name} (task_id, payload) VALUES (%s, %s)",  # noqa: S608 - our own name
                        [("a", payload.decode()) for payload in part],
                    )
            return COUNT / (time.perf_counter() - began)

    def ours() -> float:
        table.rows("TRUNCATE {t}")
        return _drain(table.url())

    return {"500 INSERTs by executemany": plain, "drain to PostgreSQL": ours}


def _jetstream(server: nats_server.NatsServer) -> dict[str, Callable[[], float]]:
    async def publish() -> float:
        client = await nats.connect(f"nats://{server.address}")
        js = client.jetstream()
        began = time.perf_counter()
        for part in _parts():
            await asyncio.gather(*(js.publish("tasks", payload) for payload in part))
        took = time.perf_counter() - began
        await client.close()
        return COUNT / took

    def again() -> None:
        server.remove("TASKS")
        server.make("TASKS", "tasks")

    def plain() -> float:
        again()
        return asyncio.run(publish())

    def ours() -> float:
        again()
        return _drain(server.url("TASKS", "tasks"))

    return {"500 js.publish at once": plain, "drain to JetStream": ours}


@contextmanager
def _all() -> Iterator[list[tuple[str, dict[str, Callable[[], float]]]]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkey = stack.enter_context(running(binaries()["valkey"], folder / "valkey"))
        postgres = stack.enter_context(postgres_running(postgres_binaries()["postgres-18"], fsync="on"))
        table = Table(postgres)
        table.make()
        jetstream = stack.enter_context(nats_server.running(folder / "nats"))
        jetstream.make("TASKS", "tasks")
        yield [
            ("Valkey", _redis(valkey)),
            ("PostgreSQL, fsync on", _postgresql(table)),
            ("JetStream", _jetstream(jetstream)),
        ]


if __name__ == "__main__":
    with _all() as sinks:
        for name, ways in sinks:
            show(f"{name}, {COUNT:,} tasks from an SQLite outbox", rounds(5, ways), next(iter(ways)))
