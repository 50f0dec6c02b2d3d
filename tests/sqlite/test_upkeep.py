"""What others may do to an outbox file, and how much room it takes."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import Batch, Key, Mark, NewEntry, OutboxInvalid, OutboxRelay, Sink
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import environment
from support.reports import report_of

pytestmark = pytest.mark.slow

MIB = 2**20


@dataclass
class Parcel:
    """A task."""

    task_id: uuid.UUID
    number: int


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a file."""
    return tmp_path / "tasks.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[SqliteOutbox]:
    """Open an outbox in that file."""
    with SqliteOutbox(path, timeout=0.1) as outbox:
        yield outbox


def _fill(outbox: SqliteOutbox, count: int, *, run: str | None = None, size: int = 150) -> None:
    for first in range(0, count, 5000):
        numbers = range(first, min(first + 5000, count))
        outbox.store([NewEntry(n, f"{n:036}", {}, b"x" * size) for n in numbers], run=run)


def _acknowledge_all(outbox: SqliteOutbox) -> None:
    outbox.acknowledge(Mark(f"{outbox.stats().last_position} lease task"))


def _wal(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


@pytest.mark.parametrize(
    "statements",
    [
        ["VACUUM"],
        ["PRAGMA wal_checkpoint(TRUNCATE)"],
        ["PRAGMA journal_size_limit = 0", "PRAGMA wal_checkpoint(RESTART)", "CREATE TABLE other (x)"],
        ["PRAGMA auto_vacuum = FULL", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"],
        ["PRAGMA incremental_vacuum", "PRAGMA wal_checkpoint(TRUNCATE)"],
    ],
    ids=lambda statements: statements[0].removeprefix("PRAGMA "),
)
def test_ordinary_upkeep_by_others_is_no_harm(statements: list[str], outbox: SqliteOutbox, path: Path) -> None:
    """While an outbox is open, another connection may vacuum or truncate: the file may shrink, and work continues."""
    run = outbox.start_run("parcels")
    _fill(outbox, 20_000, run=run.id)
    _acknowledge_all(outbox)
    outbox.finish_run(run.id, report_of(run.id))
    outbox.append([Parcel(uuid.uuid4(), 1)])
    before = path.stat().st_size
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        for statement in statements:
            other.execute(statement).fetchall()
    outbox.append([Parcel(uuid.uuid4(), 2)])
    assert outbox.stats().pending == 2
    if "VACUUM" in statements:
        outbox.close()  # which folds the WAL into the file
        assert path.stat().st_size < before


_WRITE = """
import sqlite3, sys
try:
    sqlite3.connect(sys.argv[1], timeout=0).execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    sys.exit(str(error))
"""


def _locked_for_others(path: Path) -> bool:
    done = subprocess.run(
        [sys.executable, "-c", _WRITE, str(path)], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0 or "locked" in done.stderr, done.stderr
    return done.returncode != 0


def test_another_outbox_on_the_same_file_drops_no_lock(outbox: SqliteOutbox, path: Path) -> None:
    """POSIX drops all locks of a process on a file when it closes any descriptor of it: we never open it ourselves."""
    connection = outbox.connect()
    connection.execute("CREATE TABLE orders (number)")
    connection.execute("BEGIN IMMEDIATE")
    assert _locked_for_others(path)
    with SqliteOutbox(path) as second:
        assert _locked_for_others(path)
        second.stats()
    assert _locked_for_others(path)
    SqliteOutbox(path, create=False).close()
    assert _locked_for_others(path)
    connection.rollback()
    connection.close()
    assert not _locked_for_others(path)


def test_a_forked_child_does_not_keep_the_lock(outbox: SqliteOutbox, path: Path) -> None:
    """A child that was forked while the lock was held keeps nobody out once its parent lets go."""
    reader, writer = os.pipe()
    with outbox.lock():
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent is done
            os._exit(0)
    try:
        with SqliteOutbox(path) as other, other.lock():
            pass
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(child, 0)


def test_the_wal_is_bounded_while_the_sink_is_down(outbox: SqliteOutbox, path: Path, tmp_path: Path) -> None:
    """An application's connection leaves folding the WAL to the outbox, which does so also while nothing is sent."""
    connection = outbox.connect()
    peak = 0
    for number in range(6000):
        with connection:
            outbox.append([Parcel(uuid.uuid4(), number)], connection=connection)
        peak = max(peak, _wal(path))
    assert 4 * MIB < peak < 16 * MIB
    assert outbox.stats().pending == 6000
    connection.close()


def test_the_wal_is_bounded_while_a_run_is_cleared(outbox: SqliteOutbox, path: Path) -> None:
    """Delivered entries are cleared a slice per commit, and a large file gives its space back."""
    run = outbox.start_run("parcels")
    _fill(outbox, 400_000, run=run.id, size=250)
    full = path.stat().st_size
    assert full > 100 * MIB
    peak = 0
    clear = outbox._db.transaction

    @contextlib.contextmanager
    def watched() -> Iterator[sqlite3.Connection]:
        nonlocal peak
        with clear() as conn:
            yield conn
        peak = max(peak, _wal(path))

    outbox._db.transaction = watched  # type: ignore[method-assign]  # measured after each commit
    _acknowledge_all(outbox)
    outbox.finish_run(run.id, report_of(run.id))
    assert max(peak, _wal(path)) < 20 * MIB
    assert outbox.read(0, 1) == []
    assert path.stat().st_size < 2 * MIB


def test_space_is_given_back_only_where_that_costs_little(outbox: SqliteOutbox, path: Path) -> None:
    """What another run, or another application, left pending would have to be copied: the file keeps its size."""
    run = outbox.start_run("parcels")
    _fill(outbox, 2000, run=run.id, size=40_000)
    _acknowledge_all(outbox)
    _fill(outbox, 500, size=40_000)
    outbox.finish_run(run.id, report_of(run.id))
    assert outbox.stats().pending == 500
    assert path.stat().st_size > 80 * MIB


def test_a_table_of_an_application_keeps_its_row_numbers(outbox: SqliteOutbox, path: Path) -> None:
    """VACUUM may number the rows of a table without a key anew: a file that has such a table keeps its size."""
    with contextlib.closing(outbox.connect()) as connection, connection:
        connection.execute("CREATE TABLE orders (text)")
        connection.executemany("INSERT INTO orders VALUES (?)", [("first",), ("second",)])
        connection.execute("DELETE FROM orders WHERE text = 'first'")
    run = outbox.start_run("parcels")
    _fill(outbox, 2000, run=run.id, size=40_000)
    _acknowledge_all(outbox)
    outbox.finish_run(run.id, report_of(run.id))
    with contextlib.closing(outbox.connect()) as connection:
        assert connection.execute("SELECT rowid, text FROM orders").fetchall() == [(2, "second")]
    assert path.stat().st_size > 64 * MIB


def test_a_run_is_complete_where_its_space_cannot_be_given_back(
    outbox: SqliteOutbox, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program that writes meanwhile is no reason to fail: the next run tries it again."""
    run = outbox.start_run("parcels")
    _fill(outbox, 2000, run=run.id, size=40_000)
    _acknowledge_all(outbox)
    clear = outbox._clear_on
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:

        def clear_and_lock(after: int | None) -> None:
            clear(after)
            other.execute("BEGIN IMMEDIATE")

        outbox._clear_on = clear_and_lock  # type: ignore[method-assign]  # locked between the last slice and the end
        with caplog.at_level("INFO", logger="owm_outbox"):
            outbox.finish_run(run.id, report_of(run.id))
    assert "keeps its free space: database is locked" in caplog.text
    assert outbox.stats().runs[0].state == "complete"
    with outbox.connect() as again:
        assert again.execute("PRAGMA freelist_count").fetchone()[0] * 4096 > 64 * MIB
    again.close()


def test_the_wal_is_bounded_while_large_tasks_are_cleared(outbox: SqliteOutbox, path: Path) -> None:
    """What they held is not written once more to be erased, whatever this SQLite was compiled with."""
    for _ in range(6):
        _fill(outbox, 10, size=MIB)
    assert outbox._db._conn.execute("PRAGMA secure_delete").fetchone() == (2,)  # FAST; an application's is its own
    outbox._db._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    _acknowledge_all(outbox)
    assert _wal(path) < 2 * MIB
    assert outbox.read(0, 1) == []


def test_what_a_crash_left_half_cleared_is_cleared_by_the_next_relay(outbox: SqliteOutbox, path: Path) -> None:
    """Killed between two slices, a complete run leaves delivered entries; they are neither sent nor kept."""
    run = outbox.start_run("parcels")
    _fill(outbox, 25_000, run=run.id)
    _acknowledge_all(outbox)

    class Killed(BaseException):
        """Ends the method where a kill would."""

    def killed(after: int | None) -> None:
        raise Killed

    outbox._clear_on = killed  # type: ignore[method-assign]  # dies after the first slice
    with pytest.raises(Killed):
        outbox.finish_run(run.id, report_of(run.id))
    assert len(outbox.read(0, 100_000)) == 15_000
    with SqliteOutbox(path) as after:
        assert after.stats().pending == 0
        after.append([Parcel(uuid.uuid4(), 1)])
        _acknowledge_all(after)
        assert after.read(0, 100_000) == []


def test_a_run_is_cleared_on_a_disk_that_is_nearly_full(outbox: SqliteOutbox, path: Path) -> None:
    """Clearing needs no room that grows with the run: with files limited to little more than the WAL, it ends well."""
    run = outbox.start_run("parcels")
    _fill(outbox, 200_000, run=run.id, size=250)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    _acknowledge_all(outbox)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + MIB, hard))
    try:
        outbox.finish_run(run.id, report_of(run.id))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outbox.read(0, 1) == []


def test_large_tasks_are_not_read_all_at_once(outbox: SqliteOutbox) -> None:
    """A batch is read up to a number of bytes, not read whole and cut afterwards."""
    _fill(outbox, 40, size=MIB)
    assert len(outbox.read(0, 500, 5 * MIB)) == 5
    assert len(outbox.read(0, 500, 10)) == 1
    assert len(outbox.read(0, 3, 100 * MIB)) == 3


def test_nothing_of_a_newer_sqlite_is_needed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SQLite 3.34, as Red Hat Enterprise Linux 9 has it, no statement uses STRICT (3.37) or RETURNING (3.35)."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    said: list[str] = []
    connect = sqlite3.connect

    def tracing(*args: object, **options: object) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)  # type: ignore[call-overload]  # as they came
        connection.set_trace_callback(said.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", tracing)
    with SqliteOutbox(path) as outbox:
        run = outbox.start_run("parcels")
        keys: list[Key] = [0, "0", -1, 2**63, "2", 2, "ä"]
        outbox.store([NewEntry(key, str(n), {"a": "b"}, b"{}") for n, key in enumerate(keys)], run=run.id)
        assert [entry.key for entry in outbox.read(0, 10)] == keys
        assert outbox.store([NewEntry(key, str(n), {}, b"{}") for n, key in enumerate(keys)], run=run.id).new == 0
        outbox.reject({1: "no"})
        outbox.retry([1])
        outbox.reject({2: "no"})
        outbox.drop([2])
        _acknowledge_all(outbox)
        outbox.finish_run(run.id, report_of(run.id))
    assert "CREATE TABLE" in "".join(said)
    assert not [statement for statement in said if "STRICT" in statement.upper() or "RETURNING" in statement.upper()]


def test_positions_stay_beyond_what_is_acknowledged(outbox: SqliteOutbox, path: Path) -> None:
    """A file that lost SQLite's record of the last position gives no position a second time."""
    _fill(outbox, 10)
    _acknowledge_all(outbox)
    outbox.close()
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("DELETE FROM sqlite_sequence")
    with SqliteOutbox(path) as again:
        again.append([Parcel(uuid.uuid4(), 1)])
        assert again.stats().pending == 1
        assert [entry.position for entry in again.read(10, 10)] == [11]


class Lines(Sink):
    """Keeps batches in memory, and tells when it has one."""

    def __init__(self) -> None:
        self.held = threading.Event()

    def mark(self, outbox_id: str) -> None:
        """Return ``None``: it cannot tell."""

    def send(self, batch: Batch) -> None:
        """Take it."""
        self.held.set()


def test_a_busy_file_is_waited_for_at_the_start(path: Path) -> None:
    """A relay in a service that finds the file busy at its start tries again; its thread does not end."""
    outbox, stop, sink = SqliteOutbox(path, timeout=0.05), threading.Event(), Lines()
    outbox.append([Parcel(uuid.uuid4(), 1)])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        thread = threading.Thread(target=OutboxRelay(outbox, sink).run_forever, args=[stop], daemon=True)
        thread.start()
        assert not sink.held.wait(0.3)
        assert thread.is_alive()
        other.execute("ROLLBACK")
    assert sink.held.wait(20)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    outbox.close()


@pytest.mark.parametrize("written", [1, 2, 100, -1], ids=["header", "two pages", "half", "all but one"])
def test_a_kill_within_a_checkpoint_leaves_a_whole_outbox(written: int, outbox: SqliteOutbox, tmp_path: Path) -> None:
    """Whichever pages of the WAL were in the file by then, the next process opens it and has every task."""
    with contextlib.closing(sqlite3.connect(outbox.path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM outbox_entries").fetchone()  # keeps the WAL from being folded
        _fill(outbox, 3000)
        before, wal = outbox.path.read_bytes(), Path(f"{outbox.path}-wal").read_bytes()
    outbox.close()  # folds it
    after = outbox.path.read_bytes()
    size = 4096 * written if written > 0 else len(after) - 4096
    assert len(before) < size or written < 100
    killed = tmp_path / "killed.db"
    killed.write_bytes(after[:size] + before[size:])
    Path(f"{killed}-wal").write_bytes(wal)
    killed.chmod(0o600)
    with SqliteOutbox(killed) as reopened:
        assert reopened.stats().pending == 3000
        assert [entry.key for entry in reopened.read(0, 5000)] == list(range(3000))


def test_a_file_without_the_wal_that_it_needs_is_damaged(outbox: SqliteOutbox, tmp_path: Path) -> None:
    """One clear line, and the file stays as it is."""
    _fill(outbox, 3000)
    outbox.close()
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(outbox.path.read_bytes()[:4096])
    damaged.chmod(0o600)
    with pytest.raises(
        OutboxInvalid, match=r"damaged\.db is damaged \(database disk image is malformed\): move it away"
    ):
        SqliteOutbox(damaged)
    assert damaged.stat().st_size == 4096


def test_nobody_can_commit_while_the_wal_is_folded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older versions of SQLite may damage a file then, so it is locked; where somebody else has it locked, it waits."""
    connect = sqlite3.connect
    refused: list[str] = []

    def try_to_commit(statement: str) -> None:
        if "wal_checkpoint" in statement:
            with contextlib.closing(connect(path, timeout=0, isolation_level=None)) as other:
                try:
                    other.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    refused.append(str(error))
                else:
                    refused.append("it could")

    def spying(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.set_trace_callback(try_to_commit)
        return connection

    monkeypatch.setattr(sqlite3, "connect", spying)
    with SqliteOutbox(path) as outbox:
        _fill(outbox, 60_000)
        assert refused
        assert set(refused) == {"database is locked"}
        with contextlib.closing(connect(path, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("INSERT INTO outbox_state VALUES ('another', zeroblob(16777216))")
            writer.execute("COMMIT")
            writer.execute("BEGIN IMMEDIATE")
            before = len(refused)
            outbox.read(0, 1)
            assert len(refused) == before
            writer.execute("ROLLBACK")
        outbox.read(0, 1)
        assert len(refused) == before + 1
    assert path.stat().st_size > 16 * MIB
