"""Sinks that refuse a batch in the wrong way: no room, poison, or a failure midway."""
# ruff: noqa: D102 - what the methods of a broken backend do is in the docstring of its class

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress

from owm_outbox import Batch, EntriesRejected, SinkFull, SinkUnavailable

from support.contract_kit.registry import caught_by
from support.contract_kit.shelf import POISON, HonestSink


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
    """Takes what fits, drops the rest, and reports success."""

    def refuse_more_than_fits(self, batch: Batch) -> None:
        pass

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        return super().payloads(batch)[: self.shelf.capacity - len(self.shelf.payloads)]


@caught_by("test_a_full_sink_takes_nothing_and_says_so")
class MovesTheMarkFirst(HonestSink):
    """Sets the mark, then looks whether there is room."""

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
class HoldsWhatIsBeforePoison(HonestSink):
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
class MovesTheMarkWithoutTheEntries(HonestSink):
    """Sets the mark whether or not the entries could be put."""

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


@caught_by("test_a_full_sink_takes_nothing_and_says_so")
class DropsTheOldestWhenFull(HonestSink):
    """Makes room by dropping what nobody has read."""

    def refuse_more_than_fits(self, batch: Batch) -> None:
        room = self.shelf.capacity - len(self.shelf.payloads)
        del self.shelf.payloads[: max(0, len(batch.entries) - room)]


@caught_by("test_a_full_sink_takes_nothing_and_says_so")
class CallsFullUnavailable(HonestSink):
    """Says that it is down where it is only full."""

    def refuse_more_than_fits(self, batch: Batch) -> None:
        try:
            super().refuse_more_than_fits(batch)
        except SinkFull as error:
            raise SinkUnavailable("no room") from error


@caught_by("test_a_send_that_fails_says_so")
class CallsAFailurePoison(HonestSink):
    """Blames the entries for a failure of the shelf: they would all become dead letters."""

    def take(self, batch: Batch) -> None:
        try:
            super().take(batch)
        except SinkUnavailable as error:
            raise EntriesRejected({entry.position: str(error) for entry in batch.entries}) from error


@caught_by("test_a_send_that_failed_can_be_repeated")
class RetriesWhatItHolds(HonestSink):
    """After a failure, keeps the batch for the next send, which then adds both."""

    kept: tuple[bytes, ...] = ()

    def take(self, batch: Batch) -> None:
        try:
            super().take(batch)
        except SinkUnavailable:
            self.kept = tuple(self.payloads(batch))
            raise
        self.shelf.payloads += self.kept
        self.kept = ()
