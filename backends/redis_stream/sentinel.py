"""RedisSentinelSink: the same sink on the server that Sentinels name, whichever that is at the moment."""

from __future__ import annotations

import ssl
from typing import Annotated, Any, ClassVar

import msgspec
from redis.exceptions import AuthenticationError, RedisError
from redis.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection

from owm_outbox import URL

from .connection import CLIENT_OPTIONS, NO_RETRY, PASSING, OwnRetry, Server, mistake, refused_unread, settings_of
from .sink import RedisStreamSink

__all__ = ["RedisSentinelSink"]

_OPTIONS: dict[str, Any] = {
    "service": Annotated[str, msgspec.Meta(min_length=1)],
    "sentinel_username": str,
    "sentinel_password": str,
}


class RedisSentinelSink(RedisStreamSink):
    """Adds each task to a Redis Stream on the primary that Sentinels look after.

    ``redis+sentinel://user:password@host:26379,host:26379/0?service=mymaster&stream=s``, or ``rediss+sentinel://`` for
    TLS, to Sentinels and servers alike. The hosts are Sentinels, and the first that answers is asked for each new
    connection. ``service`` is the name that they know the primary by. ``sentinel_username`` and ``sentinel_password``
    where the Sentinels want others than the servers do; empty for none. All other options are those of
    `RedisStreamSink`.

    A failover loses what the replica did not have yet. With ``wait_replicas=1`` a batch counts only once a replica has
    it. Without, the mark is lost together with the entries, and what the outbox still has is sent again.
    """

    client_options: ClassVar[dict[str, Any]] = CLIENT_OPTIONS | _OPTIONS

    def _connected(self, url: URL, retry: OwnRetry) -> Server:
        return _Sentinels(url, retry)


class _Sentinels(Server):
    """Asks Sentinels for the primary whenever it connects. A connection to one that was demoted is closed by it."""

    def __init__(self, url: URL, retry: OwnRetry) -> None:
        given = url.options(**CLIENT_OPTIONS, **_OPTIONS)
        settings, tls = settings_of(URL(url.without_options(*_OPTIONS)))
        of_sentinels = {name: value for name, value in settings.items() if name not in ("db", "username", "password")}
        for name in ("username", "password"):
            if value := given.get(f"sentinel_{name}", settings.get(name)):
                of_sentinels[name] = value
        self._sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            [(host, port or 26379) for host, port in url.hosts], sentinel_kwargs=of_sentinels | {"retry": NO_RETRY}
        )
        service = given["service"]
        retry.identify = lambda error: _what_is_wrong(self._sentinel, service, tls, error)
        # redis-py chooses a class by this option, and takes it out, only where it is given none.
        kind = _AskingTLS if settings.pop("ssl", False) else _Asking
        client = self._sentinel.master_for(  # type: ignore[no-untyped-call]  # so is this
            service, retry=retry, retry_on_error=list(PASSING), connection_class=kind, **settings
        )
        super().__init__(client)

    def close(self) -> None:
        """Close the connections, those to the Sentinels, too."""
        super().close()
        for client in self._sentinel.sentinels:
            client.close()


class _Asking(SentinelManagedConnection):
    """A connection that asks Sentinels also where it is made again within a call.

    redis-py asks when it takes one from the pool; within the attempts of one command it would go to the address that
    it had, and a call that is under way while the primary fails over would not find the new one.
    """

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self._sock:
            self.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]  # so is this


class _AskingTLS(_Asking, SentinelManagedSSLConnection):
    """The same, with TLS."""


def _what_is_wrong(sentinel: Sentinel, service: str, tls: ssl.SSLContext | None, error: Exception) -> str | None:
    """Say what to change where no Sentinel names a primary, although waiting would not help: redis-py does not tell."""
    known: set[str] | None = None
    for client in sentinel.sentinels:
        address = client.connection_pool.connection_kwargs
        host, port = str(address["host"]), int(address["port"])
        try:
            names: Any = client.sentinel_masters()
        except AuthenticationError as answer:
            return (
                f"the Sentinel at {host}:{port} refuses us ({answer}): set sentinel_username= and "
                "sentinel_password=; the latter may be empty, for Sentinels without a password"
            )
        except RedisError as answer:
            if found := mistake(answer) or refused_unread(host, port, tls, answer):
                return f"the Sentinel at {host}:{port}: {found}"
        else:
            known = (known or set()) | set(names)
    if known is None or service in known:
        return None
    return f"no Sentinel knows the service {service!r} (known: {', '.join(sorted(known)) or 'none'}): check service="
