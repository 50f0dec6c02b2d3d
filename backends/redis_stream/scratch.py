"""Where the contract kit may write: a stream next to the one that a URL names, removed afterwards."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.exceptions import NoPermissionError, RedisError

from owm_outbox import URL, ConfigurationError
from owm_outbox.testing import Destination, cut_requests

from .cluster import RedisClusterSink
from .connection import meaning
from .sentinel import RedisSentinelSink
from .sink import OPTIONS, RedisStreamSink, marks_key

__all__ = ["scratch"]

_ROOM = 10_000
_LEFT = 20
_SINKS = {"": RedisStreamSink, "cluster": RedisClusterSink, "sentinel": RedisSentinelSink}


@contextmanager
def scratch(url: URL) -> Iterator[Destination]:
    """Give a stream next to the one that ``redis://…?stream=`` names, on the same server or in the same cluster."""
    kind = _SINKS[url.scheme.partition("+")[2]]
    with kind.from_url(url) as sink:  # refuses what is wrong with it
        sink.check_rights()
    given = url.options(**OPTIONS, **kind.client_options)
    stream = f"{given['stream']}:check:{uuid.uuid4()}"
    own: dict[str, Any] = {name: given[name] for name in OPTIONS if name in given and name != "groups"}
    own |= {"stream": stream, "maxlen": _ROOM, "overflow": "hold"}
    own |= {"retries": 1, "backoff_base": 0.1}  # what fails on purpose need not be tried for a minute
    address = url.without_options(*OPTIONS)
    nowhere = address.replace(address.partition("://")[2].partition("?")[0], "127.0.0.1:1", 1)

    def payloads() -> list[bytes]:
        found: Any = server.call(lambda client, _: client.xrange(stream))
        return [fields[b"data"] for _, fields in found]

    def fill() -> None:
        def add(client: redis.Redis, asking: bool) -> None:
            with client.pipeline(transaction=False) as pipe:
                for _ in range(_ROOM - _LEFT):
                    pipe.xadd(stream, {"data": "{}"})
                pipe.execute()

        create_group()
        server.call(add)

    def create_group() -> None:
        server.call(lambda client, _: client.xgroup_create(stream, "check", id="0", mkstream=True))

    def remove() -> None:
        server.call(lambda client, _: client.delete(stream, marks_key(stream)))

    with kind(address, **own) as admin:
        server = admin.server
        try:
            create_group()  # a server that is down, or refuses us, shows here
            remove()
        except NoPermissionError as error:
            scratch = f"{given['stream']}:check:*"
            raise ConfigurationError(
                f"{url}: the user has all the rights that delivery needs, but check works on a stream of its own: "
                f"grant ACL SETUSER {url.username or 'default'} ~{scratch} ~{marks_key(scratch)} +xgroup|create +del"
            ) from error
        except RedisError as error:
            raise meaning(error, url, stream, marks_key(stream)) from error
        try:
            yield Destination(
                open=lambda: kind(address, **own),
                payloads=payloads,
                fill=fill,
                unreachable=lambda: kind(nowhere, stream=stream, retries=0),
                lose=lambda: server.call(lambda client, _: client.delete(stream)),
                interrupt=None if url.scheme.startswith("rediss") else cut_requests,
            )
        finally:
            remove()
