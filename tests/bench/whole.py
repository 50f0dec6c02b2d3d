"""Benchmark: whole runs, from the start of the process to its end, next to the ideal and to what one writes first.

``python tests/bench/whole.py 341 2350`` (pages of 100 cities: as many as 34,006 and 234,908 cities have). Ideal is the
latency times the pages, eight at once: no process starts, nothing is decoded, stored or sent in it. The plain way is
``tests/bench/plain.py``, one request after another.
"""

from __future__ import annotations

import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.extraction import serve

from support.commands import SCRIPTS, environment
from support.servers import Server, binaries, running

AT_ONCE = 8
LATENCIES = (0.0, 0.005, 0.02, 0.1)
ROUNDS = 3


def _timed(server: Server, count: int, *args: str) -> float:
    with server.client() as client:
        client.flushall()
        began = time.perf_counter()
        subprocess.run(args, env=environment(), check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - began
        assert client.xlen("s") == count
    return took


def _measure(server: Server, api: str, pages: int, latency: float) -> None:
    ours: list[float] = []
    plain: list[float] = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            url = f"{api}/{pages}"
            stores = ("--outbox", f"sqlite:///{folder}/t.db", "--sink", server.url("s", maxlen=0))
            producer = (str(SCRIPTS / "owm-producer"), "--api-url", url, "--concurrency", str(AT_ONCE), *stores)
            ours.append(_timed(server, pages * 100, *producer))
            if latency * pages < 10:  # the plain way would take minutes, and what it takes is known
                script = str(Path(__file__).with_name("plain.py"))
                plain.append(
                    _timed(server, pages * 100, sys.executable, script, url, f"{folder}/plain.db", str(server.port))
                )
    took = statistics.median(ours)
    ideal = latency * pages / AT_ONCE
    of_ideal = f"{ideal / took:.2f}" if latency else "-"
    theirs = f"{'-':>9} {'-':>9}"
    if plain:
        theirs = f"{statistics.median(plain):9.2f} {statistics.median(plain) / took:9.1f}"
    spread = (max(ours) - min(ours)) / took
    print(
        f"{pages * 100:>9,} {latency * 1000:>5.0f} ms {took:8.2f} {spread:7.0%} {ideal:8.2f} {of_ideal:>9} {theirs}",
        flush=True,
    )


if __name__ == "__main__":
    sizes = [int(size) for size in sys.argv[1:]] or [341]
    print(f"whole runs, {AT_ONCE} requests at once, medians of {ROUNDS}")
    heads = f"{'tasks':>9} {'latency':>8} {'s':>8} {'spread':>7} {'ideal s':>8} {'of ideal':>9}"
    print(f"{heads} {'plain s':>9} {'of plain':>9}")
    with tempfile.TemporaryDirectory() as name, running(binaries()["valkey"], Path(name)) as valkey:
        for delay in LATENCIES:
            here, there = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(target=serve, args=(delay, there), daemon=True)
            process.start()
            address = f"http://127.0.0.1:{here.recv()}"
            for size in sizes:
                _measure(valkey, address, size, delay)
            process.terminate()
