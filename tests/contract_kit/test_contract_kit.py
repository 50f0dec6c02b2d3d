"""The contracts are tested themselves: each broken backend here fails the test that says what is wrong with it.

One pytest of its own runs that test on each of them, and all tests on the honest backends that they are made of; the
tests here read what came out.
"""
# ruff: noqa: D102 - what the methods of a broken backend do is in the docstring of its class

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from owm_outbox import (
    Batch,
    DeadLetter,
    EntriesRejected,
    Entry,
    Job,
    Notes,
    Outbox,
    OutboxLocked,
    OutboxStats,
    PositionConflict,
    Rejected,
    Run,
    RunReport,
    Sink,
    SinkFull,
    SinkUnavailable,
    encode,
)
from owm_outbox.outbox import MemoryNotes
from owm_outbox.testing import Capabilities, OutboxContract, Place, SinkContract
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.sqlite import SqliteOutbox

C = TypeVar("C", bound=type)

CAUGHT_BY: dict[type, str] = {}
"""The contract's test that must fail, by broken backend."""


def caught_by(test: str) -> Callable[[C], C]:
    """Name the test that must fail with this backend."""

    def note(cls: C) -> C:
        CAUGHT_BY[cls] = test
        return cls

    return note


# -- sinks: an honest one, and what can be wrong with it


@dataclass
class Shelf:
    """Where sinks deliver to: a place in memory that has room for so many, and that can be made to fail."""

    payloads: list[bytes] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    capacity: int = 100
    breaks_after: int | None = None
    mutex: threading.RLock = field(default_factory=threading.RLock)

    def put(self, payload: bytes) -> None:
        """Hold one more payload, unless it is broken."""
        if self.breaks_after is not None:
            if self.breaks_after == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.breaks_after -= 1
        self.payloads.append(payload)

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """Fail after a few payloads, for the length of a block."""
        self.breaks_after = 7
        yield
        self.breaks_after = None


POISON = b"\x00poison"


class HonestSink(Sink):
    """Does all that the contract asks, one step after the other."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def position(self, outbox_id: str) -> int | None:
        """Return what the shelf holds for this outbox."""
        with self.shelf.mutex:
            return self.shelf.positions.get(outbox_id, 0)

    def send(self, batch: Batch) -> None:
        """Refuse what cannot be taken, else take it."""
        with self.shelf.mutex:
            self.refuse_conflict(batch)
            self.refuse_poison(batch)
            self.refuse_more_than_fits(batch)
            self.take(batch)

    def refuse_conflict(self, batch: Batch) -> None:
        """Compare the held position with the batch's start."""
        held = self.shelf.positions.get(batch.outbox_id, 0)
        if held != batch.after:
            raise PositionConflict(held)

    def refuse_poison(self, batch: Batch) -> None:
        """Name what will never be taken."""
        if bad := {entry.position: "poison" for entry in batch.entries if entry.payload == POISON}:
            raise EntriesRejected(bad)

    def refuse_more_than_fits(self, batch: Batch) -> None:
        """Compare the size of the batch with the room."""
        room = self.shelf.capacity - len(self.shelf.payloads)
        if len(batch.entries) > room:
            raise SinkFull("the shelf is full", room=room)

    def take(self, batch: Batch) -> None:
        """Put the entries on the shelf, and the position beside them; take all back if one does not go."""
        before = len(self.shelf.payloads)
        try:
            for payload in self.payloads(batch):
                self.shelf.put(payload)
        except OSError as error:
            del self.shelf.payloads[before:]
            raise SinkUnavailable(f"the shelf is broken ({error.strerror})") from error
        self.move(batch)

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        """Return what is put on the shelf."""
        return [entry.payload for entry in batch.entries]

    def move(self, batch: Batch) -> None:
        """Hold the batch's position."""
        self.shelf.positions[batch.outbox_id] = batch.position


@caught_by("test_a_batch_is_held_whole_and_in_order")
class LosesTheLastEntry(HonestSink):
    """Holds all but the last of several entries."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        return super().payloads(batch)[: max(1, len(batch.entries) - 1)]


@caught_by("test_a_batch_is_held_whole_and_in_order")
class ReordersEntries(HonestSink):
    """Holds the last entry first."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        return super().payloads(batch)[::-1]


@caught_by("test_a_batch_is_held_whole_and_in_order")
class EncodesPayloadsAnew(HonestSink):
    """Decodes each payload, and encodes it as JSON again."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        return [json.dumps(json.loads(payload), ensure_ascii=False).encode() for payload in super().payloads(batch)]


@caught_by("test_a_batch_is_held_whole_and_in_order")
class EndsLinesWhereUnicodeDoes(HonestSink):
    """Keeps lines of text, split as str.splitlines does."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        text = "\n".join(payload.decode() for payload in super().payloads(batch))
        return [line.encode() for line in text.splitlines()]


@caught_by("test_batches_follow_each_other")
class KeepsTheNewestBatchOnly(HonestSink):
    """Each batch takes the place of the one before."""

    def take(self, batch: Batch) -> None:
        super().take(batch)
        self.shelf.payloads[:] = self.payloads(batch)


@caught_by("test_a_batch_of_one_is_held")
class WaitsForASecondEntry(HonestSink):
    """Holds a single entry back until more come."""

    waiting: tuple[bytes, ...] = ()

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        ready = [*self.waiting, *super().payloads(batch)]
        self.waiting = tuple(ready) if len(ready) == 1 else ()
        return [] if len(ready) == 1 else ready


@caught_by("test_gaps_between_positions_are_fine")
class NeedsConsecutivePositions(HonestSink):
    """Takes a batch only if it starts right after the held position and leaves none out."""

    def refuse_conflict(self, batch: Batch) -> None:
        super().refuse_conflict(batch)
        if batch.position - batch.after != len(batch.entries) and len(batch.entries) > 1:
            raise PositionConflict(batch.after)


@caught_by("test_the_same_task_at_two_positions_is_held_twice")
class DropsTasksItKnows(HonestSink):
    """Takes the payload for what makes an entry, not its position."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        return [payload for payload in dict.fromkeys(super().payloads(batch)) if payload not in self.shelf.payloads]


@caught_by("test_a_large_payload_is_held_whole")
class CutsLargePayloads(HonestSink):
    """Keeps the first 64,000 bytes of a payload."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        return [payload[:64_000] for payload in super().payloads(batch)]


@caught_by("test_the_position_of_an_unknown_outbox_is_zero_or_untold")
class CannotTell(HonestSink):
    """Says None, though its capabilities say that it tracks positions."""

    def position(self, outbox_id: str) -> int | None:
        return None


@caught_by("test_the_position_of_an_unknown_outbox_is_zero_or_untold")
class ForgetsWhatNothingIs(HonestSink):
    """Says -1 for an outbox that it has not heard of."""

    def position(self, outbox_id: str) -> int | None:
        return self.shelf.positions.get(outbox_id, -1)


@caught_by("test_the_position_comes_with_the_batch")
class TellsFloats(HonestSink):
    """Returns its position as a float."""

    def position(self, outbox_id: str) -> int | None:
        return float(super().position(outbox_id) or 0)  # type: ignore[return-value]  # which is what is wrong


@caught_by("test_positions_are_exact_beyond_53_bits")
class KeepsPositionsAsFloats(HonestSink):
    """Compares positions as Lua and JavaScript do."""

    def refuse_conflict(self, batch: Batch) -> None:
        held = self.shelf.positions.get(batch.outbox_id, 0)
        if float(held) != float(batch.after):
            raise PositionConflict(held)


@caught_by("test_a_batch_sent_again_is_refused_whole")
class IgnoresThePosition(HonestSink):
    """Takes whatever comes."""

    def refuse_conflict(self, batch: Batch) -> None:
        pass


@caught_by("test_a_batch_sent_again_is_refused_whole")
class MisreportsTheHeldPosition(HonestSink):
    """Names the start of the batch, not what it holds."""

    def refuse_conflict(self, batch: Batch) -> None:
        with suppress(PositionConflict):
            return super().refuse_conflict(batch)
        raise PositionConflict(batch.after)


@caught_by("test_a_batch_sent_again_is_refused_whole")
class TakesRepeatsInSilence(HonestSink):
    """Adds nothing twice, but does not say so: the relay would not learn where it stands."""

    def send(self, batch: Batch) -> None:
        if batch.position > self.shelf.positions.get(batch.outbox_id, 0):
            super().send(batch)


@caught_by("test_an_overlapping_batch_is_refused_whole")
class TakesWhatIsNewInABatch(HonestSink):
    """Takes the part of a batch that lies beyond the held position."""

    def send(self, batch: Batch) -> None:
        held = self.shelf.positions.get(batch.outbox_id, 0)
        new = [entry for entry in batch.entries if entry.position > held]
        super().send(Batch(batch.outbox_id, held, new) if batch.after < held and new else batch)


@caught_by("test_a_batch_from_the_future_is_refused_whole")
class LeavesHoles(HonestSink):
    """Refuses what it holds already, and nothing else."""

    def refuse_conflict(self, batch: Batch) -> None:
        held = self.shelf.positions.get(batch.outbox_id, 0)
        if batch.after < held:
            raise PositionConflict(held)


@caught_by("test_after_a_conflict_the_right_batch_is_taken")
class StaysInConflict(HonestSink):
    """After a conflict, an object refuses everything, as in a transaction that nobody rolled back."""

    conflict: PositionConflict | None = None

    def refuse_conflict(self, batch: Batch) -> None:
        if self.conflict is not None:
            raise self.conflict
        try:
            super().refuse_conflict(batch)
        except PositionConflict as error:
            self.conflict = error
            raise


@caught_by("test_outboxes_do_not_mix")
class HasOnePositionForAll(HonestSink):
    """Keeps one position, whichever outbox it belongs to."""

    def send(self, batch: Batch) -> None:
        super().send(replace(batch, outbox_id="all"))

    def position(self, outbox_id: str) -> int | None:
        return super().position("all")


@caught_by("test_outboxes_of_similar_names_do_not_mix")
class TakesIdsForFileNames(HonestSink):
    """Keeps positions in files named after the outbox, without what a file name cannot have."""

    def send(self, batch: Batch) -> None:
        super().send(replace(batch, outbox_id=batch.outbox_id.replace("/", "_")))

    def position(self, outbox_id: str) -> int | None:
        return super().position(outbox_id.replace("/", "_"))


@caught_by("test_another_sink_knows_what_the_first_one_sent")
class RemembersItsOwnPosition(HonestSink):
    """Asks for the position once, and from then on believes itself."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.known: dict[str, int] = {}

    def position(self, outbox_id: str) -> int | None:
        return self.known.setdefault(outbox_id, self.shelf.positions.get(outbox_id, 0))

    def refuse_conflict(self, batch: Batch) -> None:
        held = self.position(batch.outbox_id) or 0
        if held != batch.after:
            raise PositionConflict(held)

    def move(self, batch: Batch) -> None:
        super().move(batch)
        self.known[batch.outbox_id] = batch.position


MEETING = threading.Barrier(4)


@caught_by("test_two_at_once_add_a_batch_once")
class ChecksThenActs(HonestSink):
    """Compares the position, lets go of the shelf, and takes the batch after."""

    def send(self, batch: Batch) -> None:
        with self.shelf.mutex:
            self.refuse_conflict(batch)
        if len(batch.entries) == 8 and threading.current_thread() is not threading.main_thread():
            MEETING.wait(10)  # all four have compared: the moment that otherwise comes by chance
        with self.shelf.mutex:
            self.refuse_poison(batch)
            self.refuse_more_than_fits(batch)
            self.take(batch)


@caught_by("test_two_outboxes_at_once_lose_nothing")
class WritesBackEveryPosition(HonestSink):
    """Reads the positions of all outboxes when it is opened, and writes them all back with each batch."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.copy = dict(shelf.positions)

    def move(self, batch: Batch) -> None:
        self.copy[batch.outbox_id] = batch.position
        self.shelf.positions = dict(self.copy)

    def refuse_conflict(self, batch: Batch) -> None:
        held = self.copy.get(batch.outbox_id, 0)
        if held != batch.after:
            raise PositionConflict(held)


@caught_by("test_it_survives_the_object")
class ForgetsOnClose(HonestSink):
    """Takes with it what it held."""

    def close(self) -> None:
        self.shelf.payloads.clear()
        self.shelf.positions.clear()


@caught_by("test_it_can_be_closed_twice")
class ClosesOnce(HonestSink):
    """Complains when it is closed again."""

    closed = False

    def close(self) -> None:
        if self.closed:
            raise SinkUnavailable("closed already")
        self.closed = True


@caught_by("test_a_full_sink_takes_nothing_and_says_so")
class TakesSomeWhenFull(HonestSink):
    """Takes what fits, then says that it is full."""

    def refuse_more_than_fits(self, batch: Batch) -> None:
        try:
            super().refuse_more_than_fits(batch)
        except SinkFull as error:
            self.shelf.payloads += self.payloads(batch)[: error.room]
            raise


@caught_by("test_a_full_sink_takes_nothing_and_says_so")
class ThrowsAwayWhatDoesNotFit(HonestSink):
    """Takes what fits, lets the rest fall, and reports success."""

    def refuse_more_than_fits(self, batch: Batch) -> None:
        pass

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        return super().payloads(batch)[: self.shelf.capacity - len(self.shelf.payloads)]


@caught_by("test_a_full_sink_takes_nothing_and_says_so")
class MovesThePositionFirst(HonestSink):
    """Sets the position, then looks whether there is room."""

    def refuse_more_than_fits(self, batch: Batch) -> None:
        self.move(batch)
        super().refuse_more_than_fits(batch)


@caught_by("test_a_full_sink_takes_as_many_as_it_said")
class MisjudgesItsRoom(HonestSink):
    """Promises room for one more than there is."""

    def refuse_more_than_fits(self, batch: Batch) -> None:
        try:
            super().refuse_more_than_fits(batch)
        except SinkFull as error:
            error.room += 1
            raise


@caught_by("test_poison_is_named_and_the_rest_untouched")
class NamesPoisonByItsIndex(HonestSink):
    """Says where in the batch the poison is, not at which position of the outbox."""

    def refuse_poison(self, batch: Batch) -> None:
        if bad := {at: "poison" for at, entry in enumerate(batch.entries) if entry.payload == POISON}:
            raise EntriesRejected(bad)


@caught_by("test_poison_is_named_and_the_rest_untouched")
class RejectsWithoutAName(HonestSink):
    """Says that something is poison, but not what."""

    def refuse_poison(self, batch: Batch) -> None:
        if any(entry.payload == POISON for entry in batch.entries):
            raise EntriesRejected({0: "something in there is poison"})


@caught_by("test_poison_is_named_and_the_rest_untouched")
class RejectsWithoutAReason(HonestSink):
    """Names the poison, but does not say why."""

    def refuse_poison(self, batch: Batch) -> None:
        if bad := {entry.position: "" for entry in batch.entries if entry.payload == POISON}:
            raise EntriesRejected(bad)


@caught_by("test_poison_is_named_and_the_rest_untouched")
class HoldsWhatCameBeforePoison(HonestSink):
    """Takes entry after entry until it meets the poison."""

    def refuse_poison(self, batch: Batch) -> None:
        for entry in batch.entries:
            if entry.payload == POISON:
                self.shelf.payloads += self.payloads(batch)[: batch.entries.index(entry)]
                raise EntriesRejected({entry.position: "poison"})


@caught_by("test_the_rest_of_a_batch_with_poison_is_taken")
class BlamesTheNeighbours(HonestSink):
    """If two or more are poison, rejects the whole batch."""

    def refuse_poison(self, batch: Batch) -> None:
        bad = {entry.position: "poison" for entry in batch.entries if entry.payload == POISON}
        if bad:
            raise EntriesRejected(bad if len(bad) == 1 else {entry.position: "poison" for entry in batch.entries})


@caught_by("test_a_send_that_fails_says_so")
class SwallowsErrors(HonestSink):
    """Logs what goes wrong, at best."""

    def take(self, batch: Batch) -> None:
        with suppress(SinkUnavailable):
            super().take(batch)


@caught_by("test_a_send_that_fails_says_so")
class LeaksErrors(HonestSink):
    """Lets the storage's own error out."""

    def take(self, batch: Batch) -> None:
        try:
            super().take(batch)
        except SinkUnavailable as error:
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error


@caught_by("test_a_send_that_fails_takes_all_or_nothing")
class SendsHalfThenFails(HonestSink):
    """Leaves there what it had put when the shelf broke."""

    def take(self, batch: Batch) -> None:
        try:
            for payload in self.payloads(batch):
                self.shelf.put(payload)
        except OSError as error:
            raise SinkUnavailable("the shelf is broken") from error
        self.move(batch)


@caught_by("test_a_send_that_fails_takes_all_or_nothing")
class MovesThePositionWithoutTheEntries(HonestSink):
    """Sets the position whether or not the entries could be put."""

    def take(self, batch: Batch) -> None:
        try:
            super().take(batch)
        finally:
            self.move(batch)


@caught_by("test_a_send_that_failed_can_be_repeated")
class StaysBroken(HonestSink):
    """Never tries again after one failure."""

    broken = False

    def take(self, batch: Batch) -> None:
        if self.broken:
            raise SinkUnavailable("still broken")
        self.broken = True
        super().take(batch)
        self.broken = False


# -- outboxes: ours, with one thing wrong


class HastySqliteOutbox(SqliteOutbox):
    """SqliteOutbox without waiting for the disk: no power is cut here."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._conn.execute("PRAGMA synchronous = OFF")


@caught_by("test_a_new_outbox_is_empty")
class FindsSomethingOldInNothing(MemoryOutbox):
    """Gives an age where nothing is pending."""

    def stats(self) -> OutboxStats:
        stats = super().stats()
        return replace(stats, oldest=stats.oldest or datetime.now(UTC))


@caught_by("test_tasks_are_read_in_the_order_of_their_positions")
class LosesTheLastTask(MemoryOutbox):
    """Stores all but the last of three tasks, and says that it has stored three."""

    def append(self, tasks: Iterable[Any], **rest: Any) -> int:
        tasks = list(tasks)
        return super().append(tasks[:2] if len(tasks) == 3 else tasks, **rest) + (len(tasks) == 3)


@caught_by("test_tasks_are_read_in_the_order_of_their_positions")
class ReadsTheNewestFirst(MemoryOutbox):
    """Is a stack."""

    def read(self, after: int, limit: int) -> Sequence[Entry]:
        return super().read(after, limit)[::-1]


@caught_by("test_payloads_and_task_ids_come_back_exactly")
class ShortensTaskIds(MemoryOutbox):
    """Leaves out the hyphens of a UUID."""

    def read(self, after: int, limit: int) -> Sequence[Entry]:
        return [replace(entry, task_id=entry.task_id.replace("-", "")) for entry in super().read(after, limit)]


@caught_by("test_reading_goes_on_after_a_position_and_stops_at_a_limit")
class AcknowledgesOnRead(MemoryOutbox):
    """Takes what was read for delivered, as a queue without acknowledgement does."""

    def read(self, after: int, limit: int) -> Sequence[Entry]:
        entries = super().read(after, limit)
        self._acknowledged = max([self._acknowledged, *(entry.position for entry in entries)])
        return entries


@caught_by("test_what_append_returned_from_is_committed")
class CommitsLater(HastySqliteOutbox):
    """Gathers an application's tasks, and stores them when somebody asks this object."""

    def __init__(self, path: Path) -> None:
        self.gathered: list[Any] = []
        super().__init__(path)

    def append(self, tasks: Iterable[Any], **rest: Any) -> int:
        if rest.get("run") is not None:
            return super().append(tasks, **rest)
        given = list(tasks)
        for task in given:
            encode(task)
        self.gathered += given
        return len(given)

    def read(self, after: int, limit: int) -> Sequence[Entry]:
        self.store()
        return super().read(after, limit)

    def stats(self) -> OutboxStats:
        self.store()
        return super().stats()

    def acknowledge(self, position: int) -> None:
        self.store()
        super().acknowledge(position)

    def close(self) -> None:
        self.store()
        super().close()

    def store(self) -> None:
        gathered, self.gathered = self.gathered, []
        if gathered:
            super().append(gathered)


@caught_by("test_objects_on_the_same_outbox_share_it")
class RemembersWhatItRead(HastySqliteOutbox):
    """Reads the file only for what was appended here."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.known: list[Entry] | None = None

    def append(self, tasks: Iterable[Any], **rest: Any) -> int:
        self.known = None
        return super().append(tasks, **rest)

    def read(self, after: int, limit: int) -> Sequence[Entry]:
        if after or limit != 10:
            return super().read(after, limit)
        if self.known is None:
            self.known = list(super().read(0, 10))
        return self.known

    def acknowledge(self, position: int) -> None:
        self.known = None
        super().acknowledge(position)

    def reject(self, reasons: Mapping[int, str]) -> None:
        self.known = None
        super().reject(reasons)

    def finish_run(self, run: Run, report: RunReport) -> None:
        self.known = None
        super().finish_run(run, report)


@caught_by("test_append_tells_how_many_were_new")
class CountsWhatItDropped(MemoryOutbox):
    """Returns how many tasks it was given."""

    def append(self, tasks: Iterable[Any], **rest: Any) -> int:
        tasks = list(tasks)
        super().append(tasks, **rest)
        return len(tasks)


@caught_by("test_a_key_is_stored_once_a_run")
class StoresDuplicates(MemoryOutbox):
    """Drops a key it has already, unless it came twice on one page."""

    def append(self, tasks: Iterable[Any], *, run: Run | None = None, **rest: Any) -> int:
        if run is not None:
            known, self._keys = self._keys, set()
            kept = [task for task in tasks if (run.id, run.key(task)) not in known]
            new = 0
            for task in kept:
                self._keys = set()
                new += super().append([task], run=run)
            self._keys |= known | {(run.id, run.key(task)) for task in kept}
            return new + super().append([], run=run, **rest)
        return super().append(tasks, run=run, **rest)


@caught_by("test_a_key_is_any_number_or_text")
class TakesKeysForText(MemoryOutbox):
    """Keeps a key as its text."""

    def start_run(self, job: Job[Any], **rest: Any) -> Run:
        run = super().start_run(job, **rest)
        run.key = lambda task: str(job.key(task))
        return run


@caught_by("test_a_key_stays_taken_once_it_is_delivered")
class ForgetsDeliveredKeys(MemoryOutbox):
    """Drops duplicates only until the first one is acknowledged."""

    def acknowledge(self, position: int) -> None:
        super().acknowledge(position)
        self._keys -= {(row.run, row.key) for at, row in self._rows.items() if at <= position and row.run is not None}


@caught_by("test_another_run_may_use_the_same_keys")
class RemembersKeysForEver(MemoryOutbox):
    """Drops a key that any run of the job has had."""

    def append(self, tasks: Iterable[Any], *, run: Run | None = None, **rest: Any) -> int:
        if run is None:
            return super().append(tasks, **rest)
        ended = {known.run.id for known in self._runs if known.state == "complete"}
        return super().append([task for task in tasks if not self.had(ended, run, task)], run=run, **rest)

    def had(self, ended: set[str], run: Run, task: Any) -> bool:
        return any((id_, run.key(task)) in self._keys for id_ in ended)

    def _delete(self, positions: Iterable[int]) -> None:
        keys = set(self._keys)
        super()._delete(positions)
        self._keys |= keys


@caught_by("test_without_a_run_nothing_is_dropped")
class DropsApplicationTasksItKnows(MemoryOutbox):
    """Drops a task without a run whose task_id is there."""

    def append(self, tasks: Iterable[Any], *, run: Run | None = None, **rest: Any) -> int:
        if run is not None:
            return super().append(tasks, run=run, **rest)
        known = {row.task_id for row in self._rows.values()}
        return super().append([task for task in tasks if str(task.task_id) not in known], **rest)


@caught_by("test_a_page_is_stored_whole_or_not_at_all")
class StoresTaskByTask(MemoryOutbox):
    """Stores half a page if the other half cannot be encoded."""

    def append(self, tasks: Iterable[Any], **rest: Any) -> int:
        new = sum(super(StoresTaskByTask, self).append([task], run=rest.get("run")) for task in tasks)
        return new + super().append([], **rest)


@caught_by("test_a_page_is_stored_whole_or_not_at_all")
class StoresTheCheckpointFirst(HastySqliteOutbox):
    """Commits the checkpoint, then the tasks."""

    def append(self, tasks: Iterable[Any], *, checkpoint: bytes | None = None, **rest: Any) -> int:
        super().append([], run=rest.get("run"), checkpoint=checkpoint)
        return super().append(tasks, **rest)


@caught_by("test_an_error_between_two_tasks_stores_none")
class StopsAtAnError(MemoryOutbox):
    """Takes an error of whoever gives the tasks for their end."""

    def append(self, tasks: Iterable[Any], **rest: Any) -> int:
        given = []
        with suppress(LookupError):
            given.extend(iter(tasks))
        return super().append(given, **rest)


@caught_by("test_an_unfinished_run_is_resumed")
class NeverResumes(MemoryOutbox):
    """Starts a new run each time."""

    def start_run(self, job: Job[Any], **rest: Any) -> Run:
        return super().start_run(job, resume_within=timedelta(0))


@caught_by("test_an_unfinished_run_is_resumed")
class ForgetsTheCheckpoint(HastySqliteOutbox):
    """Tells the run its new checkpoint, and does not store it."""

    def append(self, tasks: Iterable[Any], *, checkpoint: bytes | None = None, **rest: Any) -> int:
        new = super().append(tasks, **rest)
        if rest.get("run") is not None and checkpoint is not None:
            rest["run"].checkpoint = checkpoint
        return new


@caught_by("test_an_unfinished_run_is_resumed")
class ResumesUnderAnotherId(MemoryOutbox):
    """Goes on with the run, but its task ids are others."""

    def start_run(self, job: Job[Any], **rest: Any) -> Run:
        run = super().start_run(job, **rest)
        if run.resumed:
            resumed = Run(
                "00000000-0000-0000-0000-000000000000",
                run.job,
                run.started_at,
                True,
                run.key,
                run.notes,
                run.checkpoint,
            )
            resumed.extracted, resumed.duplicates, resumed.expected = run.extracted, run.duplicates, run.expected
            return resumed
        return run


@caught_by("test_a_checkpoint_left_out_stays")
class DropsACheckpointThatIsNotRepeated(MemoryOutbox):
    """Takes no checkpoint for the start."""

    def append(self, tasks: Iterable[Any], **rest: Any) -> int:
        new = super().append(tasks, **rest)
        if rest.get("run") is not None:
            rest["run"].checkpoint = rest.get("checkpoint")
        return new


@caught_by("test_an_old_run_is_not_resumed_and_its_tasks_stay")
class ResumesHoweverOld(MemoryOutbox):
    """Pays no heed to the age of a run."""

    def start_run(self, job: Job[Any], **rest: Any) -> Run:
        return super().start_run(job)


@caught_by("test_an_old_run_is_not_resumed_and_its_tasks_stay")
class ClearsWhatAnOldRunLeft(MemoryOutbox):
    """Throws away the tasks of a run that it closes."""

    def start_run(self, job: Job[Any], **rest: Any) -> Run:
        run = super().start_run(job, **rest)
        closed = {known.run.id for known in self._runs if known.state == "incomplete"}
        self._delete([at for at, row in self._rows.items() if row.run in closed and row.reason is None])
        return run


@caught_by("test_a_closed_run_is_never_resumed")
class ReopensClosedRuns(MemoryOutbox):
    """Knows only runs that are complete, and others."""

    def start_run(self, job: Job[Any], *, resume_within: timedelta = timedelta(hours=1)) -> Run:
        if resume_within > timedelta(hours=1):
            for known in self._runs:
                known.state = "open" if known.state == "incomplete" else known.state
        return super().start_run(job, resume_within=resume_within)


@caught_by("test_a_complete_run_is_never_resumed")
class ResumesACompleteRun(MemoryOutbox):
    """Clears a complete run, and forgets to close it."""

    def finish_run(self, run: Run, report: RunReport) -> None:
        super().finish_run(run, report)
        self._state(run).state = "open"


@caught_by("test_an_incomplete_report_leaves_the_run_open")
class ClosesIncompleteRuns(MemoryOutbox):
    """Closes a run with whatever report."""

    def finish_run(self, run: Run, report: RunReport) -> None:
        super().finish_run(run, report)
        if not report.complete:
            self._state(run).state = "incomplete"


@caught_by("test_a_complete_run_leaves_no_task_behind")
class NeverClears(MemoryOutbox):
    """Keeps what a complete run has delivered."""

    def _clear(self, run_id: str) -> None:
        pass


@caught_by("test_a_complete_run_loses_nothing_undelivered")
class ClearsWhatIsPending(MemoryOutbox):
    """Clears the whole run once it is complete."""

    def finish_run(self, run: Run, report: RunReport) -> None:
        super().finish_run(run, report)
        if report.complete:
            self._delete([at for at, row in self._rows.items() if row.run == run.id and row.reason is None])


@caught_by("test_jobs_have_their_own_runs")
class SharesRunsBetweenJobs(MemoryOutbox):
    """Resumes whichever run is unfinished."""

    def start_run(self, job: Job[Any], **rest: Any) -> Run:
        for known in self._runs:
            known.run.job = job.name
        return super().start_run(job, **rest)


@caught_by("test_jobs_have_their_own_runs")
class ClearsOtherRuns(MemoryOutbox):
    """Clears all that is acknowledged once one run is complete."""

    def finish_run(self, run: Run, report: RunReport) -> None:
        super().finish_run(run, report)
        if report.complete:
            self._delete([at for at, _ in self._delivered()])


@caught_by("test_runs_are_remembered_newest_first")
class ListsTheOldestRunFirst(MemoryOutbox):
    """Lists runs as they came."""

    def stats(self) -> OutboxStats:
        stats = super().stats()
        return replace(stats, runs=stats.runs[::-1])


@caught_by("test_acknowledged_entries_are_no_longer_pending")
class CountsDeliveredAsPending(MemoryOutbox):
    """Counts all entries that it holds."""

    def stats(self) -> OutboxStats:
        return replace(super().stats(), pending=sum(row.reason is None for row in self._rows.values()))


@caught_by("test_the_oldest_pending_entry_has_an_age")
class TellsTimesWithoutAZone(MemoryOutbox):
    """Tells times that mean something else on every machine."""

    def stats(self) -> OutboxStats:
        stats = super().stats()
        return replace(stats, oldest=stats.oldest and stats.oldest.replace(tzinfo=None))


@caught_by("test_an_unfinished_run_keeps_what_was_acknowledged")
class ClearsWhatIsAcknowledged(MemoryOutbox):
    """Clears an entry as soon as the sink has it, and remembers its key."""

    def acknowledge(self, position: int) -> None:
        super().acknowledge(position)
        keys = set(self._keys)
        self._delete([at for at, _ in self._delivered()])
        self._keys |= keys


@caught_by("test_acknowledging_can_go_back")
class NeverGoesBack(MemoryOutbox):
    """Takes the higher of two acknowledged positions."""

    def acknowledge(self, position: int) -> None:
        super().acknowledge(max(position, self._acknowledged))


@caught_by("test_positions_are_never_reused")
class ReusesPositions(MemoryOutbox):
    """Goes on from the last entry that is left."""

    def finish_run(self, run: Run, report: RunReport) -> None:
        super().finish_run(run, report)
        self._last = max(self._rows, default=0)


@caught_by("test_positions_are_never_reused_after_a_restart")
class ReusesPositionsAfterARestart(HastySqliteOutbox):
    """When it is opened, goes on from the last entry that is left."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._conn.execute("UPDATE sqlite_sequence SET seq = (SELECT ifnull(max(position), 0) FROM outbox_entries)")


@caught_by("test_positions_grow_beyond_what_a_sink_holds")
class GivesPositionsTheSinkHolds(MemoryOutbox):
    """Goes on from its own last position, though the sink is further."""

    def acknowledge(self, position: int) -> None:
        last = self._last
        super().acknowledge(position)
        self._last = last


@caught_by("test_an_application_s_entries_are_cleared_once_delivered")
class KeepsApplicationTasksForEver(MemoryOutbox):
    """Clears nothing that has no run."""

    def _delete(self, positions: Iterable[int]) -> None:
        super()._delete([at for at in positions if self._rows[at].run is not None or self._rows[at].reason is not None])


@caught_by("test_a_rejected_entry_is_out_of_the_way")
class ReadsDeadLetters(MemoryOutbox):
    """Sends poison again and again."""

    def read(self, after: int, limit: int) -> Sequence[Entry]:
        rows = [(at, row) for at, row in self._rows.items() if at > after and row.task_id is not None]
        return [Entry(at, row.task_id or "", row.payload) for at, row in rows[:limit]]


@caught_by("test_a_rejected_entry_is_out_of_the_way")
class ChokesOnUnknownPositions(MemoryOutbox):
    """Raises an error of its own for a position it does not have."""

    def reject(self, reasons: Mapping[int, str]) -> None:
        for position in reasons:
            self._rows[position]
        super().reject(reasons)


@caught_by("test_an_entry_is_rejected_once")
class CountsRejectionsTwice(MemoryOutbox):
    """Counts a rejection of what is rejected already."""

    def reject(self, reasons: Mapping[int, str]) -> None:
        dead = {at for at, row in self._rows.items() if row.reason is not None}
        super().reject(reasons)
        for known in self._runs:
            known.rejected += sum(self._rows[at].run == known.run.id for at in dead.intersection(reasons))


@caught_by("test_a_dead_letter_keeps_its_key")
class FreesTheKeyOfADeadLetter(MemoryOutbox):
    """Stores what was refused again, the next time its page comes."""

    def reject(self, reasons: Mapping[int, str]) -> None:
        super().reject(reasons)
        self._keys -= {(row.run, row.key) for row in self._rows.values() if row.run and row.reason and row.task_id}


@caught_by("test_dead_letters_outlive_their_run")
class ClearsDeadLettersWithTheirRun(MemoryOutbox):
    """Forgets what was refused once the run is complete."""

    def finish_run(self, run: Run, report: RunReport) -> None:
        super().finish_run(run, report)
        if report.complete:
            self._delete([at for at, row in self._rows.items() if row.run == run.id and row.reason is not None])


@caught_by("test_a_record_that_is_no_task_becomes_a_dead_letter_once")
class StoresRejectedRecordsAnew(MemoryOutbox):
    """Counts a record that has no key each time it comes."""

    def append(self, tasks: Iterable[Any], *, rejected: Sequence[Rejected] = (), **rest: Any) -> int:
        start = len(self._rows)
        unlike = [
            bad if bad.key is not None else replace(bad, key=f"record {start + at}") for at, bad in enumerate(rejected)
        ]
        return super().append(tasks, rejected=unlike, **rest)


@caught_by("test_any_key_of_a_rejected_record_counts_once")
class TakesZeroForNoKey(MemoryOutbox):
    """Takes the record for its key if that is 0."""

    def append(self, tasks: Iterable[Any], *, rejected: Sequence[Rejected] = (), **rest: Any) -> int:
        return super().append(tasks, rejected=[replace(bad, key=bad.key or None) for bad in rejected], **rest)


@caught_by("test_a_rejected_record_is_any_bytes")
class TakesRecordsForText(MemoryOutbox):
    """Keeps rejected records as text, and replaces what is none."""

    def append(self, tasks: Iterable[Any], *, rejected: Sequence[Rejected] = (), **rest: Any) -> int:
        text = [replace(bad, payload=bad.payload.decode(errors="replace").encode()) for bad in rejected]
        return super().append(tasks, rejected=text, **rest)


@caught_by("test_dead_letters_can_be_listed")
class ListsLettersWithoutAZone(MemoryOutbox):
    """Tells times that mean something else on every machine."""

    def dead_letters(self) -> Iterator[DeadLetter]:
        for letter in super().dead_letters():
            yield replace(letter, rejected_at=letter.rejected_at.replace(tzinfo=None))


@caught_by("test_dead_letters_can_be_listed")
class ForgetsTheReason(MemoryOutbox):
    """Says that a letter is dead, but not why."""

    def dead_letters(self) -> Iterator[DeadLetter]:
        return (replace(letter, reason="rejected") for letter in super().dead_letters())


@caught_by("test_a_retried_letter_is_pending_at_a_new_position")
class RetriesInPlace(MemoryOutbox):
    """Makes a letter an entry again where it is, which the sink has passed."""

    def retry(self, positions: Iterable[int]) -> int:
        done = 0
        for position in positions:
            row = self._rows.get(position)
            if row is not None and row.reason is not None and row.task_id is not None:
                row.reason = row.rejected_at = None
                done += 1
        return done


@caught_by("test_a_dropped_letter_is_gone")
class DropsEntriesToo(MemoryOutbox):
    """Drops whatever is at a position."""

    def drop(self, positions: Iterable[int]) -> int:
        known = [at for at in set(positions) if at in self._rows]
        self._delete(known)
        return len(known)


@caught_by("test_the_position_of_a_dropped_letter_is_never_reused")
class ReusesThePositionOfALetter(MemoryOutbox):
    """Goes on from the last that is left after a letter was dropped."""

    def drop(self, positions: Iterable[int]) -> int:
        dropped = super().drop(positions)
        self._last = max(self._rows, default=0)
        return dropped


@caught_by("test_one_relay_at_a_time")
class LetsTwoRelaysIn(MemoryOutbox):
    """Has a lock that locks nothing."""

    def lock(self) -> AbstractContextManager[None]:
        return nullcontext()


@caught_by("test_an_error_lets_go_of_the_lock")
class StaysLockedAfterAnError(MemoryOutbox):
    """Opens its lock only if all went well."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        if not self._relay.acquire(blocking=False):
            raise OutboxLocked("in use")
        yield
        self._relay.release()


@caught_by("test_the_lock_does_not_outlive_its_process")
class LeavesALockFile(HastySqliteOutbox):
    """Takes a file that exists for a lock, and removes it at the end, if it gets there."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        path = self.path.with_suffix(".pid")
        try:
            path.touch(exist_ok=False)
        except FileExistsError as error:
            raise OutboxLocked("in use") from error
        try:
            yield
        finally:
            path.unlink()


@caught_by("test_the_id_is_its_own")
class ForgetsItsId(HastySqliteOutbox):
    """Gives itself a new id each time it is opened."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.id = f"{self.id}-{id(self)}"


class FirstNotes(MemoryNotes):
    """Notes that cannot be changed."""

    def set(self, name: str, value: bytes) -> None:
        if self.get(name) is None:
            super().set(name, value)


@caught_by("test_notes_can_be_left")
class KeepsTheFirstNote(MemoryOutbox):
    """Does not let a note be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = FirstNotes()

    @property
    def notes(self) -> Notes:
        return self.first


@caught_by("test_a_run_brings_the_notes")
class GivesRunsNotesOfTheirOwn(MemoryOutbox):
    """Keeps the notes of runs apart from its own."""

    def start_run(self, job: Job[Any], **rest: Any) -> Run:
        run = super().start_run(job, **rest)
        run.notes = MemoryNotes()
        return run


@caught_by("test_it_can_be_closed_twice")
class ClosesTheOutboxOnce(MemoryOutbox):
    """Complains when it is closed again, without having been used between."""

    closing = 0

    def stats(self) -> OutboxStats:
        self.closing = 0
        return super().stats()

    def lock(self) -> AbstractContextManager[None]:
        self.closing = 0
        return super().lock()

    def close(self) -> None:
        self.closing += 1
        if self.closing == 2 and not self._rows:
            raise RuntimeError("closed already")


@caught_by("test_everything_survives_a_restart")
class ForgetsNotes(HastySqliteOutbox):
    """Keeps notes as long as the object lives."""

    notes = Outbox.notes


class _Unguarded(MemoryOutbox):
    """A MemoryOutbox in which one thread can be held up between two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.held_up = 0
        self.gate = threading.Lock()

    def is_held_up(self, at_most: int) -> bool:
        """Say whether this call is one of the first that come from other threads."""
        with self.gate:
            self.held_up += threading.current_thread() is not threading.main_thread()
            return threading.current_thread() is not threading.main_thread() and self.held_up <= at_most


@caught_by("test_threads_may_append_side_by_side")
class GivesAPositionTwice(_Unguarded):
    """Looks for the next position, and takes it after."""

    def __init__(self) -> None:
        super().__init__()
        self.meeting = threading.Barrier(2)

    def append(self, tasks: Iterable[Any], **rest: Any) -> int:
        last = self._last
        if self.is_held_up(2):
            self.meeting.wait(10)  # two have looked: the moment that otherwise comes by chance
            with self._mutex:
                self._last = last
                return super().append(tasks, **rest)
        return super().append(tasks, **rest)


@caught_by("test_nothing_appears_behind_a_reader")
class GivesPositionsBeforeTheyShow(_Unguarded):
    """Gives a position when an append begins, and shows the entry when it ends, as sequences of databases do."""

    def __init__(self) -> None:
        super().__init__()
        self.late = 0
        self.overtaken = threading.Event()

    def append(self, tasks: Iterable[Any], **rest: Any) -> int:
        if not self.is_held_up(1):
            return super().append(tasks, **rest)
        with self._mutex:
            new = super().append(tasks, **rest)
            late = {self._last: self._rows.pop(self._last)}
            self.late = self._last
        self.overtaken.wait(10)  # until a reader has passed by
        with self._mutex:
            self._rows = dict(sorted({**self._rows, **late}.items()))
        return new

    def read(self, after: int, limit: int) -> Sequence[Entry]:
        entries = super().read(after, limit)
        if self.late and entries and entries[-1].position > self.late:
            self.overtaken.set()
        return entries


# -- the contracts on all of them


class KitSinkContract(SinkContract):
    """The contract of a sink on a shelf."""

    capabilities = Capabilities(bounded=True, rejects=True, interruptible=True)
    backend: type[HonestSink] = HonestSink

    @pytest.fixture
    def shelf(self) -> Shelf:
        """Give an empty shelf."""
        return Shelf()

    @pytest.fixture
    def place(self, shelf: Shelf) -> Place:
        """Deliver to the shelf."""

        def fill() -> None:
            shelf.capacity = len(shelf.payloads) + 20

        return Place(lambda: self.backend(shelf), lambda: shelf.payloads, fill, POISON)

    @pytest.fixture
    def interrupt(self, shelf: Shelf) -> Callable[[], AbstractContextManager[object]]:
        """Break the shelf."""
        return shelf.breaking


class KitSqliteContract(OutboxContract):
    """The contract of an outbox in a file."""

    backend: type[HastySqliteOutbox] = HastySqliteOutbox

    @pytest.fixture
    def open_outbox(self, tmp_path: Path) -> Callable[[], Outbox]:
        """Open the same file each time."""
        return lambda: self.backend(tmp_path / "tasks.db")


class KitMemoryContract(OutboxContract):
    """The contract of an outbox in memory."""

    capabilities = Capabilities(durable=False)
    backend: type[MemoryOutbox] = MemoryOutbox

    @pytest.fixture
    def open_outbox(self) -> Callable[[], Outbox]:
        """Give the same object each time."""
        outbox = self.backend()
        return lambda: outbox


class KitWithoutPlace(SinkContract):
    """A subclass whose author forgot the fixture."""


class KitWithoutOutbox(OutboxContract):
    """A subclass whose author forgot the fixture."""


class KitOfLittle(KitSinkContract):
    """A sink that says it can do nothing special."""

    capabilities = Capabilities(durable=False, tracks_position=False)


HONEST = [KitSinkContract, KitSqliteContract, KitMemoryContract]


def _kit(backend: type) -> type:
    """Make the contract class that the inner pytest runs on a broken backend."""
    base: type = next(kit for kit in HONEST if issubclass(backend, kit.backend))
    return type(f"Kit{backend.__name__}", (base,), {"backend": backend, "__module__": __name__})


WHOLE = {kit.__name__: kit for kit in (*HONEST, KitWithoutPlace, KitWithoutOutbox, KitOfLittle)}
BROKEN = {f"Kit{backend.__name__}": _kit(backend) for backend in CAUGHT_BY}
globals().update(BROKEN)  # for the inner pytest to collect
SLIPS = (AttributeError, ImportError, NameError, RecursionError, SyntaxError, TypeError)
"""What a broken backend never raises by design: a test that fails with one of these proves nothing."""

Outcome = tuple[str, str]
"""passed, failed, error or skipped, and why."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Outcome]]:
    """Run the kits in one pytest of its own; return the outcome of each test by kit and name."""
    wanted = [*WHOLE, *(f"Kit{backend.__name__}::{test}" for backend, test in CAUGHT_BY.items())]
    folder = tmp_path_factory.mktemp("kit")
    (folder / "pytest.ini").write_text("[pytest]\npython_classes = Kit\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "--noconftest"),
            *("-c", str(folder / "pytest.ini"), "--rootdir", str(folder), "--basetemp", str(folder / "tmp")),
            *("--junitxml", str(folder / "outcomes.xml"), *(f"{__file__}::{one}" for one in wanted)),
        ],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout[-2000:] + done.stderr
    found: dict[str, dict[str, Outcome]] = {kit: {} for kit in (*WHOLE, *BROKEN)}
    for case in ET.parse(folder / "outcomes.xml").iter("testcase"):  # noqa: S314 - written by our own pytest
        kit = case.attrib["classname"].rpartition(".")[2]
        verdict: Outcome = ("passed", "")
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                verdict = (child.tag.replace("failure", "failed"), child.attrib["message"])
        found[kit][case.attrib["name"]] = verdict
    return found


def _names(outcomes: Mapping[str, Outcome], *verdicts: str) -> set[str]:
    return {name for name, (verdict, _) in outcomes.items() if verdict in verdicts}


def _tests(contract: type) -> set[str]:
    return {name for name in dir(contract) if name.startswith("test_")}


@pytest.mark.parametrize("backend", CAUGHT_BY, ids=lambda backend: backend.__name__)
def test_a_broken_backend_fails_the_test_that_says_so(backend: type, outcomes: dict[str, dict[str, Outcome]]) -> None:
    """Whatever a backend does wrong, the test named beside it fails, and not by a slip of the backend's code."""
    ((test, (verdict, why)),) = outcomes[f"Kit{backend.__name__}"].items()
    assert (test, verdict) == (CAUGHT_BY[backend], "failed"), why
    assert not why.startswith(tuple(slip.__name__ for slip in SLIPS)), why


@pytest.mark.parametrize("kit", HONEST, ids=lambda kit: kit.__name__)
def test_an_honest_backend_passes(kit: type, outcomes: dict[str, dict[str, Outcome]]) -> None:
    """What the broken ones are made of passes every test, and skips only what its capabilities say."""
    found = outcomes[kit.__name__]
    assert {name: why for name, (verdict, why) in found.items() if verdict in ("failed", "error")} == {}
    skipped = _names(found, "skipped")
    assert _names(found, "passed") | skipped == _tests(kit)
    assert bool(skipped) is (kit is KitMemoryContract)
    assert {found[name][1] for name in skipped} <= {"this backend says durable=False in its Capabilities"}


@pytest.mark.parametrize("contract", [SinkContract, OutboxContract])
def test_each_test_of_a_contract_catches_something(contract: type) -> None:
    """No test is there for nothing: for each there is a backend above whose flaw it is the one to name."""
    named = {test for backend, test in CAUGHT_BY.items() if issubclass(BROKEN[f"Kit{backend.__name__}"], contract)}
    assert named == _tests(contract)


@pytest.mark.parametrize("contract", [SinkContract, OutboxContract])
def test_each_test_of_a_contract_says_what_it_promises(contract: type) -> None:
    """Names and docstrings are the specification: each is there, no two are the same, and each is a sentence."""
    promises = [getattr(contract, name).__doc__ or "" for name in _tests(contract)]
    assert len(set(promises)) == len(promises)
    for promise in promises:
        assert promise[:1].isupper()
        assert promise.endswith(".")


def test_what_a_backend_cannot_do_is_skipped_with_the_reason(outcomes: dict[str, dict[str, Outcome]]) -> None:
    """A skip names the field of Capabilities that led to it."""
    found = outcomes["KitOfLittle"]
    reasons = {found[name][1] for name in _names(found, "skipped")}
    assert reasons == {
        f"this backend says {what}=False in its Capabilities"
        for what in ("bounded", "durable", "interruptible", "rejects", "tracks_position")
    }
    assert "test_a_batch_is_held_whole_and_in_order" in _names(found, "passed")


@pytest.mark.parametrize(("kit", "fixture"), [("KitWithoutPlace", "place"), ("KitWithoutOutbox", "open_outbox")])
def test_a_forgotten_fixture_is_named(kit: str, fixture: str, outcomes: dict[str, dict[str, Outcome]]) -> None:
    """An author who gave no fixture is told which, and where to read about it."""
    verdicts = {outcome for outcome in outcomes[kit].values() if outcome[0] != "skipped"}
    (verdict,) = {(verdict, message.partition(": ")[2]) for verdict, message in verdicts}
    assert verdict[0] == "error"
    assert f"give your subclass a fixture named {fixture}, see owm_outbox.testing" in verdict[1]
