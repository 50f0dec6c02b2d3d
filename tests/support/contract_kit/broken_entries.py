"""Outboxes that are wrong about the entries they store and read."""
# ruff: noqa: D102 - what the methods of a broken backend do is in the docstring of its class

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from owm_outbox import (
    MAX_BYTES,
    NO_HEADERS,
    Entry,
    Key,
    Mark,
    NewEntry,
    OutboxStats,
    RunReport,
    Stored,
    TaskError,
    encode,
)
from owm_outbox_backends.memory import MemoryOutbox

from support.contract_kit.outboxes import HastySqliteOutbox
from support.contract_kit.registry import caught_by


@caught_by("test_a_new_outbox_is_empty")
class FindsSomethingOldInNothing(MemoryOutbox):
    """Gives an age where nothing is pending."""

    def stats(self) -> OutboxStats:
        stats = super().stats()
        return replace(stats, oldest=stats.oldest or datetime.now(UTC))


@caught_by("test_a_new_outbox_is_empty")
class HasAcknowledgedZero(MemoryOutbox):
    """Says "0" where nothing is acknowledged: to the relay a mark of another history."""

    def stats(self) -> OutboxStats:
        stats = super().stats()
        return replace(stats, acknowledged=Mark(stats.acknowledged or "0"))


@caught_by("test_tasks_are_read_in_the_order_of_their_positions")
class LosesTheLastTask(MemoryOutbox):
    """Stores all but the last of three tasks, and says that it has stored three."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        lost = len(entries) == 3
        stored = super().store(entries[:2] if lost else entries, **rest)
        return stored._replace(new=stored.new + lost)


@caught_by("test_tasks_are_read_in_the_order_of_their_positions")
class ReadsTheNewestFirst(MemoryOutbox):
    """Is a stack."""

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        return super().read(after, limit, max_bytes)[::-1]


class ReadsOtherwise(MemoryOutbox):
    """Reads each entry with a change."""

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        return [self.changed(entry) for entry in super().read(after, limit, max_bytes)]

    def changed(self, entry: Entry) -> Entry:
        """Return what is read instead."""
        return entry


@caught_by("test_a_task_is_read_as_its_json")
class ShortensTaskIds(ReadsOtherwise):
    """Leaves out the hyphens of a UUID."""

    def changed(self, entry: Entry) -> Entry:
        return entry._replace(task_id=entry.task_id.replace("-", ""))


@caught_by("test_an_entry_is_read_as_it_was_stored")
class TakesPayloadsForJson(ReadsOtherwise):
    """Keeps payloads in a column of type JSON, which writes them in a form of its own."""

    def changed(self, entry: Entry) -> Entry:
        return entry._replace(payload=json.dumps(json.loads(entry.payload), separators=(",", ":")).encode())


@caught_by("test_an_entry_is_read_as_it_was_stored")
class TakesKeysForNumbers(ReadsOtherwise):
    """Reads a key that looks like a number as one."""

    def changed(self, entry: Entry) -> Entry:
        digits = isinstance(entry.key, str) and entry.key.isdecimal()
        return entry._replace(key=int(entry.key or 0)) if digits else entry


@caught_by("test_an_entry_is_read_as_it_was_stored")
class ForgetsKeys(ReadsOtherwise):
    """Keeps a key to find duplicates, but does not read it back."""

    def changed(self, entry: Entry) -> Entry:
        return entry._replace(key=None)


@caught_by("test_an_entry_is_read_as_it_was_stored")
class KeepsHeadersAsHttpDoes(ReadsOtherwise):
    """Drops headers without a name, and joins the lines of a value."""

    def changed(self, entry: Entry) -> Entry:
        kept = {name: re.sub(r"\s+", " ", value) for name, value in entry.headers.items() if name}
        return entry._replace(headers=kept)


@caught_by("test_headers_are_stored_with_each_task")
class ForgetsHeaders(ReadsOtherwise):
    """Stores no headers."""

    def changed(self, entry: Entry) -> Entry:
        return entry._replace(headers=NO_HEADERS)


@caught_by("test_headers_are_stored_with_each_task")
class KeepsHeadersOfTheLastAppend(MemoryOutbox):
    """Takes the headers of the append before where there are none."""

    last: Mapping[str, str] = NO_HEADERS

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        self.last = next((entry.headers for entry in entries if entry.headers), self.last)
        return super().store([entry._replace(headers=self.last) for entry in entries], **rest)


@caught_by("test_reading_continues_after_a_position_and_stops_at_a_limit")
class AcknowledgesOnRead(MemoryOutbox):
    """Takes what was read for delivered, as a queue without acknowledgement does."""

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        entries = super().read(after, limit, max_bytes)
        if entries and entries[-1].position > self._acknowledged.position:
            self._acknowledged = Mark.of(entries[-1], "read")
        return entries


@caught_by("test_reading_continues_after_a_position_and_stops_at_a_limit")
class ReadsFromAPosition(MemoryOutbox):
    """Reads what is at ``after``, too."""

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        return super().read(max(0, after - 1), limit, max_bytes)


@caught_by("test_reading_stops_before_there_are_too_many_bytes")
class ReadsAsMuchAsThereIs(MemoryOutbox):
    """Reads ``limit`` entries, however large."""

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        return super().read(after, limit)


@caught_by("test_reading_stops_before_there_are_too_many_bytes")
class ReadsNothingThatIsTooLarge(MemoryOutbox):
    """Reads nothing if already the first entry is larger than ``max_bytes``: it would never be delivered."""

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        found = super().read(after, limit, max_bytes)
        return [] if found and len(found[0].payload) > max_bytes else found


@caught_by("test_reading_stops_before_there_are_too_many_bytes")
class ReadsOneTooMany(MemoryOutbox):
    """Stops after the entry with which there are too many bytes."""

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        found = super().read(after, limit, max_bytes)
        return super().read(after, min(limit, len(found) + 1))


@caught_by("test_append_tells_what_became_of_each")
class CountsWhatItDropped(MemoryOutbox):
    """Returns how many tasks it was given."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        stored = super().store(entries, **rest)
        return stored._replace(new=stored.new + stored.duplicates)


@caught_by("test_append_tells_what_became_of_each")
class CountsDeadLettersAsNew(MemoryOutbox):
    """Counts records that are not tasks among those it stored."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        stored = super().store(entries, **rest)
        return stored._replace(new=stored.new + stored.rejected)


@caught_by("test_without_a_run_nothing_is_dropped")
class DropsApplicationTasksItKnows(MemoryOutbox):
    """Drops a task without a run whose task_id is there."""

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        known = set() if run else {row.task_id for row in self._rows.values()}
        return super().store([entry for entry in entries if entry.task_id not in known], run=run, **rest)


@caught_by("test_without_a_run_nothing_is_dropped")
class DropsApplicationKeysItKnows(MemoryOutbox):
    """Drops a task without a run whose key is there, as UNIQUE NULLS NOT DISTINCT does."""

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        if run is None:
            entries = list({entry.key or at: entry for at, entry in enumerate(entries)}.values())
        return super().store(entries, run=run, **rest)


@caught_by("test_what_append_returned_from_is_committed")
class CommitsLater(HastySqliteOutbox):
    """Gathers an application's tasks, and stores them when somebody asks this object."""

    gathered: tuple[NewEntry, ...] = ()

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        if run is not None:
            return super().store(entries, run=run, **rest)
        self.gathered += tuple(entries)
        return Stored(len(entries))

    def commit(self) -> None:
        """Store what was gathered."""
        gathered, self.gathered = self.gathered, ()
        if gathered:
            super().store(gathered)

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        self.commit()
        return super().read(after, limit, max_bytes)

    def stats(self) -> OutboxStats:
        self.commit()
        return super().stats()

    def close(self) -> None:
        self.commit()
        super().close()


@caught_by("test_objects_on_the_same_outbox_share_it")
class RemembersWhatItRead(HastySqliteOutbox):
    """Reads the file only for what was appended here."""

    known: list[Entry] | None = None

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        self.known = None
        return super().store(entries, **rest)

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        if after or limit != 10:
            return super().read(after, limit, max_bytes)
        if self.known is None:
            self.known = list(super().read(0, 10))
        return self.known

    def acknowledge(self, mark: Mark) -> None:
        self.known = None
        super().acknowledge(mark)

    def reject(self, reasons: Mapping[int, str]) -> None:
        self.known = None
        super().reject(reasons)

    def finish_run(self, run: str, report: RunReport) -> None:
        self.known = None
        super().finish_run(run, report)


@caught_by("test_objects_on_the_same_outbox_share_it")
class AcknowledgesInMemory(HastySqliteOutbox):
    """Writes the acknowledged mark when it is closed."""

    mark: Mark | None = None

    def acknowledge(self, mark: Mark) -> None:
        self.mark = mark

    def stats(self) -> OutboxStats:
        stats = super().stats()
        return stats if self.mark is None else replace(stats, acknowledged=self.mark)

    def close(self) -> None:
        mark, self.mark = self.mark, None
        if mark is not None:
            super().acknowledge(mark)
        super().close()


@caught_by("test_a_page_is_stored_whole_or_not_at_all")
class StoresTaskByTask(MemoryOutbox):
    """Stores half a page if the other half cannot be encoded."""

    def append(self, tasks: Iterable[Any], **rest: Any) -> Stored:
        stored = [super(StoresTaskByTask, self).append([task], run=rest.get("run")).new for task in tasks]
        last = super().append([], **rest)
        return last._replace(new=sum(stored))


@caught_by("test_a_page_is_stored_whole_or_not_at_all")
class StoresTheCheckpointFirst(HastySqliteOutbox):
    """Commits the checkpoint, then the tasks."""

    def append(self, tasks: Iterable[Any], *, checkpoint: bytes | None = None, **rest: Any) -> Stored:
        super().append([], run=rest.get("run"), checkpoint=checkpoint)
        return super().append(tasks, **rest)


@caught_by("test_an_error_between_two_tasks_stores_none")
class StopsAtAnError(MemoryOutbox):
    """Takes an error of the generator for its end."""

    def append(self, tasks: Iterable[Any], **rest: Any) -> Stored:
        given: list[Any] = []
        with suppress(LookupError):
            given.extend(iter(tasks))
        return super().append(given, **rest)


@caught_by("test_a_key_of_another_kind_is_refused")
class TakesAnyKey(MemoryOutbox):
    """Keeps the text of a key that is neither a number nor text."""

    def append(self, tasks: Iterable[Any], *, key: Callable[[Any], Key] | None = None, **rest: Any) -> Stored:
        return super().append(tasks, key=key and (lambda task: str(key(task))), **rest)


@caught_by("test_a_key_of_another_kind_is_refused")
class StoresUpToAWrongKey(MemoryOutbox):
    """Stores task by task, so that those before a wrong key stay."""

    def append(self, tasks: Iterable[Any], *, key: Callable[[Any], Key] | None = None, **rest: Any) -> Stored:
        new = 0
        for task in tasks:
            known = key(task) if key else None
            if not isinstance(known, int | str):
                raise TaskError(f"the key is a {type(known).__name__}")
            new += self.store([NewEntry(known, *encode(task)[:1], NO_HEADERS, encode(task)[1])], run=rest["run"]).new
        return Stored(new)
