"""The relay in a service: beside an application that appends within its own transactions."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import Batch, Observer, OutboxInvalid, OutboxLocked, OutboxRelay, OutboxUnavailable, Stop
from owm_outbox_backends.jsonl import JsonLinesSink
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support import shop
from support.commands import environment, run
from support.servers import Server
from support.streams import tasks

TRIALS = 15


@dataclass
class Note:
    """A task."""

    task_id: uuid.UUID
    text: str


def _notes(*texts: str) -> list[Note]:
    return [Note(uuid.uuid4(), text) for text in texts]


class Seen(Observer):
    """Sets an event once so many entries were delivered."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.all = threading.Event()

    def batch_delivered(self, batch: Batch) -> None:
        """Count them."""
        self.left -= len(batch.entries)
        if self.left <= 0:
            self.all.set()


@pytest.mark.slow
def test_committed_tasks_arrive_once_and_rolled_back_ones_never(server: Server, stream: str, tmp_path: Path) -> None:
    """An application killed at random: each committed order is shipped exactly once, no refused one ever."""
    seed = os.environ.get("SHOP_SEED", str(random.randrange(10**9)))  # noqa: S311 - no secret
    print(f"SHOP_SEED={seed}")
    chance = random.Random(seed)  # noqa: S311 - no secret
    database = tmp_path / "shop.db"
    for trial in range(TRIALS):
        process = subprocess.Popen(
            [sys.executable, shop.__file__, str(database), server.url(stream), f"{seed}-{trial}"],
            stdout=subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, 0.3))
        assert process.poll() is None, "it ended by itself"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert run("owm-outbox", "drain", "--outbox", f"sqlite:///{database}", "--sink", server.url(stream)).code == 0
    with sqlite3.connect(database) as db:
        ordered = {row[0] for row in db.execute("SELECT id FROM orders")}
        refused = {row[0] for row in db.execute("SELECT id FROM refused")}
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    shipped = [task["order"] for task in tasks(server, stream)]
    assert len(ordered) > TRIALS
    assert refused
    assert len(shipped) == len(set(shipped))
    assert set(shipped) == ordered
    assert not refused & set(shipped)


def test_it_delivers_until_it_is_told_to_stop(server: Server, stream: str) -> None:
    """run_forever delivers what was there and what comes, returns once the event is set, and frees the lock."""
    outbox, stop, seen = MemoryOutbox(), threading.Event(), Seen(3)
    outbox.append(_notes("before"))
    with RedisStreamSink(f"redis://{server.address}/0", stream=stream) as sink:
        relay = OutboxRelay(outbox, sink, observers=[seen])
        thread = threading.Thread(target=relay.run_forever, args=[stop], kwargs={"poll": 0.01})
        thread.start()
        outbox.append(_notes("while", "it runs"))
        assert seen.all.wait(20)
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    assert [task["text"] for task in tasks(server, stream)] == ["before", "while", "it runs"]
    with outbox.lock():
        assert outbox.stats().pending == 0


@pytest.mark.slow
def test_it_waits_for_a_sink_that_is_down(own_server: Server, stream: str) -> None:
    """A sink that is down ends nothing: once it is back, what had been waiting is delivered."""
    outbox, stop, seen = MemoryOutbox(), threading.Event(), Seen(1)
    own_server.kill()
    with RedisStreamSink(f"redis://{own_server.address}/0", stream=stream, retries=0) as sink:
        relay = OutboxRelay(outbox, sink, observers=[seen])
        thread = threading.Thread(target=relay.run_forever, args=[stop], kwargs={"poll": 0.01})
        thread.start()
        outbox.append(_notes("patience"))
        own_server.start()
        assert seen.all.wait(30)
        stop.set()
        thread.join(20)
    assert [task["text"] for task in tasks(own_server, stream)] == ["patience"]


def test_an_outbox_that_cannot_be_locked_is_asked_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """1 s after the first failure, then 2, 4 and so on, up to 30."""

    def lock() -> None:
        raise OutboxUnavailable("the database is down")

    class Waits(Stop):
        def wait(self, seconds: float) -> bool:
            waited.append(seconds)
            if len(waited) == 7:
                self.set()
            return self.is_set()

    waited: list[float] = []
    outbox = MemoryOutbox()
    monkeypatch.setattr(outbox, "lock", lock)
    OutboxRelay(outbox, JsonLinesSink("-")).run_forever(Waits())
    assert waited == [1, 2, 4, 8, 16, 30, 30]
    assert "trying again in 30 s: the database is down" in caplog.text


def test_a_second_relay_is_refused(server: Server, stream: str, tmp_path: Path) -> None:
    """One relay a file: a second run_forever raises OutboxLocked at once."""
    with SqliteOutbox(tmp_path / "x.db") as first, SqliteOutbox(tmp_path / "x.db") as second:
        sink = RedisStreamSink(f"redis://{server.address}/0", stream=stream)
        with first.lock(), pytest.raises(OutboxLocked):
            OutboxRelay(second, sink).run_forever(threading.Event())
        sink.close()


def test_a_relay_that_stands_by_takes_over(server: Server, stream: str, tmp_path: Path) -> None:
    """With stand_by, a second run_forever waits for the lock, and delivers once the first one ends."""
    with SqliteOutbox(tmp_path / "x.db") as first, SqliteOutbox(tmp_path / "x.db") as second:
        stop, seen = threading.Event(), Seen(1)
        with RedisStreamSink(f"redis://{server.address}/0", stream=stream) as sink:
            relay = OutboxRelay(second, sink, observers=[seen])
            with first.lock():
                thread = threading.Thread(
                    target=relay.run_forever, args=[stop], kwargs={"poll": 0.01, "stand_by": True}
                )
                thread.start()
                first.append(_notes("patience"))
                assert not seen.all.wait(0.2)
                assert thread.is_alive()
            assert seen.all.wait(20)
            stop.set()
            thread.join(20)
    assert [task["text"] for task in tasks(server, stream)] == ["patience"]


def test_a_rolled_back_append_leaves_nothing(tmp_path: Path) -> None:
    """Tasks appended within a transaction are there when it commits, and not when it rolls back."""
    with SqliteOutbox(tmp_path / "x.db") as outbox:
        connection = outbox.connect()
        outbox.append(_notes("no"), connection=connection)
        assert outbox.stats().pending == 0
        connection.rollback()
        assert outbox.append(_notes("yes", "too"), connection=connection).new == 2
        connection.commit()
        assert [b"yes" in entry.payload or b"too" in entry.payload for entry in outbox.read(0, 10)] == [True, True]
        connection.close()


def test_an_application_s_own_database_can_hold_the_outbox(tmp_path: Path) -> None:
    """With shared=true the outbox lives in a database that exists; without it, that is refused and untouched."""
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE orders (id INTEGER)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(OutboxInvalid, match="another program: name another path, or say shared=true"):
        SqliteOutbox(path)
    assert path.read_bytes() == before
    with SqliteOutbox(path, shared=True) as outbox:
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("INSERT INTO orders VALUES (1)")
            outbox.append(_notes("both"), connection=connection)
        connection.close()
        assert outbox.stats().pending == 1
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM orders").fetchone() == (1,)


def test_a_connection_s_own_rows_and_texts_do_not_matter(tmp_path: Path) -> None:
    """An application may have its connection return rows as dicts and texts as bytes."""
    with SqliteOutbox(tmp_path / "x.db") as outbox:
        connection = outbox.connect()
        connection.row_factory = lambda cursor, row: dict(zip([name[0] for name in cursor.description], row))  # noqa: B905 - of one length
        connection.text_factory = bytes
        outbox.append(_notes("yes"), connection=connection)
        connection.commit()
        connection.close()
        assert outbox.stats().pending == 1


def test_a_connection_passes_from_thread_to_thread(tmp_path: Path) -> None:
    """As a pool hands it out: another thread than the one that opened it may append, and commit."""
    with SqliteOutbox(tmp_path / "x.db") as outbox:
        connection = outbox.connect()

        def take() -> None:
            with connection:
                outbox.append(_notes("elsewhere"), connection=connection)

        thread = threading.Thread(target=take)
        thread.start()
        thread.join(20)
        assert outbox.stats().pending == 1
        connection.close()


def test_a_connection_that_is_of_no_use_is_refused(tmp_path: Path) -> None:
    """One that is closed, or that sqlite3 keeps for another thread, is an error of ours that says so."""
    with SqliteOutbox(tmp_path / "x.db") as outbox:
        connection = outbox.connect()
        connection.close()
        with pytest.raises(OutboxInvalid, match="cannot be used here: Cannot operate on a closed database"):
            outbox.append(_notes("lost"), connection=connection)
        opened: list[sqlite3.Connection] = []
        thread = threading.Thread(target=lambda: opened.append(sqlite3.connect(tmp_path / "x.db")))
        thread.start()
        thread.join(20)
        with pytest.raises(OutboxInvalid, match="cannot be used here: SQLite objects created in a thread"):
            outbox.append(_notes("lost"), connection=opened[0])
        assert outbox.stats().pending == 0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3.connect has no autocommit")
def test_a_connection_that_commits_by_itself_is_refused(tmp_path: Path) -> None:
    """With autocommit=True, too, the application has to BEGIN; with autocommit=False it is in a transaction."""
    with SqliteOutbox(tmp_path / "x.db") as outbox:
        options: dict[str, Any] = {"autocommit": True}
        connection = sqlite3.connect(tmp_path / "x.db", **options)
        with pytest.raises(OutboxInvalid, match="BEGIN"):
            outbox.append(_notes("torn"), connection=connection)
        connection.execute("BEGIN")
        outbox.append(_notes("yes"), connection=connection)
        connection.execute("COMMIT")
        connection.close()
        connection = sqlite3.connect(tmp_path / "x.db", **(options | {"autocommit": False}))
        outbox.append(_notes("yes"), connection=connection)
        connection.commit()
        connection.close()
        assert outbox.stats().pending == 2


def test_a_connection_to_another_file_is_refused(tmp_path: Path) -> None:
    """Appending within a transaction of another database, or within none, is an error and stores nothing."""
    with SqliteOutbox(tmp_path / "x.db") as outbox:
        with pytest.raises(OutboxInvalid, match="not to"):
            outbox.append(_notes("lost"), connection=sqlite3.connect(":memory:"))
        with pytest.raises(OutboxInvalid, match="BEGIN"):
            outbox.append(_notes("torn"), connection=sqlite3.connect(tmp_path / "x.db", isolation_level=None))
        assert outbox.stats().pending == 0
