"""How a sink connects to Redis: the options of the client, its retries, and what its errors mean."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    InvalidResponse,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from owm_outbox import URL, ConfigurationError, OwmOutboxError, SinkFull, SinkUnavailable, pause

from .tls import check_tls, other_protocol, refusal, tls_problem, unasked

__all__ = [
    "CLIENT_OPTIONS",
    "NO_RETRY",
    "PASSING",
    "Backoff",
    "OwnRetry",
    "Server",
    "check",
    "connect",
    "meaning",
    "mistake",
    "refused_unread",
    "settings_of",
]

T = TypeVar("T")

_Positive = Annotated[float, msgspec.Meta(gt=0)]

# What redis-py's own URLs take: the settings of its client that can be written as text.
CLIENT_OPTIONS: dict[str, Any] = {
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

# Where the URL does not say otherwise. redis-py's own defaults differ from version to version: older ones wait for an
# answer for ever, and newer ones begin with HELLO, which old proxies do not know.
_DEFAULTS: dict[str, Any] = {"socket_timeout": 5.0, "socket_connect_timeout": 5.0, "protocol": 2}

# Beside lost connections and timeouts, what passes by itself: a server that is loading, or that is a replica now.
PASSING = [BusyLoadingError, ReadOnlyError]

_REFUSED = (AuthenticationError, AuthorizationError, NoPermissionError)
_NO_RIGHT = "the user may not do this", "check the user's rights"
_NO_RESP3 = "the server does not speak RESP3", "remove protocol="
_NO_DATABASE = "the server does not have this database", "write another number"
_NO_CLUSTER = "this is not a node of a cluster", "remove +cluster from the URL"
_NO_SENTINEL = "this is not a Sentinel", "write the port of one (26379), or remove +sentinel from the URL"
_TOO_OLD = "the server does not know a command", "use Redis 6.2 or later, or Valkey, and no proxy that hides commands"
# By words in what a server answers: what waiting does not fix, and what to change. The first that fits.
_MISTAKES = {
    "can't run this command": _NO_RIGHT,  # within a script
    "has no permissions to run": _NO_RIGHT,
    "DENIED": ("the server is in protected mode", "set a password on it"),
    "DB index is out of range": _NO_DATABASE,
    "SELECT is not allowed in cluster mode": _NO_DATABASE,
    "unknown command 'HELLO": _NO_RESP3,
    "unknown command `HELLO": _NO_RESP3,
    "NOPROTO": _NO_RESP3,
    "cluster support disabled": _NO_CLUSTER,
    "unknown command 'CLUSTER": _NO_CLUSTER,
    "unknown command `CLUSTER": _NO_CLUSTER,
    "unknown command 'SENTINEL": _NO_SENTINEL,
    "unknown command `SENTINEL": _NO_SENTINEL,
    "WAITAOF": ("wait_aof does not work on this server", "remove it"),
    "unknown command": _TOO_OLD,
    "Unknown Redis command": _TOO_OLD,
    "unsupported command": _TOO_OLD,
    "command not supported": _TOO_OLD,
}


_EXAMPLES = {
    "": "host:6379/0?stream=name",
    "cluster": "host:6379,host:6379?stream=name",
    "sentinel": "host:26379,host:26379/0?service=mymaster&stream=name",
}


def _plus(url: URL) -> str:
    return "".join(url.scheme.partition("+")[1:])


class WrongServer(RedisError):
    """What answers at the address cannot be used as the URL says; the message says what to change."""


def check(url: URL, given: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for a URL that redis-py would take, but understand in its own way.

    :param given: the options of the URL.
    """
    kind = url.scheme.partition("+")[2]
    example = f"{url.scheme}://{_EXAMPLES[kind]}"
    if not url.hostname and "," not in url.text:
        raise ConfigurationError(f"{url} has no host; write {example}")
    hosts = url.hosts
    if not kind and len(hosts) > 1:
        raise ConfigurationError(f"{url} has several hosts: write {url.scheme}+cluster:// or {url.scheme}+sentinel://")
    for host, port in hosts:
        _check_host(url, host, port)
    if not all("!" <= character <= "~" for character in given.get("client_name", "")):
        raise ConfigurationError(
            f"{url}: Redis does not take client_name={given['client_name']!r}: use letters, digits and signs, no blanks"
        )
    database = url.path.strip("/")
    if not database.isdecimal() and database:
        raise ConfigurationError(f"{url}: the path is the number of a database, such as /0")
    if kind == "cluster" and (int(database or 0) or given.get("db")):
        raise ConfigurationError(f"{url}: a cluster has only database 0; remove the number")
    if kind == "sentinel" and "service" not in given:
        raise ConfigurationError(f"{url} needs service=NAME, the name that the Sentinels know the server by: {example}")
    if not url.scheme.startswith("rediss") and (needs_tls := [name for name in given if name.startswith("ssl_")]):
        raise ConfigurationError(f"{url}: {needs_tls[0]} is for TLS: write rediss{url.scheme.removeprefix('redis')}://")


def _check_host(url: URL, host: str, port: int | None) -> None:
    try:
        host.encode("idna")
    except UnicodeError:
        raise ConfigurationError(f"{url}: {host!r} is not the name of a host") from None
    if any(character.isspace() for character in host):
        raise ConfigurationError(f"{url}: {host!r} has a blank in it, so it is not the name of a host")
    if port == 0:
        raise ConfigurationError(f"{url}: no server listens on port 0; write another one")


class Backoff(ExponentialWithJitterBackoff):
    """The time between two attempts.

    :param base: seconds before the first repetition, about; doubled with each.
    :param cap: seconds, at most.
    """

    def __init__(self, *, base: float = 1.0, cap: float = 10.0) -> None:
        super().__init__(cap=cap, base=base)

    def wait(self, failures: int) -> bool:
        """Wait after the n-th failure in a row; return whether to make another attempt."""
        return pause(self.compute(failures))


class Server:
    """The server that has the stream, as a sink asks it.

    :param client: connects when it is first used, and retries by itself.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.user: str = client.connection_pool.connection_kwargs.get("username") or "default"

    rights: Sequence[tuple[str, tuple[str | int, ...]]] = ()
    """What the user needs here beyond what any Redis sink does: rules, each with a command that asks for it."""

    def call(self, do: Callable[[redis.Redis, bool], T]) -> T:
        """Return what ``do`` returns, given a client of the server that has the stream.

        :param do: its second argument tells whether ASKING has to be sent before a command that names a key. In a
            cluster it is called again where another node has the stream, or a connection was lost.
        """
        return do(self._client, False)

    def disconnect(self) -> None:
        """Close the connections; the next call makes new ones."""
        self._client.connection_pool.disconnect()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self.disconnect()


def settings_of(url: URL) -> tuple[dict[str, Any], ssl.SSLContext | None]:
    """Return the arguments of a client that a URL gives, but for its hosts, and what TLS is tried with.

    :param url: with options of redis-py only.
    :raises ConfigurationError: an option is not one of redis-py, or a file that one names cannot be used.
    """
    settings = _DEFAULTS | {"db": int(url.path.strip("/") or 0)} | url.options(**CLIENT_OPTIONS)
    settings |= {name: value for name in ("username", "password") if (value := getattr(url, name))}
    if not url.scheme.startswith("rediss"):
        return settings, None
    try:
        return settings | {"ssl": True}, check_tls(settings)
    except ConfigurationError as error:
        raise ConfigurationError(f"{url}: {error}") from error


def connect(url: URL, retry: OwnRetry) -> redis.Redis:
    """Return a client of one server, which connects when it is first used.

    :param retry: of each command.
    :raises ConfigurationError: see `settings_of`.
    """
    settings, tls = settings_of(url)
    host, port = url.hostname or "localhost", url.port or 6379
    retry.identify = lambda error: refused_unread(host, port, tls, error)  # redis-py copies all but functions
    return redis.Redis(host=host, port=port, retry=retry, retry_on_error=list(PASSING), **settings)


def meaning(error: RedisError, url: URL, stream: str, marks: str) -> OwmOutboxError:
    """Say what an error of the client or the server means for the relay.

    :param stream, marks: the keys that are used.
    """
    where, keys = f"{url}, stream {stream!r}", f"{stream!r} and {marks!r}"
    text = str(error)
    if what := mistake(error):
        what = re.sub(r"\b(rediss?)://", rf"\g<1>{_plus(url)}://", what)
        return ConfigurationError(f"{where}: {what}")
    if "WRONGTYPE" in text:
        return ConfigurationError(f"{where}: one of the keys {keys} holds another type: name another stream")
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
        return SinkFull(f"{where}: the server is out of memory (maxmemory)")
    if isinstance(error, AskError):
        text = f"ASK {text}"
    return SinkUnavailable(f"{where} cannot be used now ({text}); try again later")


def mistake(error: Exception) -> str | None:
    """Say what a person has to change, where waiting does not fix an error."""
    text = str(error)
    if isinstance(error, WrongServer):
        return text
    if isinstance(error, MovedError):  # redis-py cuts the word off
        return f"another node of the cluster has the stream (MOVED {text}): write its address in the URL"
    if isinstance(error, _REFUSED):
        return f"the server refuses us ({text}): check user and password in the URL, and their rights"
    for words, (what, to_do) in _MISTAKES.items():
        if words in text:
            return f"{what} ({text.partition('. ')[0]}): {to_do}"
    return tls_problem(error)


def refused_unread(host: str, port: int, tls: ssl.SSLContext | None, error: Exception) -> str | None:
    """Say what to change where an error looks as if the port spoke TLS, or not, or let nobody in.

    A server without TLS waits for more than the first message of TLS; one with it closes what begins otherwise. Redis
    in protected mode says so and closes, but redis-py passes over the answer to its first command. And a server that
    does not accept our certificate says so and closes, while redis-py is still writing.

    :param tls: what it was tried with.
    """
    silent, connected = isinstance(error, redis.TimeoutError), "connecting to" not in str(error)
    if tls and silent:
        return other_protocol(host, port, tls=True, seconds=0.5)
    if silent or not connected:
        return None
    if tls:
        return refusal(host, port, tls, seconds=0.5)
    if (line := unasked(host, port, seconds=0.2)).startswith("-"):
        return mistake(ResponseError(line[1:]))
    return other_protocol(host, port, tls=False, seconds=0.5)


NO_RETRY = Retry(NoBackoff(), 0)
"""For a client within one that retries: two would multiply the attempts."""


class OwnRetry(Retry):
    """Retries as often as it says, whatever the client's version, and not what no retry fixes.

    Between two attempts it waits with `pause`, so that a stop ends the wait; redis-py would sleep through it. And
    redis-py retries a connection within each attempt of a command, which would multiply the attempts.
    """

    def __init__(self, backoff: Backoff, retries: int) -> None:
        super().__init__(backoff, retries)
        self._wait = backoff.wait
        self._under_way = False
        self._answered = False
        self.identify: Callable[[Exception], str | None] = lambda _: None  # asked where nothing was ever answered

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        """Return what ``do`` returns, as soon as it does not raise what a retry can help against."""
        if self._under_way:
            return do()
        failures = 0
        self._under_way = True
        try:
            while True:
                try:
                    result = self._told_apart(do)
                    self._answered = True
                    return result
                except self._supported_errors as error:
                    if mistake(error) or (is_retryable is not None and not is_retryable(error)):
                        raise
                    failures += 1
                    fail(error, *([failures] if with_failure_count else []))
                    if failures == 1 and not self._answered and (found := self.identify(error)):
                        raise WrongServer(found) from error
                    if failures > self._retries or not self._wait(failures):
                        raise
        finally:
            self._under_way = False

    def _told_apart(self, do: Callable[[], T]) -> T:
        try:
            return do()
        except ResponseError as error:
            if "READONLY" in str(error):  # within a script, Redis 6.2 wraps it into an error of another kind
                raise ReadOnlyError(str(error)) from error
            raise
        except InvalidResponse as error:
            if self._answered:  # a reply that was damaged on its way
                raise
            raise WrongServer(f"what answers there is not a Redis server ({error}): check host and port") from error
