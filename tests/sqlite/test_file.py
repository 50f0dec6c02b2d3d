"""The outbox file in a hostile place: planted, deleted, replaced, cut short, full, locked, damaged."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from owm_outbox import Mark, NewEntry, OutboxInvalid, OutboxLocked, OutboxUnavailable, OwmOutboxError, RunRecord, Stored
from owm_outbox.testing import Parcel
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import SCRIPTS, environment, run
from support.servers import Server
from support.streams import city_ids
from support.weather import made_up, serving


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a file."""
    return tmp_path / "tasks.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[SqliteOutbox]:
    """Open an outbox in that file."""
    outbox = SqliteOutbox(path, timeout=0.1)
    yield outbox
    with contextlib.suppress(OwmOutboxError):
        outbox.close()


def _append(outbox: SqliteOutbox, run: RunRecord, *numbers: int) -> Stored:
    parcels = [Parcel(uuid.uuid4(), number) for number in numbers]
    return outbox.append(parcels, key=lambda parcel: parcel.number, run=run.id, checkpoint=b"new")


def test_a_name_may_be_any_bytes(tmp_path: Path) -> None:
    """A name that is not UTF-8, as of an 8-bit locale, is the same file to us and to SQLite."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 %41?#.db"))
    for _ in range(2):
        with SqliteOutbox(path) as outbox, outbox.lock():
            outbox.start_run("parcels")
    assert {os.fsencode(file.name) for file in tmp_path.iterdir()} >= {b"caf\xe9 %41?#.db"}
    assert all(file.name.startswith(path.name) for file in tmp_path.iterdir())


def test_only_the_owner_can_read_it(outbox: SqliteOutbox, path: Path) -> None:
    """The file, its WAL and its lock are readable and writable by their owner only, whatever the umask."""
    outbox.start_run("parcels")
    with outbox.lock():
        for suffix in ("", "-wal", "-shm", ".lock"):
            assert stat.S_IMODE(Path(f"{path}{suffix}").stat().st_mode) == 0o600, suffix


def test_a_file_that_became_another_program_s_is_refused(outbox: SqliteOutbox, path: Path) -> None:
    """Once an outbox is closed, its file is looked at again, even if a process had it open before."""
    outbox.close()
    foreign = path.with_suffix(".foreign")
    with contextlib.closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE precious (thing)")
    path.write_bytes(foreign.read_bytes())  # the same inode, as a new file gets that of one that was deleted
    with pytest.raises(OutboxInvalid, match="another program"):
        SqliteOutbox(path)
    assert path.read_bytes() == foreign.read_bytes()


def test_it_is_durable_at_every_commit(outbox: SqliteOutbox) -> None:
    """The connection is in WAL mode and syncs at each commit."""
    assert outbox._db._conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert outbox._db._conn.execute("PRAGMA synchronous").fetchone() == (2,)


def _delete(path: Path) -> None:
    path.unlink()


def _replace(path: Path) -> None:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


def _cut(path: Path) -> None:
    os.truncate(path, 100)


def _delete_wal(path: Path) -> None:
    Path(f"{path}-wal").unlink()


@pytest.mark.parametrize("harm", [_delete, _replace, _cut, _delete_wal])
def test_harm_to_the_file_in_use_is_noticed(
    harm: Callable[[Path], None], outbox: SqliteOutbox, path: Path, subtests: pytest.Subtests
) -> None:
    """When the file is deleted, replaced or cut short, no later write is reported as kept, and the error says so."""
    run_ = outbox.start_run("parcels")
    _append(outbox, run_, 1)
    connection = outbox.connect()
    harm(path)
    with pytest.raises(OutboxInvalid, match="while in use"):
        _append(outbox, run_, 2)
    for write in (
        lambda: outbox.acknowledge(Mark("1 x y")),
        lambda: outbox.reject({1: "no"}),
        lambda: outbox.state.set("x", b"y"),
        lambda: outbox.start_run("parcels"),
        lambda: outbox.append([Parcel(uuid.uuid4(), 3)], connection=connection),
    ):
        with subtests.test(), pytest.raises(OutboxInvalid, match="while in use"):
            write()
    connection.close()


@pytest.mark.parametrize("harm", [_delete, _replace, _delete_wal])
def test_a_reader_with_nothing_to_read_notices_harm(
    harm: Callable[[Path], None], outbox: SqliteOutbox, path: Path
) -> None:
    """A file that was deleted or replaced gives what it still has, but never says that there is nothing more."""
    outbox.append([Parcel(uuid.uuid4(), 1)])
    assert outbox.read(1, 10) == []
    harm(path)
    assert [entry.position for entry in outbox.read(0, 10)] == [1]
    with pytest.raises(OutboxInvalid, match="while in use"):
        outbox.read(1, 10)


def test_a_commit_into_a_deleted_file_is_not_reported_as_kept(outbox: SqliteOutbox, path: Path) -> None:
    """The file vanishes between the begin and the commit of a page: the page is not reported as kept."""
    run_ = outbox.start_run("parcels")

    class Deleting(dict[str, str]):
        def __bool__(self) -> bool:  # asked for each entry, while the page is being stored
            path.unlink(missing_ok=True)
            return False

    entry = NewEntry(1, "some-id", Deleting(), b"{}")
    with pytest.raises(OutboxInvalid, match="deleted while in use"):
        outbox.store([entry], run=run_.id, checkpoint=b"new")


@pytest.mark.slow
def test_a_deleted_file_ends_the_job_with_one_line(server: Server, stream: str, path: Path) -> None:
    """A producer whose outbox is deleted in the middle ends with 73 and says so; the next call does it all."""
    cities = made_up(3000)
    with serving(cities) as api:
        original = api.answer

        def answer(where: str) -> bytes | None:
            if "page=20&" in where:
                path.unlink(missing_ok=True)
            return original(where)

        api.answer = answer  # type: ignore[method-assign, assignment]  # the moment at which somebody cleans up /tmp
        args = ("--api-url", api.url, "--outbox", f"sqlite:///{path}", "--sink", server.url(stream), "--json")
        outcome = run("owm-producer", *args)
        assert outcome.code == 73
        assert "deleted while in use" in outcome.line
        assert outcome.report["complete"] is False
        api.answer = original  # type: ignore[method-assign]  # and does not do it again
        assert run("owm-producer", *args).code == 0
    assert set(city_ids(server, stream)) == {city.city_id for city in cities}


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_committed(server: Server, stream: str, path: Path) -> None:
    """Out of room (a limit on the file's size): 75, one line, only committed tasks counted; with room, it goes on."""
    cities = made_up(20_000)
    limit = 600_000

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    with serving(cities) as api:
        args = ("--api-url", api.url, "--outbox", f"sqlite:///{path}", "--json")
        down = "redis://127.0.0.1:9/0?stream=s&retries=0"
        full = subprocess.run(
            [SCRIPTS / "owm-producer", *args, "--sink", down],
            preexec_fn=small,
            capture_output=True,
            env=environment(),
            check=False,
        )
        err = full.stderr.decode()
        assert full.returncode == 75, err
        last = err.strip().splitlines()[-1]
        assert str(path) in last
        assert "Traceback" not in err
        with SqliteOutbox(path) as outbox:
            (summary,) = outbox.stats().runs
            assert outbox.stats().pending == summary.extracted > 0
            assert summary.extracted < len(cities)
            assert outbox._db._conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        outcome = run("owm-producer", *args, "--sink", server.url(stream))
    assert outcome.code == 0, outcome.err
    assert outcome.report["resumed"] is True
    assert sorted(city_ids(server, stream)) == [city.city_id for city in cities]


def test_another_program_that_writes_is_waited_for_and_named(outbox: SqliteOutbox, path: Path) -> None:
    """While another program has the file in a transaction, writing is OutboxUnavailable; after it, it works."""
    run_ = outbox.start_run("parcels")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutboxUnavailable, match="another program"):
            _append(outbox, run_, 1)
        other.execute("ROLLBACK")
    assert _append(outbox, run_, 1).new == 1


def test_a_damaged_page_is_one_clear_error(path: Path) -> None:
    """A file with a damaged page is said to be damaged, not to be empty."""
    with SqliteOutbox(path) as outbox:
        run_ = outbox.start_run("parcels")
        _append(outbox, run_, *range(2000))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(OutboxInvalid, match=r"damaged|cannot be used"), SqliteOutbox(path) as outbox:
        outbox.read(0, 5000)


@pytest.mark.slow
def test_the_lock_dies_with_its_process(path: Path) -> None:
    """The lock names its process, and is free as soon as that is killed."""
    hold = (
        "import sys, time; from owm_outbox_backends.sqlite import SqliteOutbox\n"
        "with SqliteOutbox(sys.argv[1]).lock(): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with SqliteOutbox(path) as outbox:
        with pytest.raises(OutboxLocked, match=rf"process {process.pid}\b"), outbox.lock():
            pytest.fail("let two in")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with outbox.lock():
            pass


@pytest.mark.slow
def test_two_calls_at_once(server: Server, stream: str, path: Path) -> None:
    """Of two producers on one outbox, one does the work and the other ends at once with 75, naming the first."""
    with serving(made_up(300)) as api, SqliteOutbox(path) as outbox:
        args = ("--api-url", api.url, "--outbox", f"sqlite:///{path}", "--sink", server.url(stream))
        with outbox.lock():
            second = run("owm-producer", *args)
        assert second.code == 75
        assert f"process {os.getpid()}" in second.line
        assert api.requests == []
        assert run("owm-producer", *args).code == 0
    assert len(city_ids(server, stream)) == 300


@pytest.mark.slow
def test_two_first_calls_make_one_outbox(path: Path) -> None:
    """Two processes that create the same file at the same time get the same outbox."""
    make = (
        "import sys; from owm_outbox_backends.sqlite import SqliteOutbox\n"
        "sys.stdin.read(); print(SqliteOutbox(sys.argv[1]).id)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", make, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    ids = set()
    for process in processes:
        assert process.stdout is not None
        assert process.stderr is not None
        ids.add(process.stdout.read())
        assert process.wait() == 0, process.stderr.read().decode()
    assert len(ids) == 1
