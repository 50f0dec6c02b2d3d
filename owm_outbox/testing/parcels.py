"""Tasks, a job and batches to test with."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

import msgspec

from owm_outbox.entry import NOTHING, Batch, Entry, Key, Mark
from owm_outbox.errors import SinkFull
from owm_outbox.job import Job, Page
from owm_outbox.run import Run
from owm_outbox.sink import Sink

__all__ = [
    "Parcel",
    "ParcelJob",
    "batch_of",
    "deliver",
    "numbers",
    "parcel_batch",
    "parcel_batches",
    "parcel_mark",
    "payloads",
]

_LEASE = "5ca1ab1e"


class Parcel(msgspec.Struct, frozen=True):
    """A task to test with."""

    task_id: uuid.UUID
    number: int
    address: str = "Zürich, 東京"


class ParcelJob(Job[Parcel]):
    """A job to test with: ``count`` parcels in pages of ``size``, keyed by their number."""

    name = "parcels"

    def __init__(self, count: int = 30, size: int = 10) -> None:
        super().__init__()
        self.count = count
        self.size = size

    def key(self, task: Parcel) -> Key:
        """Tell parcels apart by their number."""
        return task.number

    def pages(self, run: Run) -> Iterator[Page[Parcel]]:
        """Yield what comes after the checkpoint, which is the number of the next parcel."""
        for first in range(int(run.checkpoint or 0), self.count, self.size):
            after = min(first + self.size, self.count)
            tasks = [Parcel(run.task_id(number), number) for number in range(first, after)]
            yield Page(tasks, str(after).encode(), expected=self.count)


def _task_id(outbox_id: str, position: int) -> str:
    return str(uuid.uuid5(uuid.UUID(int=0), f"{outbox_id} {position}"))


def parcel_mark(outbox_id: str, position: int) -> Mark:
    """Return the mark that a batch of `parcel_batch` leaves whose last entry is at this position."""
    return Mark(f"{position} {_LEASE} {_task_id(outbox_id, position)}") if position else NOTHING


def parcel_batch(outbox_id: str, after: int, count: int) -> Batch:
    """Make a batch of ``count`` entries at the positions that follow ``after``, with the marks that belong to them.

    No other encoder writes these payloads: a sink that decodes them and encodes them again changes them. In one text
    they hold escapes, Latin, Japanese, four-byte characters and both characters at which only Unicode ends a line.
    """
    entries = []
    for position in range(after + 1, after + 1 + count):
        task_id = _task_id(outbox_id, position)
        text = f'{{"task_id":"{task_id}" , "number": {position},"address":"Z\\u00fcrich ü 東京 📦 \x85 \u2028 \\n"}}'
        entries.append(Entry(position, task_id, text.encode()))
    return batch_of(outbox_id, after, entries)


def parcel_batches(outbox_id: str, *counts: int) -> list[Batch]:
    """Make batches of these sizes that follow each other."""
    batches, after = [], 0
    for count in counts:
        batches.append(parcel_batch(outbox_id, after, count))
        after += count
    return batches


def batch_of(outbox_id: str, after: int, entries: Sequence[Entry]) -> Batch:
    """Make a batch of these entries, with the marks of `parcel_mark`."""
    mark = parcel_mark(outbox_id, entries[-1].position)
    return Batch(outbox_id, parcel_mark(outbox_id, after), tuple(entries), mark)


def deliver(sink: Sink, batch: Batch) -> None:
    """Send a batch as a relay does: in smaller ones, if ``SinkFull.room`` says that the sink takes fewer at once."""
    rest = batch
    while True:
        try:
            sink.send(rest)
        except SinkFull as full:
            if not 0 < full.room < len(rest.entries):
                raise
            part = batch_of(rest.outbox_id, rest.after.position, rest.entries[: full.room])
            sink.send(part)
            rest = batch_of(rest.outbox_id, part.mark.position, rest.entries[full.room :])
        else:
            return


def payloads(*batches: Batch) -> list[bytes]:
    """Return the payloads of all entries, in order."""
    return [entry.payload for batch in batches for entry in batch.entries]


def numbers(entries: Sequence[Entry]) -> list[int]:
    """Return the numbers of the parcels that these entries are."""
    return [msgspec.json.decode(entry.payload, type=Parcel).number for entry in entries]
