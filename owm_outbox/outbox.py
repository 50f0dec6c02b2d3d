"""The contract of an outbox. What these docstrings promise, `owm_outbox.testing.OutboxContract` checks."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self

from owm_outbox.entry import Entry, Key, Mark, NewEntry
from owm_outbox.report import RunReport
from owm_outbox.run import RunRecord, StateStore
from owm_outbox.stop import Stop
from owm_outbox.task import DeadLetter, InvalidRecord, dead_entry, new_entries
from owm_outbox.url import URL

__all__ = [
    "MAX_BYTES",
    "RESUME_WITHIN",
    "DeadLetterStore",
    "Outbox",
    "OutboxStats",
    "Stored",
    "may_resume",
]

MAX_BYTES = 8 * 2**20
"""Bytes of payload in one batch, at most: keeps large tasks within memory, and within what a sink takes at once."""

RESUME_WITHIN = timedelta(hours=1)
"""An unfinished run is resumed if its last progress is younger than this."""


def may_resume(progressed_at: datetime, now: datetime, within: timedelta) -> bool:
    """Return whether an unfinished run is young enough to be resumed.

    A clock that was set back makes a time that is yet to come; one that is too far away counts like one too long ago.
    """
    return abs(now - progressed_at) < within


class Stored(NamedTuple):
    """What became of the entries of one ``store`` or ``append``.

    :param new: entries stored, dead letters not among them.
    :param rejected: dead letters stored.
    :param duplicates: dropped, because the run had their key already.
    :param replaced: dead letters of this run that an entry took the place of.
    """

    new: int
    rejected: int = 0
    duplicates: int = 0
    replaced: int = 0


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """What an outbox holds.

    :param pending: entries beyond ``acknowledged`` that are not dead letters.
    :param oldest: when the oldest pending entry was stored.
    :param dead: dead letters.
    :param acknowledged: the mark last acknowledged.
    :param last_position: the highest position ever given; 0 in a new outbox.
    :param runs: the newest runs, newest first, ten at most.
    """

    pending: int
    oldest: datetime | None
    dead: int
    acknowledged: Mark
    last_position: int
    runs: Sequence[RunRecord] = ()


class Outbox(ABC):
    """Keeps tasks, durably and in order, from before they are sent until the sink holds them.

    Every method is atomic: after a crash within it, all of its effect is there or none, except that delivered entries
    may be cleared a slice at a time. What a method returned from is durable, to the degree that the outbox is durable
    at all. One relay at a time calls the writing methods, under ``lock``; ``append`` without a run may be called by
    anyone at any time. Errors are `OutboxInvalid` and `OutboxUnavailable`, never those of the storage.
    """

    @classmethod
    def from_url(cls, url: URL, *, create: bool = True) -> Self:
        """Open the outbox that ``url`` names. This default takes no options, and calls the class without arguments.

        :param create: whether one that does not exist is made; commands that only look at it pass ``False``.
        :raises ConfigurationError: an option is unknown or its value makes no sense.
        :raises OutboxInvalid: it cannot be created or is not ours; what was there is untouched.
        """
        url.options()
        return cls()

    @classmethod
    def look_at(cls, url: URL) -> Outbox:
        """Open the outbox that ``url`` names for those who only look: ``stats``, ``runs`` and ``dead_letters``.

        An outbox that can be read with fewer rights than a relay needs, and without leaving a trace, does so here. What
        else is called on it may raise. This default opens it as a relay does, but makes nothing.

        :raises ConfigurationError: see ``from_url``; so does OutboxInvalid.
        """
        return cls.from_url(url, create=False)

    # -- what an author writes

    @property
    @abstractmethod
    def state(self) -> StateStore:
        """Small values, stored in the outbox itself: they are copied, restored and lost together with its entries."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Hold the outbox for one relay. Freed on exit, and by the operating system if the process dies.

        An outbox whose lock can be lost on the way (the server that kept it was restarted) raises OutboxLocked from
        what the relay writes next, and writes nothing: another relay may have taken over.

        :raises OutboxLocked: at once, if another relay holds it; the message says who.
        """

    @abstractmethod
    def start_run(self, job: str, *, resume_within: timedelta = RESUME_WITHIN) -> RunRecord:
        """Return the job's open run if `may_resume` says so, else a new one.

        ``resume_within`` is stored with the run, or `RESUME_WITHIN` where it is zero. Every open run, of any job, that
        is older than its own is closed as incomplete: what it left pending stays pending, what of it is acknowledged
        is cleared with a later ``acknowledge``. So is this job's open run if it is not resumed. A closed run is never
        returned again.
        """

    @abstractmethod
    def store(
        self,
        entries: Sequence[NewEntry],
        *,
        run: str | None = None,
        checkpoint: bytes | None = None,
        expected: int | None = None,
    ) -> Stored:
        """Store entries in the order given, each at a new position, in one commit with what they say of the run.

        A position becomes readable only after all lower ones: nothing may appear behind a reader. An entry with a
        ``reason`` is stored as a dead letter.

        With a run, by its id: an entry whose key is already there under this run, delivered or not, is dropped, the
        first one of a key within ``entries`` is not. A key that is there only as a record which never became a task
        is free for one that did, and the dead letter is deleted. ``checkpoint`` and ``expected``, unless ``None``,
        replace the run's; the run's ``progressed_at`` becomes now, and its figures grow by what is returned. Without a
        run nothing is dropped.
        """

    @abstractmethod
    def read(self, after: int, limit: int, max_bytes: int = MAX_BYTES) -> Sequence[Entry]:
        """Return the entries beyond the position ``after``, in order; no dead letters.

        At most ``limit``, and no more than fit into ``max_bytes`` of payload, but at least one if there is one.
        Entries that are acknowledged but not yet cleared are among them: a sink may have lost them.
        """

    @abstractmethod
    def acknowledge(self, mark: Mark) -> None:
        """Note that the sink holds everything up to ``mark.position``, and nothing beyond.

        It may be lower than before, when a sink lost writes: what is beyond it and not cleared is pending again.
        Acknowledged entries that belong to no open run may be cleared.
        """

    @abstractmethod
    def reject(self, reasons: Mapping[int, str]) -> None:
        """Turn the entries at these positions into dead letters with these reasons. Unknown positions are ignored.

        See `DeadLetterStore` for those that were rejected before.
        """

    @abstractmethod
    def finish_run(self, run: str, report: RunReport) -> None:
        """Keep the report. If it is complete, close the run and clear its acknowledged entries, dead letters not.

        If it is not, the run stays open, to be resumed.
        """

    @abstractmethod
    def stats(self) -> OutboxStats:
        """Return what the outbox holds, as one consistent view."""

    # -- what follows from it

    def runs(self, limit: int) -> Sequence[RunRecord]:
        """Return the newest runs, newest first, this many at most.

        This default knows those that are in ``stats``; an outbox that keeps more gives more.
        """
        return self.stats().runs[:limit]

    @property
    def id(self) -> str:
        """The name under which sinks keep this outbox's mark: made once, stored in the outbox."""
        found = self.state.get("id")
        if found is None:
            self.renew_id()
            return self.id
        return found.decode()

    def renew_id(self) -> None:
        """Take a new id: to every sink this is an outbox it has never heard of."""
        self.state.set("id", str(uuid.uuid4()).encode())

    def append(
        self,
        tasks: Iterable[Any],
        *,
        key: Callable[[Any], Key] | None = None,
        headers: Mapping[str, str] | None = None,
        run: str | None = None,
        checkpoint: bytes | None = None,
        invalid: Sequence[InvalidRecord] = (),
        expected: int | None = None,
    ) -> Stored:
        """Encode tasks and store them; see `store`.

        :param tasks: dataclasses, attrs classes, msgspec Structs or pydantic models, each with a ``task_id``.
        :param key: what makes two of them the same within a run.
        :param headers: stored with each of them, such as a trace context.
        :param invalid: records that are not valid tasks: they become dead letters, one per key.
        :raises TaskError: a task cannot be stored; then none of the call is.
        """
        entries = new_entries(tasks, key, headers)
        entries += [dead_entry(record) for record in invalid]
        return self.store(entries, run=run, checkpoint=checkpoint, expected=expected)

    def wait(self, seconds: float, stop: Stop) -> None:
        """Return when there may be something new, after ``seconds`` at the latest, or once ``stop`` is set.

        What a relay that has the lock does between two looks. This default cannot tell, and takes all the time; an
        outbox that is told of appends returns earlier. To return too early does no harm.
        """
        stop.wait(seconds)

    def close(self) -> None:  # noqa: B027 - not abstract: most have nothing to release
        """Release files and connections. The object must not be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class DeadLetterStore(ABC):
    """What an outbox may add, so that ``owm-outbox dead`` can work on it.

    What every run of a job rejects anew is one letter: of the letters of a job that have the same key and reason, only
    that of its newest run is kept, with all their times. Records that never became a task and tasks are not the same,
    and what has no run or no key is never the same. A letter that is retried and rejected again counts on.

    Each method may be called by anyone at any time, as ``append`` may: a relay that serves for months holds the lock.
    """

    @abstractmethod
    def dead_letters(self) -> Iterator[DeadLetter]:
        """Yield the dead letters in order of position."""

    @abstractmethod
    def retry(self, positions: Iterable[int]) -> int:
        """Make these dead letters pending again, at new positions beyond all others; return how many.

        A letter that never became a task stays where it is.
        """

    @abstractmethod
    def drop(self, positions: Iterable[int]) -> int:
        """Delete these dead letters for good; return how many."""
