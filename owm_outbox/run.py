"""One execution of a job: what an outbox stores of it, and what the job sees."""

from __future__ import annotations

import hashlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from owm_outbox.entry import Key
from owm_outbox.stop import Stop

__all__ = ["MemoryState", "Run", "RunRecord", "StateStore"]

# The bits of a UUID5 that its name decides, and those that say what it is (RFC 9562, section 5.5).
_UUID5_FREE = ~(0xF << 76 | 0b11 << 62)
_UUID5_FIXED = 5 << 76 | 0b10 << 62


class StateStore(ABC):
    """Small values that outlive the process, such as an outbox's id or a circuit breaker's state."""

    @abstractmethod
    def get(self, name: str) -> bytes | None:
        """Return the value last set under ``name``, ``None`` if there is none."""

    @abstractmethod
    def set(self, name: str, value: bytes) -> None:
        """Keep ``value`` under ``name``, as durably as the outbox keeps tasks."""


class MemoryState(StateStore):
    """State that lives as long as the object."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def get(self, name: str) -> bytes | None:
        """Return the value last set under ``name``."""
        return self._values.get(name)

    def set(self, name: str, value: bytes) -> None:
        """Keep ``value`` under ``name``."""
        self._values[name] = value


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as an outbox stores it.

    :param id: a UUID as text.
    :param state: ``open``, ``complete``, or ``incomplete`` (closed, never to be resumed).
    :param progressed_at: when a page of it was last stored; ``started_at`` before the first one.
    :param checkpoint: what the last stored page gave; ``None`` before that.
    :param expected: the newest total that a page gave.
    :param extracted: distinct tasks stored.
    :param duplicates: tasks and records dropped because their key was already there.
    :param rejected: dead letters.
    :param unusable: how many of the rejected were records that never became a task.
    :param report: the last report as JSON, if a call got as far as one.
    :param resumed: whether ``start_run`` found it, rather than made it.
    """

    id: str
    job: str
    state: str
    started_at: datetime
    progressed_at: datetime
    finished_at: datetime | None = None
    checkpoint: bytes | None = None
    expected: int | None = None
    extracted: int = 0
    duplicates: int = 0
    rejected: int = 0
    unusable: int = 0
    report: bytes | None = None
    resumed: bool = False


@dataclass(slots=True)
class Run:
    """One execution of a job, as the job and observers see it. The relay brings it up to date after each commit.

    :param id: a UUID as text; a resumed run keeps it, so its task ids stay the same too.
    :param state: where a job keeps small values that outlive the run.
    :param stop: a job that waits for something does so with ``run.stop.wait(seconds)``, so that a stop ends it.
    :param tell: calls a method of the relay's observers, by its name, such as ``run.tell("breaker_changed", True)``; on
        any thread.
    :param checkpoint: what the last committed page gave; ``None`` at the very start, and where all is read once more
        because a source had less than it said.
    :param extracted: distinct tasks stored so far, over all calls that worked on this run.
    :param duplicates: tasks dropped because their key was already there.
    :param rejected: dead letters of this run so far.
    :param unusable: how many of the rejected were records that never became a task.
    :param expected: the newest total that a page gave, ``None`` while unknown.
    """

    id: str
    job: str
    started_at: datetime
    resumed: bool = False
    state: StateStore = field(default_factory=MemoryState)
    stop: Stop = field(default_factory=Stop)
    tell: Callable[..., None] = lambda event, *args: None
    checkpoint: bytes | None = None
    extracted: int = 0
    duplicates: int = 0
    rejected: int = 0
    unusable: int = 0
    expected: int | None = None
    _namespace: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._namespace = hashlib.sha1(uuid.UUID(self.id).bytes, usedforsecurity=False)

    @classmethod
    def of(
        cls,
        record: RunRecord,
        state: StateStore,
        stop: Stop,
        tell: Callable[..., None] = lambda event, *args: None,
    ) -> Self:
        """Make the live view of a stored run."""
        return cls(
            id=record.id,
            job=record.job,
            started_at=record.started_at,
            resumed=record.resumed,
            state=state,
            stop=stop,
            tell=tell,
            checkpoint=record.checkpoint,
            extracted=record.extracted,
            duplicates=record.duplicates,
            rejected=record.rejected,
            unusable=record.unusable,
            expected=record.expected,
        )

    @property
    def accounted(self) -> int:
        """How many distinct keys were stored: the tasks, and the records that never became one."""
        return self.extracted + self.unusable

    def task_id(self, key: Key) -> uuid.UUID:
        """Make the id of the task with this key: a UUID5, the same each time within this run and in no other."""
        name = self._namespace.copy()  # as uuid.uuid5 does, without hashing the run's id each time
        name.update(str(key).encode())
        number = int.from_bytes(name.digest()[:16])
        return uuid.UUID(int=number & _UUID5_FREE | _UUID5_FIXED)  # half the time of version=5, which says the same
