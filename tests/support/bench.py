"""What the benchmarks share: interleaved rounds, medians with their spread, tasks like the producer's, and limits."""

from __future__ import annotations

import json
import os
import statistics
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from owm_outbox.jobs.owm import OwmIngestionTask

__all__ = ["WalWatch", "make_tasks", "peak_memory", "rounds", "show"]


class WalWatch:
    """Looks at the WAL of an SQLite file every few milliseconds: what a single call needs shows, too."""

    def __init__(self, database: Path) -> None:
        self._path = f"{database}-wal"
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self.largest = 0

    def _look_on(self) -> None:
        while not self._ends.wait(0.002):
            self._look()

    def _look(self) -> None:
        if os.path.exists(self._path):
            self.largest = max(self.largest, os.stat(self._path).st_size)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ends.set()
        self._thread.join()
        self._look()


def peak_memory() -> float:
    """Return the most MiB that this program has had in memory; getrusage would count who started it, too."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def make_tasks(count: int) -> list[OwmIngestionTask]:
    """Return tasks as the producer has them."""
    return [OwmIngestionTask(uuid.uuid4(), 47.366669, 8.5 + n / 1_000_000, n) for n in range(count)]


def rounds(count: int, ways: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure each way so often, in turn, so that what else the machine does hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(count):
        for name, measure in ways.items():
            found[name].append(measure())
    return found


def show(title: str, found: Mapping[str, list[float]], limit: str, unit: str = "tasks/s") -> None:
    """Print a table: the median of each way, its spread, and its ratio to the one that is the limit.

    Where ``BENCH_RESULTS`` names a file, a line of JSON is added to it, for the chart.
    """
    best = statistics.median(found[limit])
    print(f"\n{title}\n{'':44}{unit:>12}{'spread':>10}{'ratio':>8}")
    for name, values in found.items():
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median
        print(f"{name:44}{median:12,.0f}{spread:10.0%}{median / best:8.2f}", flush=True)
    if results := os.environ.get("BENCH_RESULTS"):
        with open(results, "a", encoding="utf-8") as file:
            medians = {name: statistics.median(values) for name, values in found.items()}
            file.write(json.dumps({"title": title, "unit": unit, "medians": medians}) + "\n")
