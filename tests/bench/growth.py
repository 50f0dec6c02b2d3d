"""Benchmark: whether cost grows with the work: backlogs of up to 10 million tasks, appended and drained.

``python tests/bench/growth.py 0.3 1 3 10`` (millions). For each size: the rate of the first tenth and of the last one,
while the outbox fills and while it is drained, the longest single batch, the largest WAL, the file, and the peak memory
of the process that does both, which is a new one each time.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from owm_outbox import Batch, Observer, OutboxRelay
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support.bench import make_tasks
from support.commands import environment
from support.servers import binaries, running

PAGE = 500
PARTS = 10


class _Watch(Observer):
    """Notes when each tenth was delivered, the longest time between two batches, and the WAL."""

    def __init__(self, count: int, wal: Path) -> None:
        self._part = count // PARTS
        self._wal = wal
        self._delivered = 0
        self._last = self._began = time.perf_counter()
        self.times: list[float] = []
        self.longest = 0.0
        self.largest_wal = 0

    def batch_delivered(self, batch: Batch) -> None:
        """Note them."""
        now = time.perf_counter()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        self._delivered += len(batch.entries)
        if self._delivered >= self._part * (len(self.times) + 1):
            self.times.append(now - self._began)
            self.largest_wal = max(self.largest_wal, self._wal.stat().st_size)


def _rates(times: list[float], part: int) -> tuple[float, float]:
    """Return the rate of the first tenth and of the last."""
    return part / times[0], part / (times[-1] - times[-2])


def _measure(count: int, url: str, folder: Path) -> dict[str, Any]:
    path = folder / "tasks.db"
    wal = Path(f"{path}-wal")
    part = count // PARTS
    tasks = make_tasks(PAGE)
    with SqliteOutbox(path) as outbox, RedisStreamSink(url, stream="s", maxlen=100_000, overflow="trim") as sink:
        times, largest, longest, began = [], 0, 0.0, time.perf_counter()
        for done in range(PAGE, count + 1, PAGE):
            at = time.perf_counter()
            outbox.append(tasks)
            longest = max(longest, time.perf_counter() - at)
            if done % part == 0:
                times.append(time.perf_counter() - began)
                largest = max(largest, wal.stat().st_size)
        filled = path.stat().st_size
        watch = _Watch(count, wal)
        assert OutboxRelay(outbox, sink, observers=[watch]).drain() == count
    first, last = _rates(times, part)
    drain_first, drain_last = _rates(watch.times, part)
    return {
        "append, first tenth/s": first,
        "append, last tenth/s": last,
        "drain, first tenth/s": drain_first,
        "drain, last tenth/s": drain_last,
        "longest commit, ms": longest * 1000,
        "longest batch, ms": watch.longest * 1000,
        "WAL, MiB": max(largest, watch.largest_wal) / 2**20,
        "file when full, MiB": filled / 2**20,
        "file when drained, MiB": path.stat().st_size / 2**20,
        "peak memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(_measure(int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))))
        sys.exit()
    sizes = [int(float(size) * 1_000_000) for size in sys.argv[1:] or ("0.3", "1", "3")]
    table = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as name, running(binaries()["valkey"], Path(name) / "valkey") as server:
            command = [sys.executable, __file__, "--one", str(size), f"redis://{server.address}/0", name]
            done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
            table[size] = json.loads(done.stdout)
    print(f"\ngrowth{'':24}" + "".join(f"{size:>14,}" for size in sizes))
    for row in table[sizes[0]]:
        print(f"{row:30}" + "".join(f"{table[size][row]:14,.1f}" for size in sizes))
