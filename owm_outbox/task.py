"""Tasks as they are stored and sent: entries, marks, batches, and the codec in between."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import msgspec

from owm_outbox.errors import TaskError

__all__ = [
    "NOTHING",
    "NO_HEADERS",
    "Batch",
    "DeadLetter",
    "Entry",
    "InvalidRecord",
    "Key",
    "Mark",
    "NewEntry",
    "encode",
]

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


@dataclass(frozen=True, slots=True)
class InvalidRecord:
    """A record that is not a valid task, as a job hands it over on its page.

    :param payload: the record as it was received, at best its raw JSON.
    :param reason: what is wrong with it, for a person to read.
    :param key: its key if it has a usable one, so that a repeat is not counted again.
    """

    payload: bytes
    reason: str
    key: Key | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that was rejected for good, kept aside with its reason.

    :param position: where it is kept; what ``retry`` and ``drop`` take.
    :param task_id: ``None`` for a record that never became a task: it can be dropped, not retried.
    :param rejected_at: when it was rejected last, timezone-aware.
    :param first_rejected_at: when it was rejected for the first time, timezone-aware.
    :param times: how often, by one run or by several.
    """

    position: int
    task_id: str | None
    payload: bytes
    reason: str
    rejected_at: datetime
    first_rejected_at: datetime
    times: int


def _encode_other(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)  # pydantic, which is not imported for it
    if dump is not None:
        return dump(mode="json")
    raise NotImplementedError(f"objects of type {type(value).__name__} are not supported")


_encoder = msgspec.json.Encoder(enc_hook=_encode_other, uuid_format="canonical")


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_finite, value))
    return True


def encode(task: Any) -> tuple[str, bytes]:
    """Turn a task into its ``task_id`` as text and its payload, one JSON object in UTF-8.

    :param task: a dataclass, attrs class, msgspec Struct or pydantic model with a ``task_id``.
    :raises TaskError: it has no ``task_id``, or holds something that JSON cannot carry.
    """
    task_id = getattr(task, "task_id", None)
    if task_id is None:
        raise TaskError(f"{type(task).__name__} has no task_id: give it one, such as run.task_id(key)")
    try:
        payload = _encoder.encode(task)
        if b"null" in payload and not _is_finite(msgspec.to_builtins(task, enc_hook=_encode_other)):
            raise ValueError("NaN and infinity are not JSON numbers")  # msgspec writes them as null
    except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
        raise TaskError(f"{type(task).__name__} {task_id} cannot be encoded as JSON: {error}") from error
    if payload[:1] != b"{":
        raise TaskError(f"{type(task).__name__} {task_id} does not encode as a JSON object")
    return str(task_id), payload
