"""How a sink connects to Redis: the options of the client, its retries, and what its errors mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

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

from owm_outbox import URL, ConfigurationError, OwmOutboxError, SinkFull, SinkUnavailable, pause

__all__ = ["CLIENT_OPTIONS", "Backoff", "check", "connect", "meaning"]

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

# What no retry fixes. To redis-py, most of it is a connection error.
_REFUSED = (AuthenticationError, AuthorizationError, NoPermissionError)
_NO_RIGHT = ("NOPERM", "can't run this command", "has no permissions to run")  # the words within a script
_NO_TLS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")
_NO_DATABASE = "DB index is out of range"


def check(url: URL, given: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for a URL that redis-py would take, but understand in its own way.

    :param given: the options of the URL.
    """
    if not url.hostname:
        raise ConfigurationError(f"{url} has no host; write redis://host:6379/0?stream=name")
    if not url.path.strip("/").isdecimal() and url.path.strip("/"):
        raise ConfigurationError(f"{url}: the path is the number of a database, such as /0")
    if url.scheme == "redis" and (needs_tls := [name for name in given if name.startswith("ssl_")]):
        raise ConfigurationError(f"{url}: {needs_tls[0]} is for TLS: write rediss://")


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


def connect(url: str, *, retries: int = 8, backoff: Backoff | None = None) -> redis.Redis:
    """Return a client, which connects when it is first used.

    :param url: as redis-py takes it.
    :param retries: of each command, on lost connections and timeouts, while the server is loading, or a replica.
    :raises ConfigurationError: redis-py does not take the URL.
    """
    try:
        pool: redis.ConnectionPool = redis.ConnectionPool.from_url(
            url,
            **_DEFAULTS,  # what the URL gives counts more
            retry=_Retry(backoff or Backoff(), retries),
            # The retry covers lost connections and timeouts; these are two more that pass by themselves.
            retry_on_error=[BusyLoadingError, ReadOnlyError],
        )
        return redis.Redis(connection_pool=pool)
    except (ValueError, TypeError, RedisError) as error:
        raise ConfigurationError(f"{URL(url)}: {error}") from error


def meaning(error: RedisError, where: str, keys: str) -> OwmOutboxError:
    """Say what an error of the client or the server means for the relay.

    :param where: the server and what is used on it, for the message.
    :param keys: the keys that are used.
    """
    text = str(error)
    if isinstance(error, _REFUSED) or any(words in text for words in _NO_RIGHT):
        return ConfigurationError(
            f"{where}: the server refuses us ({text}): check user and password in the URL, and their rights"
        )
    if any(words in text for words in _NO_TLS):
        return ConfigurationError(
            f"{where}: no TLS connection ({text}): check the port, and ssl_ca_certs= and the other ssl_ options"
        )
    if _NO_DATABASE in text:
        return ConfigurationError(f"{where}: the server does not have this database ({text}): write another number")
    if "WRONGTYPE" in text:
        return ConfigurationError(f"{where}: one of the keys {keys} holds another type: name another stream")
    if "WAITAOF" in text:
        return ConfigurationError(f"{where}: wait_aof does not work on this server ({text})")
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
        return SinkFull(f"{where}: the server is out of memory (maxmemory)")
    return SinkUnavailable(f"{where} cannot be used now ({text}); try again later")


class _Retry(Retry):
    """Retries as often as it says, whatever the client's version, and not what no retry fixes.

    Between two attempts it waits with `pause`, so that a stop ends the wait; redis-py would sleep through it. And
    redis-py retries a connection within each attempt of a command, which would multiply the attempts.
    """

    def __init__(self, backoff: Backoff, retries: int) -> None:
        super().__init__(backoff, retries)
        self._wait = backoff.wait
        self._under_way = False

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        if self._under_way:
            return do()
        failures = 0
        self._under_way = True
        try:
            while True:
                try:
                    return _told_apart(do)
                except self._supported_errors as error:
                    if not _passes(error) or (is_retryable is not None and not is_retryable(error)):
                        raise
                    failures += 1
                    fail(error, *([failures] if with_failure_count else []))
                    if failures > self._retries or not self._wait(failures):
                        raise
        finally:
            self._under_way = False


def _told_apart(do: Callable[[], T]) -> T:
    try:
        return do()
    except ResponseError as error:
        if "READONLY" in str(error):  # within a script, Redis 6.2 wraps it into an error of another kind
            raise ReadOnlyError(str(error)) from error
        raise


def _passes(error: Exception) -> bool:
    return not isinstance(error, _REFUSED) and not any(words in str(error) for words in (*_NO_TLS, _NO_DATABASE))
