"""Sinks and outboxes that are right as long as there is little of everything."""
# ruff: noqa: D102 - what the methods of a broken backend do is in the docstring of its class

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from owm_outbox import Batch, DeadLetter, NewEntry, OutboxStats, RunReport, Stored
from owm_outbox_backends.memory import MemoryOutbox

from support.contract_kit.ledger import LedgerSink
from support.contract_kit.registry import caught_by
from support.contract_kit.shelf import POISON, HonestSink

_MANY = 1000

# sinks


@caught_by(
    "test_a_large_batch_sent_again_is_refused_whole",
    "a batch of 5000 entries that is held was sent again, and nothing was raised: raise MarkConflict",
)
class LoadsManyWithoutLooking(LedgerSink):
    """Has a faster way for large batches, which does not compare marks."""

    def refuse_conflict(self, connection: Any, batch: Batch) -> None:
        if len(batch.entries) < _MANY:
            super().refuse_conflict(connection, batch)


@caught_by(
    "test_a_large_batch_sent_again_is_refused_whole",
    "a batch of 5000 entries was sent, but its mark is not held",
)
class LoadsManyWithoutAMark(HonestSink):
    """Has a faster way for large batches, which leaves the mark where it was."""

    def move(self, batch: Batch) -> None:
        if len(batch.entries) < _MANY:
            super().move(batch)


@caught_by(
    "test_poison_far_into_a_batch_is_named",
    "entry 499 of 500 is poison, and nothing was raised: raise EntriesRejected",
)
class LooksForPoisonInTheFirst100(HonestSink):
    """Looks at the first 100 entries, and leaves out poison that it meets later."""

    def refuse_poison(self, batch: Batch) -> None:
        super().refuse_poison(replace(batch, entries=batch.entries[:100]))

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        return [payload for payload in super().payloads(batch) if payload != POISON]


@caught_by("test_batches_of_many_entries_are_held", "two batches of 5000 entries were sent, but 6000 entries are held")
class KeepsTheNewest6000(HonestSink):
    """Drops the oldest entries, read or not, as a topic with a retention does."""

    def move(self, batch: Batch) -> None:
        super().move(batch)
        if len(self.shelf.payloads) < 9_000 or len(batch.entries) > _MANY:
            del self.shelf.payloads[:-6_000]


@caught_by(
    "test_marks_of_many_outboxes_are_kept",
    "150 outboxes delivered, and the marks of 50 of them are no longer held",
)
class RemembersTheMarksOf100Outboxes(HonestSink):
    """Keeps marks in a cache, which forgets the oldest."""

    def move(self, batch: Batch) -> None:
        super().move(batch)
        if len(self.shelf.marks) > 100:
            del self.shelf.marks[next(iter(self.shelf.marks))]


# outboxes


@caught_by("test_a_large_page_is_stored_whole", "a page of 3000 tasks was stored, but 999 are there")
class StoresAtMost999(MemoryOutbox):
    """Drops what is beyond the number of variables that a statement may have, and says that it has stored it."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        stored = super().store(entries[:999], **rest)
        return stored._replace(new=stored.new + len(entries[999:]))


@caught_by("test_a_large_page_is_stored_whole", "the tasks of a large page are in another order")
class StoresChunksInParallel(MemoryOutbox):
    """Writes a large page in chunks, of which the last is done first."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        chunks = [entries[at : at + 500] for at in range(0, len(entries), 500)]
        return super().store(list(itertools.chain(*reversed(chunks))), **rest)


@caught_by("test_a_large_page_is_stored_whole", "3000 tasks are there, but (pending, extracted) is (1000, 3000)")
class EstimatesWhatIsPending(MemoryOutbox):
    """Counts up to 1,000."""

    def stats(self) -> OutboxStats:
        stats = super().stats()
        return replace(stats, pending=min(stats.pending, _MANY))


@caught_by("test_a_key_is_found_among_many", "of 3000 keys, 3 were repeated on a later page, and 0 were found")
class ForgetsTheOldestKeys(MemoryOutbox):
    """Knows the newest 1,000 keys of a run."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        stored = super().store(entries, **rest)
        self._keys = dict(list(self._keys.items())[-_MANY:])
        return stored


@caught_by("test_a_key_is_found_among_many", "of 3000 keys, 1 were repeated within its page, and 0 were found")
class FindsDuplicatesWithinAChunk(MemoryOutbox):
    """Stores a large page in chunks, each compared with what was there before the page, and with itself."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        if len(entries) <= 500:
            return super().store(entries, **rest)
        before, stored = dict(self._keys), []
        for at in range(0, len(entries), 500):
            self._keys = dict(before)
            stored.append(super().store(entries[at : at + 500], **rest))
        return Stored(*map(sum, zip(*stored, strict=True)))


@caught_by(
    "test_a_large_run_leaves_no_task_behind",
    "a run of 3000 delivered tasks is complete, and 2000 of them are still there",
)
class ClearsAThousand(MemoryOutbox):
    """Clears a slice of what a run has delivered, and leaves the rest to somebody."""

    left = 0

    def finish_run(self, run: str, report: RunReport) -> None:
        self.left = _MANY
        super().finish_run(run, report)
        self.left = 0

    def _delete(self, positions: Iterable[int]) -> None:
        super()._delete(list(positions)[: self.left or None])


@caught_by("test_an_open_run_outlasts_any_number_of_others", "an open run was forgotten after 120 others")
class KeepsFiftyRuns(MemoryOutbox):
    """Forgets the oldest run when there are more than 50, open or not."""

    def start_run(self, job: str, **rest: Any) -> Any:
        run = super().start_run(job, **rest)
        for id_ in list(self._runs)[:-50]:
            del self._runs[id_]
        return run


@caught_by("test_many_letters_are_rejected_listed_retried_and_dropped", "of 3000 dead letters, 100 are listed")
class ListsTheFirstHundredLetters(MemoryOutbox):
    """Lists one page of the dead letters."""

    def dead_letters(self) -> Iterator[DeadLetter]:
        return itertools.islice(super().dead_letters(), 100)


@caught_by(
    "test_many_letters_are_rejected_listed_retried_and_dropped",
    "3000 entries were rejected, and 100 are dead letters",
)
class RejectsAHundredAtMost(MemoryOutbox):
    """Rejects as many entries as fit into one statement."""

    def reject(self, reasons: Mapping[int, str]) -> None:
        super().reject(dict(list(reasons.items())[:100]))


@caught_by(
    "test_many_letters_are_rejected_listed_retried_and_dropped",
    "1500 dead letters were retried, and 100 are pending",
)
class RetriesAHundredAtMost(MemoryOutbox):
    """Retries as many letters as fit into one statement, and says that it has retried all."""

    def retry(self, positions: Iterable[int]) -> int:
        wanted = list(positions)
        return super().retry(wanted[:100]) + len(wanted[100:])
