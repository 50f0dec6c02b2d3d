"""``owm-outbox relay`` when something fails: it waits for what can get better, and ends for what cannot."""

from __future__ import annotations

import json
import os
import random
import resource
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from owm_outbox_backends.sqlite import SqliteOutbox

from support.relays import Relay, append, relay, wait_for_entries
from support.servers import Server, binaries, running
from support.streams import tasks

pytestmark = pytest.mark.slow

BROKEN = """
from owm_outbox import Sink

class BrokenSink(Sink):
    def mark(self, outbox_id):
        return None

    def send(self, batch):
        1 / 0
"""
OUTBOX = ("--outbox", "sqlite:///tasks.db")


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Server]:
    """Run a server that a test may kill and that keeps what it took."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with running(binaries()["valkey"], tmp_path / "server", *options) as server:
        yield server


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Make an empty outbox."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox:
        assert outbox.id
    return tmp_path / "tasks.db"


def _texts(server: Server, stream: str) -> list[str]:
    return [task["text"] for task in tasks(server, stream)]


# -- the outbox, at the start


@contextmanager
def _files_up_to(size: int) -> Iterator[None]:
    """Have what is started in the block write no file beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _make_room(process: Relay) -> None:
    resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE))


def test_a_disk_that_is_full_at_the_start_is_waited_for(valkey: Server, stream: str, database: Path) -> None:
    """Not even the index of the log can be made; once there is room, it works as ever, and locks nobody out."""
    append(database, "a")
    with ExitStack() as stack:
        with _files_up_to(8192):
            process = stack.enter_context(relay(*OUTBOX, "--sink", valkey.url(stream), cwd=database.parent))
        process.says("WARNING trying again in 1 s: .* check the disk")
        _make_room(process)
        wait_for_entries(valkey, stream, 1)
        append(database, "b")
        wait_for_entries(valkey, stream, 2)
        process.process.terminate()
        assert process.ends() == 143
    assert _texts(valkey, stream) == ["a", "b"]


def test_an_outbox_that_is_made_on_a_full_disk_is_warned_of(valkey: Server, stream: str, tmp_path: Path) -> None:
    """Nobody appends to a misspelt path, also where it could be made only at the second attempt."""
    args = ("--outbox", "sqlite:///misspelt.db", "--sink", valkey.url(stream))
    with ExitStack() as stack:
        with _files_up_to(8192):
            process = stack.enter_context(relay(*args, cwd=tmp_path))
        process.says("WARNING there was no outbox .*misspelt.db, so it was made")
        process.says("WARNING trying again in 1 s: ")
        _make_room(process)
        process.says("INFO relaying from")


def test_a_file_that_is_locked_at_the_start_is_waited_for(valkey: Server, stream: str, database: Path) -> None:
    """Another program has it for itself: the relay works as soon as it lets go."""
    append(database, "a")
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM outbox_entries WHERE 0")
        outbox = f"{OUTBOX[1]}?timeout=0.1"
        with relay("--outbox", outbox, "--sink", valkey.url(stream), cwd=database.parent) as process:
            process.says("WARNING trying again in 1 s: another program is using ")
            other.close()
            wait_for_entries(valkey, stream, 1)


# -- the sink


def test_a_sink_that_is_down_at_the_start_is_waited_for(valkey: Server, stream: str, database: Path) -> None:
    """It starts without its sink, says so, and says when it delivers."""
    valkey.kill()
    append(database, "patience")
    with relay(*OUTBOX, "--sink", valkey.url(stream, retries=0), cwd=database.parent) as process:
        process.says("WARNING trying again in 1 s: ")
        valkey.start()
        process.says(r"INFO delivering again, after \d+ s of failures")
        process.process.terminate()
        assert process.ends() == 143
    assert _texts(valkey, stream) == ["patience"]


def test_a_sink_that_goes_down_is_waited_for(valkey: Server, stream: str, database: Path) -> None:
    """A server killed in the middle costs nothing: what came meanwhile arrives once it is back, each task once."""
    with relay(*OUTBOX, "--sink", valkey.url(stream, retries=0), cwd=database.parent) as process:
        append(database, "before")
        wait_for_entries(valkey, stream, 1)
        valkey.kill()
        append(database, "meanwhile")
        process.says("WARNING trying again in 1 s: ")
        process.says("WARNING trying again in 2 s: ")
        valkey.start()
        process.says("INFO delivering again")
        append(database, "after")
        wait_for_entries(valkey, stream, 3)
    assert _texts(valkey, stream) == ["before", "meanwhile", "after"]


def test_a_sink_that_can_never_work_is_the_end(valkey: Server, stream: str, database: Path) -> None:
    """A key of another type where the stream should be ends it with 78, with nothing to deliver, too."""
    with valkey.client() as client:
        client.set(stream, "not a stream")
    with relay(*OUTBOX, "--sink", valkey.url(stream), cwd=database.parent) as process:
        assert process.ends() == 78
    begins, line = process.lines
    assert "relaying from" in begins
    assert line.startswith("owm-outbox: ")
    assert stream in line


def test_one_that_stands_by_finds_out_as_well(valkey: Server, stream: str, database: Path) -> None:
    """A relay that could never take over ends with 78 while it stands by, and not when it is needed."""
    with valkey.client() as client:
        client.set("text", "not a stream")
    with relay(*OUTBOX, "--sink", valkey.url(stream), cwd=database.parent) as first:
        append(database, "a")
        wait_for_entries(valkey, stream, 1)
        with relay(*OUTBOX, "--sink", valkey.url("text"), cwd=database.parent) as second:
            assert second.ends() == 78
        assert [line.split(" ")[3] for line in second.lines[:-1]] == ["relaying", "standing"]
        assert first.process.poll() is None


def test_one_that_stands_by_waits_for_its_sink(valkey: Server, stream: str, database: Path) -> None:
    """A sink that is down while a relay stands by is a warning, and it takes over all the same."""
    with SqliteOutbox(database) as outbox, ExitStack() as stack:
        with outbox.lock():
            valkey.kill()
            second = stack.enter_context(
                relay(*OUTBOX, "--sink", valkey.url(stream, retries=0), "--poll", "0.01", cwd=database.parent)
            )
            second.says("INFO standing by")
            second.says("WARNING this relay could not take over now: ")
            valkey.start()
        second.says("INFO taking over")
        append(database, "a")
        wait_for_entries(valkey, stream, 1)


def test_a_bug_in_a_sink_is_the_end(database: Path) -> None:
    """An exception that no sink may raise ends it with 70 and one line, and what is in the outbox stays there."""
    (database.parent / "broken.py").write_text(BROKEN)
    info = database.parent / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[owm_outbox.sinks]\nbroken = broken:BrokenSink\n")
    append(database, "a")
    env = {"PYTHONPATH": str(database.parent)}
    with relay(*OUTBOX, "--sink", "broken:", cwd=database.parent, env=env) as process:
        assert process.ends() == 70
    assert process.lines[-1].startswith("owm-outbox: a bug: ZeroDivisionError: ")
    with SqliteOutbox(database) as outbox:
        assert outbox.stats().pending == 1


def test_a_full_sink_is_waited_for(valkey: Server, stream: str, database: Path) -> None:
    """Where a reader is slow, each task follows as soon as there is room for it; one line says what is waited for."""
    texts = []
    with valkey.client() as client:
        client.xgroup_create(stream, "workers", id="0", mkstream=True)
        with relay(*OUTBOX, "--sink", valkey.url(stream, maxlen=3), cwd=database.parent) as process:
            append(database, *"abcdef")
            process.says("INFO waiting up to 60 s for room: .* group 'workers' has read nothing yet")
            unacknowledged: list[bytes] = []
            for number in range(6):
                if number >= 3:
                    client.xack(stream, "workers", unacknowledged.pop(0))  # room for just one more
                ((_, ((entry, fields),)),) = client.xreadgroup("workers", "one", {stream: ">"}, count=1, block=20_000)
                texts.append(json.loads(fields[b"data"])["text"])
                unacknowledged.append(entry)
            process.process.terminate()
            assert process.ends() == 143
    assert texts == [*"abcdef"]
    assert len([line for line in process.lines if "waiting up to" in line]) == 1


# -- the outbox


@pytest.mark.parametrize("instead", [None, "another"], ids=["deleted", "replaced"])
def test_it_notices_that_its_file_is_gone(instead: str | None, valkey: Server, stream: str, database: Path) -> None:
    """A file that is deleted or replaced under a relay with nothing to do ends it with 73, and the line names it."""
    other = database.with_name("other.db")
    append(other, "restored")
    with relay(*OUTBOX, "--sink", valkey.url(stream), cwd=database.parent) as process:
        append(database, "a")
        wait_for_entries(valkey, stream, 1)
        if instead is None:
            database.unlink()
        else:
            other.replace(database)
        assert process.ends() == 73
    what = "was deleted while in use" if instead is None else "was replaced while in use"
    assert process.lines[-1].startswith(f"owm-outbox: {database} {what}")
    assert _texts(valkey, stream) == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="no prlimit")
def test_a_full_disk_is_waited_for(valkey: Server, stream: str, database: Path) -> None:
    """While the outbox takes no writes it says so and tries again; once there is room, each task is there once."""
    with relay(*OUTBOX, "--sink", valkey.url(stream), cwd=database.parent) as process:
        append(database, "a")
        wait_for_entries(valkey, stream, 1)
        _, hard = resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (0, hard))
        append(database, "b")
        process.says(f"WARNING trying again in 1 s: .*{database}")
        process.says(f"WARNING trying again in 2 s: .*{database}")
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        process.says("INFO delivering again")
        append(database, "c")
        wait_for_entries(valkey, stream, 3)
        process.process.terminate()
        assert process.ends() == 143
    assert _texts(valkey, stream) == ["a", "b", "c"]
    with SqliteOutbox(database) as outbox:
        assert outbox.stats().pending == 0


# -- the process


def test_relays_killed_at_random_lose_and_repeat_nothing(valkey: Server, stream: str, database: Path) -> None:
    """Three relays, killed one after the other: each task is in the stream once, in the order of the appends."""
    seed = os.environ.get("RELAY_SEED", str(random.randrange(10**9)))  # noqa: S311 - no secret
    print(f"RELAY_SEED={seed}")
    chance = random.Random(seed)  # noqa: S311 - no secret
    args = (*OUTBOX, "--sink", valkey.url(stream), "--batch-size", "20", "--poll", "0.01")
    texts: list[str] = []
    with ExitStack() as stack:
        relays = [stack.enter_context(relay(*args, cwd=database.parent)) for _ in range(3)]
        for kill in range(12):
            texts += (new := [f"{kill}-{number}" for number in range(500)])
            append(database, *new)
            wait_for_entries(valkey, stream, len(texts) - chance.randrange(1000))  # some moment within the work
            chosen = chance.randrange(3)
            relays[chosen].process.kill()
            relays[chosen] = stack.enter_context(relay(*args, cwd=database.parent))
        wait_for_entries(valkey, stream, len(texts))
        for process in relays:
            process.says("INFO relaying from")  # now it listens to signals
            process.process.terminate()
            assert process.ends() == 143
    assert _texts(valkey, stream) == texts
