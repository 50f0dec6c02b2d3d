"""Tasks as they are stored and sent: entries, batches, and the codec between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from owm_outbox.errors import TaskError

__all__ = ["Batch", "DeadLetter", "Entry", "Key", "Rejected", "encode"]

Key = int | str
"""What makes two tasks of one run the same. Integers that arrive in order are the cheapest to store."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A task as an outbox stores it.

    :param position: given by the outbox; it only grows and is never reused.
    :param task_id: the task's id as text; a UUID in its hyphenated form.
    :param payload: the task as one JSON object in UTF-8, exactly as it goes to the sink.
    """

    position: int
    task_id: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive entries of one outbox on their way to a sink; atomic there.

    :param outbox_id: whose positions these are.
    :param after: the position the sink must hold for the batch to be taken.
    :param entries: at least one, in order of position, all beyond ``after``. Positions may have gaps.
    """

    outbox_id: str
    after: int
    entries: Sequence[Entry]

    @property
    def position(self) -> int:
        """The position that the sink holds once it has the batch."""
        return self.entries[-1].position


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is no valid task, as a job hands it over on its page.

    :param payload: the record as it came, at best its raw JSON.
    :param reason: why it is none, for a person to read.
    :param key: its key if it has a usable one, so that a repeat is not counted again.
    """

    payload: bytes
    reason: str
    key: Key | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that was refused for good, kept aside with its reason.

    :param position: where it is kept; what ``retry`` and ``drop`` take.
    :param task_id: ``None`` for a record that never became a task: it can be dropped, not retried.
    :param rejected_at: when, timezone-aware.
    """

    position: int
    task_id: str | None
    payload: bytes
    reason: str
    rejected_at: datetime


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
    :raises TaskError: it has no ``task_id``, or holds something JSON cannot carry.
    """
    task_id = getattr(task, "task_id", None)
    if task_id is None:
        raise TaskError(f"{type(task).__name__} has no task_id: give it one, such as run.task_id(key)")
    try:
        payload = _encoder.encode(task)
        if b"null" in payload and not _is_finite(msgspec.to_builtins(task, enc_hook=_encode_other)):
            raise ValueError("NaN and infinity are no JSON numbers")  # msgspec writes them as null
    except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
        raise TaskError(f"{type(task).__name__} {task_id} cannot be encoded as JSON: {error}") from error
    if payload[:1] != b"{":
        raise TaskError(f"{type(task).__name__} {task_id} does not encode as a JSON object")
    return str(task_id), payload
