"""RedisStreamSink: a batch, its mark and the trimming in one script call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import quote

import msgspec
import redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from owm_outbox import (
    URL,
    Batch,
    ConfigurationError,
    EntriesRejected,
    MarkConflict,
    Sink,
    SinkFull,
    SinkUnavailable,
)

from .connection import CLIENT_OPTIONS, Backoff, OwnRetry, Server, check, connect, meaning
from .headers import with_headers
from .rights import missing_rights
from .scripts import MARK_SCRIPT, SEND_SCRIPT, Script

__all__ = ["MARK_SCRIPT", "OPTIONS", "SEND_SCRIPT", "RedisStreamSink", "marks_key"]

log = logging.getLogger("owm_outbox_backends.redis_stream")

_MAX_BULK = 512 * 2**20  # proto-max-bulk-len where the server does not tell: Redis closes the connection beyond it
_WAIT_MS = 500


_Positive = Annotated[float, msgspec.Meta(gt=0)]
OPTIONS: dict[str, Any] = {
    "stream": Annotated[str, msgspec.Meta(min_length=1)],
    "maxlen": Annotated[int, msgspec.Meta(ge=0)],
    "overflow": Literal["hold", "trim"],
    "groups": Annotated[str, msgspec.Meta(min_length=1)],
    "headers": Literal["none", "fields"],
    "retries": Annotated[int, msgspec.Meta(ge=0, le=100)],
    "backoff_base": _Positive,
    "backoff_cap": _Positive,
    "wait_replicas": Annotated[int, msgspec.Meta(ge=0)],
    "wait_aof": Annotated[int, msgspec.Meta(ge=0)],
}


def marks_key(stream: str) -> str:
    """Return the hash in which marks are kept, ``{stream}:positions``: in the stream's slot of a cluster."""
    tagged = "{" in stream and "}" in stream.partition("{")[2][1:]
    return f"{stream if tagged else '{' + stream + '}'}:positions"


class RedisStreamSink(Sink):
    """Adds each task to a Redis Stream as an entry with a field ``data``. Redis 6.2 and later, Valkey.

    ``redis://user:password@host:6379/0?stream=s``, or ``rediss://`` for TLS. Options: ``stream``, required; ``maxlen``
    (0: no bound); ``overflow``: ``hold`` keeps what a consumer group has not acknowledged, and without a group what
    the current run delivered, and says that the sink is full, ``trim`` trims all the same; ``groups=a,b``: only these
    count, and one that does not exist has read nothing; ``headers=fields``: an entry's headers are more
    fields, behind ``data``, and not left out; ``retries``, ``backoff_base``, ``backoff_cap`` (seconds) on
    connection errors; ``wait_replicas=N``: a batch counts as held once N replicas have it, too; ``wait_aof=N``: once N
    servers, this one first, have it in their append-only file on disk (Redis 7.2, Valkey); and redis-py's own, such as
    ``socket_timeout`` (5 s).

    It keeps a mark per outbox next to the stream, in the hash that `marks_key` names, with what tells whether the
    stream still is the one that took the batch. If it was deleted, evicted or made from scratch, the mark is not held
    any more. Before Redis 7 a server does not count what was ever added to a stream. There, a stream that others write
    to as well looks like a new one once everything up to our last entry was deleted or trimmed, and what the outbox
    still has is sent again.

    The first call asks the server whether the user has the rights that `check_rights` lists. INFO and CONFIG GET are
    optional: with them, eviction is warned of and the limit of a payload is known.

    :param url: as redis-py takes it, without the options above.
    """

    client_options: ClassVar[dict[str, Any]] = CLIENT_OPTIONS
    """The options of a URL that are for the client, and their types."""

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        stream: str,
        maxlen: int = 100_000,
        overflow: Literal["hold", "trim"] = "hold",
        groups: str = "",
        headers: Literal["none", "fields"] = "none",
        retries: int = 8,
        backoff_base: float = 1.0,
        backoff_cap: float = 10.0,
        wait_replicas: int = 0,
        wait_aof: int = 0,
    ) -> None:
        self._url = URL(url)
        self._where = f"{self._url}, stream {stream!r}"
        self._stream = stream
        self._marks = marks_key(stream)
        self._maxlen = maxlen
        self._overflow = overflow
        self._groups = [name.strip() for name in groups.split(",")] if groups else []
        if "" in self._groups:
            raise ConfigurationError(f"{self._where}: groups={groups!r} has an empty name; write groups=a,b")
        self._headers = headers == "fields"
        self._retries = retries
        self._backoff = Backoff(base=backoff_base, cap=backoff_cap)
        self._waits: list[tuple[str | int, ...]] = []  # what must be answered by enough copies before a write counts
        if wait_replicas:
            self._waits.append(("WAIT", wait_replicas, _WAIT_MS))
        if wait_aof:
            self._waits.append(("WAITAOF", 1, wait_aof - 1, _WAIT_MS))
        self.server = self._connected(self._url, OwnRetry(self._backoff, retries))
        self._rights_checked = False
        self._max_payload: int | None = None
        self._trimmed_until: dict[str, int] = {}  # the server's count when it was last seen, by outbox
        self.trimmed = 0

    @classmethod
    def from_url(cls, url: URL) -> Self:
        """Make the sink that a URL names."""
        given = url.options(**OPTIONS, **cls.client_options)
        check(url, given)
        if "stream" not in given:
            raise ConfigurationError(f"{url} needs stream=NAME, such as {url.scheme}://host:6379/0?stream=tasks")
        return cls(url.without_options(*OPTIONS), **{name: given[name] for name in OPTIONS if name in given})

    def mark(self, outbox_id: str) -> str:
        """Return the mark that is kept for this outbox, if the stream still bears it out.

        The first call also asks whether the user has all the rights that a batch may need.
        """
        if not self._rights_checked:
            self.check_rights()
        with self._translated():
            reply: Any = self._confirmed(outbox_id, self._question(outbox_id))
        match reply:
            case [b"held", mark, trimmed]:
                self._count_trimmed(outbox_id, trimmed, 0)
                return _text(mark)
        raise self._foreign(reply)

    def send(self, batch: Batch) -> None:
        """Add the batch and its mark with one call of the script."""
        limit = self.largest_payload
        if too_large := [entry for entry in batch.entries if len(entry.payload) > limit]:
            raise EntriesRejected(
                {
                    entry.position: f"its payload has {len(entry.payload)} bytes; the server's limit is {limit}"
                    for entry in too_large
                }
            )
        payloads = with_headers(batch.entries, limit) if self._headers else [entry.payload for entry in batch.entries]
        args: list[str | bytes | int] = [
            batch.outbox_id,
            batch.after,
            batch.mark,
            quote(batch.run_id, safe="") or "-",
            self._maxlen,
            self._overflow,
            1 if self._headers else 0,
            len(self._groups),
            *self._groups,
            *payloads,
        ]
        with self._translated():
            reply: Any = self._confirmed(batch.outbox_id, self._script(SEND_SCRIPT, args))
        match reply:
            case [b"taken", trimmed, now]:
                self._count_trimmed(batch.outbox_id, trimmed, now)
            case [b"conflict", held, trimmed]:
                self._count_trimmed(batch.outbox_id, trimmed, 0)
                # Perhaps by an earlier attempt of ours, which not enough copies had confirmed.
                raise MarkConflict(self.mark(batch.outbox_id) if self._waits else _text(held))
            case [b"full", room, trimmed, reason, entry_id, group]:
                self._count_trimmed(batch.outbox_id, trimmed, 0)
                why = self._why_full(_text(reason), _text(entry_id), _text(group))
                raise SinkFull(f"{self._where} is full (maxlen {self._maxlen}): {why}", room=room)
            case _:
                raise self._foreign(reply)

    def check_rights(self) -> None:
        """Ask whether the user may do all that the sink may have to do. Nothing is written.

        :raises ConfigurationError: no; the message lists the rules that are missing.
        :raises SinkUnavailable: the server cannot be asked.
        """
        waits = [str(wait[0]) for wait in self._waits]
        with self._translated():
            missing = self.server.call(
                lambda client, _: missing_rights(
                    client,
                    self._stream,
                    self._marks,
                    bounded=self._maxlen > 0,
                    waits=waits,
                    more=self.server.rights,
                )
            )
        if missing:
            rules = " ".join(missing)
            raise ConfigurationError(
                f"{self._where}: the user lacks rights: grant them with ACL SETUSER {self.server.user} {rules}"
            )
        self._rights_checked = True

    @property
    def largest_payload(self) -> int:
        """How many bytes the server takes at once. It is asked once, also for a setting that defeats the promises."""
        if self._max_payload is None:
            memory: Any = self._told(lambda client: client.info("memory"))
            setting: Any = self._told(lambda client: client.config_get("proto-max-bulk-len"))
            if str(memory.get("maxmemory_policy", "")).startswith("allkeys") and memory.get("maxmemory"):
                log.warning(
                    "%s: maxmemory-policy is %s, so the server may evict the whole stream with tasks that nobody has "
                    "read; set noeviction",
                    self._where,
                    memory["maxmemory_policy"],
                )
            self._max_payload = int(next(iter(setting.values()), _MAX_BULK))
        return self._max_payload

    def close(self) -> None:
        """Close the connections."""
        self.server.close()

    # -- within

    def _connected(self, url: URL, retry: OwnRetry) -> Server:
        """Return what the sink sends its commands to. This is where the kinds of Redis sinks differ."""
        return Server(connect(url, retry))

    def _question(self, outbox_id: str) -> Script:
        return self._script(MARK_SCRIPT, [outbox_id, 1 if self._waits else 0])

    def _script(self, script: str, args: list[str | bytes | int]) -> Script:
        return Script(script, (self._stream, self._marks), args)

    def _count_trimmed(self, outbox_id: str, trimmed: int, now: int) -> None:
        """Count what was trimmed since the server's count was last seen, also by a call whose reply was lost."""
        before = self._trimmed_until.get(outbox_id, trimmed - now)
        self.trimmed += max(0, trimmed - before)  # less than before: the server was set back
        self._trimmed_until[outbox_id] = trimmed

    def _why_full(self, reason: str, entry_id: str, group: str) -> str:
        create = f"XGROUP CREATE {self._stream} {group or 'GROUP'} 0"
        match reason:
            case "missing":
                return (
                    f"groups= names {group!r}, but the stream does not have that group, so nothing counts as read. "
                    f"Create it ({create}), or correct groups="
                )
            case "run":
                return (
                    "no consumer group reads it, and what is left of it was delivered by this run, so nothing of it "
                    f"may be trimmed. Create a group ({create}), raise maxlen=, or set overflow=trim"
                )
            case "size":
                return "the batch alone is larger than that. Make batches smaller, or raise maxlen="
            case "unread" if entry_id == "0-0":
                progress = "has read nothing yet"
            case "unread":
                progress = f"has read nothing beyond {entry_id}"
            case _:
                progress = f"has not acknowledged {entry_id}"
        return f"group {group!r} {progress}. Let it catch up, or see groups= and overflow= in the README"

    def _foreign(self, reply: Any) -> ConfigurationError | SinkUnavailable:
        match reply:
            case [b"foreign", value]:
                return ConfigurationError(
                    f"{self._where}: {self._marks!r} holds {_text(value)!r}, which is not a mark: another program "
                    "writes to it; name another stream"
                )
        return SinkUnavailable(f"{self._where} gave an answer that makes no sense: {reply!r}")

    def _confirmed(self, outbox_id: str, script: Script) -> Any:
        """Call a script, and return its reply once as many copies as the URL asks for have what it wrote."""
        attempt = 0
        reply, *copies = self.server.call(partial(script.run, waits=self._waits))
        while not all(map(_enough, self._waits, copies)):
            attempt += 1
            if attempt > self._retries or not self._backoff.wait(attempt):
                raise SinkUnavailable(
                    f"{self._where}: not enough copies have what was written ({self._waits}: {copies})"
                )
            _, *copies = self.server.call(partial(self._question(outbox_id).run, waits=self._waits))
        return reply

    def _told(self, ask: Callable[[redis.Redis], Any]) -> Any:
        """Ask the server about itself; a managed one need not tell."""
        with self._translated():
            try:
                return self.server.call(lambda client, _: ask(client))
            except (NoPermissionError, ResponseError) as error:
                log.debug("%s does not tell its settings: %s", self._where, error)
                return {}

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except RedisError as error:
            raise meaning(error, self._url, self._stream, self._marks) from error
        except SinkUnavailable:
            raise
        except BaseException:
            # Interrupted between a request and its reply: the next use of the connection would read that reply.
            self.server.disconnect()
            raise


def _enough(wait: tuple[str | int, ...], count: Any) -> bool:
    """Compare what WAIT (a number) or WAITAOF (here, and on replicas) answered with what was asked for."""
    if wait[0] == "WAIT":
        return bool(count >= wait[1])
    return bool(count[0] >= wait[1] and count[1] >= wait[2])


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
