"""Benchmark: whether cost grows with the work: backlogs and runs of up to 10 million tasks, delivered to Valkey.

``python tests/bench/growth.py 0.3 1 3 10`` (millions). A backlog is appended, then drained. A run is of a job whose
pages come from memory and whose tasks have keys, so all of them stay in the file until it is closed. For each size: the
rate of the first tenth and of the last one, the longest step, the largest WAL, the file, and the peak memory of the
process that does it all, which is a new one each time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from owm_outbox import Batch, Job, Observer, OutboxRelay, Page, Run
from owm_outbox.jobs.owm import OwmIngestionTask
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support.bench import WalWatch, make_tasks, peak_memory
from support.commands import environment
from support.servers import binaries, running

PAGE = 500
PARTS = 10


class _Tenths:
    """Notes when each tenth was done, when the last step was, and how long the longest one took."""

    def __init__(self, count: int) -> None:
        self._part = count // PARTS
        self._done = 0
        self._times: list[float] = []
        self._began = self.last = time.perf_counter()
        self.longest = 0.0

    def add(self, tasks: int) -> None:
        now = time.perf_counter()
        self.longest = max(self.longest, now - self.last)
        self.last = now
        self._done += tasks
        if self._done >= self._part * (len(self._times) + 1):
            self._times.append(now - self._began)

    def rates(self, what: str) -> dict[str, float]:
        """Return the rate of the first tenth and of the last."""
        first, last = self._part / self._times[0], self._part / (self._times[-1] - self._times[-2])
        return {f"{what}, first tenth/s": first, f"{what}, last tenth/s": last}


class _Delivered(_Tenths, Observer):
    def batch_delivered(self, batch: Batch) -> None:
        self.add(len(batch.entries))


class _Stored(_Tenths, Observer):
    def page_stored(self, run: Run, page: Page[Any], new: int) -> None:
        self.add(new)


class _Pages(Job[OwmIngestionTask]):
    """Gives so many tasks, each with a key of its own."""

    name = "growth"

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def key(self, task: OwmIngestionTask) -> int:
        return task.city_id

    def pages(self, run: Run) -> Iterator[Page[OwmIngestionTask]]:
        known = [(task.task_id, task.latitude_deg, task.longitude_deg) for task in make_tasks(PAGE)]
        for first in range(0, self._count, PAGE):
            tasks = [OwmIngestionTask(*values, number) for number, values in enumerate(known, first)]
            yield Page(tasks, checkpoint=b"%d" % first)


def _backlog(count: int, path: Path, outbox: SqliteOutbox, sink: RedisStreamSink) -> dict[str, float]:
    tasks = make_tasks(PAGE)
    appended = _Tenths(count)
    for _ in range(0, count, PAGE):
        outbox.append(tasks)
        appended.add(PAGE)
    filled = path.stat().st_size
    drained = _Delivered(count)
    assert OutboxRelay(outbox, sink, observers=[drained]).drain() == count
    return {
        **appended.rates("append"),
        **drained.rates("drain"),
        "longest commit, ms": appended.longest * 1000,
        "longest batch, ms": drained.longest * 1000,
        "file when full, MiB": filled / 2**20,
    }


def _run(count: int, path: Path, outbox: SqliteOutbox, sink: RedisStreamSink) -> dict[str, float]:
    stored = _Stored(count)
    report = OutboxRelay(outbox, sink, observers=[stored]).run(_Pages(count))
    closing = time.perf_counter() - stored.last
    assert report.delivered == report.extracted == count
    return {**stored.rates("run"), "longest page, ms": stored.longest * 1000, "closing the run, s": closing}


KINDS = {"backlogs": _backlog, "runs": _run}


def _measure(kind: str, count: int, url: str, path: Path) -> dict[str, float]:
    with (
        SqliteOutbox(path) as outbox,
        RedisStreamSink(url, stream="s", maxlen=100_000, overflow="trim") as sink,
        WalWatch(path) as wal,
    ):
        found = KINDS[kind](count, path, outbox, sink)
    return {
        **found,
        "WAL, MiB": wal.largest / 2**20,
        "file in the end, MiB": path.stat().st_size / 2**20,
        "peak memory, MiB": peak_memory(),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(_measure(sys.argv[2], int(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))))
        sys.exit()
    sizes = [int(float(size) * 1_000_000) for size in sys.argv[1:] or ("0.3", "1", "3")]
    for kind in KINDS:
        table = {}
        for size in sizes:
            with tempfile.TemporaryDirectory() as name, running(binaries()["valkey"], Path(name) / "valkey") as server:
                where = (f"redis://{server.address}/0", f"{name}/tasks.db")
                command = (sys.executable, __file__, "--one", kind, str(size), *where)
                done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
                table[size] = json.loads(done.stdout)
        print(f"\ngrowth: {kind:22}" + "".join(f"{size:>14,}" for size in sizes))
        for row in table[sizes[0]]:
            print(f"{row:30}" + "".join(f"{table[size][row]:14,.1f}" for size in sizes))
