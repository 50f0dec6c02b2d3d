"""Outboxes that are wrong about marks, positions and dead letters."""
# ruff: noqa: D102 - what the methods of a broken backend do is in the docstring of its class

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from owm_outbox import (
    MAX_BYTES,
    NO_HEADERS,
    DeadLetter,
    Entry,
    Mark,
    NewEntry,
    OutboxStats,
    RunReport,
    Stored,
)
from owm_outbox_backends.memory import MemoryOutbox

from support.contract_kit.outboxes import HastySqliteOutbox
from support.contract_kit.registry import caught_by


@caught_by("test_acknowledged_entries_are_no_longer_pending")
class CountsDeliveredAsPending(MemoryOutbox):
    """Counts all entries that it holds."""

    def stats(self) -> OutboxStats:
        return replace(super().stats(), pending=sum(row.reason is None for row in self._rows.values()))


@caught_by("test_the_acknowledged_mark_is_kept_exactly")
class AcknowledgesPositions(MemoryOutbox):
    """Keeps the position of a mark, without the proof."""

    def acknowledge(self, mark: Mark) -> None:
        super().acknowledge(Mark(str(mark.position)) if mark.position else mark)


@caught_by("test_the_acknowledged_mark_is_kept_exactly")
class StripsAcknowledgedMarks(MemoryOutbox):
    """Drops the blanks at the end of a mark."""

    def acknowledge(self, mark: Mark) -> None:
        super().acknowledge(Mark(mark.rstrip()))


@caught_by("test_the_acknowledged_mark_is_kept_exactly")
class IgnoresTheSamePosition(MemoryOutbox):
    """Takes a mark of the position that it has acknowledged for no news."""

    def acknowledge(self, mark: Mark) -> None:
        if mark.position != self._acknowledged.position:
            super().acknowledge(mark)


@caught_by("test_the_oldest_pending_entry_has_an_age")
class TellsTimesWithoutAZone(MemoryOutbox):
    """Tells times that mean something else on every machine."""

    def stats(self) -> OutboxStats:
        stats = super().stats()
        return replace(stats, oldest=stats.oldest and stats.oldest.replace(tzinfo=None))


@caught_by("test_an_unfinished_run_keeps_what_was_acknowledged")
class ClearsWhatIsAcknowledged(MemoryOutbox):
    """Clears an entry as soon as the sink has it, and remembers its key."""

    def acknowledge(self, mark: Mark) -> None:
        super().acknowledge(mark)
        keys = dict(self._keys)
        self._delete([at for at, row in self._rows.items() if at <= mark.position and row.reason is None])
        self._keys = keys


@caught_by("test_acknowledging_can_go_back")
class NeverGoesBack(MemoryOutbox):
    """Takes the higher of two acknowledged positions."""

    def acknowledge(self, mark: Mark) -> None:
        if mark.position >= self._acknowledged.position:
            super().acknowledge(mark)


@caught_by("test_acknowledging_can_go_back")
class NeverGoesBackToNothing(MemoryOutbox):
    """Takes an empty mark for a mistake."""

    def acknowledge(self, mark: Mark) -> None:
        if mark:
            super().acknowledge(mark)


@caught_by("test_an_application_s_entries_are_cleared_once_delivered")
class KeepsApplicationTasksForEver(MemoryOutbox):
    """Clears nothing that has no run."""

    def _delete(self, positions: Iterable[int]) -> None:
        super()._delete([at for at in positions if self._rows[at].run is not None or self._rows[at].reason is not None])


@caught_by("test_positions_are_never_reused")
class ReusesPositions(MemoryOutbox):
    """Continues after the last entry that is left."""

    def finish_run(self, run: str, report: RunReport) -> None:
        super().finish_run(run, report)
        self._last = max(self._rows, default=0)


@caught_by("test_positions_are_never_reused_after_a_restart")
class ReusesPositionsAfterARestart(HastySqliteOutbox):
    """When it is opened, continues after the last entry that is left."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        super().__init__(path, now)
        with self._db.transaction() as connection:
            connection.execute(
                "UPDATE sqlite_sequence SET seq = (SELECT ifnull(max(position), 0) FROM outbox_entries) "
                "WHERE name = 'outbox_entries'"
            )


# dead letters


@caught_by("test_a_rejected_entry_is_out_of_the_way")
class ReadsDeadLetters(MemoryOutbox):
    """Sends poison again and again."""

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        rows = [(at, row) for at, row in self._rows.items() if at > after and row.task_id is not None]
        return [Entry(at, row.task_id or "", row.payload) for at, row in rows[:limit]]


@caught_by("test_a_rejected_entry_is_out_of_the_way")
class ChokesOnUnknownPositions(MemoryOutbox):
    """Raises an error of its own for a position it does not have."""

    def reject(self, reasons: Mapping[int, str]) -> None:
        for position in reasons:
            self._rows[position]
        super().reject(reasons)


@caught_by("test_a_rejected_entry_is_out_of_the_way")
class CountsRejectedAsUnusable(MemoryOutbox):
    """Counts a task that the sink rejected among the records that never became one."""

    def reject(self, reasons: Mapping[int, str]) -> None:
        super().reject(reasons)
        for id_, run in self._runs.items():
            self._runs[id_] = replace(run, unusable=run.rejected)


@caught_by("test_an_entry_is_rejected_once")
class CountsRejectionsTwice(MemoryOutbox):
    """Counts a rejection of what is rejected already."""

    def reject(self, reasons: Mapping[int, str]) -> None:
        dead = {at for at, row in self._rows.items() if row.reason is not None}
        super().reject(reasons)
        for at in dead.intersection(reasons):
            self._count_rejected(self._rows[at].run, 1)


@caught_by("test_a_dead_letter_keeps_its_key")
class FreesTheKeyOfADeadLetter(MemoryOutbox):
    """Stores what was rejected again, the next time its page is."""

    def reject(self, reasons: Mapping[int, str]) -> None:
        super().reject(reasons)
        self._keys = {key: at for key, at in self._keys.items() if at not in reasons}


@caught_by("test_a_dead_letter_keeps_its_key")
class ReplacesRejectedTasks(MemoryOutbox):
    """Takes any dead letter for a record that never became a task."""

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        keys = {entry.key for entry in entries if entry.reason is None}
        dead = [at for at, row in self._rows.items() if row.reason and row.run == run and row.key in keys]
        self._delete(dead)
        return super().store(entries, run=run, **rest)._replace(replaced=len(dead))


@caught_by("test_dead_letters_outlive_their_run")
class ClearsDeadLettersWithTheirRun(MemoryOutbox):
    """Forgets what was rejected once the run is complete."""

    def finish_run(self, run: str, report: RunReport) -> None:
        super().finish_run(run, report)
        if report.complete:
            self._delete([at for at, row in self._rows.items() if row.run == run and row.reason is not None])


@caught_by("test_a_record_is_any_bytes")
class TakesRecordsForText(MemoryOutbox):
    """Keeps records as text, and replaces what is not."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        text = [entry._replace(payload=entry.payload.decode(errors="replace").encode()) for entry in entries]
        return super().store(text, **rest)


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


@caught_by("test_a_letter_says_where_it_came_from")
class ForgetsTheRun(MemoryOutbox):
    """Says that a letter is dead, but not whose it is."""

    def dead_letters(self) -> Iterator[DeadLetter]:
        return (replace(letter, run=None) for letter in super().dead_letters())


@caught_by("test_a_letter_says_where_it_came_from")
class ShowsNumbersAsText(MemoryOutbox):
    """Makes a text of each key, so that 8 looks like "8"."""

    def dead_letters(self) -> Iterator[DeadLetter]:
        for letter in super().dead_letters():
            yield replace(letter, key=None if letter.key is None else str(letter.key))


@caught_by("test_a_letter_says_where_it_came_from")
class ShowsNoHeaders(MemoryOutbox):
    """Shows a letter without its headers."""

    def dead_letters(self) -> Iterator[DeadLetter]:
        return (replace(letter, headers=NO_HEADERS) for letter in super().dead_letters())


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


@caught_by("test_a_retried_letter_is_as_it_was")
class RetriesWithoutHeaders(MemoryOutbox):
    """Forgets the headers of what is retried."""

    def _insert(self, row: Any) -> None:
        super()._insert(replace(row, headers=row.headers if row.task_id != "7" or not self._last else NO_HEADERS))


@caught_by("test_a_dropped_letter_is_gone")
class DropsEntriesToo(MemoryOutbox):
    """Drops whatever is at a position."""

    def drop(self, positions: Iterable[int]) -> int:
        known = [at for at in set(positions) if at in self._rows]
        self._delete(known)
        return len(known)


@caught_by("test_the_position_of_a_dropped_letter_is_never_reused")
class ReusesThePositionOfALetter(MemoryOutbox):
    """Continues after the last that is left when a letter was dropped."""

    def drop(self, positions: Iterable[int]) -> int:
        dropped = super().drop(positions)
        self._last = max(self._rows, default=0)
        return dropped


@caught_by("test_letters_are_free_while_a_relay_is_at_work", "would keep its dead letters for itself")
class LocksItsLetters(MemoryOutbox):
    """Has letters dropped by nobody but the relay."""

    def drop(self, positions: Iterable[int]) -> int:
        with self.lock():
            return super().drop(positions)


@caught_by("test_a_record_that_no_run_can_use_is_one_letter")
class KeepsALetterPerRun(MemoryOutbox):
    """Has one more letter each day."""

    def _bury(self, position: int, reason: str, now: datetime) -> None:
        self._letters.clear()
        super()._bury(position, reason, now)


@caught_by("test_a_task_that_every_run_rejects_is_one_letter")
class KeepsALetterPerTask(MemoryOutbox):
    """Goes by the task's id, which is another one in each run."""

    def _bury(self, position: int, reason: str, now: datetime) -> None:
        if self._rows[position].task_id is not None:
            self._letters.clear()
        super()._bury(position, reason, now)


@caught_by("test_a_letter_of_an_older_run_does_not_take_the_newest_run_s_key")
class KeepsTheLetterThatWasRejectedLast(MemoryOutbox):
    """Frees the key of the newest run when a task of an older one is rejected."""

    def _bury(self, position: int, reason: str, now: datetime) -> None:
        run = self._rows[position].run
        if run is not None:
            self._runs[run] = self._runs.pop(run)
        super()._bury(position, reason, now)


@caught_by("test_letters_that_differ_are_not_one")
class KeepsALetterPerKey(MemoryOutbox):
    """Goes by key and reason alone, whatever the job."""

    def _bury(self, position: int, reason: str, now: datetime) -> None:
        super()._bury(position, reason, now)
        if (row := self._rows.get(position)) is not None:
            same = [at for at, other in self._rows.items() if (other.key, other.reason) == (row.key, reason)]
            row.times = sum(self._rows[at].times for at in same)
            self._delete(at for at in same if at != position)


@caught_by("test_a_letter_that_is_retried_and_rejected_again_counts_on")
class ForgetsTheTimesOfWhatIsRetried(MemoryOutbox):
    """Begins to count again."""

    def retry(self, positions: Iterable[int]) -> int:
        done = super().retry(positions)
        for row in self._rows.values():
            row.times = row.times if row.reason else 0
        return done


@caught_by("test_a_letter_says_since_when")
class KnowsTheLastRejectionOnly(MemoryOutbox):
    """Says that what fails every day fails since today."""

    def _bury(self, position: int, reason: str, now: datetime) -> None:
        super()._bury(position, reason, now)
        for row in self._rows.values():
            row.first_rejected_at = row.rejected_at
