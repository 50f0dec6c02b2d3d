"""Sinks that do not hold a batch whole."""
# ruff: noqa: D102 - what the methods of a broken backend do is in the docstring of its class

from __future__ import annotations

import json
from collections.abc import Sequence

from owm_outbox import Batch, MarkConflict

from support.contract_kit.registry import caught_by
from support.contract_kit.shelf import HonestSink


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
class EncodesPayloadsAgain(HonestSink):
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
    """Holds a single entry back until there are more."""

    waiting: tuple[bytes, ...] = ()

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        ready = [*self.waiting, *super().payloads(batch)]
        self.waiting = tuple(ready) if len(ready) == 1 else ()
        return [] if len(ready) == 1 else ready


class DropsWhatIsBeyond(HonestSink):
    """Holds only the first entries of a batch, as a request that was cut at some limit does."""

    limit = 0

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        return super().payloads(batch)[: self.limit]


@caught_by("test_batches_of_the_usual_size_are_held", "two batches of 500 entries were sent, but 40 entries are held")
class DropsWhatIsBeyond20(DropsWhatIsBeyond):
    """Drops whatever is beyond 20 entries of a batch."""

    limit = 20


@caught_by("test_batches_of_the_usual_size_are_held", "two batches of 500 entries were sent, but 120 entries are held")
class DropsWhatIsBeyond60(DropsWhatIsBeyond):
    """Drops whatever is beyond 60 entries of a batch."""

    limit = 60


@caught_by("test_batches_of_the_usual_size_are_held", "two batches of 500 entries were sent, but 200 entries are held")
class DropsWhatIsBeyond100(DropsWhatIsBeyond):
    """Drops whatever is beyond 100 entries of a batch."""

    limit = 100


@caught_by("test_batches_of_the_usual_size_are_held", "two batches of 500 entries were sent, but 400 entries are held")
class DropsWhatIsBeyond200(DropsWhatIsBeyond):
    """Drops whatever is beyond 200 entries of a batch."""

    limit = 200


@caught_by("test_batches_of_the_usual_size_are_held")
class DropsWhatIsBeyond499(DropsWhatIsBeyond):
    """Drops the last entry of the relay's usual batch."""

    limit = 499


@caught_by("test_batches_of_the_usual_size_are_held")
class InsertsInParallel(HonestSink):
    """Writes large batches in chunks, of which the last is done first."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        whole = super().payloads(batch)
        return [payload for at in range(0, len(whole), 100)[::-1] for payload in whole[at : at + 100]]


@caught_by("test_batches_of_many_entries_are_held")
class DropsWhatIsBeyond1024(DropsWhatIsBeyond):
    """Drops whatever is beyond 1,024 entries of a batch."""

    limit = 1024


@caught_by("test_batches_of_many_entries_are_held")
class SendsManyTwice(HonestSink):
    """Writes in chunks of 1,000, and begins each at the last entry of the one before."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        whole = super().payloads(batch)
        return [payload for at in range(0, len(whole), 1000) for payload in whole[max(0, at - 1) : at + 1000]]


@caught_by("test_the_largest_batch_is_held")
class CutsAtFourMebibytes(HonestSink):
    """Drops the entries for which a request of 4 MiB has no room."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        kept, left = [], 4 * 2**20
        for payload in super().payloads(batch):
            left -= len(payload)
            if left >= 0:
                kept.append(payload)
        return kept


@caught_by("test_a_large_payload_is_held_whole")
class CutsLargePayloads(HonestSink):
    """Keeps the first 64,000 bytes of a payload."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        return [payload[:64_000] for payload in super().payloads(batch)]


@caught_by("test_positions_may_have_gaps")
class NeedsConsecutivePositions(HonestSink):
    """Takes a batch only if it starts right after the held position and leaves none out."""

    def refuse_conflict(self, batch: Batch) -> None:
        super().refuse_conflict(batch)
        if batch.mark.position - batch.after.position != len(batch.entries) and len(batch.entries) > 1:
            raise MarkConflict(batch.after)


@caught_by("test_positions_may_have_gaps")
class FillsGaps(HonestSink):
    """Keeps an empty entry for each position that a batch leaves out."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        by_position = {entry.position: entry.payload for entry in batch.entries}
        return [by_position.get(at, b"") for at in range(batch.after.position + 1, batch.mark.position + 1)]


@caught_by("test_the_same_task_at_two_positions_is_held_twice")
class DropsTasksItKnows(HonestSink):
    """Tells entries apart by their payload, not by their position."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        return [payload for payload in dict.fromkeys(super().payloads(batch)) if payload not in self.shelf.payloads]


@caught_by("test_a_key_and_headers_change_no_payload")
class WritesHeadersIntoThePayload(HonestSink):
    """Puts an entry's headers in front of its payload."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        return [
            json.dumps(dict(entry.headers)).encode() * bool(entry.headers) + entry.payload for entry in batch.entries
        ]


@caught_by("test_a_key_and_headers_change_no_payload")
class KeepsOneEntryPerKey(HonestSink):
    """Drops the entries without a key but the last, as a compacted topic does."""

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        if all(entry.key is None for entry in batch.entries):
            return super().payloads(batch)
        return [entry.payload for entry in batch.entries if entry.key is not None]
