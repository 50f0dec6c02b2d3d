"""Benchmark: what a call costs before it does anything: CPU seconds and wall-clock time of whole processes.

``python tests/bench/startup.py FOLDER`` takes the commands from another folder, such as that of an environment in which
no extra is installed: what is imported depends on it, as ``redis`` imports OpenTelemetry's SDK where it finds it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.commands import SCRIPTS, environment
from support.servers import binaries, running
from support.weather import made_up, serving

ROUNDS = 15


def _process(args: list[str]) -> tuple[float, float]:
    """Run a process to its end, and return its CPU seconds and wall-clock seconds."""
    before, began = os.times(), time.perf_counter()
    subprocess.run(args, env=environment(), check=True, stdout=subprocess.DEVNULL)
    after, took = os.times(), time.perf_counter() - began
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, took


if __name__ == "__main__":
    scripts = Path(sys.argv[1]) if len(sys.argv) > 1 else SCRIPTS
    producer = str(scripts / "owm-producer")
    with (
        tempfile.TemporaryDirectory() as folder,
        running(binaries()["valkey"], Path(folder) / "valkey") as server,
        serving(made_up(1)) as api,
    ):
        run = [producer, "--api-url", api.url, "--outbox"]
        ways = {
            "python -c pass": [str(scripts / "python"), "-c", "pass"],
            "owm-producer --version": [producer, "--version"],
            "owm-producer --help": [producer, "--help"],
            "a run of one page, to a file": [*run, f"sqlite:///{folder}/file.db", "--sink", f"jsonl:{folder}/out"],
            "a run of one page, to Redis": [*run, f"sqlite:///{folder}/redis.db", "--sink", server.url("s")],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, args in ways.items():
                found[name].append(_process(args))
    print(f"\nstart-up, medians of {ROUNDS}\n{'':36}{'CPU s':>8}{'s':>8}")
    for name, measured in found.items():
        cpu, took = (statistics.median(values) for values in zip(*measured, strict=True))
        print(f"{name:36}{cpu:8.3f}{took:8.3f}")
