"""What a job makes: tasks, and how they become entries; records that are none; what was rejected."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from owm_outbox.entry import NO_HEADERS, Key, NewEntry
from owm_outbox.errors import TaskError

__all__ = ["DeadLetter", "InvalidRecord", "dead_entry", "encode", "new_entries"]


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
    :param run: the id of the run that it belongs to, ``None`` for an application's task.
    :param key: ``None`` for a task that has none.
    """

    position: int
    task_id: str | None
    payload: bytes
    reason: str
    rejected_at: datetime
    first_rejected_at: datetime
    times: int
    run: str | None = None
    key: Key | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)


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
    # str() of a UUID is Python, and took a twelfth of what it takes to append a task.
    return msgspec.to_builtins(task_id) if type(task_id) is UUID else str(task_id), payload


def new_entries(
    tasks: Iterable[Any], key: Callable[[Any], Key] | None, headers: Mapping[str, str] | None
) -> list[NewEntry]:
    """Encode tasks for ``store``.

    :raises TaskError: a task or its key cannot be stored.
    """
    kept = headers or NO_HEADERS
    if key is None:
        return [NewEntry(None, task_id, kept, payload) for task_id, payload in map(encode, tasks)]
    entries = []
    for task in tasks:
        known = key(task)
        if not isinstance(known, int | str):
            raise TaskError(
                f"the key of {type(task).__name__} {getattr(task, 'task_id', '')} is a {type(known).__name__}: "
                "return an int or a str, such as str(key)"
            )
        task_id, payload = encode(task)
        entries.append(NewEntry(known, task_id, kept, payload))
    return entries


def dead_entry(record: InvalidRecord) -> NewEntry:
    """Return a record as a dead letter for ``store``."""
    # Without a key of its own the record itself is the key: the same one on a second pass is not counted again.
    key = f"sha256:{hashlib.sha256(record.payload).hexdigest()}" if record.key is None else record.key
    return NewEntry(key, None, NO_HEADERS, record.payload, record.reason)
