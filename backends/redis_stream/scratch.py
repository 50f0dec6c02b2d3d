"""Where the contract kit may write: a stream next to the one that a URL names, removed afterwards."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import NoPermissionError, RedisError

from owm_outbox import URL, ConfigurationError
from owm_outbox.testing import Destination, cut_requests

from .connection import CLIENT_OPTIONS, connect, meaning
from .sink import OPTIONS, RedisStreamSink, marks_key

__all__ = ["scratch"]

_ROOM = 10_000
_LEFT = 20


@contextmanager
def scratch(url: URL) -> Iterator[Destination]:
    """Give a stream next to the one that ``redis://…?stream=`` names, on the same server."""
    with RedisStreamSink.from_url(url) as sink:  # refuses what is wrong with it
        sink.check_rights()
    given = url.options(**OPTIONS, **CLIENT_OPTIONS)
    stream = f"{given['stream']}:check:{uuid.uuid4()}"
    own: dict[str, Any] = {name: given[name] for name in OPTIONS if name in given and name != "groups"}
    own |= {"stream": stream, "maxlen": _ROOM, "overflow": "hold"}
    own |= {"retries": 1, "backoff_base": 0.1}  # what fails on purpose need not be tried for a minute
    address = url.without_options(*OPTIONS)

    def payloads() -> list[bytes]:
        found: Any = client.xrange(stream)
        return [fields[b"data"] for _, fields in found]

    def fill() -> None:
        client.xgroup_create(stream, "check", id="0", mkstream=True)
        with client.pipeline(transaction=False) as pipe:
            for _ in range(_ROOM - _LEFT):
                pipe.xadd(stream, {"data": "{}"})
            pipe.execute()

    with contextlib.closing(connect(address)) as client:
        try:
            client.xgroup_create(stream, "check", mkstream=True)  # a server that is down, or refuses us, shows here
            client.delete(stream, marks_key(stream))
        except NoPermissionError as error:
            scratch = f"{given['stream']}:check:*"
            raise ConfigurationError(
                f"{url}: the user has all the rights that delivery needs, but check works on a stream of its own: "
                f"grant ACL SETUSER {url.username or 'default'} ~{scratch} ~{marks_key(scratch)} +xgroup|create +del"
            ) from error
        except RedisError as error:
            raise meaning(error, str(url), stream) from error
        try:
            yield Destination(
                open=lambda: RedisStreamSink(address, **own),
                payloads=payloads,
                fill=fill,
                unreachable=lambda: RedisStreamSink("redis://127.0.0.1:1/0", stream=stream, retries=0),
                lose=lambda: client.delete(stream),
                interrupt=cut_requests if url.scheme == "redis" else None,
            )
        finally:
            client.delete(stream, marks_key(stream))
