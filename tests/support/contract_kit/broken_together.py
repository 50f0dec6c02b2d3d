"""Outboxes that are wrong where there is another object, thread or process, or a failure."""
# ruff: noqa: D102 - what the methods of a broken backend do is in the docstring of its class

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from owm_outbox import (
    MAX_BYTES,
    Entry,
    MemoryState,
    NewEntry,
    OutboxLocked,
    OutboxStats,
    OutboxUnavailable,
    StateStore,
    Stored,
)
from owm_outbox_backends.memory import MemoryOutbox

from support.contract_kit.outboxes import HastySqliteOutbox
from support.contract_kit.registry import caught_by, sync


@caught_by("test_one_relay_at_a_time")
class LetsTwoRelaysIn(MemoryOutbox):
    """Has a lock that locks nothing."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        yield


@caught_by("test_an_error_frees_the_lock")
class StaysLockedAfterAnError(MemoryOutbox):
    """Frees its lock only if all went well."""

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


# its id and its state


class _OwnState(HastySqliteOutbox):
    """Keeps its state as long as the object lives."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        super().__init__(path, now)
        self.kept = MemoryState()

    @property
    def state(self) -> StateStore:
        return self.kept


@caught_by("test_the_id_is_its_own")
class GivesEachObjectAnId(_OwnState):
    """Gives itself a new id each time it is opened."""


@caught_by("test_the_id_can_be_renewed")
class NamesItselfAfterItsFile(HastySqliteOutbox):
    """Makes its id from its path, which a restored copy has, too."""

    @property
    def id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, str(self.path)))


@caught_by("test_the_id_can_be_renewed")
class RemembersItsId(HastySqliteOutbox):
    """Reads its id once, and from then on believes itself."""

    known: str | None = None

    @property
    def id(self) -> str:
        if self.known is None:
            self.known = super().id
        return self.known

    def renew_id(self) -> None:
        super().renew_id()
        self.known = None


class _FirstState(MemoryState):
    """State that cannot be changed."""

    def set(self, name: str, value: bytes) -> None:
        if self.get(name) is None:
            super().set(name, value)


class _CaselessState(MemoryState):
    """State whose names are compared without case."""

    def get(self, name: str) -> bytes | None:
        return super().get(name.lower())

    def set(self, name: str, value: bytes) -> None:
        super().set(name.lower(), value)


class _TruthfulState(MemoryState):
    """State that takes an empty value for none."""

    def get(self, name: str) -> bytes | None:
        return super().get(name) or None


@caught_by("test_state_is_what_was_last_set")
class KeepsTheFirstState(MemoryOutbox):
    """Does not let a value be changed."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self._state = _FirstState()


@caught_by("test_state_is_what_was_last_set")
class TakesNamesWithoutCase(MemoryOutbox):
    """Keeps one value for names that differ in case."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self._state = _CaselessState()


@caught_by("test_state_is_what_was_last_set")
class TakesAnEmptyValueForNone(MemoryOutbox):
    """Does not tell an empty value from none."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self._state = _TruthfulState()


# opening and closing


@caught_by("test_it_can_be_closed_twice")
class ClosesTheOutboxOnce(MemoryOutbox):
    """Complains when it is closed again, without having been used between."""

    closing = 0

    def stats(self) -> OutboxStats:
        self.closing = 0
        return super().stats()

    def lock(self) -> Any:
        self.closing = 0
        return super().lock()

    def close(self) -> None:
        self.closing += 1
        if self.closing == 2 and not self._rows:
            raise OutboxUnavailable("closed already")


@caught_by("test_everything_survives_a_restart")
class ForgetsRejectedAtClose(HastySqliteOutbox):
    """Makes dead letters entries again when it is opened."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        super().__init__(path, now)
        with self._db.transaction() as connection:
            connection.execute("UPDATE outbox_entries SET reason = NULL WHERE task_id IS NOT NULL")


@caught_by("test_everything_survives_a_restart")
class ForgetsState(_OwnState):
    """Keeps state as long as the object lives; only its id is the same."""

    @property
    def id(self) -> str:
        return "the same"


# at once


class _Unguarded(MemoryOutbox):
    """A MemoryOutbox in which one thread can be held up between two steps."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.held_up = 0
        self.gate = threading.Lock()

    def is_held_up(self, at_most: int) -> bool:
        """Return whether this call is one of the first that are made on other threads."""
        with self.gate:
            self.held_up += threading.current_thread() is not threading.main_thread()
            return threading.current_thread() is not threading.main_thread() and self.held_up <= at_most


@caught_by("test_threads_may_append_side_by_side")
class GivesAPositionTwice(_Unguarded):
    """Looks for the next position, and takes it after."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.meeting = threading.Barrier(2)

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        last = self._last
        if self.is_held_up(2):
            self.meeting.wait(10)  # two have looked: the moment that otherwise happens by chance
            with self._mutex:
                self._last = last
                return super().store(entries, **rest)
        return super().store(entries, **rest)


@caught_by("test_nothing_appears_behind_a_reader", "1 entries appeared at positions that the reader had passed")
class GivesPositionsBeforeTheyShow(_Unguarded):
    """Gives a position when a store begins, and shows the entry when it ends, as sequences of databases do."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.late = 0
        self.overtaken = threading.Event()

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        with self._mutex:  # from the choice on: a position that is the last one is never overtaken
            if not self.is_held_up(1):
                return super().store(entries, **rest)
            stored = super().store(entries, **rest)
            late = {self._last: self._rows.pop(self._last)}
            self.late = self._last
        self.overtaken.wait(10)  # until a reader has passed by
        with self._mutex:
            self._rows = dict(sorted({**self._rows, **late}.items()))
        return stored

    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        entries = super().read(after, limit, max_bytes)
        if self.late and entries and entries[-1].position > self.late:
            self.overtaken.set()
        return entries


# a failure


@caught_by("test_a_store_that_fails_stores_nothing")
class SwallowsFailures(HastySqliteOutbox):
    """Logs what goes wrong, at best, and says that it has stored everything."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        with suppress(OutboxUnavailable):
            return super().store(entries, **rest)
        return Stored(len(entries))


@caught_by("test_a_store_that_fails_stores_nothing")
class LeaksTheError(HastySqliteOutbox):
    """Lets the storage's own error out."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        try:
            return super().store(entries, **rest)
        except OutboxUnavailable as error:
            raise OSError("database is locked") from error


@caught_by("test_a_store_that_failed_can_be_repeated")
class StaysUnusable(HastySqliteOutbox):
    """Never writes again after one failure."""

    broken = False

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        if self.broken:
            raise OutboxUnavailable("still broken")
        self.broken = True
        stored = super().store(entries, **rest)
        self.broken = False
        return stored


@caught_by("test_a_store_that_failed_can_be_repeated")
class RemembersKeysOfAFailure(HastySqliteOutbox):
    """Notes the keys of a page in memory before it is stored."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        super().__init__(path, now)
        self.noted: set[object] = set()

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        if run is None:
            return super().store(entries, **rest)
        new = [entry for entry in entries if entry.key is None or (run, entry.key) not in self.noted]
        self.noted |= {(run, entry.key) for entry in new}
        stored = super().store(new, run=run, **rest)
        return stored._replace(duplicates=stored.duplicates + len(entries) - len(new))


@caught_by("test_pages_are_whole_after_a_kill", "are the entries and the checkpoint stored in one transaction")
class CommitsTheCheckpointAfterTheTasks(HastySqliteOutbox):
    """Commits tasks, and the checkpoint in a second transaction."""

    def store(self, entries: Sequence[NewEntry], *, checkpoint: bytes | None = None, **rest: Any) -> Stored:
        stored = super().store(entries, **rest)
        if checkpoint is not None:
            sync()
            super().store([], checkpoint=checkpoint, **rest)
        return stored


@caught_by("test_pages_are_whole_after_a_kill")
class CommitsTheCheckpointBeforeTheTasks(HastySqliteOutbox):
    """Commits the checkpoint, and the tasks in a second transaction: a page that is killed between is lost."""

    def store(self, entries: Sequence[NewEntry], *, checkpoint: bytes | None = None, **rest: Any) -> Stored:
        if checkpoint is not None:
            super().store([], checkpoint=checkpoint, **rest)
            sync()
        return super().store(entries, **rest)


@caught_by("test_pages_are_whole_after_a_kill")
class CommitsTaskByTask(HastySqliteOutbox):
    """Commits each task of a page."""

    def store(self, entries: Sequence[NewEntry], *, checkpoint: bytes | None = None, **rest: Any) -> Stored:
        new = [super(CommitsTaskByTask, self).store([entry], **rest) for entry in entries]
        super().store([], checkpoint=checkpoint, **rest)
        return Stored(*map(sum, zip(*new, strict=True))) if new else Stored(0)


@caught_by("test_pages_are_whole_after_a_kill")
class KeepsPagesForLater(HastySqliteOutbox):
    """Gathers some pages in memory, and commits them when it is asked for something."""

    pages: tuple[tuple[Sequence[NewEntry], dict[str, Any]], ...] = ()

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        self.pages += ((entries, rest),)
        if len(self.pages) < 3 and rest.get("checkpoint"):
            return Stored(len(entries))
        return self.commit()

    def commit(self) -> Stored:
        """Store what was gathered."""
        stored = Stored(0)
        pages, self.pages = self.pages, ()
        for entries, rest in pages:
            stored = super().store(entries, **rest)
        return stored

    def start_run(self, job: str, **rest: Any) -> Any:
        self.commit()
        return super().start_run(job, **rest)

    def stats(self) -> OutboxStats:
        self.commit()
        return replace(super().stats())
