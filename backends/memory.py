"""MemoryOutbox: for tests and examples. Nothing of it survives the process."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from owm_outbox import (
    RESUME_WITHIN,
    URL,
    DeadLetter,
    DeadLetterStore,
    Entry,
    Job,
    Outbox,
    OutboxLocked,
    OutboxStats,
    Rejected,
    Run,
    RunReport,
    RunSummary,
    encode,
)

__all__ = ["MemoryOutbox"]


@dataclass(slots=True)
class _Row:
    run: str | None
    key: Any
    task_id: str | None
    payload: bytes
    stored_at: datetime
    reason: str | None = None
    rejected_at: datetime | None = None


@dataclass(slots=True)
class _RunState:
    run: Run
    state: str = "open"
    finished_at: datetime | None = None
    report: bytes | None = None
    rejected: int = 0


class MemoryOutbox(Outbox, DeadLetterStore):
    """Keeps tasks in memory: ``memory:``, without options.

    :param now: the time, timezone-aware.
    """

    def __init__(self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.id = str(uuid.uuid4())
        self._now = now
        self._rows: dict[int, _Row] = {}  # in order of position
        self._keys: set[tuple[str, Any]] = set()
        self._runs: list[_RunState] = []
        self._last = 0
        self._acknowledged = 0
        self._relay = threading.Lock()
        self._mutex = threading.RLock()

    @classmethod
    @contextmanager
    def scratch(cls, url: URL) -> Iterator[Callable[[], Outbox]]:
        """Give the same new object each time."""
        outbox = cls.from_url(url)
        yield lambda: outbox

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the object for one relay of this process."""
        if not self._relay.acquire(blocking=False):
            raise OutboxLocked("this memory outbox is in use by another relay of this process")
        try:
            yield
        finally:
            self._relay.release()

    def start_run(self, job: Job[Any], *, resume_within: timedelta = RESUME_WITHIN) -> Run:
        """Return the unfinished run, or a new one."""
        with self._mutex:
            now = self._now()
            for known in reversed(self._runs):
                if known.run.job == job.name and known.state == "open":
                    if now - known.run.started_at < resume_within:
                        old = known.run
                        known.run = self._new_run(job, old.id, old.started_at, resumed=True)
                        known.run.checkpoint, known.run.expected = old.checkpoint, old.expected
                        known.run.extracted, known.run.duplicates = old.extracted, old.duplicates
                        known.run.rejected, known.run.unusable = known.rejected, old.unusable
                        return known.run
                    known.state, known.finished_at = "incomplete", now
                    self._clear(known.run.id)
            run = self._new_run(job, str(uuid.uuid4()), now, resumed=False)
            self._runs.append(_RunState(run))
            return run

    def _new_run(self, job: Job[Any], id_: str, started_at: datetime, *, resumed: bool) -> Run:
        return Run(id=id_, job=job.name, started_at=started_at, resumed=resumed, key=job.key, notes=self.notes)

    def append(
        self,
        tasks: Iterable[Any],
        *,
        run: Run | None = None,
        checkpoint: bytes | None = None,
        rejected: Sequence[Rejected] = (),
        expected: int | None = None,
    ) -> int:
        """Store tasks, checkpoint and dead letters at once."""
        encoded = [(None if run is None else run.key(task), *encode(task)) for task in tasks]
        with self._mutex:
            now = self._now()
            id_ = None if run is None else run.id
            new = sum(self._store(_Row(id_, *fields, now)) for fields in encoded)
            bad = sum(
                self._store(
                    _Row(
                        id_,
                        letter.payload if letter.key is None else letter.key,
                        None,
                        letter.payload,
                        now,
                        letter.reason,
                        now,
                    )
                )
                for letter in rejected
            )
            if run is not None:
                run.extracted += new
                run.duplicates += len(encoded) - new + len(rejected) - bad
                run.rejected += bad
                run.unusable += bad
                run.checkpoint = run.checkpoint if checkpoint is None else checkpoint
                run.expected = run.expected if expected is None else expected
                self._state(run).rejected += bad
            return new

    def _store(self, row: _Row) -> bool:
        if row.run is not None:
            if (row.run, row.key) in self._keys:
                return False
            self._keys.add((row.run, row.key))
        self._last += 1
        self._rows[self._last] = row
        return True

    def read(self, after: int, limit: int) -> Sequence[Entry]:
        """Return entries in order of position."""
        with self._mutex:
            found: list[Entry] = []
            for position, row in self._rows.items():
                if position > after and row.reason is None and row.task_id is not None:
                    if len(found) == limit:
                        break
                    found.append(Entry(position, row.task_id, row.payload))
            return found

    def acknowledge(self, position: int) -> None:
        """Note what the sink holds, and clear what no unfinished run needs any more."""
        with self._mutex:
            self._acknowledged = position
            self._last = max(self._last, position)
            unfinished = {known.run.id for known in self._runs if known.state == "open"}
            self._delete(at for at, row in self._delivered() if row.run not in unfinished)

    def reject(self, reasons: Mapping[int, str]) -> None:
        """Turn entries into dead letters, where they are."""
        with self._mutex:
            for position, reason in reasons.items():
                row = self._rows.get(position)
                if row is not None and row.reason is None:
                    row.reason, row.rejected_at = reason, self._now()
                    for known in self._runs:
                        known.rejected += known.run.id == row.run

    def finish_run(self, run: Run, report: RunReport) -> None:
        """Keep the report; if it is complete, close the run and clear its delivered entries."""
        with self._mutex:
            known = self._state(run)
            known.report = msgspec.json.encode(report)
            if report.complete:
                known.state, known.finished_at = "complete", self._now()
                self._clear(run.id)

    def stats(self) -> OutboxStats:
        """Return what the outbox holds."""
        with self._mutex:
            pending = [
                row.stored_at for at, row in self._rows.items() if at > self._acknowledged and row.reason is None
            ]
            return OutboxStats(
                pending=len(pending),
                oldest=min(pending, default=None),
                dead=sum(row.reason is not None for row in self._rows.values()),
                acknowledged=self._acknowledged,
                last_position=self._last,
                runs=tuple(
                    RunSummary(
                        known.run.id,
                        known.run.job,
                        known.state,
                        known.run.started_at,
                        known.finished_at,
                        known.run.extracted,
                        known.rejected,
                        known.report,
                    )
                    for known in self._runs[:-11:-1]
                ),
            )

    # -- dead letters

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Yield the dead letters in order of position."""
        with self._mutex:
            letters = [
                DeadLetter(at, row.task_id, row.payload, row.reason, row.rejected_at)
                for at, row in self._rows.items()
                if row.reason is not None and row.rejected_at is not None
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
                    self._store(_Row(row.run, row.key, row.task_id, row.payload, row.stored_at))
                    for known in self._runs:
                        known.rejected -= known.run.id == row.run
                    done += 1
        return done

    def drop(self, positions: Iterable[int]) -> int:
        """Delete these letters."""
        with self._mutex:
            dead = [at for at in set(positions) if at in self._rows and self._rows[at].reason is not None]
            self._delete(dead)
            return len(dead)

    # -- within

    def _delivered(self) -> Iterator[tuple[int, _Row]]:
        return ((at, row) for at, row in self._rows.items() if at <= self._acknowledged and row.reason is None)

    def _clear(self, run_id: str) -> None:
        self._delete(at for at, row in self._delivered() if row.run == run_id)

    def _delete(self, positions: Iterable[int]) -> None:
        for position in list(positions):
            row = self._rows.pop(position)
            if row.run is not None:
                self._keys.discard((row.run, row.key))

    def _state(self, run: Run) -> _RunState:
        return next(known for known in self._runs if known.run.id == run.id)
