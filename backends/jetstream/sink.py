"""The sink: a batch and its mark in one atomic batch of NATS JetStream."""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import quote

import msgspec

from owm_outbox import (
    URL,
    Batch,
    ConfigurationError,
    EntriesRejected,
    Entry,
    MarkConflict,
    Sink,
    SinkFull,
    SinkUnavailable,
    retried,
)

from .address import Address
from .connection import NatsConnection, Session, Stream
from .errors import JetStreamError
from .stream import look_at, room_for, wire_size

__all__ = ["OPTIONS", "JetStreamSink", "headers_of", "mark_subject"]

T = TypeVar("T")

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Text = Annotated[str, msgspec.Meta(min_length=1)]
OPTIONS: dict[str, Any] = {
    "subject": _Text,
    "creds": _Text,
    "nkey": _Text,
    "ca_file": _Text,
    "cert_file": _Text,
    "key_file": _Text,
    "timeout": _Positive,
    "retries": Annotated[int, msgspec.Meta(ge=0, le=100)],
    "backoff_base": _Positive,
    "backoff_cap": _Positive,
}

_SUBJECT = re.compile(r"[^\s.*>$\x00-\x1f][^\s.*>\x00-\x1f]*(\.[^\s.*>\x00-\x1f]+)*\Z")
_STREAM = re.compile(r"[^\s.*>/\\\x00-\x1f]+\Z")

# What a header of NATS can hold, as every client writes and reads it: visible ASCII, with blanks inside.
_NAME = re.compile(r"(?!nats-)[a-z0-9!#$%&'*+.^_`|~-]+\Z", re.IGNORECASE)
_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?\Z")
_OTHERS = "Owm-Headers"

_NO_MESSAGE = 10037
_WRONG_SEQUENCE = (10071, 10164)
_TOO_LARGE = 10199
_FULL = (10077, 10002, 10023, 10028, 10047)  # the stream; then the account and the server
_FIXES = {
    10039: "JetStream is not enabled for this account: enable it",
    10059: "the stream does not exist any more: make it, see docs/jetstream.md",
    10076: "JetStream is not enabled on the server: enable it",
    10109: "the stream is sealed: name another one",
    10111: "set allow_rollup_hdrs on the stream",
    10174: "set allow_atomic on the stream",
}


def mark_subject(subject: str, outbox_id: str) -> str:
    """Return the subject of an outbox's mark, ``{subject}.mark.{id}``: a filter on ``subject`` does not match it.

    What a subject cannot hold is percent-encoded.
    """
    return f"{subject}.mark.{quote(outbox_id, safe='').replace('.', '%2E')}"


def headers_of(entry: Entry) -> dict[str, str]:
    """Return the headers with which an entry travels.

    Most travel as they are. A header of NATS is ASCII without line breaks, and a name that begins with ``Nats-`` is an
    order to the server: what cannot travel is in ``Owm-Headers``, a JSON object in ASCII.
    """
    plain: dict[str, str] = {}
    others: dict[str, str] = {}
    for name, value in entry.headers.items():
        fits = _NAME.match(name) and _VALUE.match(value) and name.lower() != _OTHERS.lower()
        (plain if fits else others)[name] = value
    return {**plain, _OTHERS: json.dumps(others)} if others else plain


class JetStreamSink(Sink):
    """Publishes each task as a message to a NATS JetStream stream. nats-server 2.12.1 and later.

    ``nats://user:password@host:4222/STREAM?subject=tasks``, or ``tls://``; several hosts with commas between, a token
    instead of the user. Options: ``subject``, required; ``creds`` or ``nkey``, files that say who we are; ``ca_file``,
    ``cert_file``, ``key_file`` for TLS; ``timeout`` (5 seconds) of each exchange; ``retries`` (8), ``backoff_base``,
    ``backoff_cap`` (seconds) on lost connections and timeouts.

    A batch is one atomic batch of the server's: its entries on ``subject``, and its mark on the subject that
    `mark_subject` names, where it replaces the mark before, if the server still has that one. So there is no need for
    ``Nats-Msg-Id``, which the server forgets after two minutes. Who reads ``subject`` never sees a mark. If the stream
    was deleted, purged or made from scratch, its marks went with the entries.

    The stream must exist, and must not drop what nobody has read: see `docs/jetstream.md`. It is looked at on each
    connection. A server takes 1,000 messages per batch unless it is configured otherwise; more is `SinkFull`, with
    the number that it takes.

    :param url: with the stream as its path, without the options above.
    """

    def __init__(
        self,
        url: str,
        *,
        subject: str,
        retries: int = 8,
        backoff_base: float = 1.0,
        backoff_cap: float = 10.0,
        **connecting: Any,
    ) -> None:
        parsed = URL(url)
        address = Address.of(parsed, connecting)
        self._stream = parsed.path.removeprefix("/")
        if not _STREAM.match(self._stream):
            raise ConfigurationError(
                f"{address.where}: the path is the name of a stream, such as "
                f"{parsed.scheme}://host:4222/TASKS?subject=tasks"
            )
        if not _SUBJECT.match(subject):
            raise ConfigurationError(
                f"{address.where}: subject={subject!r} is not a subject to publish to: "
                "write words with dots between, without * or >, not beginning with $"
            )
        self._where = f"{address.where}, subject {subject!r}"
        self._subject = subject
        self._retries = retries
        self._backoff = backoff_base, backoff_cap
        self._connection = NatsConnection(replace(address, rights=_rights(self._stream, subject)))

    @classmethod
    def from_url(cls, url: URL) -> Self:
        """Make the sink that a ``nats://`` or ``tls://`` URL names."""
        given = url.options(**OPTIONS)
        if "subject" not in given:
            raise ConfigurationError(f"{url} needs subject=NAME, such as {url.scheme}://host:4222/TASKS?subject=tasks")
        return cls(url.without_options(*OPTIONS), **given)

    def mark(self, outbox_id: str) -> str:
        """Return the text of the last message on the outbox's mark subject, as the leader of the stream has it."""
        return self._tried(lambda session: self._held(session, outbox_id))[0]

    def send(self, batch: Batch) -> None:
        """Publish the entries and the mark as one atomic batch, if the mark before is still the last one."""
        self._tried(lambda session: self._send(session, batch))

    def close(self) -> None:
        """Close the connection and end its thread."""
        self._connection.close()

    # -- within

    async def _looked_at(self, session: Session) -> Stream:
        if session.stream is None:
            session.stream = await look_at(session, self._where, self._stream, self._subject)
        return session.stream

    async def _held(self, session: Session, outbox_id: str) -> tuple[str, int]:
        """Return the mark that is held, and its sequence in the stream; 0 for none."""
        await self._looked_at(session)
        question = {"last_by_subj": mark_subject(self._subject, outbox_id)}
        try:
            # Not a direct get: that one may be answered by a replica that is behind.
            reply = await session.ask(f"$JS.API.STREAM.MSG.GET.{self._stream}", json.dumps(question).encode())
        except JetStreamError as error:
            if error.code == _NO_MESSAGE:
                return "", 0
            raise
        message = reply["message"]
        return base64.b64decode(message.get("data", "")).decode(errors="replace"), int(message["seq"])

    async def _send(self, session: Session, batch: Batch) -> None:
        held, sequence = await self._held(session, batch.outbox_id)
        if held != batch.after:
            raise await self._conflict(session, held)
        messages = _messages(batch)
        stream = await self._looked_at(session)
        self._check(stream, batch, messages)
        for entry, headers in zip(batch.entries, messages, strict=True):
            await session.publish(self._subject, entry.payload, headers)
        last = _numbered(messages[0]["Nats-Batch-Id"], len(messages) + 1) | {
            "Nats-Batch-Commit": "1",
            "Nats-Rollup": "sub",
            "Nats-Expected-Last-Subject-Sequence": str(sequence),
        }
        try:
            reply = await session.ask(mark_subject(self._subject, batch.outbox_id), batch.mark.encode(), last)
        except JetStreamError as error:
            if error.code in _WRONG_SEQUENCE:
                held, _ = await self._held(session, batch.outbox_id)
                if held != batch.after:
                    raise await self._conflict(session, held) from error
                # Else another batch for this outbox was under way: the last attempt, or another relay's.
            if error.code in _FULL:
                raise await self._full(session, batch, messages, last, error) from error
            if error.code == _TOO_LARGE:
                stream.most = int((re.findall(r"\d+", error.description) or ["1000"])[-1]) - 1
                self._check(stream, batch, messages)
            raise
        if reply.get("count") != len(messages) + 1:  # one that does not know batches would store this message alone
            raise SinkUnavailable(f"{self._where} gave an answer that makes no sense: {reply}")

    async def _full(
        self,
        session: Session,
        batch: Batch,
        messages: list[dict[str, str]],
        last: dict[str, str],
        error: JetStreamError,
    ) -> SinkFull:
        """Return the error, with what the stream still has room for."""
        room = 0
        if error.code == _FULL[0]:
            subject = mark_subject(self._subject, batch.outbox_id)
            sizes = [len(subject.encode()) + wire_size(batch.mark.encode(), last)]
            for entry, headers in zip(batch.entries, messages, strict=True):
                sizes.append(len(self._subject.encode()) + wire_size(entry.payload, headers))
            room = await room_for(session, self._stream, sizes)
        return SinkFull(f"{self._where} is full ({error}): let its consumers catch up", room=room)

    async def _conflict(self, session: Session, held: str) -> MarkConflict:
        """Return the error; but where a mark is gone, first look whether a consumer took it for a task."""
        if not held:
            session.stream = await look_at(session, self._where, self._stream, self._subject)
        return MarkConflict(held)

    def _check(self, stream: Stream, batch: Batch, messages: list[dict[str, str]]) -> None:
        """Refuse entries that are too large, and more of them than the server takes at once."""
        too_large = {}
        for entry, headers in zip(batch.entries, messages, strict=True):
            if (size := wire_size(entry.payload, headers)) > stream.limit:
                too_large[entry.position] = (
                    f"with its headers it has {size} bytes; the limit is {stream.limit} "
                    "(max_payload of the server, max_msg_size of the stream)"
                )
        if too_large:
            raise EntriesRejected(too_large)
        if stream.most is not None and len(messages) > stream.most:
            raise SinkFull(
                f"{self._where}: the server takes {stream.most} entries per batch: set --batch-size {stream.most}, "
                "or raise jetstream { limits { batch { max_msgs } } } in its configuration",
                room=stream.most,
            )

    def _tried(self, work: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        """Do the work, again after an outage; of what JetStream refuses, say what it means."""

        def attempt() -> T:
            try:
                return self._connection.run(work)
            except JetStreamError as error:
                if fix := _FIXES.get(error.code):
                    raise ConfigurationError(f"{self._where}: {fix} ({error})") from error
                raise SinkUnavailable(f"{self._where} cannot be used now ({error}); try again later") from error

        base, cap = self._backoff
        return retried(attempt, retries=self._retries, base=base, cap=cap)


def _rights(stream: str, subject: str) -> str:
    requests = (f"STREAM.INFO.{stream}", f"STREAM.MSG.GET.{stream}", f"CONSUMER.LIST.{stream}")
    subjects = [subject, f"{subject}.mark.*", *(f"$JS.API.{request}" for request in requests)]
    return f"publish to {', '.join(subjects)}, and subscribe to _INBOX.>"


def _numbered(batch_id: str, number: int) -> dict[str, str]:
    return {"Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}


def _messages(batch: Batch) -> list[dict[str, str]]:
    """Return the headers of each message."""
    batch_id = uuid.uuid4().hex
    return [_numbered(batch_id, number) | headers_of(entry) for number, entry in enumerate(batch.entries, start=1)]
