"""What all tests of an outbox share."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import ClassVar

import pytest

from owm_outbox.entry import Key, Mark
from owm_outbox.outbox import DeadLetterStore, Outbox, Stored
from owm_outbox.report import RunReport
from owm_outbox.run import RunRecord
from owm_outbox.task import InvalidRecord
from owm_outbox.testing.capabilities import Capabilities
from owm_outbox.testing.parcels import Parcel
from owm_outbox.testing.storage import AppendWithin, Storage

__all__ = [
    "JOB",
    "Begin",
    "OpenOutbox",
    "OutboxFixtures",
    "bad_records",
    "mark_at",
    "parcels",
    "report",
    "run_of",
    "store",
]

JOB = "parcels"
OpenOutbox = Callable[[], Outbox]
Begin = Callable[[], AbstractContextManager[AppendWithin]]


class OutboxFixtures:
    """The fixtures of `OutboxContract`."""

    capabilities: ClassVar[Capabilities] = Capabilities()

    @pytest.fixture
    def storage(self) -> Storage:
        """Give the storage, new and empty; every subclass has its own, or a fixture ``open_outbox``."""
        raise NotImplementedError("give your subclass a fixture named storage, see owm_outbox.testing")

    @pytest.fixture
    def open_outbox(self, storage: Storage) -> OpenOutbox:
        """Give a function that opens the outbox under test."""
        return storage.open

    @pytest.fixture
    def outbox(self, open_outbox: OpenOutbox) -> Iterator[Outbox]:
        """Open the outbox under test."""
        with open_outbox() as outbox:
            yield outbox

    @pytest.fixture
    def interrupt(self, storage: Storage) -> Callable[[], AbstractContextManager[object]]:
        """Give a block within which storing 20 tasks fails."""
        assert storage.interrupt is not None, (
            "Capabilities(interruptible=True) needs Storage.interrupt, or a fixture named interrupt"
        )
        return storage.interrupt

    @pytest.fixture
    def _interruptible(self) -> None:
        self.capabilities.need("interruptible")

    @pytest.fixture
    def failing(
        self, _interruptible: None, interrupt: Callable[[], AbstractContextManager[object]]
    ) -> Callable[[], AbstractContextManager[object]]:
        """Give ``interrupt`` to the tests, if the backend can be interrupted."""
        return interrupt

    @pytest.fixture
    def turn_clock(self, storage: Storage) -> Callable[[timedelta], None]:
        """Give a function that turns the outbox's clock forward by this much, or back."""
        assert storage.turn_clock is not None, (
            "Capabilities(settable_clock=True) needs Storage.turn_clock, or a fixture named turn_clock"
        )
        return storage.turn_clock

    @pytest.fixture
    def _settable_clock(self) -> None:
        self.capabilities.need("settable_clock")

    @pytest.fixture
    def later(self, _settable_clock: None, turn_clock: Callable[[timedelta], None]) -> Callable[[timedelta], None]:
        """Give ``turn_clock`` to the tests, if the backend's clock can be set."""
        return turn_clock

    @pytest.fixture
    def _transactions(self) -> None:
        self.capabilities.need("transactions")

    @pytest.fixture
    def begin(self, _transactions: None, storage: Storage) -> Begin:
        """Give what begins a transaction of an application's to the tests, if the backend takes part in one."""
        assert storage.transaction is not None, "Capabilities(transactions=True) needs Storage.transaction"
        return storage.transaction

    def letters(self, outbox: Outbox) -> DeadLetterStore:
        """Return the outbox as what its dead letters can be managed with."""
        self.capabilities.need("dead_letters")
        assert isinstance(outbox, DeadLetterStore), "Capabilities(dead_letters=True) needs a DeadLetterStore"
        return outbox


def parcels(run: str, *numbers: int) -> list[Parcel]:
    """Make the parcels of a run with these numbers."""
    return [Parcel(uuid.uuid5(uuid.UUID(run), str(number)), number) for number in numbers]


def _number(parcel: Parcel) -> Key:
    return parcel.number


def store(
    outbox: Outbox,
    run: str,
    *numbers: int,
    checkpoint: bytes | None = None,
    expected: int | None = None,
    invalid: tuple[InvalidRecord, ...] = (),
) -> Stored:
    """Append parcels with these numbers, which are their keys, to a run."""
    return outbox.append(
        parcels(run, *numbers), key=_number, run=run, checkpoint=checkpoint, expected=expected, invalid=invalid
    )


def bad_records(*numbers: int) -> tuple[InvalidRecord, ...]:
    """Make records that are not valid tasks, with these numbers as their keys."""
    return tuple(InvalidRecord(b'{"number": "%d"}' % number, "not a number", number) for number in numbers)


def run_of(outbox: Outbox, run: str) -> RunRecord:
    """Return what the outbox tells about a run."""
    return next(known for known in outbox.stats().runs if known.id == run)


def mark_at(outbox: Outbox, position: int) -> Mark:
    """Return a mark of the entry at this position, for which it must be in the outbox."""
    (entry,) = outbox.read(position - 1, 1)
    assert entry.position == position
    return Mark.of(entry, "5ca1ab1e")


def report(run: RunRecord, *, complete: bool) -> RunReport:
    """Make the report that a relay would give of this run."""
    return RunReport(
        run_id=run.id,
        job=run.job,
        resumed=run.resumed,
        complete=complete,
        expected=run.expected,
        extracted=run.extracted,
        duplicates=run.duplicates,
        delivered=0,
        redelivered=0,
        rejected=run.rejected,
        pending=0,
        missing=[],
        seconds=0.0,
    )
