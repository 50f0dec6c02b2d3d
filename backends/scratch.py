"""Where the contract kit may write: next to what a URL names, and removed afterwards."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redis.exceptions import NoPermissionError, RedisError

from owm_outbox import URL, ConfigurationError, OutboxInvalid, Sink
from owm_outbox.testing import Destination, Storage, cut_requests, full_disk

from .jsonl import JsonLinesSink
from .memory import MemoryOutbox
from .redis_connection import CLIENT_OPTIONS, connect, meaning
from .redis_stream import OPTIONS, RedisStreamSink, marks_key
from .sqlite import SqliteOutbox
from .sqlite_file import absolute

__all__ = ["jsonl", "memory", "postgresql", "redis", "sqlite"]

_ROOM = 10_000
_LEFT = 20


@contextmanager
def jsonl(url: URL) -> Iterator[Destination]:
    """Give a file next to the one that ``jsonl:PATH`` names; for stdout, in the folder for temporary files."""
    JsonLinesSink.from_url(url)  # refuses what is wrong with it
    parent = None if url.path == "-" else Path(url.path).absolute().parent
    with TemporaryDirectory(prefix="check-", dir=parent) as folder:
        path = Path(folder) / "tasks.jsonl"

        def unreachable() -> Sink:
            unmounted = Path(folder) / "unmounted"
            unmounted.mkdir()
            sink = JsonLinesSink(unmounted / "tasks.jsonl")
            unmounted.rmdir()
            return sink

        yield Destination(
            open=lambda: JsonLinesSink(path),
            payloads=lambda: path.read_bytes().splitlines() if path.exists() else [],
            interrupt=lambda: full_disk(path),
            unreachable=unreachable,
        )


@contextmanager
def redis(url: URL) -> Iterator[Destination]:
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


@contextmanager
def memory(url: URL) -> Iterator[Storage]:
    """Give the same new object each time."""
    outbox = MemoryOutbox.from_url(url)
    yield Storage(open=lambda: outbox)


@contextmanager
def sqlite(url: URL) -> Iterator[Storage]:
    """Give a file in a folder of its own, next to the one that ``sqlite:///PATH`` names."""
    parent = absolute(url.path.removeprefix("/")).parent
    if not parent.is_dir():
        raise OutboxInvalid(f"cannot create an outbox in {parent}, which is not a folder: name another path")
    with TemporaryDirectory(prefix="check-", dir=parent) as folder:
        path = Path(folder) / "tasks.db"

        @contextmanager
        def transaction() -> Iterator[Callable[[Sequence[Any]], object]]:
            with SqliteOutbox(path, timeout=0.1) as outbox, contextlib.closing(outbox.connect()) as connection:
                yield lambda tasks: outbox.append(tasks, connection=connection)
                connection.commit()

        yield Storage(
            open=lambda: SqliteOutbox(path),
            interrupt=lambda: full_disk(Path(f"{path}-wal")),
            transaction=transaction,
        )


@contextmanager
def postgresql(url: URL) -> Iterator[Storage]:
    """Give tables of their own, next to those that ``postgresql://…?schema=…&table=…`` names."""
    from .postgresql import PostgresqlOutbox
    from .postgresql_scratch import dropped, failing, within

    def opened() -> PostgresqlOutbox:
        return PostgresqlOutbox(url, schema=tables.schema, table=tables.table)

    with dropped(url) as tables:
        yield Storage(
            open=opened,
            interrupt=lambda: failing(url, tables),
            transaction=lambda: within(url, opened),
        )
