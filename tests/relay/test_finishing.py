"""The call that closes a run fails: a run that is complete all the same is not called incomplete, and not repeated."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from owm_outbox import (
    OutboxInvalid,
    OutboxUnavailable,
    RunRecord,
    RunReport,
    Stop,
    finishing,
)
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.sqlite import SqliteOutbox

from support.numbered import COUNT, lines, run_notes
from support.reports import report_of


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

    def runs(self, limit: int) -> Sequence[RunRecord]:
        """Raise, or tell."""
        if self.torn and self.refusals:
            self.refusals -= 1
            raise OutboxUnavailable("it is still down")
        return super().runs(limit)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishing, "_PAUSE", 0.01)


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


def test_an_outbox_that_cannot_be_asked_leaves_it_to_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No timer calls the job again, as it would after 75, and the error says what to look at before anybody does."""
    monkeypatch.setattr(finishing, "_WITHIN", 0.1)
    says = r"is not known \(it is still down\): look with owm-outbox runs; if it is complete, to run the job again"
    with Torn(closes=True, refusals=sys.maxsize) as outbox, pytest.raises(OutboxInvalid, match=says):
        run_notes(outbox, tmp_path / "out")


def test_a_stop_ends_the_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once more, not for half a minute."""
    stop = Stop()
    monkeypatch.setattr(finishing, "_PAUSE", 60.0)
    with Torn(closes=True, refusals=9) as outbox:
        tell = outbox.runs

        def runs(limit: int) -> Sequence[RunRecord]:
            if outbox.torn:  # its own stats() ask for them, too
                stop.set()
            return tell(limit)

        outbox.runs = runs  # type: ignore[method-assign]
        with pytest.raises(OutboxInvalid, match="is not known"):
            run_notes(outbox, tmp_path / "out", stop)
        assert outbox.refusals == 8


def test_a_run_is_found_behind_newer_ones(tmp_path: Path) -> None:
    """A run that was resumed after many of another job is not among the newest."""
    with Torn(closes=True) as outbox:
        outbox.start_run("notes")
        outbox.raises = False
        for _ in range(20):
            number = outbox.start_run("others").id
            outbox.finish_run(number, report_of(number))
        outbox.raises = True
        report = run_notes(outbox, tmp_path / "out")
        assert (report.complete, report.resumed) == (True, True)


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
