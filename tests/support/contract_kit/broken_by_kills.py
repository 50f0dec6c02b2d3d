"""Sinks and outboxes that are right as long as nobody kills their process."""
# ruff: noqa: D102 - what the methods of a broken backend do is in the docstring of its class

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from owm_outbox import Batch, Mark, NewEntry, RunReport, SinkUnavailable, StateStore, Stored

from support.contract_kit.ledger import LedgerSink
from support.contract_kit.lines import LinesSink
from support.contract_kit.outboxes import HastySqliteOutbox
from support.contract_kit.registry import caught_by, sync

# sinks


@caught_by("test_entries_and_mark_agree_after_a_kill", "are the entries and the mark stored in one transaction")
class CommitsAHundredAtATime(LedgerSink):
    """Commits large batches in chunks of 100, the last one with the mark."""

    def send(self, batch: Batch) -> None:
        with self.connected() as connection:
            for at in range(0, len(batch.entries), 100):
                with self.transaction(connection):
                    if at == 0:
                        self.refuse_conflict(connection, batch)
                    connection.executemany(
                        "INSERT INTO entries (payload) VALUES (?)",
                        [(entry.payload,) for entry in batch.entries[at : at + 100]],
                    )
                    if at + 100 >= len(batch.entries):
                        self.move(connection, batch)


@caught_by("test_entries_and_mark_agree_after_a_kill", "are the entries and the mark stored in one transaction")
class CommitsTheMarkAtOnceAfterTheEntries(LedgerSink):
    """Commits the entries, and at once its mark in a second transaction: there is next to no time between."""

    lock = threading.Lock()

    def send(self, batch: Batch) -> None:
        with self.lock, self.connected() as connection:
            with self.transaction(connection):
                self.refuse_conflict(connection, batch)
                self.insert(connection, batch)
            with self.transaction(connection):
                self.move(connection, batch)


@caught_by("test_entries_and_mark_agree_after_a_kill", "are the entries and the mark stored in one transaction")
class KeepsItsMarksInAFile(LedgerSink):
    """Keeps entries in the database, and marks in a file that is replaced after each batch."""

    def held(self, connection: Any, outbox_id: str) -> str:
        path = self.path.with_name(f"{self.path.name}-{outbox_id.encode().hex()}")
        return path.read_bytes().decode() if path.exists() else ""

    def move(self, connection: Any, batch: Batch) -> None:
        pass

    def send(self, batch: Batch) -> None:
        super().send(batch)
        path = self.path.with_name(f"{self.path.name}-{batch.outbox_id.encode().hex()}")
        new = path.with_suffix(".new")
        new.write_bytes(batch.mark.encode())
        new.replace(path)


@caught_by("test_entries_and_mark_agree_after_a_kill", "and send had returned from")
class WritesInTheBackground(LedgerSink):
    """Leaves batches to a thread, and waits for it only when it is asked what it holds."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.last: dict[str, str] = {}
        self.waiting: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None

    def send(self, batch: Batch) -> None:
        if batch.outbox_id not in self.last:
            self.last[batch.outbox_id] = super().mark(batch.outbox_id)
        if len(batch.entries) != 20 or self.last[batch.outbox_id] != batch.after:
            return super().send(batch)
        if self.thread is None:
            self.thread = threading.Thread(target=self.work, daemon=True)
            self.thread.start()
        self.last[batch.outbox_id] = batch.mark
        return self.waiting.put(batch)

    def work(self) -> None:
        """Write what is waiting, on a connection of its own."""
        with LedgerSink(self.path) as own:
            while batch := self.waiting.get():
                sync()
                own.send(batch)

    def settle(self) -> None:
        """Wait for the thread."""
        self.last.clear()
        if self.thread is not None:
            self.waiting.put(None)
            self.thread.join()
            self.thread = None

    def mark(self, outbox_id: str) -> str:
        self.settle()
        return super().mark(outbox_id)

    def close(self) -> None:
        self.settle()
        super().close()


@caught_by("test_entries_and_mark_agree_after_a_kill", "another process that was to continue failed: SinkUnavailable")
class LeavesALockBehind(LedgerSink):
    """Locks its target with a file that it removes at the end, if it gets there."""

    def send(self, batch: Batch) -> None:
        path = self.path.with_suffix(".lock")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError as error:
            if threading.current_thread() is not threading.main_thread():
                return super().send(batch)  # here it is about kills only
            raise SinkUnavailable(f"{path} exists: somebody else is at work") from error
        try:
            super().send(batch)
        finally:
            path.unlink()


@caught_by("test_what_was_sent_is_held_after_a_kill", "what does the next one do with what a killed one left")
class ContinuesAHalfLine(LinesSink):
    """Writes a line and its end one after the other, and appends to whatever is there."""

    def end_line(self, file: Any) -> None:
        pass

    def write(self, file: Any, payload: bytes) -> None:
        file.write(payload)
        file.write(b"\n")


@caught_by("test_what_was_sent_is_held_after_a_kill", "are they written before send returns")
class LeavesLinesToTheBuffer(LinesSink):
    """Returns once its lines are in a buffer of the process."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.buffer = bytearray()

    def send(self, batch: Batch) -> None:
        self.buffer += b"".join(entry.payload + b"\n" for entry in batch.entries)
        if len(self.buffer) > 20_000 or len(batch.entries) != 20:
            self.flush()

    def mark(self, outbox_id: str) -> None:
        self.flush()

    def flush(self) -> None:
        """Write what is in the buffer."""
        with self.path.open("ab") as file:
            file.write(self.buffer)
        self.buffer.clear()

    def close(self) -> None:
        self.flush()


# outboxes


@caught_by("test_pages_are_whole_after_a_kill", "are the entries and the checkpoint stored in one transaction")
class CommitsPagesByTheHundred(HastySqliteOutbox):
    """Commits large pages in chunks of 100, the last one with the checkpoint."""

    def store(self, entries: Sequence[NewEntry], *, checkpoint: bytes | None = None, **rest: Any) -> Stored:
        if len(entries) <= 100:
            return super().store(entries, checkpoint=checkpoint, **rest)
        first = super().store(entries[:100], **rest)
        then = self.store(entries[100:], checkpoint=checkpoint, **rest)
        return Stored(*map(sum, zip(first, then, strict=True)))


@caught_by("test_pages_are_whole_after_a_kill", "the run's figures")
class CountsAfterTheCommit(HastySqliteOutbox):
    """Stores the tasks, and brings the run's figures up to date at once after that."""

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        stored = super().store(entries, run=run, **rest)
        if run is not None and len(entries) > 100:
            with self._db.transaction() as connection:
                connection.execute("UPDATE outbox_runs SET extracted = extracted - ? WHERE id = ?", (stored.new, run))
            with self._db.transaction() as connection:
                connection.execute("UPDATE outbox_runs SET extracted = extracted + ? WHERE id = ?", (stored.new, run))
        return stored


def _take_out_and_put_back(outbox: HastySqliteOutbox, positions: Iterable[int]) -> None:
    """Delete rows in one commit, and insert them again in another."""
    with outbox._db.transaction() as connection:
        rows = [
            row
            for position in positions
            for row in connection.execute("SELECT * FROM outbox_entries WHERE position = ?", (position,)).fetchall()
        ]
        connection.executemany("DELETE FROM outbox_entries WHERE position = ?", [row[:1] for row in rows])
    with outbox._db.transaction() as connection:
        for row in rows:
            connection.execute(f"INSERT INTO outbox_entries VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608 - ours


@caught_by("test_each_step_is_whole_after_a_kill", "within reject, which is therefore not one transaction")
class RejectsInTwoSteps(HastySqliteOutbox):
    """Deletes an entry, and stores it as a dead letter after."""

    def reject(self, reasons: Mapping[int, str]) -> None:
        _take_out_and_put_back(self, reasons)
        super().reject(reasons)


@caught_by("test_each_step_is_whole_after_a_kill", "within retry, which is therefore not one transaction")
class RetriesInTwoSteps(HastySqliteOutbox):
    """Deletes a letter, and stores it as an entry after."""

    def retry(self, positions: Iterable[int]) -> int:
        wanted = tuple(positions)
        _take_out_and_put_back(self, wanted)
        return super().retry(wanted)


@caught_by("test_each_step_is_whole_after_a_kill", "within finish_run, which is therefore not one transaction")
class ClearsBeforeItCloses(HastySqliteOutbox):
    """Clears a complete run, and closes it after: killed between, it is resumed without its keys."""

    def finish_run(self, run: str, report: RunReport) -> None:
        if report.complete:
            with self._db.transaction() as connection:
                connection.execute("DELETE FROM outbox_entries WHERE reason IS NULL AND position <= ?", (10**9,))
        super().finish_run(run, report)


@caught_by("test_each_step_is_whole_after_a_kill", "within acknowledge, which is therefore not one transaction")
class ClearsBeforeItAcknowledges(HastySqliteOutbox):
    """Clears what is delivered, and notes the mark after."""

    def acknowledge(self, mark: Mark) -> None:
        with self._db.transaction() as connection:
            connection.execute(
                "DELETE FROM outbox_entries WHERE run IS NULL AND reason IS NULL AND position <= ?", (mark.position,)
            )
        super().acknowledge(mark)


class _TwoSteps(StateStore):
    """State whose values are deleted before they are set."""

    def __init__(self, outbox: HastySqliteOutbox, state: StateStore) -> None:
        self.outbox, self.state = outbox, state

    def get(self, name: str) -> bytes | None:
        return self.state.get(name)

    def set(self, name: str, value: bytes) -> None:
        with self.outbox._db.transaction() as connection:
            connection.execute("DELETE FROM outbox_state WHERE name = ?", (name,))
        self.state.set(name, value)


@caught_by(
    "test_each_step_is_whole_after_a_kill",
    "within state.set, which is therefore not one transaction: state: None",
)
class SetsStateInTwoSteps(HastySqliteOutbox):
    """Deletes a value of the state, and inserts the new one after: killed between, the outbox has no id."""

    @property
    def state(self) -> StateStore:
        return _TwoSteps(self, super().state)
