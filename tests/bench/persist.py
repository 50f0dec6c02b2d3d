"""Benchmark: how fast tasks become durable, next to a bare ``executemany`` of the same rows. Run with ``tox -e bench``.

Both write to the same tables, which an outbox made, with the same pragmas, 500 tasks a commit, each on disk when it
returns. The bare loop is given its rows ready-made; the outbox also encodes each task, checks its key, and looks for
duplicates where there is a run.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from owm_outbox.task import encode
from owm_outbox_backends.sqlite import SqliteOutbox

from support.bench import make_tasks, rounds, show

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
BATCH = 500
TASKS = make_tasks(COUNT)
ROWS = [(task.city_id, *encode(task)) for task in TASKS]

_INSERT = "INSERT INTO outbox_entries (run, key, task_id, payload, headers, stored_at) VALUES (?, ?, ?, ?, NULL, ?)"


def _bare(run: int | None) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.db"
        SqliteOutbox(path).close()
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            began = time.perf_counter()
            for at in range(0, COUNT, BATCH):
                db.execute("BEGIN IMMEDIATE")
                now = time.time()
                db.executemany(
                    _INSERT,
                    [
                        (run, None if run is None else key, task_id, body, now)
                        for key, task_id, body in ROWS[at : at + BATCH]
                    ],
                )
                db.execute("COMMIT")
            return COUNT / (time.perf_counter() - began)


def _append() -> float:
    with tempfile.TemporaryDirectory() as folder, SqliteOutbox(Path(folder) / "tasks.db") as outbox:
        began = time.perf_counter()
        for at in range(0, COUNT, BATCH):
            outbox.append(TASKS[at : at + BATCH])
        return COUNT / (time.perf_counter() - began)


def _append_in_a_run() -> float:
    with tempfile.TemporaryDirectory() as folder, SqliteOutbox(Path(folder) / "tasks.db") as outbox, outbox.lock():
        run = outbox.start_run("bench").id
        began = time.perf_counter()
        for at in range(0, COUNT, BATCH):
            outbox.append(TASKS[at : at + BATCH], key=lambda task: task.city_id, run=run, checkpoint=b"%d" % at)
        return COUNT / (time.perf_counter() - began)


if __name__ == "__main__":
    ways = {
        "bare executemany, without a run": lambda: _bare(None),
        "append": _append,
        "bare executemany, with a key per run": lambda: _bare(1),
        "append in a run": _append_in_a_run,
    }
    found = rounds(5, ways)
    names = list(ways)
    show(f"persist, {COUNT:,} tasks, {BATCH} a commit", {name: found[name] for name in names[:2]}, names[0])
    show("within a run", {name: found[name] for name in names[2:]}, names[2])
