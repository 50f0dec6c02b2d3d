"""``owm-outbox relay``: it delivers for ever, stands by while another one does, and ends when it is told to."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import run
from support.plugins import install_jobs
from support.relays import append, relay, wait_for_entries
from support.servers import Server, binaries, running
from support.streams import tasks

pytestmark = pytest.mark.slow

FLEET = """
    from dataclasses import dataclass
    from owm_outbox import Job, Page

    class Fleet(Job):
        name = "fleet"

        @dataclass
        class Options:
            poll: str = "hourly"

        def pages(self, run):
            yield Page([])
    """
OUTBOX = ("--outbox", "sqlite:///tasks.db")


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run one server: what is tested here does not depend on its kind."""
    with running(binaries()["valkey"], tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Make an empty outbox."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox:
        assert outbox.id
    return tmp_path / "tasks.db"


def _texts(server: Server, stream: str) -> list[str]:
    return [task["text"] for task in tasks(server, stream)]


# -- beginning and end


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_delivers_until_a_signal(
    sent: signal.Signals, code: int, valkey: Server, stream: str, database: Path
) -> None:
    """What was there and what comes is delivered; a signal ends it within 5 s, with its code and its line."""
    append(database, "before")
    with relay(*OUTBOX, "--sink", valkey.url(stream), cwd=database.parent) as process:
        wait_for_entries(valkey, stream, 1)
        append(database, "while", "it runs")
        wait_for_entries(valkey, stream, 3)
        began = time.monotonic()
        process.process.send_signal(sent)
        assert process.ends() == code
        assert time.monotonic() - began < 5
    assert _texts(valkey, stream) == ["before", "while", "it runs"]
    first, *others, last = process.lines
    assert first.endswith(f"INFO relaying from sqlite:///tasks.db to {valkey.url(stream)}")
    assert [line.partition(" INFO ")[2] for line in others] == ["stopped; what is left stays in the outbox"]
    assert last == f"owm-outbox: stopped by {sent.name}"
    with SqliteOutbox(database) as outbox, outbox.lock():
        assert outbox.stats().pending == 0


def test_it_shows_no_password(database: Path) -> None:
    """Neither the line that it begins with nor the one that says what is wrong has the password of a URL."""
    sink = "redis://owm:hunter2@127.0.0.1:9/0?stream=s&retries=0"
    with relay(*OUTBOX, "--sink", sink, cwd=database.parent) as process:
        assert process.says("relaying from .* to redis://owm:")
        append(database, "unsent")
        process.says("WARNING trying again in 1 s: ")
        process.process.terminate()
        assert process.ends() == 143
    assert "hunter2" not in "".join(process.lines)


@pytest.mark.parametrize(
    ("program", "env"),
    [(["--log-level", "warning"], {}), ([], {"OWM_LOG_LEVEL": "warning"}), ([], {"OWM_OUTBOX_LOG_LEVEL": "warning"})],
    ids=["group", "variable", "group's variable"],
)
def test_it_is_as_quiet_as_it_is_told(
    program: list[str], env: dict[str, str], valkey: Server, stream: str, database: Path
) -> None:
    """It logs what it does unless a level was given, to it or to owm-outbox itself."""
    append(database, "x")
    with relay(*OUTBOX, "--sink", valkey.url(stream), cwd=database.parent, program=program, env=env) as process:
        wait_for_entries(valkey, stream, 1)
        process.process.terminate()
        assert process.ends() == 143
    assert process.lines == ["owm-outbox: stopped by SIGTERM"]


def test_it_reads_what_a_job_s_other_commands_read(valkey: Server, stream: str, database: Path) -> None:
    """Outbox and sink are those of the job's file and variables; an option of the job named poll is not its --poll."""
    env = install_jobs(database.parent, FLEET, fleet="Fleet") | {
        "FLEET_SINK": valkey.url(stream),
        "FLEET_POLL": "weekly",
    }
    (database.parent / "fleet.toml").write_text(f"[fleet]\noutbox = '{OUTBOX[1]}'\npoll = 'daily'\n")
    append(database, "a")
    with relay("--job", "fleet", "--config", "fleet.toml", cwd=database.parent, env=env) as process:
        wait_for_entries(valkey, stream, 1)
        process.process.terminate()
        assert process.ends() == 143


# -- the outbox


def test_a_missing_outbox_is_made_with_a_warning(valkey: Server, stream: str, tmp_path: Path) -> None:
    """It may start before the application does; should the path be misspelt, the warning says so."""
    with relay(*OUTBOX, "--sink", valkey.url(stream), cwd=tmp_path) as process:
        process.says("relaying from")
        append(tmp_path / "tasks.db", "first")
        wait_for_entries(valkey, stream, 1)
        process.process.terminate()
        assert process.ends() == 143
    warnings = [line.partition(" WARNING ")[2] for line in process.lines if " WARNING " in line]
    assert warnings == [
        "there was no outbox sqlite:///tasks.db, so it was made: check --outbox if applications append to another"
    ]


def test_a_missing_folder_is_not_made(tmp_path: Path) -> None:
    """A path whose folder does not exist is misspelt: 73, and nothing is made."""
    with relay("--outbox", "sqlite:///shop/tasks.db", "--sink", "jsonl:-", cwd=tmp_path) as process:
        assert process.ends() == 73
    assert process.lines == [
        f"owm-outbox: cannot create the outbox {tmp_path}/shop/tasks.db (No such file or directory): "
        "name another path with --outbox"
    ]
    assert list(tmp_path.iterdir()) == []


# -- with others


def test_a_second_one_stands_by_and_takes_over(valkey: Server, stream: str, database: Path) -> None:
    """Two at once: one says whom it stands by for, and takes over when that one is killed; each task arrives once."""
    sink = ("--sink", valkey.url(stream))
    with relay(*OUTBOX, *sink, cwd=database.parent) as first:
        append(database, *"abc")
        wait_for_entries(valkey, stream, 3)
        with relay(*OUTBOX, *sink, "--poll", "0.01", cwd=database.parent) as second:
            second.says(rf"INFO standing by: {database} is in use by process {first.process.pid} since ")
            append(database, *"def")
            wait_for_entries(valkey, stream, 6)
            first.process.kill()
            second.says("INFO taking over")
            append(database, *"ghi")
            wait_for_entries(valkey, stream, 9)
            second.process.terminate()
            assert second.ends() == 143
    assert _texts(valkey, stream) == [*"abcdefghi"]


def test_one_that_stands_by_ends_at_once(valkey: Server, stream: str, database: Path) -> None:
    """A signal ends a relay that stands by, within 5 s however rarely it looks, and the other one works on."""
    sink = ("--sink", valkey.url(stream))
    with relay(*OUTBOX, *sink, cwd=database.parent) as first:
        append(database, "a")
        wait_for_entries(valkey, stream, 1)
        with relay(*OUTBOX, *sink, "--poll", "60", cwd=database.parent) as second:
            second.says("standing by")
            second.process.terminate()
            assert second.ends(5) == 143
        append(database, "b")
        wait_for_entries(valkey, stream, 2)
        assert first.process.poll() is None


def test_one_that_was_frozen_continues(valkey: Server, stream: str, database: Path, tmp_path: Path) -> None:
    """A relay stopped by SIGSTOP keeps the outbox; continued, it sends what came meanwhile, once, over a new socket."""
    with running(valkey.binary, tmp_path / "server", "--appendonly", "yes", "--appendfsync", "always") as server:
        sink = ("--sink", server.url(stream))
        with relay(*OUTBOX, *sink, cwd=database.parent) as first:
            append(database, "a")
            wait_for_entries(server, stream, 1)
            with relay(*OUTBOX, *sink, "--poll", "0.01", cwd=database.parent) as second:
                second.says("standing by")
                first.process.send_signal(signal.SIGSTOP)
                append(database, "b")
                server.restart()  # the frozen one's connection is gone
                with server.client() as client:
                    assert not client.xread({stream: "$"}, block=500)
                first.process.send_signal(signal.SIGCONT)
                wait_for_entries(server, stream, 2)
                second.process.terminate()
                assert second.ends() == 143
                assert not [line for line in second.lines if "taking over" in line]
        assert _texts(server, stream) == ["a", "b"]


def test_a_run_on_its_outbox_is_refused(valkey: Server, stream: str, database: Path) -> None:
    """While a relay holds the outbox, a job's run on it ends with 75 and names the relay's process."""
    with relay(*OUTBOX, "--sink", valkey.url(stream), cwd=database.parent) as process:
        append(database, "a")
        wait_for_entries(valkey, stream, 1)
        outcome = run("owm-outbox", "run", "owm", *OUTBOX, "--sink", "jsonl:-", cwd=database.parent)
        assert (outcome.code, outcome.out) == (75, "")
        assert f"tasks.db is in use by process {process.process.pid} since " in outcome.line


def test_dead_letters_are_retried_and_dropped_meanwhile(valkey: Server, stream: str, database: Path) -> None:
    """``dead retry`` and ``dead drop`` work while a relay holds the outbox; what is retried is delivered by it."""
    append(database, *"abc")
    with SqliteOutbox(database) as outbox:
        a, b, _ = (entry.position for entry in outbox.read(0, 3))
        outbox.reject({a: "too heavy", b: "too large"})
    with relay(*OUTBOX, "--sink", valkey.url(stream), cwd=database.parent) as process:
        wait_for_entries(valkey, stream, 1)
        retried = run("owm-outbox", "dead", "retry", str(a), *OUTBOX, cwd=database.parent)
        assert (retried.code, retried.out, retried.err) == (0, "1 will be sent again\n", "")
        wait_for_entries(valkey, stream, 2)
        dropped = run("owm-outbox", "dead", "drop", str(b), *OUTBOX, cwd=database.parent)
        assert (dropped.code, dropped.out, dropped.err) == (0, "1 dropped\n", "")
        process.process.terminate()
        assert process.ends() == 143
    assert _texts(valkey, stream) == ["c", "a"]
    with SqliteOutbox(database) as outbox:
        assert (outbox.stats().pending, outbox.stats().dead) == (0, 0)
