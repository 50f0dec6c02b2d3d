"""Tasks as they are stored and sent: entries, marks and batches."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Self

__all__ = ["NOTHING", "NO_HEADERS", "Batch", "Entry", "Key", "Mark", "NewEntry"]

Key = int | str
"""A number or a text that makes two tasks of one run the same. Integers that arrive in order are cheapest to store."""

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
"""The headers of an entry that has none; they cannot be changed."""


class NewEntry(NamedTuple):
    """A task on its way into an outbox.

    :param key: ``None`` for an application's task without one: it is never a duplicate.
    :param task_id: the task's id as text; ``None`` for a record that never became a task.
    :param headers: text to text, usually empty: trace context, content type.
    :param payload: the task as one JSON object in UTF-8; a record that is not a task as it was received, any bytes.
    :param reason: stores it as a dead letter with this reason, not as an entry.
    """

    key: Key | None
    task_id: str | None
    headers: Mapping[str, str]
    payload: bytes
    reason: str | None = None


class Entry(NamedTuple):
    """A task as an outbox stores it.

    :param position: given by the outbox; strictly increasing within it and never reused.
    :param task_id: the task's id as text; a UUID in its hyphenated form.
    :param payload: the task as one JSON object in UTF-8, exactly as it goes to the sink.
    """

    position: int
    task_id: str
    payload: bytes
    key: Key | None = None
    headers: Mapping[str, str] = NO_HEADERS


class Mark(str):
    """How far a sink has got with one outbox, and a proof of the history that it belongs to.

    To a sink it is opaque text: it stores it, returns it and compares it for equality. To the relay it is
    ``"{position} {lease} {task_id}"``: the last entry's position and task, and the lease under which it was sent.
    An outbox that was restored from a copy knows the lease or the task at that position to be another one.
    """

    __slots__ = ()

    @classmethod
    def of(cls, entry: Entry, lease: str) -> Self:
        """Return the mark that a batch leaves whose last entry this is."""
        return cls(f"{entry.position} {lease} {entry.task_id}")

    @classmethod
    def unsent(cls, position: int) -> Self:
        """Return the mark of an outbox under whose present id nothing was sent yet, though all to ``position`` was."""
        return cls(f"{position} -")

    @property
    def position(self) -> int:
        """The position up to which everything is held; 0 in the empty mark.

        :raises ValueError: this is not a mark.
        """
        if not self:
            return 0
        found = _POSITION.match(self)
        if found is None:
            raise ValueError(f"{str(self)!r} is not a mark")
        return int(found[0])

    @property
    def lease(self) -> str:
        """The lease it was sent under; empty in a mark of version 0.1, which is only a number."""
        return self.split(" ", 2)[1] if " " in self else ""

    @property
    def task_id(self) -> str:
        """The task at its position; empty in a mark of version 0.1."""
        return self.split(" ", 2)[2] if self.count(" ") >= 2 else ""


_POSITION = re.compile(r"\d+(?= |\Z)")

NOTHING = Mark("")
"""The mark of a sink that holds nothing of an outbox yet."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive entries of one outbox on their way to a sink; atomic there.

    :param outbox_id: whose entries these are.
    :param after: the mark that the sink must hold for the batch to be taken.
    :param entries: at least one, in order of position. Positions may have gaps.
    :param mark: the mark that the sink holds once it has the batch.
    :param run_id: the run in progress, empty if there is none. A sink that drops old entries to make room must not
        drop what this run delivered.
    """

    outbox_id: str
    after: Mark
    entries: Sequence[Entry]
    mark: Mark
    run_id: str = ""
