"""The producer on its way to a sink, killed again and again, with a server that is killed, too: what arrives."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from owm_outbox.cli.weather import read_cities
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import run, start
from support.weather import serving

__all__ = ["CITIES", "Ordeal", "check_once", "is_complete"]

CITIES = read_cities()[: int(os.environ.get("ORDEAL_CITIES", "6000"))]
"""Real cities; ``ORDEAL_CITIES=34006`` for all of them."""


class Ordeal:
    """Runs the producer until everything is delivered.

    :param outbox: the path of its outbox.
    :param sink: the URL of its sink.
    :param count: returns how many entries the sink holds.
    """

    def __init__(self, outbox: Path, sink: str, count: Callable[[], int]) -> None:
        self._outbox = outbox
        self._args = ("--outbox", f"sqlite:///{outbox}", "--sink", sink, "--batch-size", "100")
        self._count = count

    def pass_through(self, kills: int, strikes: Mapping[int, Callable[[], object]]) -> None:
        """Kill the producer this often with SIGKILL, each time after it delivered some more, and then let it end.

        :param strikes: what is done to the server, by the number of the producer's process; that one goes on.
        """
        some = len(CITIES) // (3 * kills)
        with serving(CITIES) as api:
            args = (*self._args, "--api-url", api.url)
            for number in range(kills):
                process = start("owm-producer", *args)
                self._until(process, self._count() + some)
                if strike := strikes.get(number):
                    strike()
                    self._until(process, self._count() + some)
                process.kill()
                process.communicate()
                if is_complete(self._outbox):
                    return
            done = run("owm-producer", *args, timeout=110)
        assert done.code == 0, done.err

    def _until(self, process: subprocess.Popen[bytes], held: int) -> None:
        deadline = time.monotonic() + 60
        while self._count() < held and process.poll() is None:
            assert time.monotonic() < deadline, "nothing arrives"
            time.sleep(0.002)


def check_once(payloads: Iterable[bytes]) -> None:
    """Each city is there once, and nothing else."""
    found = Counter(msgspec.json.decode(payload, type=_Task).city_id for payload in payloads)
    assert found == Counter(city.city_id for city in CITIES)


class _Task(msgspec.Struct):
    city_id: int


def is_complete(outbox: Path) -> bool:
    """Return whether the newest run is complete: it may be so before its process has ended, and is killed all the same.

    One more call would then be another run, which enqueues each city again.
    """
    if not outbox.exists():
        return False
    with SqliteOutbox(outbox) as opened:
        runs = opened.stats().runs
    return bool(runs) and runs[0].state == "complete"
