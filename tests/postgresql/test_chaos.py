"""Applications, relays and the server of PostgreSQL, killed and stopped at random: each committed task arrives once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest

from owm_outbox.plugins import open_outbox
from owm_outbox_backends.postgresql.address import Tables

from support import postgres_shop
from support.commands import environment, start
from support.postgres import PostgresServer
from support.postgres_outbox import Place
from support.servers import Server
from support.streams import tasks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TASKS = int(os.environ.get("CHAOS_TASKS", "6000"))
STRIKES = int(os.environ.get("CHAOS_STRIKES", "6"))  # of relays that share lanes
WRITERS = 8
SEED = os.environ.get("CHAOS_SEED", str(random.randrange(10**9)))  # noqa: S311 - no secret


HELD = """
    SELECT (l.classid::bigint << 32) | l.objid::bigint, a.application_name FROM pg_locks AS l
    JOIN pg_stat_activity AS a USING (pid) WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
"""


class Relays:
    """Processes that deliver."""

    def __init__(self, place: Place, lanes: int, sink: str) -> None:
        self._args = ("--outbox", f"{place.url}&lanes={lanes}", "--sink", sink, "--poll", "0.05")
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start one more, and wait until it is at work."""
        process = start("owm-outbox", "relay", *self._args)
        assert process.stderr is not None
        assert b"relaying from" in process.stderr.readline()
        self.running.append(process)

    def kill(self, relay: subprocess.Popen[bytes]) -> None:
        """End one with SIGKILL."""
        relay.kill()
        relay.communicate()
        self.running.remove(relay)

    def end(self) -> None:
        """Stop all in order."""
        for relay in self.running:
            relay.send_signal(signal.SIGCONT)
            relay.terminate()
        for relay in self.running:
            _, err = relay.communicate(timeout=60)
            assert relay.returncode == 128 + signal.SIGTERM, err


@contextlib.contextmanager
def _writers(place: Place, lanes: int, count: int) -> Iterator[Callable[[], bool]]:
    """Run the applications; the function tells whether all of them ended."""
    with place.server.client() as admin:
        postgres_shop.make_tables(admin, place.table)
    writers = [
        subprocess.Popen(
            [
                *(sys.executable, postgres_shop.__file__, place.server.url(), place.table),
                *(str(lanes), str(count // WRITERS), f"{SEED}-{number}"),
            ],
            env=environment(),
        )
        for number in range(WRITERS)
    ]
    try:
        yield lambda: all(writer.poll() is not None for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert all(writer.returncode == 0 for writer in writers)


def _committed(place: Place) -> dict[str, int]:
    """Return the number of each committed order, by its task's id."""
    return {str(task_id): number for task_id, number in place.rows("SELECT task_id, number FROM {t}_orders")}


def _check(place: Place, server: Server, streams: list[str]) -> None:
    """Each committed task is there exactly once, none that was rolled back, and the order of each key is kept."""
    arrived = [task for stream in streams for task in tasks(server, stream)]
    committed = _committed(place)
    assert len(committed) >= TASKS * 0.99
    ids = [task["task_id"] for task in arrived]
    assert len(ids) == len(set(ids)), "a task arrived twice"
    assert set(ids) == set(committed)
    numbers = defaultdict(list)
    for task in arrived:
        numbers[task["key"]].append(task["number"])
    assert all(found == list(range(1, len(found) + 1)) for found in numbers.values()), "the order of a key was lost"


def _until_delivered(place: Place, server: Server, streams: list[str]) -> None:
    """Wait until as many entries are in the streams as orders were committed."""
    with server.client() as client:
        deadline = time.monotonic() + 120
        while sum(int(client.xlen(stream)) for stream in streams) < len(_committed(place)):
            assert time.monotonic() < deadline, "not everything arrived"
            threading.Event().wait(0.1)


def test_a_relay_and_the_server_are_killed(own_postgres: PostgresServer, valkey: Server, stream: str) -> None:
    """Eight applications whose transactions commit out of order; a relay killed each second, the server five times."""
    print(f"CHAOS_SEED={SEED}")
    place = Place(own_postgres)
    place.open().close()
    relays = Relays(place, 1, valkey.url(stream, maxlen=0))
    relays.start()
    with _writers(place, 1, TASKS) as done:
        seconds = 0
        while not done():
            threading.Event().wait(1)
            seconds += 1
            relays.kill(relays.running[0])
            if seconds in (2, 4, 6, 8, 10):
                own_postgres.kill()
                own_postgres.start()
            relays.start()
    _until_delivered(place, valkey, [stream])
    relays.end()
    _check(place, valkey, [stream])


def test_relays_that_share_lanes_are_killed_and_stopped(
    own_postgres: PostgresServer, valkey: Server, stream: str
) -> None:
    """Three relays, eight lanes to eight streams; one at a time is killed, or stopped for longer than every timeout."""
    print(f"CHAOS_SEED={SEED}")
    chance = random.Random(SEED)  # noqa: S311 - no secret
    place = Place(own_postgres)
    open_outbox(f"{place.url}&lanes=8").close()
    relays = Relays(place, 8, valkey.url(f"{stream}.{{lane}}", maxlen=0))
    streams = [f"{stream}.{lane}" for lane in range(8)]
    for _ in range(3):
        relays.start()
    _until_others_hold(place, 8, 0)
    taken_over: list[float] = []
    with _writers(place, 8, TASKS) as done:
        for strike in range(STRIKES):
            threading.Event().wait(chance.uniform(0.2, 1.0))
            victim = chance.choice(relays.running)
            began = time.monotonic()
            if strike % 5 == 4:
                victim.send_signal(signal.SIGSTOP)
                _until_others_hold(place, 8, victim.pid)
                victim.send_signal(signal.SIGCONT)
            else:
                relays.kill(victim)
                _until_others_hold(place, 8, victim.pid)
                relays.start()
            taken_over.append(time.monotonic() - began)
        while not done():
            threading.Event().wait(0.1)
    print("seconds until every lane was held again:", sorted(round(seconds, 1) for seconds in taken_over))
    _until_delivered(place, valkey, streams)
    relays.end()
    _check(place, valkey, streams)


def _until_others_hold(place: Place, lanes: int, pid: int) -> None:
    """Wait until each lane is held, and none of them by this process."""
    keys = [Tables(table=place.table).lock_key_of(lane) for lane in range(lanes)]
    deadline = time.monotonic() + 90
    while True:
        held = {key: name for key, name in place.rows(HELD) if key in keys}
        if len(held) == lanes and not any(name.endswith(f"({pid})") for name in held.values()):
            return
        assert time.monotonic() < deadline, held
        threading.Event().wait(0.05)
