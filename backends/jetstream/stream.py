"""Whether a stream of JetStream keeps what it takes, and for how much more it has room."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from owm_outbox import ConfigurationError

from .connection import Session, Stream
from .errors import JetStreamError

__all__ = ["look_at", "proposal", "room_for", "wire_size"]

_NO_STREAM = 10059
_PER_MESSAGE = 34  # bytes that a file of the server needs for a message besides subject, headers and payload


def proposal(name: str, subject: str) -> str:
    """Return the configuration of a stream that suits, as ``nats stream add --config`` reads it."""
    return json.dumps(
        {
            "name": name,
            "subjects": [subject, f"{subject}.mark.*"],
            "retention": "workqueue",
            "discard": "new",
            "max_bytes": 1_000_000_000,
            "storage": "file",
            "num_replicas": 1,
            "allow_atomic": True,
            "allow_rollup_hdrs": True,
        }
    )


async def look_at(session: Session, where: str, name: str, subject: str) -> Stream:
    """Return what there is to know of the stream.

    :param where: the server, for messages.

    :raises ConfigurationError: it does not exist, or it would lose tasks or marks; the message says what to change.
    """
    try:
        found = (await session.ask(f"$JS.API.STREAM.INFO.{name}"))["config"]
    except JetStreamError as error:
        if error.code != _NO_STREAM:
            raise
        raise ConfigurationError(
            f"{where}: there is no stream {name!r}: write {proposal(name, subject)} to a file, and make it with "
            f"nats stream add {name} --config FILE"
        ) from error
    if problems := list(_problems(found, subject)):
        raise ConfigurationError(f"{where}: the stream {name!r} does not suit: {'; '.join(problems)}")
    if found["retention"] == "workqueue" and (greedy := await _consumer_of_marks(session, name, subject)):
        raise ConfigurationError(
            f"{where}: the consumer {greedy!r} of the stream {name!r} also takes marks, and removes what it takes: "
            f"give it filter_subject {subject!r}"
        )
    largest = int(found.get("max_msg_size", -1))
    return Stream(min(session.max_payload, largest) if largest > 0 else session.max_payload)


def _problems(found: Mapping[str, Any], subject: str) -> Iterable[str]:
    """Say what to change, and why."""
    for needed in (subject, f"{subject}.mark.*"):
        if not any(_covers(pattern, needed) for pattern in found.get("subjects") or ()):
            yield f"add {needed!r} to its subjects"
    if not found.get("allow_atomic"):
        yield "set allow_atomic: a batch is taken as a whole (nats-server 2.12.1)"
    if not found.get("allow_rollup_hdrs"):
        yield "set allow_rollup_hdrs: a mark replaces the one before"
    if found.get("retention") == "interest":
        yield "set retention to workqueue or limits: with interest, a message without a consumer is dropped at once"
    if found.get("max_age"):
        yield "set max_age to 0: it would remove tasks that nobody has read"
    if found.get("max_msgs_per_subject", -1) > 0:
        yield "set max_msgs_per_subject to -1: all tasks have one subject"
    if found.get("discard", "old") != "new" or found.get("max_bytes", -1) <= 0:
        # The server looks at the stream's own limits before it takes a batch. Where the account or the server runs out
        # of room, it stores a part of the batch; max_bytes is set aside from what these have.
        yield "set discard to new, and max_bytes to what it may hold: only so a batch is taken as a whole or not at all"
    if found.get("no_ack"):
        yield "unset no_ack: only an answer says that a batch was taken"
    if found.get("sealed"):
        yield "it is sealed: name another one"
    if found.get("mirror"):
        yield "it is a mirror, which takes no messages: name the stream that it mirrors"
    if found.get("subject_transform"):
        yield "remove subject_transform: marks would not be found under their subject"


def _covers(pattern: str, subject: str) -> bool:
    """Return whether all that the one subject matches is matched by the other one."""
    wide, narrow = pattern.split("."), subject.split(".")
    for place, word in enumerate(wide):
        if word == ">":
            return len(narrow) > place
        if place >= len(narrow) or word not in ("*", narrow[place]):
            return False
    return len(wide) == len(narrow)


async def _consumer_of_marks(session: Session, name: str, subject: str) -> str | None:
    """Return a consumer that takes marks for tasks, if there is one."""
    offset, total = 0, 1
    while offset < total:
        question = json.dumps({"offset": offset}).encode()
        reply = await session.ask(f"$JS.API.CONSUMER.LIST.{name}", question)
        consumers = reply.get("consumers") or []
        for consumer in consumers:
            config = consumer["config"]
            filters = config.get("filter_subjects") or [config.get("filter_subject") or ">"]
            if any(_meet(each, f"{subject}.mark.*") for each in filters):
                return str(consumer["name"])
        offset, total = offset + max(1, len(consumers)), int(reply.get("total", 0))
    return None


def _meet(one: str, other: str) -> bool:
    """Return whether there is a subject that both match."""
    for left, right in zip(here := one.split("."), there := other.split("."), strict=False):
        if ">" in (left, right):
            return True
        if left != right and "*" not in (left, right):
            return False
    return len(here) == len(there)


def wire_size(payload: bytes, headers: Mapping[str, str]) -> int:
    """Return the bytes of a message as the server counts them: headers as they are written, and payload."""
    lines = sum(len(name) + len(value) + 4 for name, value in headers.items())
    return len("NATS/1.0\r\n") + lines + len("\r\n") + len(payload)


async def room_for(session: Session, name: str, sizes: Iterable[int]) -> int:
    """Return how many messages of these sizes, and one more as large as the first, a full stream still takes.

    :param sizes: bytes with subject, in order; the first is that of the mark.
    """
    reply = await session.ask(f"$JS.API.STREAM.INFO.{name}")
    config, state = reply["config"], reply["state"]
    free = config["max_bytes"] - state["bytes"] if config.get("max_bytes", -1) > 0 else None
    most = config["max_msgs"] - state["messages"] if config.get("max_msgs", -1) > 0 else None
    taken = 0
    for size in sizes:
        if free is not None:
            free -= size + _PER_MESSAGE
            if free < 0:
                break
        taken += 1
    return max(0, (taken if most is None else min(taken, most)) - 1)
