"""Which objects of an application append takes as its transaction, and what becomes of the task then."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
import sqlalchemy
import sqlite_utils
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from owm_outbox import OutboxInvalid
from owm_outbox_backends.sqlite import SqliteOutbox


@dataclass
class Note:
    """A task."""

    task_id: uuid.UUID
    text: str


def _notes(*texts: str) -> list[Note]:
    return [Note(uuid.uuid4(), text) for text in texts]


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[SqliteOutbox]:
    """Open an outbox with a table of the application next to it."""
    with SqliteOutbox(tmp_path / "app.db") as outbox:
        with contextlib.closing(outbox.connect()) as own, own:
            own.execute("CREATE TABLE orders (number INTEGER PRIMARY KEY)")
        yield outbox


def _held(outbox: SqliteOutbox) -> tuple[list[str], int]:
    """Return the texts in the outbox, and how many orders there are."""
    texts = [entry.payload.decode().rpartition('"text":"')[2].rstrip('"}') for entry in outbox.read(0, 100)]
    with contextlib.closing(outbox.connect()) as own:
        return texts, own.execute("SELECT count(*) FROM orders").fetchone()[0]


# -- synchronous

Opened = tuple[Any, Callable[[str], Any], Callable[[], Any], Callable[[], Any]]
"""What is given to append, and functions that execute a statement, commit and roll back."""


@contextmanager
def _sqlite3(outbox: SqliteOutbox) -> Iterator[Opened]:
    with contextlib.closing(outbox.connect()) as connection:
        yield connection, connection.execute, connection.commit, connection.rollback


@contextmanager
def _sqlalchemy_connection(outbox: SqliteOutbox) -> Iterator[Opened]:
    engine = sqlalchemy.create_engine("sqlite://", creator=outbox.connect)
    with engine.connect() as connection:
        yield connection, connection.exec_driver_sql, connection.commit, connection.rollback
    engine.dispose()


@contextmanager
def _sqlalchemy_raw(outbox: SqliteOutbox) -> Iterator[Opened]:
    engine = sqlalchemy.create_engine("sqlite://", creator=outbox.connect)
    with contextlib.closing(engine.raw_connection()) as raw:
        yield raw, lambda sql: raw.cursor().execute(sql), raw.commit, raw.rollback
    engine.dispose()


@contextmanager
def _session(outbox: SqliteOutbox) -> Iterator[Opened]:
    class OurSession(Session):
        pass

    engine = sqlalchemy.create_engine("sqlite://", creator=outbox.connect)
    with OurSession(engine) as session:
        yield session, lambda sql: session.execute(sqlalchemy.text(sql)), session.commit, session.rollback
    engine.dispose()


@contextmanager
def _scoped_session(outbox: SqliteOutbox) -> Iterator[Opened]:
    engine = sqlalchemy.create_engine("sqlite://", creator=outbox.connect)
    session = scoped_session(sessionmaker(engine))
    yield session, lambda sql: session.execute(sqlalchemy.text(sql)), session.commit, session.rollback
    session.remove()
    engine.dispose()


SYNCHRONOUS = [_sqlite3, _sqlalchemy_connection, _sqlalchemy_raw, _session, _scoped_session]


@pytest.mark.parametrize("first", ["order", "task"])
@pytest.mark.parametrize("opened", SYNCHRONOUS, ids=lambda opened: opened.__name__[1:])
def test_a_task_is_committed_and_rolled_back_with_the_order(
    opened: Callable[[SqliteOutbox], AbstractContextManager[Opened]], first: str, outbox: SqliteOutbox
) -> None:
    """Whichever is written first, append itself commits nothing; a savepoint takes back what came after it."""
    with opened(outbox) as (connection, execute, commit, rollback):

        def write(text: str) -> None:
            if first == "task":
                assert outbox.append(_notes(text), connection=connection).new == 1
            execute("INSERT INTO orders DEFAULT VALUES")
            if first == "order":
                assert outbox.append(_notes(text), connection=connection).new == 1

        write("undone")
        assert _held(outbox) == ([], 0)
        rollback()
        assert _held(outbox) == ([], 0)
        write("kept")
        execute("SAVEPOINT here")
        write("taken back")
        execute("ROLLBACK TO here")
        commit()
        assert _held(outbox) == (["kept"], 1)


# -- asyncio


@asynccontextmanager
async def _aiosqlite(outbox: SqliteOutbox) -> AsyncIterator[Opened]:
    async with aiosqlite.Connection(outbox.connect, iter_chunk_size=64) as connection:
        yield connection, connection.execute, connection.commit, connection.rollback


def _engine(outbox: SqliteOutbox) -> Any:
    async def connect() -> aiosqlite.Connection:
        return await aiosqlite.Connection(outbox.connect, iter_chunk_size=64)

    return create_async_engine("sqlite+aiosqlite://", async_creator=connect)


@asynccontextmanager
async def _async_connection(outbox: SqliteOutbox) -> AsyncIterator[Opened]:
    engine = _engine(outbox)
    async with engine.connect() as connection:
        yield connection, connection.exec_driver_sql, connection.commit, connection.rollback
    await engine.dispose()


@asynccontextmanager
async def _async_session(outbox: SqliteOutbox) -> AsyncIterator[Opened]:
    engine = _engine(outbox)
    async with AsyncSession(engine) as session:
        yield session, lambda sql: session.execute(sqlalchemy.text(sql)), session.commit, session.rollback
    await engine.dispose()


@asynccontextmanager
async def _async_scoped_session(outbox: SqliteOutbox) -> AsyncIterator[Opened]:
    engine = _engine(outbox)
    session = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    yield session, lambda sql: session.execute(sqlalchemy.text(sql)), session.commit, session.rollback
    await session.remove()
    await engine.dispose()


ASYNCHRONOUS = [_aiosqlite, _async_connection, _async_session, _async_scoped_session]


@pytest.mark.parametrize("first", ["order", "task"])
@pytest.mark.parametrize("opened", ASYNCHRONOUS, ids=lambda opened: opened.__name__[1:])
def test_a_task_is_committed_and_rolled_back_with_the_order_in_asyncio(
    opened: Callable[[SqliteOutbox], AbstractAsyncContextManager[Opened]], first: str, outbox: SqliteOutbox
) -> None:
    """As above, with what has to be awaited."""

    async def work() -> None:
        async with opened(outbox) as (connection, execute, commit, rollback):

            async def write(text: str) -> None:
                if first == "task":
                    assert (await outbox.append_async(_notes(text), connection=connection)).new == 1
                await execute("INSERT INTO orders DEFAULT VALUES")
                if first == "order":
                    assert (await outbox.append_async(_notes(text), connection=connection)).new == 1

            await write("undone")
            assert _held(outbox) == ([], 0)
            await rollback()
            assert _held(outbox) == ([], 0)
            await write("kept")
            await execute("SAVEPOINT here")
            await write("taken back")
            await execute("ROLLBACK TO here")
            await commit()
            assert _held(outbox) == (["kept"], 1)

    asyncio.run(work())


# -- what is refused


def test_what_is_not_a_transaction_is_refused_with_what_to_give(outbox: SqliteOutbox) -> None:
    """One clear error for other objects; nothing is stored."""
    driver = outbox.connect()
    asynchronous = _engine(outbox)
    with contextlib.closing(driver):
        for given, message in (
            (sqlite_utils.Database(driver), "a sqlite_utils.db.Database is not a connection: give database.conn"),
            (AsyncSession(asynchronous), r"AsyncSession has to be awaited: use append_async"),
            (driver.cursor(), "append_async one of aiosqlite or of SQLAlchemy's asyncio, not a sqlite3.Cursor"),
            (aiosqlite.Connection(outbox.connect, 64), "not a aiosqlite.core.Connection: see docs/service.md"),
            (object(), "not a builtins.object: see docs/service.md"),
        ):
            with pytest.raises(TypeError, match=message):
                outbox.append(_notes("no"), connection=given)
        for given in (driver, object(), Session()):
            with pytest.raises(TypeError, match=r"append_async\(connection=…\) takes a connection of aiosqlite"):
                asyncio.run(outbox.append_async(_notes("no"), connection=given))
    assert outbox.stats().last_position == 0


@pytest.mark.parametrize("file", ["app.db", ":memory:"], ids=["commits by itself", "another file"])
def test_a_transaction_of_asyncio_that_is_of_no_use_is_refused(file: str, outbox: SqliteOutbox, tmp_path: Path) -> None:
    """One to another file, one that commits each statement, and one that is closed."""
    path = file if file == ":memory:" else str(tmp_path / file)
    problem = "the connection is to memory, not to" if file == ":memory:" else "BEGIN a transaction first"

    async def work() -> None:
        async with aiosqlite.connect(path, isolation_level=None) as connection:
            with pytest.raises(OutboxInvalid, match=problem):
                await outbox.append_async(_notes("no"), connection=connection)
        with pytest.raises(OutboxInvalid, match="cannot be used here"):
            await outbox.append_async(_notes("no"), connection=connection)

    asyncio.run(work())
    assert outbox.stats().last_position == 0


def test_an_application_killed_between_append_and_commit_leaves_nothing(outbox: SqliteOutbox) -> None:
    """What was appended and not committed is gone with the connection."""
    connection = outbox.connect()
    outbox.append(_notes("no"), connection=connection)
    connection.close()
    assert _held(outbox) == ([], 0)
    with pytest.raises(sqlite3.ProgrammingError):
        connection.commit()
