"""What comes between a relay and a server that works: a deadlock, and a network that is cut."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.sql import SQL, Identifier

from owm_outbox import RunReport
from owm_outbox_backends.postgresql import PostgresqlOutbox

from support.numbered import COUNT, lines, run_notes
from support.postgres import PostgresServer
from support.postgres_outbox import Place, note
from support.proxy import FaultProxy, chunks
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


def _content(place: Place) -> list[object]:
    whats = ("entries", "incoming", "positions", "lanes", "state")
    return [place.rows(f"TABLE {{t}}_{what} ORDER BY 1, 2") for what in whats]


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


@pytest.fixture
def network(own_postgres: PostgresServer) -> Iterator[FaultProxy]:
    """Give a way to the server that can be cut."""
    with FaultProxy("127.0.0.1", own_postgres.port, framing=chunks) as proxy:
        yield proxy


def test_a_relay_that_is_cut_off_gives_way(
    own_place: Place, network: FaultProxy, valkey: Server, stream: str, tmp_path: Path
) -> None:
    """Cut off as the sink took a batch, it loses its lock to another and writes nothing more; each task comes once."""
    url = own_place.url.replace(f":{own_place.server.port}", f":{network.port}")
    with (
        own_place.open() as application,
        FaultProxy("127.0.0.1", valkey.port) as sink,
        relay("--outbox", url, "--sink", f"redis://{sink.address}/0?stream={stream}", cwd=tmp_path) as one,
    ):
        application.append([note("a")])
        wait_for_entries(valkey, stream, 1)
        _until_acknowledged(own_place, one)
        with relay("--outbox", own_place.url, "--sink", valkey.url(stream), cwd=tmp_path) as other:
            other.says("standing by: ")
            cut = sink.before_reply(network.withhold, command="EVALSHA")
            application.append([note("b")])
            cut.wait()
            passed = dict(network.passed)
            application.append([note("c")])
            other.says("taking over: the outbox is free", within=40)
            other.says("the sink already holds entries up to position 2")
            application.append([note("d")])
            wait_for_entries(valkey, stream, 4)
            _until_acknowledged(own_place, other)
            assert network.passed == passed
            before = _content(own_place)
            network.deliver()
            one.says("asking for the lock again: .* that held the lock was lost")
            one.says("standing by: ")
            assert _content(own_place) == before
            other.process.terminate()
            assert other.ends() == 143
        application.append([note("e")])
        wait_for_entries(valkey, stream, 5)
        one.process.terminate()
        assert one.ends() == 143
    assert _texts(valkey, stream) == list("abcde")


def test_a_server_that_dies_once_the_run_is_closed(own_postgres: PostgresServer, tmp_path: Path) -> None:
    """The reply to the last commit is lost, and the server is back a moment later: the run is complete."""
    with FaultProxy("127.0.0.1", own_postgres.port, framing=chunks) as proxy:
        url = own_postgres.url().replace(f":{own_postgres.port}", f":{proxy.port}")
        with PostgresqlOutbox(url) as outbox:
            finish = outbox.finish_run

            def die() -> None:
                proxy.cut_all()
                own_postgres.kill()
                own_postgres.start()

            def finish_and_die(run: str, report: RunReport) -> None:
                proxy.before_reply(die, containing=b"COMMIT")
                finish(run, report)

            outbox.finish_run = finish_and_die  # type: ignore[method-assign]
            report = run_notes(outbox, tmp_path / "out")
            assert (report.complete, lines(tmp_path / "out")) == (True, COUNT)
    with PostgresqlOutbox(own_postgres.url()) as outbox:
        assert [run.state for run in outbox.runs(10)] == ["complete"]
