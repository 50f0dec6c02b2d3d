"""The lock of a PostgresqlOutbox: who has it, how it is lost, and that one who lost it writes nothing any more."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from psycopg.sql import SQL, Identifier

from owm_outbox import Mark, OutboxLocked, OutboxRelay, OutboxUnavailable, OwmOutboxError, Stop
from owm_outbox_backends.jsonl import JsonLinesSink
from owm_outbox_backends.postgresql import PostgresqlOutbox
from owm_outbox_backends.postgresql.connection import readable as wait_for

from support.descriptors import many_open_files
from support.postgres_outbox import Place, note
from support.reports import report_of

END_THE_LOCK = """
    SELECT pg_terminate_backend(pid) FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()
    AND (classid::bigint << 32) | objid::bigint = {key}
"""

ADVISORY = """
    SELECT pid FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32) | objid::bigint = {key}
"""


def _end_the_lock(place: Place, outbox: PostgresqlOutbox) -> None:
    """End the session that has the lock, as an operator or a failover does, and wait until it has ended."""
    key = outbox._tables.lock_key
    while place.rows(END_THE_LOCK.format(key=key)):
        time.sleep(0.01)


def _writes(outbox: PostgresqlOutbox, run: str) -> dict[str, Callable[[], object]]:
    """Return all that a relay writes."""
    return {
        "store": lambda: outbox.append([note("zombie")], run=run),
        "acknowledge": lambda: outbox.acknowledge(Mark("1 zombie x")),
        "reject": lambda: outbox.reject({1: "zombie"}),
        "start_run": lambda: outbox.start_run("zombie"),
        "finish_run": lambda: outbox.finish_run(run, report_of(run)),
        "state.set": lambda: outbox.state.set("zombie", b"zombie"),
        "retry": lambda: outbox.retry([2]),
        "drop": lambda: outbox.drop([2]),
    }


def _content(place: Place) -> list[object]:
    return [place.rows(f"TABLE {{t}}_{what} ORDER BY 1, 2") for what in ("entries", "positions", "runs", "state")]


def test_who_holds_it_is_told(place: Place) -> None:
    """The refusal names the process and the machine that hold the lock, and since when."""
    with place.open() as first, place.open() as second, first.lock():
        with pytest.raises(OutboxLocked) as refused, second.lock():
            pytest.fail("two relays at once")
        said = str(refused.value)
        assert f"public.{place.table} on 127.0.0.1:{place.server.port}/postgres is in use by another relay" in said
        assert f"({os.getpid()}), from 127.0.0.1, since {datetime.now(UTC):%Y-%m-%d}" in said
        assert place.server.password not in said


def test_outboxes_do_not_lock_each_other(place: Place) -> None:
    """Another table, another lane: each has its own lock, id and positions."""
    with (
        place.open() as first,
        PostgresqlOutbox(place.server.url(), table=f"{place.table}x") as other,
        place.open(lane=1) as lane,
        first.lock(),
        other.lock(),
        lane.lock(),
    ):
        assert len({first.id, other.id, lane.id}) == 3
        first.append([note("first")])
        lane.append([note("lane"), note("lane")])
        lane_1 = 1 << 40  # no two lanes have a position in common
        assert [outbox.stats().last_position for outbox in (first, other, lane)] == [1, 0, lane_1 + 2]
        assert [len(outbox.read(0, 10)) for outbox in (first, other, lane)] == [1, 0, 2]
    for what in ("entries", "incoming", "positions", "runs", "lanes", "state", "version"):
        place.rows(f"DROP TABLE {{t}}x_{what}")


def test_a_relay_that_lost_its_connection_writes_nothing(place: Place) -> None:
    """Once the lock's connection is ended, each write of the relay is refused, and another relay may come in."""
    with place.open() as first, place.open() as second:
        first.append([note("first"), note("second")])
        first.reject({first.read(0, 10)[1].position: "too heavy"})
        run = first.start_run("job").id
        with first.lock():
            first.read(0, 1)
            before = _content(place)
            _end_the_lock(place, first)
            with second.lock():
                for name, write in _writes(first, run).items():
                    with pytest.raises(OutboxLocked, match="another relay may have taken over") as refused:
                        write()
                    assert refused.value.exit_code == 75, name
            assert _content(place) == before
            first.append([note("anybody's")])
        with first.lock():
            first.state.set("weather", b"rain")
        assert first.stats().pending == 2


def test_a_relay_that_was_taken_over_writes_nothing(place: Place) -> None:
    """Where a pooler or an operator freed the lock under a living connection, the epoch tells: nothing is written."""
    with place.open() as first, place.open() as second:
        first.append([note("first"), note("second")])
        run = first.start_run("job").id
        with first.lock():
            first.reject({first.read(0, 10)[1].position: "too heavy"})
            lock = first._db.lock
            assert lock is not None
            with lock.connected() as conn:
                conn.execute("SELECT pg_advisory_unlock_all()")
            with second.lock():
                pass
            before = _content(place)
            for name, write in _writes(first, run).items():
                with pytest.raises(OutboxLocked, match="another relay has taken over"):
                    write()
                assert _content(place) == before, name


def test_appends_go_on_while_the_lock_is_lost(place: Place) -> None:
    """What anybody may do at any time needs no lock: a lost one stops the relay and no application."""
    with place.open() as outbox:
        with outbox.lock():
            _end_the_lock(place, outbox)
            assert outbox.append([note("yes")]).new == 1
        assert outbox.stats().pending == 1


@pytest.mark.slow
def test_a_relay_asks_for_a_lost_lock_again(place: Place, tmp_path: Path) -> None:
    """run_forever notices that its lock's connection was ended, takes the lock again, and continues to deliver."""
    stop, path = Stop(), tmp_path / "tasks.jsonl"
    with place.open() as outbox, place.open() as application, JsonLinesSink(path) as sink:
        thread = threading.Thread(target=OutboxRelay(outbox, sink).run_forever, args=[stop], kwargs={"poll": 0.05})
        thread.start()
        for number in range(3):
            application.append([note(f"task {number}")])
            deadline = time.monotonic() + 20
            while application.stats().pending and time.monotonic() < deadline:
                time.sleep(0.02)
            assert application.stats().pending == 0
            _end_the_lock(place, outbox)
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
    with open(path) as lines:
        assert [f"task {number}" in line for number, line in enumerate(lines)] == [True] * 3


def test_an_append_wakes_a_relay(place: Place) -> None:
    """A relay that waits returns as soon as somebody's append is committed, and not before."""
    with place.open() as outbox, place.open() as application, outbox.lock():
        outbox.wait(0.2, Stop())
        woken = threading.Event()
        thread = threading.Thread(target=lambda: outbox.wait(60, Stop()) or woken.set())  # type: ignore[func-returns-value]  # both give None
        thread.start()
        assert not woken.wait(0.3)
        application.append([note("wake up")])
        assert woken.wait(20)
        thread.join()


def test_a_stop_ends_a_wait(place: Place) -> None:
    """A relay that waits for an append ends at once when it is asked to, also by an event of the application's."""
    event = threading.Event()
    with place.open() as outbox, outbox.lock():
        threading.Timer(0.1, event.set).start()
        began = time.monotonic()
        outbox.wait(60, Stop(event))
        assert time.monotonic() - began < 20


def test_others_may_ask_while_a_relay_waits(place: Place) -> None:
    """A health check on another thread is answered while the relay waits for an append."""
    with place.open() as outbox, outbox.lock():
        stop = Stop()
        thread = threading.Thread(target=outbox.wait, args=[60, stop])
        thread.start()
        for _ in range(10):
            outbox.stats()
        assert thread.is_alive()
        stop.set()
        thread.join()


@pytest.mark.slow
def test_a_relay_that_was_stopped_loses_the_lock(place: Place) -> None:
    """A process that is stopped with SIGSTOP frees the lock in half a minute; continued, it writes nothing."""
    place.needs(14, "with PostgreSQL 13, which has no idle_session_timeout, a stopped process keeps the lock")
    with place.open() as outbox:
        outbox.append([note("first")])
    said, says = os.pipe()
    child = os.fork()
    if child == 0:
        zombie = place.open()
        with zombie.lock():
            os.write(says, b"locked ")
            time.sleep(1)
            try:
                zombie.state.set("zombie", b"zombie")
                os.write(says, b"wrote")
            except OwmOutboxError as error:
                os.write(says, type(error).__name__.encode())
            os._exit(0)
    assert os.read(said, 100) == b"locked "
    os.kill(child, signal.SIGSTOP)
    try:
        with place.open() as outbox:
            began = time.monotonic()
            while time.monotonic() - began < 60:
                try:
                    with outbox.lock():
                        outbox.state.set("relay", b"new")
                        break
                except OutboxLocked:
                    time.sleep(0.2)
            else:
                pytest.fail("the lock was not freed")
            assert time.monotonic() - began > 10
            os.kill(child, signal.SIGCONT)
            assert os.read(said, 100) in (OutboxLocked.__name__.encode(), OutboxUnavailable.__name__.encode())
            assert outbox.state.get("zombie") is None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(said)
        os.close(says)


def test_a_connection_that_is_closed_while_it_is_waited_on_is_a_lost_lock(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sign of life finds the connection dead, and closes it, just before the relay waits for it."""
    waited: list[bool] = []

    def readable(fd: int, seconds: float) -> bool:
        _end_the_lock(place, outbox)
        assert outbox._db.lock is not None
        with pytest.raises(OwmOutboxError), outbox._db.lock.connected() as conn:
            conn.execute("SELECT 1")
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        waited.append(wait_for(fd, seconds))
        return waited[-1]

    monkeypatch.setattr("owm_outbox_backends.postgresql.lock.readable", readable)
    lost = pytest.raises(OutboxLocked, match="the connection that held the lock was lost")
    with place.open() as outbox, outbox.lock(), lost:
        outbox.wait(30, Stop())
    assert waited == [True]


def test_what_was_committed_just_before_the_wait_ends_it(place: Place) -> None:
    """The append notified nobody, as the relay was awake; nor does it have to wait for the next look."""
    with place.open() as outbox, outbox.lock():
        assert outbox.read(0, 10) == []
        outbox.append([note("in time")])
        began = time.monotonic()
        outbox.wait(30, Stop())
        assert time.monotonic() - began < 15


def test_a_wait_that_fails_is_no_sleep(place: Place) -> None:
    """Where another session locks the table, it does not count as asleep from then on: each append would notify it."""
    with place.open() as outbox, outbox.lock():
        lock = outbox._db.lock
        assert lock is not None
        with lock.connected() as conn:
            conn.execute("SET lock_timeout = '50ms'")
        with place.server.client() as operator, operator.transaction():
            operator.execute(SQL("LOCK TABLE {}").format(Identifier(f"{place.table}_incoming")))
            with pytest.raises(OutboxUnavailable, match="another session holds a lock"):
                outbox.wait(30, Stop())
        assert place.rows(ADVISORY.format(key=outbox._tables.asleep_key_of(0))) == []
        assert len(place.rows(ADVISORY.format(key=outbox._tables.lock_key))) == 1


def test_a_process_with_many_open_files(place: Place) -> None:
    """An application's own server has thousands of connections."""
    with many_open_files(), place.open() as outbox, outbox.lock():
        outbox.append([note("first")])
        outbox.wait(0.01, Stop())
        assert [entry.position for entry in outbox.read(0, 10)] == [1]
        outbox.append([note("second")])
        outbox.wait(10, Stop())
        assert len(outbox.read(0, 10)) == 2
