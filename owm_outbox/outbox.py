"""The contract of an outbox. What these docstrings promise, `owm_outbox.testing.OutboxContract` checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from owm_outbox.errors import ConfigurationError
from owm_outbox.job import Job, Notes, Run
from owm_outbox.task import DeadLetter, Entry, Rejected
from owm_outbox.url import URL

if TYPE_CHECKING:
    from owm_outbox.report import RunReport

__all__ = ["RESUME_WITHIN", "DeadLetterStore", "Outbox", "OutboxStats", "RunSummary"]

RESUME_WITHIN = timedelta(hours=1)
"""An unfinished run younger than this is resumed."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run as the outbox remembers it.

    :param state: ``open``, ``complete``, or ``incomplete`` (closed, never to be resumed).
    :param report: the last report as JSON, if a call got as far as one.
    """

    id: str
    job: str
    state: str
    started_at: datetime
    finished_at: datetime | None
    extracted: int
    rejected: int
    report: bytes | None


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """What an outbox holds.

    :param pending: entries beyond ``acknowledged`` that are no dead letters.
    :param oldest: when the oldest pending entry was stored.
    :param dead: dead letters.
    :param acknowledged: the position up to which all is delivered.
    :param last_position: the highest position ever given; 0 in a new outbox.
    :param runs: the newest runs, newest first.
    """

    pending: int
    oldest: datetime | None
    dead: int
    acknowledged: int
    last_position: int
    runs: Sequence[RunSummary] = ()


class Outbox(ABC):
    """Keeps tasks, durably and in order, from before they are sent until the sink holds them.

    Every method is atomic: after a crash within it, all of its effect is there or none. What a method returned from
    is durable, to the degree that the outbox is durable at all. One relay at a time calls the writing methods, under
    ``lock``; ``append`` without a run may come from anyone at any time. Errors are `OutboxUnusable` and
    `OutboxUnavailable`, never those of the storage.
    """

    id: str
    """Made once, stored in the outbox, the same after every restart: sinks hold positions by it."""

    @classmethod
    def from_url(cls, url: URL, *, create: bool = True) -> Self:
        """Open the outbox that ``url`` names. This default takes no options, and calls the class without arguments.

        :param create: whether one that does not exist is made; commands that only look at it say no.
        :raises ConfigurationError: an option is unknown or its value makes no sense.
        :raises OutboxUnusable: it cannot be created or is not ours; what was there is untouched.
        """
        url.options()
        return cls()

    @classmethod
    def scratch(cls, url: URL) -> AbstractContextManager[Callable[[], Outbox]]:
        """Give a function that opens a new outbox beside the one that ``url`` names, for ``owm-outbox check``.

        Called again, it opens the same one again; on exit that is gone.

        :raises ConfigurationError: this default: the outbox cannot be checked without touching the real one.
        """
        raise ConfigurationError(
            f"{cls.__name__} has no scratch(), so a live {url.scheme}: cannot be checked safely; "
            "run its contract test, see owm_outbox.testing"
        )

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Hold the outbox for one relay. Freed on exit, and by the operating system if the process dies.

        :raises OutboxLocked: at once, if another relay holds it; the message says who.
        """

    @abstractmethod
    def start_run(self, job: Job[Any], *, resume_within: timedelta = RESUME_WITHIN) -> Run:
        """Return the job's unfinished run if it started less than ``resume_within`` ago, else a new run.

        An unfinished run of the job that is older is closed as incomplete: what it left pending stays pending. A
        complete run is never returned again.
        """

    @abstractmethod
    def append(
        self,
        tasks: Iterable[Any],
        *,
        run: Run | None = None,
        checkpoint: bytes | None = None,
        rejected: Sequence[Rejected] = (),
        expected: int | None = None,
    ) -> int:
        """Store tasks in the order given, each at a new position, and return how many were new.

        With a run: a task whose key the run already has, delivered or not, is dropped; ``checkpoint`` and
        ``expected``, unless ``None``, replace the run's; ``rejected`` become dead letters, one a key; all in one
        commit with the tasks, after which ``run`` shows the new figures. Without a run nothing is dropped.

        :raises TaskError: a task cannot be stored; then none of the call is.
        """

    @abstractmethod
    def read(self, after: int, limit: int) -> Sequence[Entry]:
        """Return up to ``limit`` entries with positions beyond ``after``, in order; no dead letters.

        Entries that are acknowledged but not yet cleared are among them: a sink may have lost them.
        """

    @abstractmethod
    def acknowledge(self, position: int) -> None:
        """Note that the sink holds everything up to ``position``, and nothing beyond.

        It may be lower than before, when a sink lost writes: what is beyond it and not cleared is pending again. It
        may be beyond every position given so far, when an outbox was restored from a copy: the next entry is then
        stored beyond it. Entries of no unfinished run that are acknowledged may be cleared. An outbox may keep this
        in memory until the next other write, if its sink can tell its position anyway; see `Sink.position`.
        """

    @abstractmethod
    def reject(self, reasons: Mapping[int, str]) -> None:
        """Turn the entries at these positions into dead letters with these reasons. Unknown positions are ignored."""

    @abstractmethod
    def finish_run(self, run: Run, report: RunReport) -> None:
        """Keep the report. If it is complete, close the run and clear its acknowledged entries, dead letters not.

        If it is not, the run stays as it is, to be resumed.
        """

    @abstractmethod
    def stats(self) -> OutboxStats:
        """Return what the outbox holds, as one consistent view."""

    # What follows is not abstract: an outbox without it works.

    @property
    def notes(self) -> Notes:
        """Small values that outlive the process. This default forgets them with the object."""
        try:
            return self._notes
        except AttributeError:
            self._notes: Notes = MemoryNotes()
            return self._notes

    def close(self) -> None:  # noqa: B027 - not abstract: most have nothing to let go of
        """Let go of files and connections. The object is of no use afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class DeadLetterStore(ABC):
    """What an outbox may add, so that ``owm-outbox dead`` can work on it."""

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


class MemoryNotes(Notes):
    """Notes that live as long as the object."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def get(self, name: str) -> bytes | None:
        """Return the value last set under ``name``."""
        return self._values.get(name)

    def set(self, name: str, value: bytes) -> None:
        """Keep ``value`` under ``name``."""
        self._values[name] = value
