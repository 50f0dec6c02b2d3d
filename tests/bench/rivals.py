"""Benchmark: owm_outbox beside txoutbox: appends, and the way from SQLite and from PostgreSQL to Valkey.

``python tests/bench/rivals.py 20000``. Appends are transactions of one task each, on one connection of an application,
each of them on disk. Then each relay delivers the same backlog until nothing is left; that all of it came is checked.

txoutbox publishes a message at a time, so its publisher is one XADD of ``redis.asyncio``. It claims 500 rows and
publishes 50 of them at once, so ten time-outs of 5 s fit into its lease of 60 s, as they are by default. More rows, or
up to 100 at once, which is what the client has connections for, made no difference that could be told from chance. As
its tasks have no keys here, it need not keep their order, and it deletes what was delivered, as owm_outbox does.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
import uuid
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import redis.asyncio
from txoutbox import OutboxMessage, Relay, RelayConfig
from txoutbox.adapters.postgres import PostgresStorage
from txoutbox.adapters.sqlite import SqliteStorage

from owm_outbox import Outbox, OutboxRelay
from owm_outbox_backends.postgresql import PostgresqlOutbox
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support.bench import make_tasks, rounds, show
from support.postgres import PostgresServer, postgres_binaries, postgres_running
from support.servers import Server, binaries, running

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
BATCH = 500
ROUNDS = 3
TASKS = make_tasks(COUNT)
OPTIONS: dict[str, Any] = {"strict_ordering": False, "delete_on_ack": True}
CONFIG = RelayConfig(batch_size=BATCH, concurrency=50)


def _payloads() -> list[dict[str, Any]]:
    return [msgspec.to_builtins(task) for task in TASKS]


def _fresh() -> str:
    return f"t{uuid.uuid4().hex[:10]}"


def _all_came(server: Server) -> None:
    with server.client() as client:
        assert client.xlen("s") == COUNT
        client.flushall()


def _drain(outbox: Outbox, server: Server) -> float:
    for at in range(0, COUNT, 5000):
        outbox.append(TASKS[at : at + 5000])
    with RedisStreamSink(f"redis://{server.address}/0", stream="s", maxlen=0) as sink:
        began = time.perf_counter()
        OutboxRelay(outbox, sink, batch_size=BATCH).drain()
        took = time.perf_counter() - began
    _all_came(server)
    return COUNT / took


async def _relay(storage: SqliteStorage | PostgresStorage, server: Server) -> float:
    async with redis.asyncio.Redis(host="127.0.0.1", port=server.port, protocol=2) as client:

        async def publish(message: OutboxMessage) -> None:
            await client.xadd("s", {"data": message.payload})

        relay = Relay(storage, publish, config=CONFIG)
        began = time.perf_counter()
        while (await relay.run_once()).claimed:
            pass
        took = time.perf_counter() - began
    _all_came(server)
    return COUNT / took


def _ours_sqlite(server: Server | None) -> float:
    """Return the tasks per second that are appended; with a server, delivered."""
    with tempfile.TemporaryDirectory() as folder, SqliteOutbox(Path(folder) / "tasks.db") as outbox:
        if server is not None:
            return _drain(outbox, server)
        with closing(outbox.connect()) as connection:
            began = time.perf_counter()
            for task in TASKS:
                outbox.append([task], connection=connection)
                connection.commit()
            return COUNT / (time.perf_counter() - began)


def _theirs_sqlite(server: Server | None) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/tasks.db"
        with closing(SqliteStorage(path, **OPTIONS)) as storage, closing(sqlite3.connect(path)) as connection:
            storage.create_schema()
            payloads = _payloads()
            began = time.perf_counter()
            for payload in payloads:
                storage.insert(connection, "s", payload)
                if server is None:
                    connection.commit()
            took = time.perf_counter() - began
            connection.commit()
            if server is None:
                return COUNT / took
            return asyncio.run(_relay(storage, server))


def _ours_postgres(postgres: PostgresServer, server: Server | None) -> float:
    with PostgresqlOutbox(postgres.url(), table=_fresh()) as outbox:
        if server is not None:
            return _drain(outbox, server)
        with psycopg.connect(postgres.url()) as connection:
            began = time.perf_counter()
            for task in TASKS:
                outbox.append([task], connection=connection)
                connection.commit()
            return COUNT / (time.perf_counter() - began)


def _theirs_postgres(postgres: PostgresServer, server: Server | None) -> float:
    return asyncio.run(_in_postgres(postgres, server))


async def _in_postgres(postgres: PostgresServer, server: Server | None) -> float:
    storage = await PostgresStorage.connect(postgres.url(), table=_fresh(), **OPTIONS)
    try:
        await storage.create_schema()
        payloads = _payloads()
        async with storage.pool.acquire() as connection:
            if server is None:
                began = time.perf_counter()
                for payload in payloads:
                    async with connection.transaction():
                        await storage.insert(connection, "s", payload)
                return COUNT / (time.perf_counter() - began)
            async with connection.transaction():
                for payload in payloads:
                    await storage.insert(connection, "s", payload)
        return await _relay(storage, server)
    finally:
        await storage.close()


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as name,
        running(binaries()["valkey"], Path(name)) as valkey,
        postgres_running(postgres_binaries()["postgres-18"], fsync="on", full_page_writes="on") as server,
    ):
        for to in (None, valkey):
            for database, ours, theirs in (
                ("SQLite", partial(_ours_sqlite, to), partial(_theirs_sqlite, to)),
                ("PostgreSQL, fsync on", partial(_ours_postgres, server, to), partial(_theirs_postgres, server, to)),
            ):
                them, us = f"txoutbox {version('txoutbox')}", f"{'drain' if to else 'append'}: owm_outbox"
                done = "to Valkey" if to else "appended, one a commit"
                show(f"{database}, {COUNT:,} tasks {done}", rounds(ROUNDS, {them: theirs, us: ours}), them)
