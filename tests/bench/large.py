"""Benchmark: tasks of 1 MiB from SQLite to Valkey, next to a bare ``executemany`` and one XADD per task.

``python tests/bench/large.py 300``. Ten are appended in a commit, and as many sent at once as fit into 8 MiB. The bare
loops are given the same rows and payloads ready-made. What the relay needs for it, the largest WAL and the memory
beyond what its process had before, is measured in a process of its own; the aims are 64 MiB each.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from owm_outbox import OutboxRelay
from owm_outbox.task import encode
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support.bench import WalWatch, peak_memory, rounds, show
from support.commands import environment
from support.servers import Server, binaries, running

COUNT = int(sys.argv[1]) if sys.argv[1:2] not in ([], ["--one"]) else 300
BATCH = 10
ROUNDS = 3
MIB = 2**20

_INSERT = "INSERT INTO outbox_entries (run, key, task_id, payload, headers, stored_at) VALUES (?, ?, ?, ?, NULL, ?)"


@dataclass
class Task:
    """A task with a long text."""

    task_id: uuid.UUID
    text: str


TASKS = [Task(uuid.uuid4(), "x" * MIB) for _ in range(BATCH)]
ROWS = [encode(task) for task in TASKS]


@contextmanager
def _outbox() -> Iterator[SqliteOutbox]:
    with tempfile.TemporaryDirectory() as folder, SqliteOutbox(Path(folder) / "tasks.db") as outbox:
        yield outbox


def _fill(outbox: SqliteOutbox, count: int) -> None:
    for _ in range(0, count, BATCH):
        outbox.append(TASKS)


def _deliver(outbox: SqliteOutbox, url: str, count: int) -> None:
    with RedisStreamSink(url, stream="s", maxlen=0) as sink:
        assert OutboxRelay(outbox, sink).drain() == count


def _bare_rows() -> float:
    with _outbox() as made, closing(sqlite3.connect(made.path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = FULL")
        began = time.perf_counter()
        for _ in range(0, COUNT, BATCH):
            now = time.time()
            db.execute("BEGIN IMMEDIATE")
            db.executemany(_INSERT, [(None, None, task_id, payload, now) for task_id, payload in ROWS])
            db.execute("COMMIT")
        return COUNT / (time.perf_counter() - began)


def _append() -> float:
    with _outbox() as outbox:
        began = time.perf_counter()
        _fill(outbox, COUNT)
        return COUNT / (time.perf_counter() - began)


def _xadds(server: Server) -> float:
    with server.client() as client:
        client.flushall()
        began = time.perf_counter()
        for _ in range(0, COUNT, BATCH):
            for _, payload in ROWS:
                client.xadd("s", {"data": payload})
        return COUNT / (time.perf_counter() - began)


def _drain(server: Server) -> float:
    with server.client() as client:
        client.flushall()
    with _outbox() as outbox:
        _fill(outbox, COUNT)
        began = time.perf_counter()
        _deliver(outbox, f"redis://{server.address}/0", COUNT)
        return COUNT / (time.perf_counter() - began)


def _needs(count: int, url: str) -> dict[str, float]:
    with _outbox() as outbox, WalWatch(outbox.path) as wal:
        before = peak_memory()
        _fill(outbox, count)
        appended = peak_memory() - before
        _deliver(outbox, url, count)
        drained = peak_memory() - before
    return {"memory, appended": appended, "memory, drained as well": drained, "largest WAL": wal.largest / MIB}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(_needs(int(sys.argv[2]), sys.argv[3])))
        sys.exit()
    with tempfile.TemporaryDirectory() as name, running(binaries()["valkey"], Path(name)) as valkey:
        stored = {"bare executemany": _bare_rows, "append": _append}
        show(f"{COUNT} tasks of 1 MiB, {BATCH} a commit", rounds(ROUNDS, stored), "bare executemany", "MiB/s")
        sent = {"one XADD per call": partial(_xadds, valkey), "drain": partial(_drain, valkey)}
        show(f"{COUNT} tasks of 1 MiB to Valkey", rounds(ROUNDS, sent), "one XADD per call", "MiB/s")
        command = (sys.executable, __file__, "--one", str(COUNT), f"redis://{valkey.address}/1")
        done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    print("\nwhat it needs, MiB; the aim is 64")
    for what, mib in json.loads(done.stdout).items():
        print(f"{what:44}{mib:12.1f}")
