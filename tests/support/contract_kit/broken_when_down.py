"""Sinks and outboxes that are right as long as their target is there."""
# ruff: noqa: D102 - what the methods of a broken backend do is in the docstring of its class

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from owm_outbox import (
    Batch,
    EntriesRejected,
    Mark,
    MarkConflict,
    NewEntry,
    OutboxUnavailable,
    SinkFull,
    SinkUnavailable,
    StateStore,
    Stored,
)

from support.contract_kit.outboxes import HastySqliteOutbox
from support.contract_kit.registry import caught_by
from support.contract_kit.shelf import HonestSink

# sinks


@caught_by(
    "test_an_unreachable_sink_does_not_know_its_mark",
    "the target cannot be reached, but the sink says that it holds '0'",
)
class ZeroWhenUnreachable(HonestSink):
    """Says "0" if the target cannot be reached: to the relay the mark of another history."""

    def mark(self, outbox_id: str) -> str | None:
        return super().mark(outbox_id) if self.shelf.reachable else "0"


@caught_by(
    "test_an_unreachable_sink_takes_nothing",
    "the target cannot be reached: raise SinkUnavailable, not MarkConflict",
)
class TakesAnOutageForAConflict(HonestSink):
    """Says that it holds no mark if the target cannot be reached: the relay would send everything again."""

    def send(self, batch: Batch) -> None:
        if not self.shelf.reachable:
            raise MarkConflict("")
        super().send(batch)


@caught_by(
    "test_an_unreachable_sink_takes_nothing",
    "the target cannot be reached: raise SinkUnavailable, not EntriesRejected",
)
class TakesAnOutageForPoison(HonestSink):
    """Rejects the batch if the target cannot be reached: every task would become a dead letter."""

    def send(self, batch: Batch) -> None:
        if not self.shelf.reachable:
            raise EntriesRejected({entry.position: "connection refused" for entry in batch.entries})
        super().send(batch)


@caught_by(
    "test_an_unreachable_sink_takes_nothing",
    "the target cannot be reached: raise SinkUnavailable, not SinkFull",
)
class TakesAnOutageForAFullTarget(HonestSink):
    """Says that there is no room if the target cannot be reached."""

    def send(self, batch: Batch) -> None:
        if not self.shelf.reachable:
            raise SinkFull("no room")
        super().send(batch)


@caught_by(
    "test_an_unreachable_sink_takes_nothing",
    "the target cannot be reached, and nothing was raised: raise SinkUnavailable",
)
class SpoolsWhatItCannotSend(HonestSink):
    """Keeps what it cannot send in memory, for later, and reports success."""

    spool: tuple[Batch, ...] = ()

    def send(self, batch: Batch) -> None:
        if not self.shelf.reachable:
            self.spool += (batch,)
            return
        for waiting in (*self.spool, batch):
            super().send(waiting)
        self.spool = ()


@caught_by("test_an_unreachable_sink_gives_up_when_told", "wait with it instead of time.sleep")
class TriesForEver(HonestSink):
    """Tries again until the target is there, without asking whether anybody still wants it to."""

    def reach(self) -> None:
        while True:
            with suppress(SinkUnavailable):
                return super().reach()
            time.sleep(0.01)


@caught_by("test_an_unreachable_sink_gives_up_when_told", "wait with it instead of time.sleep")
class SleepsBetweenAttempts(HonestSink):
    """Tries a few times, and sleeps for long in between: a stop would have to wait for it."""

    def reach(self) -> None:
        for wait in (0.01, 60):
            with suppress(SinkUnavailable):
                return super().reach()
            time.sleep(wait)
        return super().reach()


@caught_by("test_an_unreachable_sink_can_be_closed", "the target cannot be reached, and close raised SinkUnavailable")
class CannotBeClosedWhenDown(HonestSink):
    """Says goodbye to the target when it is closed, and complains if nobody is there."""

    def close(self) -> None:
        self.reach()


@caught_by(
    "test_after_a_failure_the_mark_is_asked_for_anew",
    "another sink sent a batch since, but this one still says that it holds",
)
class TrustsItsMemoryAfterAFailure(HonestSink):
    """Remembers the mark that it had when a send failed, and names it from then on."""

    remembered: str | None = None

    def take(self, batch: Batch) -> None:
        try:
            super().take(batch)
        except SinkUnavailable:
            self.remembered = self.held(batch.outbox_id)
            raise

    def mark(self, outbox_id: str) -> str | None:
        return super().mark(outbox_id) if self.remembered is None else self.remembered


@caught_by("test_a_send_that_failed_can_be_repeated", "after a failure, 3 entries are held instead of 23")
class ReconnectsElsewhere(HonestSink):
    """After a failure, opens a connection that is not to the same database."""

    def take(self, batch: Batch) -> None:
        try:
            super().take(batch)
        except SinkUnavailable:
            self.shelf = type(self.shelf)(marks=dict(self.shelf.marks))
            raise


# outboxes


@caught_by("test_a_failure_does_not_free_the_lock", "a store failed under the lock, and another relay was let in")
class FreesItsLockAfterAFailure(HastySqliteOutbox):
    """Lets go of its lock when it starts afresh after a failure, as one that belongs to a connection does."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        try:
            return super().store(entries, **rest)
        except OutboxUnavailable:
            self.path.with_name(f"{self.path.name}.lock").unlink(missing_ok=True)
            raise


@caught_by(
    "test_what_returns_while_there_is_trouble_was_done",
    "while storing fails, acknowledge returned, but did nothing",
)
class SwallowsAFailedAcknowledgement(HastySqliteOutbox):
    """Takes an acknowledgement for something that the next one makes good."""

    def acknowledge(self, mark: Mark) -> None:
        with suppress(OutboxUnavailable):
            super().acknowledge(mark)


@caught_by("test_what_returns_while_there_is_trouble_was_done", "while storing fails, reject returned, but did nothing")
class SwallowsAFailedRejection(HastySqliteOutbox):
    """Takes a rejection for something that the sink repeats."""

    def reject(self, reasons: Any) -> None:
        with suppress(OutboxUnavailable):
            super().reject(reasons)


class _Lenient(StateStore):
    """State that does not mind whether a value is kept."""

    def __init__(self, state: StateStore) -> None:
        self.state = state

    def get(self, name: str) -> bytes | None:
        return self.state.get(name)

    def set(self, name: str, value: bytes) -> None:
        with suppress(OutboxUnavailable):
            self.state.set(name, value)


@caught_by(
    "test_what_returns_while_there_is_trouble_was_done",
    "while storing fails, state.set returned, but did nothing",
)
class SwallowsAFailedState(HastySqliteOutbox):
    """Takes state for a cache."""

    @property
    def state(self) -> StateStore:
        return _Lenient(super().state)


@caught_by(
    "test_a_store_that_fails_stores_nothing",
    "storing fails: raise OutboxUnavailable or OutboxInvalid, not OperationalError",
)
class LeaksFailuresOfTheDriver(HastySqliteOutbox):
    """Lets the driver's error out when a page fails."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        try:
            return super().store(entries, **rest)
        except OutboxUnavailable as error:
            raise sqlite3.OperationalError("disk I/O error") from error
