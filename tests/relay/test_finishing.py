"""The call that closes a run fails: a run that is complete all the same is not called incomplete, and not repeated."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from owm_outbox import (
    Job,
    Outbox,
    OutboxInvalid,
    OutboxRelay,
    OutboxStats,
    OutboxUnavailable,
    Page,
    Run,
    RunReport,
    Stop,
    finishing,
)
from owm_outbox_backends.jsonl import JsonLinesSink
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.postgresql import PostgresqlOutbox
from owm_outbox_backends.sqlite import SqliteOutbox

from support.postgres import PostgresServer, postgres_binaries, postgres_running
from support.proxy import FaultProxy, chunks

COUNT = 30_000


@dataclass
class Note:
    """A task."""

    task_id: uuid.UUID
    number: int


class Notes(Job[Note]):
    """Makes so many tasks."""

    name = "notes"

    def pages(self, run: Run) -> Iterator[Page[Note]]:
        """Yield those that are missing, on pages of 10,000."""
        for first in range(int(run.checkpoint or b"0"), COUNT, 10_000):
            tasks = [Note(run.task_id(number), number) for number in range(first, first + 10_000)]
            yield Page(tasks, checkpoint=b"%d" % (first + 10_000))

    def key(self, task: Note) -> int:
        """Return its number."""
        return task.number


def run_notes(outbox: Outbox, out: Path, stop: Stop | None = None) -> RunReport:
    """Run the job."""
    with JsonLinesSink(out) as sink:
        return OutboxRelay(outbox, sink, stop=stop).run(Notes())


def lines(out: Path) -> int:
    """Count what was delivered."""
    return out.read_bytes().count(b"\n")


class Torn(MemoryOutbox):
    """Closes a run, or does not, and raises; then it cannot be asked so many times."""

    def __init__(self, *, closes: bool, refusals: int = 0) -> None:
        super().__init__()
        self.closes, self.refusals = closes, refusals
        self.raises, self.torn = True, False

    def finish_run(self, run: str, report: RunReport) -> None:
        """Raise."""
        if self.closes or not self.raises:
            super().finish_run(run, report)
        if self.raises:
            self.torn = True
            raise OutboxUnavailable("the reply was lost")

    def stats(self) -> OutboxStats:
        """Raise, or tell."""
        if self.torn and self.refusals:
            self.refusals -= 1
            raise OutboxUnavailable("it is still down")
        return super().stats()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishing, "_DELAYS", (0.0, 0.01, 0.01))


def test_a_run_that_was_closed_is_complete(tmp_path: Path) -> None:
    """The outbox is asked until it tells, and the next call begins a new run."""
    with Torn(closes=True, refusals=2) as outbox:
        report = run_notes(outbox, tmp_path / "out")
        assert (report.complete, outbox.refusals, lines(tmp_path / "out")) == (True, 0, COUNT)
        assert [run.state for run in outbox.stats().runs] == ["complete"]


def test_a_run_that_was_not_closed_is_resumed(tmp_path: Path) -> None:
    """The error is the outbox's, and the next call delivers nothing twice."""
    with Torn(closes=False) as outbox:
        with pytest.raises(OutboxUnavailable, match="the reply was lost"):
            run_notes(outbox, tmp_path / "out")
        assert [run.state for run in outbox.stats().runs] == ["open"]
        outbox.raises = False
        report = run_notes(outbox, tmp_path / "out")
        assert (report.complete, report.resumed, lines(tmp_path / "out")) == (True, True, COUNT)


def test_a_file_that_is_gone_is_looked_at_by_a_person(tmp_path: Path) -> None:
    """Deleted as the run was closed: all was delivered, but what the next call finds is another outbox."""
    path = tmp_path / "tasks.db"
    with SqliteOutbox(path) as outbox:
        begin = outbox._db.transaction

        @contextlib.contextmanager
        def delete_on_the_way() -> Iterator[sqlite3.Connection]:
            with begin() as conn:
                yield conn
                if conn.execute("SELECT 1 FROM outbox_runs WHERE state = 'complete'").fetchone():
                    path.unlink(missing_ok=True)

        outbox._db.transaction = delete_on_the_way  # type: ignore[method-assign]
        with pytest.raises(OutboxInvalid, match="was deleted"):
            run_notes(outbox, tmp_path / "out")


def test_an_outbox_that_cannot_be_asked_leaves_it_open(tmp_path: Path) -> None:
    """The error says what to look at before the next call."""
    says = "is not known: see that owm-outbox runs calls it open"
    with Torn(closes=True, refusals=3) as outbox, pytest.raises(OutboxUnavailable, match=says):
        run_notes(outbox, tmp_path / "out")


def test_a_stop_ends_the_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once more, not for half a minute."""
    stop = Stop()
    monkeypatch.setattr(finishing, "_DELAYS", (0.0, 60.0))
    with Torn(closes=True, refusals=9) as outbox:
        tell = outbox.stats

        def stats() -> OutboxStats:
            if outbox.torn:
                stop.set()
            return tell()

        outbox.stats = stats  # type: ignore[method-assign]
        with pytest.raises(OutboxUnavailable, match="is not known"):
            run_notes(outbox, tmp_path / "out", stop)
        assert outbox.refusals == 8


def test_a_file_that_is_locked_once_the_run_is_closed(tmp_path: Path) -> None:
    """Another program begins to write between the commit that closes a run and the one that clears the rest of it."""
    path = tmp_path / "tasks.db"
    with (
        SqliteOutbox(path, timeout=0.1) as outbox,
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        clear = outbox._clear_on

        def lock_and_clear(after: int | None) -> None:
            if after is not None:
                other.execute("BEGIN IMMEDIATE")
            clear(after)

        outbox._clear_on = lock_and_clear  # type: ignore[method-assign]
        report = run_notes(outbox, tmp_path / "out")
        assert other.in_transaction
        other.execute("ROLLBACK")
        assert (report.complete, lines(tmp_path / "out")) == (True, COUNT)
        assert outbox.read(0, 1) != []
    with SqliteOutbox(path) as outbox:
        assert (outbox.stats().pending, outbox.stats().runs[0].state) == (0, "complete")


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """Run a server that may be killed and loses nothing then."""
    with postgres_running(postgres_binaries()["postgres-18"], fsync="on", full_page_writes="on") as server:
        yield server


@pytest.mark.slow
def test_the_server_dies_once_the_run_is_closed(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply to the last commit is lost, and the server is back a moment later: the run is complete."""
    monkeypatch.setattr(finishing, "_DELAYS", (0.0, 1.0, 2.0, 4.0, 8.0))
    with FaultProxy("127.0.0.1", postgres.port, framing=chunks) as proxy:
        url = postgres.url().replace(f":{postgres.port}", f":{proxy.port}")
        with PostgresqlOutbox(url) as outbox:
            finish = outbox.finish_run

            def die() -> None:
                proxy.cut_all()
                postgres.kill()
                postgres.start()

            def finish_and_die(run: str, report: RunReport) -> None:
                proxy.before_reply(die, containing=b"COMMIT")
                finish(run, report)

            outbox.finish_run = finish_and_die  # type: ignore[method-assign]
            report = run_notes(outbox, tmp_path / "out")
            assert (report.complete, lines(tmp_path / "out")) == (True, COUNT)
    with PostgresqlOutbox(postgres.url()) as outbox:
        assert [run.state for run in outbox.runs(10)] == ["complete"]
