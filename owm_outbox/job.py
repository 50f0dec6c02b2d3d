"""What a team writes: a job, which produces tasks page by page."""

from __future__ import annotations

import hashlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec

from owm_outbox.task import Key, Rejected

__all__ = ["Job", "JobOptions", "Notes", "Page", "Run", "Secret"]

T = TypeVar("T")

# The bits of a UUID5 that its name decides, and those that say what it is (RFC 9562, section 5.5).
_UUID5_FREE = ~(0xF << 76 | 0b11 << 62)
_UUID5_FIXED = 5 << 76 | 0b10 << 62

Secret = Annotated[str, msgspec.Meta(extra={"secret": True})]
"""The type of an option that is read from the environment only, and never printed."""


class JobOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A job's options: each field becomes a CLI option, an environment variable and a key of the TOML file.

    Help and bounds are the field's annotation::

        class Options(JobOptions, frozen=True):
            depot: Annotated[str, Meta(description="which depot")] = "north"
            trucks: Annotated[int, Meta(ge=1, description="how many trucks")] = 3

    For a job named ``fleet`` these are ``--depot`` and ``FLEET_DEPOT``, ``--trucks`` and ``FLEET_TRUCKS``.
    """

    def __repr__(self) -> str:  # an option may be a secret, so no value is shown
        return f"{type(self).__name__}(…)"


class Notes(ABC):
    """Small values that outlive a run, such as a circuit breaker's state."""

    @abstractmethod
    def get(self, name: str) -> bytes | None:
        """Return the value last set under ``name``."""

    @abstractmethod
    def set(self, name: str, value: bytes) -> None:
        """Keep ``value`` under ``name``, durably where the outbox is."""


@dataclass(slots=True)
class Run:
    """One execution of a job. An outbox makes it, and brings it up to date with each append it commits.

    :param id: a UUID as text; a resumed run keeps it, so its task ids stay the same too.
    :param checkpoint: what the last committed page gave; ``None`` at the very start.
    :param extracted: distinct tasks stored so far, over all calls that worked on this run.
    :param duplicates: tasks dropped because their key was already there.
    :param rejected: dead letters of this run so far.
    :param unusable: how many of the rejected were records that never became a task.
    :param expected: the newest total a page gave, ``None`` while unknown.
    """

    id: str
    job: str
    started_at: datetime
    resumed: bool
    key: Callable[[Any], Key]
    notes: Notes
    checkpoint: bytes | None = None
    extracted: int = 0
    duplicates: int = 0
    rejected: int = 0
    unusable: int = 0
    expected: int | None = None
    _namespace: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._namespace = hashlib.sha1(uuid.UUID(self.id).bytes, usedforsecurity=False)

    @property
    def accounted(self) -> int:
        """How many distinct keys came: the tasks, and the records that never became one."""
        return self.extracted + self.unusable

    def task_id(self, key: Key) -> uuid.UUID:
        """Make the id of the task with this key: a UUID5, the same each time within this run and in no other."""
        name = self._namespace.copy()  # as uuid.uuid5 does, without hashing the run's id each time
        name.update(str(key).encode())
        number = int.from_bytes(name.digest()[:16])
        return uuid.UUID(int=number & _UUID5_FREE | _UUID5_FIXED)  # half the time of version=5, which says the same


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """The tasks of one step of a job, committed together with the checkpoint from which a restart goes on.

    :param tasks: any number, also none.
    :param checkpoint: opaque to all but the job; a later call finds it as ``run.checkpoint``.
    :param rejected: records that are no valid task; they become dead letters in the same commit.
    :param expected: how many distinct keys the source says there are; ``None`` leaves the last known figure.
    :param missing: numbers of the pages given up so far. A run whose last page names any is incomplete.
    :param pages: how many of the source's pages these are, for whoever shows how far a run is.
    """

    tasks: Sequence[T]
    checkpoint: bytes | None = None
    rejected: Sequence[Rejected] = ()
    expected: int | None = None
    missing: Sequence[int] = ()
    pages: int = 1


class Job(ABC, Generic[T]):
    """Produces tasks. Subclass it, name it in the entry-point group ``owm_outbox.jobs``, and ``owm-outbox run`` has it.

    A job never sends and never stores: it yields pages, and the relay commits each before it asks for the next. So
    what ``pages`` sees in ``run`` after a ``yield`` is durable.
    """

    name: ClassVar[str]
    """The entry point's name; in capitals the prefix of the environment variables."""

    default_outbox: ClassVar[str] = "sqlite:////tmp/{name}_producer_tasks.db"
    default_sink: ClassVar[str] = "redis://localhost:6379/0?stream={name}-ingestion-stream"
    """Used when neither flag, environment nor file names one; ``{name}`` is the job's name."""

    class Options(JobOptions, frozen=True):
        """No options; a subclass replaces this."""

    def __init__(self, options: Any = None) -> None:
        self.options: Any = self.Options() if options is None else options

    @abstractmethod
    def pages(self, run: Run) -> Iterator[Page[T]]:
        """Yield the pages that come after ``run.checkpoint``, in any number; the end says that all were tried.

        Everything before the checkpoint is already in the outbox. A page that repeats keys is harmless.

        :raises ApiUnavailable: the source is gone for now; the run ends incomplete and is resumed by the next call.
        """

    def key(self, task: T) -> Key:
        """Return what makes two tasks of one run the same; the second one is dropped. By default the ``task_id``."""
        return str(task.task_id)  # type: ignore[attr-defined]  # every task has one, see encode()
