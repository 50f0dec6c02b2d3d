"""RedisStreamSink: a batch, the position and the trimming in one script call."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Annotated, Any, Literal, Self, TypeVar

import msgspec
import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from owm_outbox import (
    URL,
    Batch,
    ConfigurationError,
    EntriesRejected,
    OutboxError,
    Place,
    PositionConflict,
    Sink,
    SinkFull,
    SinkUnavailable,
)

__all__ = ["RedisStreamSink"]

log = logging.getLogger("owm_outbox_backends.redis_stream")

T = TypeVar("T")

_FATAL = (AuthenticationError, AuthorizationError, NoPermissionError)
_NO_RIGHT = ("NOPERM", "can't run this command", "has no permissions to run")  # as said within a script
_MAX_BULK = 512 * 2**20  # proto-max-bulk-len where the server does not tell: Redis closes the connection beyond it

_STREAM = "owm-ingestion-stream"
_WAIT_MS = 500

# Writes without a change, which replicas and the append-only file get like any other, and returns the position.
_TOUCH = """
local held = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], held or '0')
return held
"""

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_OPTIONS: dict[str, Any] = {
    "stream": Annotated[str, msgspec.Meta(min_length=1)],
    "maxlen": Annotated[int, msgspec.Meta(ge=0)],
    "overflow": Literal["hold", "trim"],
    "groups": Annotated[str, msgspec.Meta(min_length=1)],
    "retries": Annotated[int, msgspec.Meta(ge=0, le=100)],
    "backoff_base": _Positive,
    "backoff_cap": _Positive,
    "wait_replicas": Annotated[int, msgspec.Meta(ge=0)],
    "wait_aof": Annotated[int, msgspec.Meta(ge=0)],
}
# What redis-py's own URLs take: the settings of its client that can be written as text.
_CLIENT_OPTIONS: dict[str, Any] = {
    "username": str,
    "password": str,
    "client_name": str,
    "db": Annotated[int, msgspec.Meta(ge=0)],
    "protocol": Annotated[int, msgspec.Meta(ge=2, le=3)],
    "socket_timeout": _Positive,
    "socket_connect_timeout": _Positive,
    "socket_keepalive": bool,
    "health_check_interval": Annotated[int, msgspec.Meta(ge=0)],
    "ssl_check_hostname": bool,
    "ssl_cert_reqs": Literal["none", "optional", "required"],
    **dict.fromkeys(
        ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_password", "ssl_ciphers"),
        str,
    ),
}


class RedisStreamSink(Sink):
    """Adds each task to a Redis Stream as an entry with one field, ``data``. Redis 6.2 and later, Valkey.

    ``redis://user:password@host:6379/0?stream=s``, or ``rediss://`` for TLS. Options: ``stream``; ``maxlen`` (0: no
    bound); ``overflow``: ``hold`` keeps what a consumer group has not acknowledged and says the sink is full,
    ``trim`` trims all the same; ``groups=a,b``: only these count; ``retries``, ``backoff_base``, ``backoff_cap``
    (seconds) on connection errors; ``wait_replicas=N``: a batch counts as held once N replicas have it, too;
    ``wait_aof=N``: once N servers, this one first, have it in their append-only file on disk (Redis 7.2, Valkey);
    and redis-py's own, such as ``socket_timeout``.

    It holds its position for each outbox in the hash ``{stream}:positions``, in the stream's slot of a cluster.

    :param url: as redis-py takes it, without the options above.
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        stream: str = _STREAM,
        maxlen: int = 100_000,
        overflow: Literal["hold", "trim"] = "hold",
        groups: str = "",
        retries: int = 8,
        backoff_base: float = 1.0,
        backoff_cap: float = 10.0,
        wait_replicas: int = 0,
        wait_aof: int = 0,
    ) -> None:
        self._where = f"{URL(url)}, stream {stream!r}"
        self._stream = stream
        tagged = "{" in stream and "}" in stream.partition("{")[2][1:]
        self._positions = f"{stream if tagged else '{' + stream + '}'}:positions"
        self._maxlen = maxlen
        self._overflow = overflow
        self._groups = groups
        self._max_payload: int | None = None
        self._retries = retries
        self._backoff = _PausingBackoff(lambda: self.pause, base=backoff_base, cap=backoff_cap)
        self._waits: list[tuple[str | int, ...]] = []  # what must be answered by enough copies before a write counts
        if wait_replicas:
            self._waits.append(("WAIT", wait_replicas, _WAIT_MS))
        if wait_aof:
            self._waits.append(("WAITAOF", 1, wait_aof - 1, _WAIT_MS))
        try:
            pool: redis.ConnectionPool = redis.ConnectionPool.from_url(
                url,
                retry=_Retry(self._backoff, retries),
                # The retry covers lost connections and timeouts; these are two more that pass by themselves.
                retry_on_error=[BusyLoadingError, ReadOnlyError],
            )
            self._client: redis.Redis = redis.Redis(connection_pool=pool)
            self._take = self._client.register_script(
                files(__package__).joinpath("redis_stream.lua").read_text("utf-8")
            )
            self._touch = self._client.register_script(_TOUCH)
        except (ValueError, TypeError, RedisError) as error:
            raise ConfigurationError(f"{URL(url)}: {error}") from error

    @classmethod
    def from_url(cls, url: URL) -> Self:
        """Make the sink that a ``redis://`` or ``rediss://`` URL names."""
        given = url.options(**_OPTIONS, **_CLIENT_OPTIONS)
        if url.scheme == "redis" and (needs_tls := [name for name in given if name.startswith("ssl_")]):
            raise ConfigurationError(f"{url}: {needs_tls[0]} is for TLS: write rediss://")
        if not url.hostname:
            raise ConfigurationError(f"{url} names no host; write redis://host:6379/0?stream=name")
        if not url.path.strip("/").isdecimal() and url.path.strip("/"):
            raise ConfigurationError(f"{url}: the path is the number of a database, such as /0")
        return cls(url.without_options(*_OPTIONS), **{name: given[name] for name in _OPTIONS if name in given})

    @classmethod
    @contextmanager
    def scratch(cls, url: URL) -> Iterator[Place]:
        """Give a stream of 100 entries beside the real one, on the same server."""
        given = url.options(**_OPTIONS, **_CLIENT_OPTIONS)
        stream = f"{given.get('stream', _STREAM)}:check:{uuid.uuid4()}"
        own = {name: given[name] for name in _OPTIONS if name in given}
        own |= {"stream": stream, "maxlen": 100, "overflow": "hold", "groups": ""}

        def make() -> RedisStreamSink:
            return cls(url.without_options(*_OPTIONS), **own)

        def held() -> list[bytes]:
            entries: Any = keeper._client.xrange(stream)
            return [fields[b"data"] for _, fields in entries]

        def fill() -> None:
            keeper._client.xgroup_create(stream, "check", id="0", mkstream=True)
            while keeper._client.xlen(stream) < 80:
                keeper._client.xadd(stream, {"data": "{}"})

        with make() as keeper:
            keeper.position("check")  # a server that is down, or says no, shows here
            try:
                yield Place(open=make, held=held, fill=fill)
            finally:
                with keeper._translated():
                    keeper._client.delete(stream, keeper._positions)

    def position(self, outbox_id: str) -> int:
        """Return what the positions hash says, 0 if nothing yet."""
        with self._translated():
            held: Any = self._client.hget(self._positions, outbox_id)
            if held is not None and self._waits:
                held = self._confirmed(outbox_id, lambda pipe: self._touch([self._positions], [outbox_id], pipe))
            kind: Any = self._client.type(self._stream)
            if _text(kind) not in ("none", "stream"):  # the first batch would tell, but by then work has been done
                raise ResponseError(f"WRONGTYPE {_text(kind)}")
        return self._number(held or 0)

    def send(self, batch: Batch) -> None:
        """Add the batch and its position with one call of the script."""
        limit = self._payload_limit()
        if too_large := [entry for entry in batch.entries if len(entry.payload) > limit]:
            raise EntriesRejected(
                {
                    entry.position: f"its payload has {len(entry.payload)} bytes, {limit} is the server's limit"
                    for entry in too_large
                }
            )
        keys = [self._stream, self._positions]
        args: list[str | bytes | int] = [
            batch.outbox_id,
            batch.after,
            batch.position,
            self._maxlen,
            self._overflow,
            self._groups,
            *(entry.payload for entry in batch.entries),
        ]
        with self._translated():
            reply: Any = self._confirmed(batch.outbox_id, lambda pipe: self._take(keys, args, pipe))
        match reply:
            case [b"taken"]:
                return
            case [b"conflict", held]:
                # Perhaps by an earlier attempt of ours, which not enough copies had confirmed.
                raise PositionConflict(self.position(batch.outbox_id) if self._waits else self._number(held))
            case [b"full", room, group, oldest]:
                since = f"not acknowledged {_text(oldest)}" if _text(oldest) != "0-0" else "read nothing yet"
                raise SinkFull(
                    f"{self._where} is full (maxlen {self._maxlen}): group {_text(group)!r} has {since}. Let it catch "
                    "up, or see groups= and overflow= in the README",
                    room=room,
                )
        raise SinkUnavailable(f"{self._where} gave an answer that makes no sense: {reply!r}")

    def _confirmed(self, outbox_id: str, write: Callable[[redis.Redis], Any]) -> Any:
        """Make a write, and return its reply once as many copies as the URL asks for have it."""
        if not self._waits:
            return write(self._client)
        attempt = 0
        reply, *copies = self._write_and_wait(write)
        while not all(map(_enough, self._waits, copies)):
            attempt += 1
            if attempt > self._retries:
                raise SinkUnavailable(
                    f"{self._where}: not enough copies have what was written ({self._waits}: {copies})"
                )
            self._backoff.compute(attempt)
            _, *copies = self._write_and_wait(lambda pipe: self._touch([self._positions], [outbox_id], pipe))
        return reply

    def _write_and_wait(self, write: Callable[[redis.Redis], Any]) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipe:  # WAIT speaks of the writes of its own connection only
            write(pipe)
            for wait in self._waits:
                pipe.execute_command(*wait)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            return list(pipe.execute())

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._client.connection_pool.disconnect()

    def _number(self, held: bytes | int) -> int:
        try:
            return int(held)
        except ValueError:
            raise ConfigurationError(
                f"{self._where}: {self._positions!r} holds {held!r}, no position: another program writes to it"
            ) from None

    def _payload_limit(self) -> int:
        """Ask the server once what it allows, and warn of a setting that defeats the promises."""
        if self._max_payload is None:
            with self._translated():
                try:
                    memory: Any = self._client.info("memory")
                    setting: Any = self._client.config_get("proto-max-bulk-len")
                except (NoPermissionError, ResponseError) as error:  # a managed server need not tell
                    log.debug("%s does not tell its settings: %s", self._where, error)
                    memory, setting = {}, {}
            if str(memory.get("maxmemory_policy", "")).startswith("allkeys") and memory.get("maxmemory"):
                log.warning(
                    "%s: maxmemory-policy is %s, so the server may evict the whole stream, or the position that "
                    "keeps delivery exactly once; set noeviction",
                    self._where,
                    memory["maxmemory_policy"],
                )
            self._max_payload = int(next(iter(setting.values()), _MAX_BULK))
        return self._max_payload

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SinkUnavailable as error:  # from a pause that was cut short; it is the reason for the pause that matters
            if not isinstance(error.__context__, RedisError):
                raise
            raise self._meaning(error.__context__) from error
        except RedisError as error:
            raise self._meaning(error) from error
        except BaseException:
            # Stopped between a request and its reply: whoever uses the connection next would take one for the other.
            self._client.connection_pool.disconnect()
            raise

    def _meaning(self, error: RedisError) -> OutboxError:
        """Say what an error of the client or the server means for the relay."""
        text = str(error)
        if isinstance(error, _FATAL) or any(words in text for words in _NO_RIGHT):
            return ConfigurationError(
                f"{self._where}: the server refuses us ({text}): check user and password in the URL, and their rights"
            )
        if "WRONGTYPE" in text:
            return ConfigurationError(
                f"{self._where}: that key, or {self._positions!r}, holds another type: name another stream"
            )
        if "WAITAOF" in text:
            return ConfigurationError(f"{self._where}: wait_aof does not work on this server ({text})")
        if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
            return SinkFull(f"{self._where}: the server is out of memory (maxmemory)")
        return SinkUnavailable(f"{self._where} cannot be used now ({text}); call again later")


class _PausingBackoff(ExponentialWithJitterBackoff):
    """Waits by itself, with the sink's ``pause``, so that a stop ends the wait; redis-py would sleep through it."""

    def __init__(self, pause: Callable[[], Callable[[float], None]], *, base: float, cap: float) -> None:
        super().__init__(cap=cap, base=base)
        self._pause = pause

    def compute(self, failures: int) -> float:
        self._pause()(super().compute(failures))
        return 0.0


class _Retry(Retry):
    """Retries all but what no retry mends, and as often as it says.

    To redis-py a wrong password is a connection error, too; and it retries a connection within each try of a command.
    """

    _under_way = False

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        def worthwhile(error: Exception) -> bool:
            return not isinstance(error, _FATAL) and (is_retryable is None or is_retryable(error))

        def attempt() -> T:
            try:
                return do()
            except ResponseError as error:
                if "READONLY" in str(error):  # within a script, Redis 6.2 wraps it into an error of another kind
                    raise ReadOnlyError(str(error)) from error
                raise

        if self._under_way:
            return do()
        self._under_way = True
        try:
            return super().call_with_retry(attempt, fail, worthwhile, with_failure_count)
        finally:
            self._under_way = False


def _enough(wait: tuple[str | int, ...], count: Any) -> bool:
    """Compare what WAIT (a number) or WAITAOF (here, and on replicas) answered with what was asked for."""
    if wait[0] == "WAIT":
        return bool(count >= wait[1])
    return bool(count[0] >= wait[1] and count[1] >= wait[2])


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
