"""Which objects of an application append takes as its transaction on PostgreSQL, and what becomes of the task then."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no types
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from owm_outbox import OutboxInvalid

from support.commands import environment
from support.postgres_outbox import Place, note

Opened = tuple[Any, Callable[[str], Any], Callable[[], Any], Callable[[], Any]]
"""What is given to append, and functions that execute a statement, commit and roll back."""


def _sqlalchemy_url(place: Place, driver: str) -> str:
    return place.server.url().replace("postgresql://", f"postgresql+{driver}://")


# -- synchronous


@contextmanager
def _psycopg(place: Place) -> Iterator[Opened]:
    with psycopg.connect(place.server.url()) as connection:
        yield connection, lambda sql: connection.execute(sql.encode()), connection.commit, connection.rollback


@contextmanager
def _sqlalchemy_connection(place: Place) -> Iterator[Opened]:
    engine = sqlalchemy.create_engine(_sqlalchemy_url(place, "psycopg"))
    with engine.connect() as connection:
        yield connection, connection.exec_driver_sql, connection.commit, connection.rollback
    engine.dispose()


@contextmanager
def _session(place: Place) -> Iterator[Opened]:
    engine = sqlalchemy.create_engine(_sqlalchemy_url(place, "psycopg"))
    with Session(engine) as session:
        yield session, lambda sql: session.execute(sqlalchemy.text(sql)), session.commit, session.rollback
    engine.dispose()


@pytest.mark.parametrize("first", ["order", "task"])
@pytest.mark.parametrize(
    "opened", [_psycopg, _sqlalchemy_connection, _session], ids=lambda opened: str(opened.__name__)[1:]
)
def test_a_task_is_committed_and_rolled_back_with_the_order(
    opened: Callable[[Place], AbstractContextManager[Opened]], first: str, place: Place
) -> None:
    """Whichever is written first, append itself commits nothing; a savepoint takes back what came after it."""
    orders = _orders(place)
    with place.open() as outbox, opened(place) as (connection, execute, commit, rollback):

        def write(text: str) -> None:
            if first == "task":
                assert outbox.append([note(text)], connection=connection).new == 1
            execute(f"INSERT INTO {orders} DEFAULT VALUES")
            if first == "order":
                assert outbox.append([note(text)], connection=connection).new == 1

        write("undone")
        assert _held(place) == ([], 0)
        rollback()
        assert _held(place) == ([], 0)
        write("kept")
        execute("SAVEPOINT here")
        write("taken back")
        execute("ROLLBACK TO here")
        commit()
        assert _held(place) == (["kept"], 1)
    place.rows(f"DROP TABLE {orders}")


# -- asyncio


@asynccontextmanager
async def _psycopg_async(place: Place) -> AsyncIterator[Opened]:
    async with await psycopg.AsyncConnection.connect(place.server.url()) as connection:
        yield connection, lambda sql: connection.execute(sql.encode()), connection.commit, connection.rollback


@asynccontextmanager
async def _asyncpg(place: Place) -> AsyncIterator[Opened]:
    connection = await asyncpg.connect(place.server.url())
    transaction = connection.transaction()
    await transaction.start()

    async def rollback() -> None:
        nonlocal transaction
        await transaction.rollback()
        transaction = connection.transaction()
        await transaction.start()

    async def commit() -> None:
        await transaction.commit()

    yield connection, connection.execute, commit, rollback
    await connection.close()


def _async_session(driver: str) -> Callable[[Place], AbstractAsyncContextManager[Opened]]:
    @asynccontextmanager
    async def opened(place: Place) -> AsyncIterator[Opened]:
        engine = create_async_engine(_sqlalchemy_url(place, driver))
        async with AsyncSession(engine) as session:
            yield session, lambda sql: session.execute(sqlalchemy.text(sql)), session.commit, session.rollback
        await engine.dispose()

    return opened


@asynccontextmanager
async def _async_connection(place: Place) -> AsyncIterator[Opened]:
    engine = create_async_engine(_sqlalchemy_url(place, "asyncpg"))
    async with engine.connect() as connection:
        yield connection, connection.exec_driver_sql, connection.commit, connection.rollback
    await engine.dispose()


ASYNCHRONOUS = {
    "psycopg": _psycopg_async,
    "asyncpg": _asyncpg,
    "session, psycopg": _async_session("psycopg"),
    "session, asyncpg": _async_session("asyncpg"),
    "connection, asyncpg": _async_connection,
}


@pytest.mark.parametrize("first", ["order", "task"])
@pytest.mark.parametrize("opened", ASYNCHRONOUS.values(), ids=ASYNCHRONOUS)
def test_a_task_is_committed_and_rolled_back_with_the_order_in_asyncio(
    opened: Callable[[Place], AbstractAsyncContextManager[Opened]], first: str, place: Place
) -> None:
    """As above, with what has to be awaited."""
    orders = _orders(place)

    async def work() -> None:
        async with opened(place) as (connection, execute, commit, rollback):

            async def write(text: str) -> None:
                if first == "task":
                    assert (await outbox.append_async([note(text)], connection=connection)).new == 1
                await execute(f"INSERT INTO {orders} DEFAULT VALUES")
                if first == "order":
                    assert (await outbox.append_async([note(text)], connection=connection)).new == 1

            await write("undone")
            assert _held(place) == ([], 0)
            await rollback()
            assert _held(place) == ([], 0)
            await write("kept")
            await execute("SAVEPOINT here")
            await write("taken back")
            await execute("ROLLBACK TO here")
            await commit()
            assert _held(place) == (["kept"], 1)

    with place.open() as outbox:
        asyncio.run(work())
    place.rows(f"DROP TABLE {orders}")


def _orders(place: Place) -> str:
    place.open().close()
    place.rows("CREATE TABLE {t}_orders (number integer GENERATED ALWAYS AS IDENTITY)")
    return f"{place.table}_orders"


def _held(place: Place) -> tuple[list[str], int]:
    """Return the texts in the outbox, and how many orders there are."""
    with place.open() as outbox:
        texts = [entry.payload.decode().rpartition('"text":"')[2].rstrip('"}') for entry in outbox.read(0, 100)]
    return texts, place.rows("SELECT count(*) FROM {t}_orders")[0][0]


# -- Django, which can be set up once per process

DJANGO = """
import sys
from urllib.parse import urlsplit
from django.conf import settings
url = urlsplit(sys.argv[1])
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": url.path[1:], "USER": url.username, "PASSWORD": url.password,
    "HOST": url.hostname, "PORT": url.port,
}})
import django
django.setup()
from django.db import connection, transaction
from owm_outbox_backends.postgresql import PostgresqlOutbox
from support.postgres_outbox import note
with PostgresqlOutbox(sys.argv[1], table=sys.argv[2]) as outbox:
    for text in ("kept", "undone"):
        try:
            with transaction.atomic():
                connection.cursor().execute(f"INSERT INTO {sys.argv[2]}_orders DEFAULT VALUES")
                outbox.append([note(text)], connection=connection)
                if text == "undone":
                    raise ValueError
        except ValueError:
            pass
    try:
        outbox.append([note("torn")], connection=connection)
    except TypeError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_task_is_committed_and_rolled_back_with_django(place: Place) -> None:
    """Within atomic, both or neither; outside of it, an error says what is missing."""
    place.needs(14, "Django itself needs PostgreSQL 14")
    orders = _orders(place)
    done = subprocess.run(
        [sys.executable, "-c", DJANGO, place.server.url(), place.table],
        env=environment(PYTHONPATH=":".join(sys.path)),
        capture_output=True,
        text=True,
        check=True,
    )
    said = "Django's connection commits each statement by itself: append within transaction.atomic()\n"
    assert (done.stdout, _held(place)) == (said, (["kept"], 1))
    place.rows(f"DROP TABLE {orders}")


# -- what is refused


def test_what_is_not_a_transaction_is_refused_with_what_to_give(place: Place) -> None:
    """One clear error for other objects; nothing is stored."""
    with place.open() as outbox, psycopg.connect(place.server.url()) as connection:
        for given, message in (
            (AsyncSession(), r"AsyncSession has to be awaited: use append_async"),
            (connection.cursor(), "append_async one of psycopg, asyncpg or SQLAlchemy's asyncio, not a psycopg.Cursor"),
            ("postgresql://", "not a builtins.str: see docs/postgresql.md"),
        ):
            with pytest.raises(TypeError, match=message):
                outbox.append([note("no")], connection=given)
        for other in (connection, object(), Session()):
            with pytest.raises(TypeError, match=r"append_async\(connection=…\) takes a connection of psycopg, asyncpg"):
                asyncio.run(outbox.append_async([note("no")], connection=other))
        assert outbox.stats().last_position == 0


def test_a_transaction_of_asyncio_that_is_of_no_use_is_refused(place: Place) -> None:
    """One that commits each statement, one that failed, and one that is closed; whichever driver it is of."""

    async def refused(connection: Any, message: str) -> None:
        with pytest.raises(OutboxInvalid, match=message):
            await outbox.append_async([note("no")], connection=connection)

    async def work() -> None:
        async with await psycopg.AsyncConnection.connect(place.server.url(), autocommit=True) as commits:
            await refused(commits, "commits each statement by itself")
        await refused(commits, "is closed")
        connection = await asyncpg.connect(place.server.url())
        await refused(connection, "commits each statement by itself")
        async with connection.transaction():
            await _fails(connection.execute("SELECT 1/0"), asyncpg.PostgresError)
            await refused(connection, r"transaction that failed.*: roll it back first")
            await _fails(connection.execute("SELECT 1"), asyncpg.PostgresError)
        await connection.close()
        await refused(connection, "is closed")

    async def _fails(work: Awaitable[Any], kind: type[Exception]) -> None:
        with pytest.raises(kind):
            await work

    with place.open() as outbox:
        asyncio.run(work())
        assert outbox.stats().last_position == 0
