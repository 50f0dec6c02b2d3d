"""What comes between a relay and a server that works: a deadlock, and a network that is cut."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from psycopg.sql import SQL, Identifier

from support.postgres_outbox import Place, note
from support.relays import Relay, relay, wait_for_entries
from support.servers import Server
from support.streams import tasks

pytestmark = pytest.mark.slow

WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '{like}'"


def _until_waiting(place: Place, like: str, working: Relay) -> None:
    """Wait until a statement waits for a lock."""
    while not place.rows(WAITING.format(like=like)):
        assert working.process.poll() is None


def _until_acknowledged(place: Place, working: Relay) -> None:
    """Wait until a relay has cleared all that it delivered."""
    while place.rows("TABLE {t}_entries"):
        assert working.process.poll() is None


def _texts(server: Server, stream: str) -> list[str]:
    return [task["text"] for task in tasks(server, stream)]


def test_a_relay_that_is_the_victim_of_a_deadlock_tries_again(
    place: Place, valkey: Server, stream: str, tmp_path: Path
) -> None:
    """An operator locks the same in the opposite order: one line says so, and each task arrives once, in order."""
    lanes, incoming = (Identifier(f"{place.table}_{what}") for what in ("lanes", "incoming"))
    with (
        place.open() as application,
        place.server.client() as first,
        place.server.client(options="-c deadlock_timeout=1h") as operator,
        relay("--outbox", place.url, "--sink", valkey.url(stream), cwd=tmp_path) as working,
    ):
        application.append([note("a")])
        wait_for_entries(valkey, stream, 1)
        _until_acknowledged(place, working)
        with operator.transaction():
            # A relay looks for a deadlock once, 1 s after its wait began: the operator has to wait before it does.
            with first.transaction():
                first.execute(SQL("SELECT 1 FROM {} FOR UPDATE").format(lanes))
                application.append([note("b"), note("c")])
                _until_waiting(place, "%{t}_lanes% FOR UPDATE", working)
                operator.execute(SQL("LOCK TABLE {} IN SHARE MODE").format(incoming))
                query = SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(lanes)
                thread = threading.Thread(target=operator.execute, args=(query,))
                thread.start()
                _until_waiting(place, "LOCK TABLE %{t}_lanes%", working)
            working.says(r"trying again in 1 s: another transaction on .* was in the way \(deadlock detected\)")
            thread.join()
        wait_for_entries(valkey, stream, 3)
        application.append([note("d")])
        wait_for_entries(valkey, stream, 4)
        working.process.terminate()
        assert working.ends() == 143
    assert len([line for line in working.lines if "trying again" in line]) == 1
    assert _texts(valkey, stream) == list("abcd")
