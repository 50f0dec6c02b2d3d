"""Sinks that are wrong where there is another object, thread or process, or the target is out of reach."""
# ruff: noqa: D102 - what the methods of a broken backend do is in the docstring of its class

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time

from owm_outbox import Batch, ConfigurationError, MarkConflict, SinkUnavailable

from support.contract_kit.ledger import LedgerSink
from support.contract_kit.registry import caught_by, sync
from support.contract_kit.shelf import HonestSink, Shelf


@caught_by("test_another_sink_knows_what_the_first_one_sent")
class RemembersItsOwnMark(HonestSink):
    """Asks for the mark once, and from then on believes itself."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.known: dict[str, str] = {}

    def held(self, outbox_id: str) -> str:
        return self.known.setdefault(outbox_id, super().held(outbox_id))

    def move(self, batch: Batch) -> None:
        super().move(batch)
        self.known[batch.outbox_id] = batch.mark


@caught_by("test_another_sink_knows_what_the_first_one_sent")
class ReadsAnOldSnapshot(LedgerSink):
    """Reads marks within a transaction that it opened when it was first asked."""

    reader: sqlite3.Connection | None = None

    def mark(self, outbox_id: str) -> str:
        with self.connected():
            pass
        if self.reader is None:
            self.reader = sqlite3.connect(self.path, isolation_level=None)
            self.reader.execute("BEGIN")
        return self.held(self.reader, outbox_id)

    def close(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None
        super().close()


MEETING = threading.Barrier(4)


@caught_by("test_two_at_once_add_a_batch_once")
class ChecksThenActs(HonestSink):
    """Compares the mark, frees the shelf, and takes the batch after."""

    def send(self, batch: Batch) -> None:
        with self.shelf.mutex:
            self.refuse_conflict(batch)
        if len(batch.entries) == 8 and threading.current_thread() is not threading.main_thread():
            MEETING.wait(10)  # all four have compared: the moment that otherwise happens by chance
        with self.shelf.mutex:
            self.refuse_poison(batch)
            self.refuse_more_than_fits(batch)
            self.take(batch)


@caught_by("test_two_at_once_add_a_batch_once", "are the entries and the mark stored in one transaction")
class ComparesBeforeItsTransaction(LedgerSink):
    """Reads the mark, and begins a transaction only for what it writes."""

    def send(self, batch: Batch) -> None:
        with self.connected() as connection:
            self.refuse_conflict(connection, batch)
            if len(batch.entries) == 8 and threading.current_thread() is not threading.main_thread():
                MEETING.wait(10)
            with self.transaction(connection):
                self.insert(connection, batch)
                self.move(connection, batch)


@caught_by("test_two_outboxes_at_once_lose_nothing")
class WritesBackEveryMark(HonestSink):
    """Reads the marks of all outboxes when it is opened, and writes them all back with each batch."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.copy = dict(shelf.marks)

    def move(self, batch: Batch) -> None:
        self.copy[batch.outbox_id] = batch.mark
        self.shelf.marks = dict(self.copy)

    def refuse_conflict(self, batch: Batch) -> None:
        held = self.copy.get(batch.outbox_id, "")
        if held != batch.after:
            raise MarkConflict(held)


@caught_by("test_it_may_be_used_on_another_thread", "used on another thread than the one that opened it")
class BelongsToItsThread(LedgerSink):
    """Has a connection that only the thread which opened it may use, as sqlite3's do if nobody asks otherwise."""

    one_thread = True


@caught_by("test_it_survives_the_object")
class ForgetsOnClose(LedgerSink):
    """Removes what it held."""

    def close(self) -> None:
        super().close()
        self.path.unlink(missing_ok=True)


@caught_by("test_it_can_be_closed_twice")
class ClosesOnce(HonestSink):
    """Complains when it is closed again."""

    closed = False

    def close(self) -> None:
        if self.closed:
            raise SinkUnavailable("closed already")
        self.closed = True


# a process that is killed


@caught_by("test_entries_and_mark_agree_after_a_kill", "are the entries and the mark stored in one transaction")
class CommitsTheMarkAfterTheEntries(LedgerSink):
    """Commits the entries, and its mark in a second transaction, with a lock around both."""

    lock = threading.Lock()

    def send(self, batch: Batch) -> None:
        with self.lock, self.connected() as connection:
            with self.transaction(connection):
                self.refuse_conflict(connection, batch)
                self.insert(connection, batch)
            sync()
            with self.transaction(connection):
                self.move(connection, batch)


@caught_by("test_entries_and_mark_agree_after_a_kill")
class CommitsTheMarkBeforeTheEntries(LedgerSink):
    """Commits the mark, and the entries in a second transaction: what is killed between is never sent again."""

    lock = threading.Lock()

    def held(self, connection: sqlite3.Connection, outbox_id: str) -> str:
        row = connection.execute("SELECT mark FROM marks WHERE outbox_id = ?", (outbox_id,)).fetchone()
        return str(row[0]) if row else ""

    def move(self, connection: sqlite3.Connection, batch: Batch) -> None:
        connection.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, 0)", (batch.outbox_id, str(batch.mark)))

    def send(self, batch: Batch) -> None:
        with self.lock, self.connected() as connection:
            with self.transaction(connection):
                self.refuse_conflict(connection, batch)
                self.move(connection, batch)
            sync()
            with self.transaction(connection):
                self.insert(connection, batch)


@caught_by("test_entries_and_mark_agree_after_a_kill")
class CommitsEachEntry(LedgerSink):
    """Commits entry after entry, the last one with the mark."""

    def send(self, batch: Batch) -> None:
        with self.connected() as connection:
            self.refuse_conflict(connection, batch)
            for entry in batch.entries:
                connection.execute("INSERT INTO entries (payload) VALUES (?)", (entry.payload,))
            self.move(connection, batch)


@caught_by("test_entries_and_mark_agree_after_a_kill")
class KeepsBatchesForLater(LedgerSink):
    """Gathers some batches in memory, and commits them together, or when it is asked or closed."""

    def __init__(self, path: os.PathLike[str]) -> None:
        super().__init__(path)  # type: ignore[arg-type]  # a path
        self.gathered: list[Batch] = []

    def send(self, batch: Batch) -> None:
        with self.connected() as connection:
            held = self.gathered[-1].mark if self.gathered else self.held(connection, batch.outbox_id)
        if held != batch.after:
            raise MarkConflict(held)
        self.gathered.append(batch)
        if len(self.gathered) >= 3:
            self.commit()

    def commit(self) -> None:
        """Write what was gathered."""
        with self.connected() as connection, self.transaction(connection):
            for batch in self.gathered:
                self.insert(connection, batch)
                self.move(connection, batch)
            self.gathered.clear()

    def mark(self, outbox_id: str) -> str:
        self.commit()
        return super().mark(outbox_id)

    def close(self) -> None:
        self.commit()
        super().close()


# nobody there


@caught_by("test_an_unreachable_sink_can_be_opened")
class ConnectsWhenItIsMade(HonestSink):
    """Takes a target that is down for a mistake in the URL."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        try:
            shelf.reach()
        except OSError as error:
            raise ConfigurationError("there is no such shelf") from error


@caught_by("test_an_unreachable_sink_takes_nothing")
class DropsWhatItCannotSend(HonestSink):
    """Logs that the target is down, at best, and reports success."""

    def send(self, batch: Batch) -> None:
        if self.shelf.reachable:
            super().send(batch)


@caught_by("test_an_unreachable_sink_takes_nothing")
class LeaksThatItIsUnreachable(HonestSink):
    """Lets the client's own error out."""

    def reach(self) -> None:
        self.shelf.reach()


@caught_by("test_an_unreachable_sink_takes_nothing")
class TakesAnOutageForAMistake(HonestSink):
    """Says that waiting does not help where the target is only down."""

    def reach(self) -> None:
        if not self.shelf.reachable:
            raise ConfigurationError("check the address")


@caught_by(
    "test_an_unreachable_sink_does_not_know_its_mark",
    "the target cannot be reached, but the sink says that it holds ''",
)
class HoldsNothingWhenUnreachable(HonestSink):
    """Says that it holds nothing if the target cannot be reached: all would be sent again."""

    def mark(self, outbox_id: str) -> str | None:
        return super().mark(outbox_id) if self.shelf.reachable else ""


@caught_by(
    "test_an_unreachable_sink_does_not_know_its_mark",
    "the target cannot be reached, but the sink says that it holds None",
)
class CannotTellWhenUnreachable(HonestSink):
    """Says that it holds no marks if the target cannot be reached: the relay would take its word for a while."""

    def mark(self, outbox_id: str) -> str | None:
        return super().mark(outbox_id) if self.shelf.reachable else None


@caught_by("test_an_unreachable_sink_does_not_know_its_mark")
class LeaksTimeouts(HonestSink):
    """Lets a timeout of the client out."""

    def mark(self, outbox_id: str) -> str | None:
        if not self.shelf.reachable:
            time.sleep(0.01)
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return super().mark(outbox_id)
