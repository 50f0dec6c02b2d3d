"""Benchmark: the outbox on PostgreSQL, next to the bare INSERT and to a sink's own limit. Run with ``tox -e bench``.

Appends are transactions of one task each, by four processes, on a server with fsync; bare is an INSERT of the same row
into a table with a primary key. Both are also measured while a relay delivers. Then one relay delivers a backlog.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from owm_outbox import OutboxRelay
from owm_outbox_backends.postgresql import PostgresqlOutbox
from owm_outbox_backends.redis_stream import RedisStreamSink

from support.postgres import postgres_binaries, postgres_running
from support.servers import Server, binaries, running

WRITERS = 4
SECONDS = float(os.environ.get("BENCH_SECONDS", "4"))
ROUNDS = 3
BACKLOG = int(os.environ.get("BENCH_BACKLOG", "200000"))

BARE = """
    CREATE TABLE bare (
        sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, lane smallint NOT NULL, run bigint, key text,
        task_id text, headers json, payload bytea NOT NULL, stored_at timestamptz NOT NULL
    )
"""


@dataclass
class Task:
    """A task."""

    task_id: uuid.UUID
    latitude_deg: float
    longitude_deg: float
    city_id: int


def _task(number: int) -> Task:
    return Task(uuid.uuid4(), 47.37, 8.54, number)


def _write(url: str, *, bare: bool, seconds: float, pipe: object) -> None:
    count = 0
    with PostgresqlOutbox(url) as outbox, psycopg.connect(url) as connection:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            task = _task(count)
            if bare:
                connection.execute(
                    "INSERT INTO bare (lane, key, task_id, payload, stored_at) VALUES (0, %s, %s, %s, now())",
                    [str(task.city_id), str(task.task_id), b'{"task_id":"%s","city_id":%d}' % (task.task_id.bytes, 1)],
                )
            else:
                outbox.append([task], connection=connection, key=lambda task: task.city_id)
            connection.commit()
            count += 1
    pipe.send(count)  # type: ignore[attr-defined]  # a Connection


def _appends(url: str, *, bare: bool) -> float:
    """Return appends per second of all writers."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    writers = [
        spawn.Process(target=_write, args=(url,), kwargs={"bare": bare, "seconds": SECONDS, "pipe": theirs})
        for _ in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    total: int = sum(ours.recv() for _ in writers)
    for writer in writers:
        writer.join()
    return total / SECONDS


def _relay(url: str, address: str, stop: multiprocessing.synchronize.Event) -> None:
    ends = threading.Event()
    with PostgresqlOutbox(url) as outbox, RedisStreamSink(address, stream="s", maxlen=0) as sink:
        thread = threading.Thread(target=OutboxRelay(outbox, sink).run_forever, args=[ends])
        thread.start()
        stop.wait()
        ends.set()
        thread.join()


@contextmanager
def _relaying(url: str, server: Server) -> Iterator[None]:
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    process = spawn.Process(target=_relay, args=(url, f"redis://{server.address}/0", stop))
    process.start()
    yield
    stop.set()
    process.join()


def _backlog(url: str, server: Server) -> float:
    """Return entries per second of one relay that has much to do."""
    with PostgresqlOutbox(url) as outbox, RedisStreamSink(f"redis://{server.address}/0", stream="b", maxlen=0) as sink:
        for first in range(0, BACKLOG, 5000):
            outbox.append([_task(number) for number in range(first, first + 5000)])
        began = time.perf_counter()
        delivered = OutboxRelay(outbox, sink).drain()
        assert delivered >= BACKLOG
        return delivered / (time.perf_counter() - began)


def main() -> None:
    """Print the table."""
    print(f"Python {sys.version.split()[0]}, {multiprocessing.cpu_count()} cores; median of {ROUNDS} rounds")
    with (
        postgres_running(postgres_binaries()["postgres-18"], fsync="on", full_page_writes="on") as postgres,
        tempfile.TemporaryDirectory() as folder,
        running(binaries()["valkey"], Path(folder)) as server,
    ):
        url = postgres.url()
        PostgresqlOutbox(url).close()
        with postgres.client() as admin:
            admin.execute(BARE)
        found: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            found.setdefault("bare INSERT", []).append(_appends(url, bare=True))
            found.setdefault("append", []).append(_appends(url, bare=False))
            with _relaying(url, server):
                found.setdefault("append while a relay delivers", []).append(_appends(url, bare=False))
                found.setdefault("bare INSERT while a relay waits", []).append(_appends(url, bare=True))
        bare = statistics.median(found["bare INSERT"])
        for what, rates in found.items():
            print(f"{what:34} {statistics.median(rates):>9.0f}/s  {statistics.median(rates) / bare:.2f} of bare")
        with PostgresqlOutbox(url) as outbox, RedisStreamSink(f"redis://{server.address}/0", stream="s") as sink:
            OutboxRelay(outbox, sink).drain()
        rates = [_backlog(url, server) for _ in range(ROUNDS)]
        print(f"{'one relay, a backlog of ' + format(BACKLOG, ','):34} {statistics.median(rates):>9.0f}/s")


if __name__ == "__main__":
    main()
