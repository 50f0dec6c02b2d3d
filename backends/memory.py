"""MemoryOutbox: for tests and examples. Nothing of it survives the process."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec

from owm_outbox import (
    MAX_BYTES,
    NOTHING,
    RESUME_WITHIN,
    DeadLetter,
    DeadLetterStore,
    Entry,
    Key,
    Mark,
    MemoryState,
    NewEntry,
    Outbox,
    OutboxInvalid,
    OutboxLocked,
    OutboxStats,
    RunRecord,
    RunReport,
    StateStore,
    Stored,
    may_resume,
)

__all__ = ["MemoryOutbox"]


@dataclass(slots=True)
class _Row:
    run: str | None
    key: Key | None
    task_id: str | None
    headers: Mapping[str, str]
    payload: bytes
    stored_at: datetime
    reason: str | None = None
    rejected_at: datetime | None = None
    first_rejected_at: datetime | None = None
    times: int = 0


class MemoryOutbox(Outbox, DeadLetterStore):
    """Keeps tasks in memory: ``memory:``, without options.

    :param now: the time, timezone-aware.
    """

    def __init__(self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._state = MemoryState()
        self._rows: dict[int, _Row] = {}  # in order of position
        self._keys: dict[tuple[str, Key | None], int] = {}  # the position of each key of each run
        self._letters: dict[tuple[str, Key, str, bool], int] = {}  # where a letter was last, by what makes it the same
        self._runs: dict[str, RunRecord] = {}  # in the order in which they were started
        self._resume_within: dict[str, timedelta] = {}
        self._last = 0
        self._acknowledged = NOTHING
        self._relay = threading.Lock()
        self._mutex = threading.RLock()

    @property
    def state(self) -> StateStore:
        """State of this object."""
        return self._state

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the object for one relay of this process."""
        if not self._relay.acquire(blocking=False):
            raise OutboxLocked("this memory outbox is in use by another relay of this process")
        try:
            yield
        finally:
            self._relay.release()

    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        """Return the open run, or a new one."""
        with self._mutex:
            now = self._now()
            found = None
            for run in [run for run in self._runs.values() if run.state == "open"]:
                within = resume_within if run.job == job else self._resume_within[run.id]
                if not may_resume(run.progressed_at, now, within):
                    self._runs[run.id] = replace(run, state="incomplete", finished_at=now)
                elif run.job == job:
                    found = replace(run, resumed=True)
            if found is None:
                found = RunRecord(str(uuid.uuid4()), job, "open", started_at=now, progressed_at=now)
                self._runs[found.id] = found
            self._resume_within[found.id] = resume_within or RESUME_WITHIN
            return found

    def store(
        self,
        entries: Sequence[NewEntry],
        *,
        run: str | None = None,
        checkpoint: bytes | None = None,
        expected: int | None = None,
    ) -> Stored:
        """Store entries, and what they say of the run, at once."""
        with self._mutex:
            known = None if run is None else self._run(run)
            now = self._now()
            new = rejected = replaced = 0
            for key, task_id, headers, payload, reason in entries:
                if run is not None and key is not None and (run, key) in self._keys:
                    before = self._keys[run, key]
                    if reason is not None or self._rows[before].task_id is not None:
                        continue
                    self._delete([before])
                    replaced += 1
                self._insert(_Row(run, key, task_id, headers, payload, now))
                if reason is not None:
                    self._bury(self._last, reason, now)
                new, rejected = (new + 1, rejected) if reason is None else (new, rejected + 1)
            stored = Stored(new, rejected, len(entries) - new - rejected, replaced)
            if known is not None:
                self._runs[known.id] = replace(
                    known,
                    progressed_at=now,
                    checkpoint=known.checkpoint if checkpoint is None else checkpoint,
                    expected=known.expected if expected is None else expected,
                    extracted=known.extracted + new,
                    duplicates=known.duplicates + stored.duplicates,
                    rejected=known.rejected + rejected - replaced,
                    unusable=known.unusable + rejected - replaced,
                )
            return stored

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        """Return entries in order of position."""
        with self._mutex:
            found: list[Entry] = []
            left = max_bytes
            for position, row in self._rows.items():
                if position <= after or row.reason is not None or row.task_id is None:
                    continue
                left -= len(row.payload)
                if len(found) == limit or (left < 0 and found):
                    break
                found.append(Entry(position, row.task_id, row.payload, row.key, row.headers))
            return found

    def acknowledge(self, mark: Mark) -> None:
        """Note what the sink holds, and clear what no open run needs any more."""
        with self._mutex:
            self._acknowledged = mark
            self._clear()

    def reject(self, reasons: Mapping[int, str]) -> None:
        """Turn entries into dead letters, where they are."""
        with self._mutex:
            for position, reason in reasons.items():
                row = self._rows.get(position)
                if row is not None and row.reason is None:
                    self._bury(position, reason, self._now())
                    self._count_rejected(row.run, 1)

    def finish_run(self, run: str, report: RunReport) -> None:
        """Keep the report; if it is complete, close the run and clear its delivered entries."""
        with self._mutex:
            known = replace(self._run(run), report=msgspec.json.encode(report))
            if report.complete:
                known = replace(known, state="complete", finished_at=self._now())
            self._runs[run] = known
            self._clear()

    def stats(self) -> OutboxStats:
        """Return what the outbox holds."""
        with self._mutex:
            at = self._acknowledged.position
            pending = [row.stored_at for position, row in self._rows.items() if position > at and row.reason is None]
            return OutboxStats(
                pending=len(pending),
                oldest=min(pending, default=None),
                dead=sum(row.reason is not None for row in self._rows.values()),
                acknowledged=self._acknowledged,
                last_position=self._last,
                runs=self.runs(10),
            )

    def runs(self, limit: int) -> Sequence[RunRecord]:
        """Return the newest runs."""
        with self._mutex:
            return tuple(reversed(self._runs.values()))[:limit]

    # -- dead letters

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Yield the dead letters in order of position."""
        with self._mutex:
            letters = [
                DeadLetter(
                    position,
                    row.task_id,
                    row.payload,
                    row.reason,
                    row.rejected_at,
                    row.first_rejected_at,
                    row.times,
                    row.run,
                    row.key,
                    row.headers,
                )
                for position, row in self._rows.items()
                if row.reason is not None and row.rejected_at is not None and row.first_rejected_at is not None
            ]
        yield from letters

    def retry(self, positions: Iterable[int]) -> int:
        """Store these letters again as entries, at new positions."""
        done = 0
        with self._mutex:
            for position in sorted(set(positions)):
                row = self._rows.get(position)
                if row is not None and row.reason is not None and row.task_id is not None:
                    self._delete([position])
                    row.reason = row.rejected_at = None
                    self._insert(row)
                    self._count_rejected(row.run, -1)
                    done += 1
        return done

    def drop(self, positions: Iterable[int]) -> int:
        """Delete these letters."""
        with self._mutex:
            dead = [at for at in set(positions) if at in self._rows and self._rows[at].reason is not None]
            self._delete(dead)
            return len(dead)

    # -- within

    def _run(self, run: str) -> RunRecord:
        if run not in self._runs:
            raise OutboxInvalid(f"this memory outbox has no run {run}: the run started in another outbox")
        return self._runs[run]

    def _insert(self, row: _Row) -> None:
        self._last += 1
        self._rows[self._last] = row
        if row.run is not None and row.key is not None:
            self._keys[row.run, row.key] = self._last

    def _bury(self, position: int, reason: str, now: datetime) -> None:
        """Make a dead letter; of those of this job, key, reason and kind let that of the newest run be the only one."""
        row = self._rows[position]
        row.reason, row.rejected_at, row.first_rejected_at = reason, now, row.first_rejected_at or now
        row.times += 1
        if row.run is None or row.key is None:
            return
        name = (self._runs[row.run].job, row.key, reason, row.task_id is None)
        before = self._letters.get(name, position)
        other = self._rows.get(before)
        if before != position and other is not None and other.reason == reason and other.run is not None:
            newest = list(self._runs).index
            kept, gone = (position, before) if newest(row.run) > newest(other.run) else (before, position)
            self._rows[kept].times += self._rows[gone].times
            self._rows[kept].first_rejected_at = min(row.first_rejected_at, other.first_rejected_at or now)
            self._rows[kept].rejected_at = now
            self._delete([gone])
            position = kept
        self._letters[name] = position

    def _delete(self, positions: Iterable[int]) -> None:
        for position in positions:
            row = self._rows.pop(position)
            if row.run is not None:
                self._keys.pop((row.run, row.key), None)

    def _clear(self) -> None:
        """Delete what is acknowledged and belongs to no open run."""
        at = self._acknowledged.position
        is_open = {run.id for run in self._runs.values() if run.state == "open"}
        self._delete(
            [
                position
                for position, row in self._rows.items()
                if position <= at and row.reason is None and row.run not in is_open
            ]
        )

    def _count_rejected(self, run: str | None, by: int) -> None:
        if run is not None:
            known = self._runs[run]
            self._runs[run] = replace(known, rejected=known.rejected + by)
