"""Rows are read by key, in pages, each from where the one before it ended; what is out of order is not left out."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from owm_outbox import InvalidRecord, JobError, Page, Run, SourceUnavailable
from owm_outbox.paging import keyset_pages

Row = tuple[int, str]


@dataclass
class Task:
    """A task."""

    task_id: str


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    """Give a table of 1,000 rows whose ids have gaps."""
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, name TEXT)")
    db.executemany("INSERT INTO rows VALUES (?, ?)", ((n * n, f"row {n}") for n in range(1, 1001)))
    yield db
    db.close()


def _run(checkpoint: bytes | None = None) -> Run:
    return Run(str(uuid4()), "rows", datetime.now(UTC), checkpoint=checkpoint)


def _pages(db: sqlite3.Connection, run: Run, **options: Any) -> Iterator[Page[Task]]:
    def read(after: int | None, limit: int) -> Sequence[Row]:
        return db.execute("SELECT * FROM rows WHERE id > ? ORDER BY id LIMIT ?", (after or 0, limit)).fetchall()

    return keyset_pages(run, read, key=lambda row: row[0], task=lambda row: Task(row[1]), **options)


def _names(pages: list[Page[Task]]) -> list[str]:
    return [task.task_id for page in pages for task in page.tasks]


@pytest.mark.parametrize("limit", [1, 7, 500, 1000, 5000])
def test_every_row_is_there_once_in_order(limit: int, db: sqlite3.Connection) -> None:
    """However many rows there are per page, also if the last one is full."""
    pages = list(_pages(db, _run(), limit=limit))
    assert _names(pages) == [f"row {n}" for n in range(1, 1001)]
    assert len(pages) == -(-1000 // limit)


def test_a_run_continues_after_any_page(db: sqlite3.Connection) -> None:
    """The checkpoint of a page is the key of its last row."""
    pages = list(_pages(db, _run(), limit=300))
    for count in range(1, 5):
        rest = list(_pages(db, _run(pages[count - 1].checkpoint), limit=300))
        assert _names(pages[:count]) + _names(rest) == [f"row {n}" for n in range(1, 1001)]


def test_rows_that_come_and_go_move_no_others(db: sqlite3.Connection) -> None:
    """What is deleted or inserted behind the reader changes nothing, what is inserted ahead is read."""
    pages = _pages(db, _run(), limit=300)
    first = next(pages)
    db.execute("DELETE FROM rows WHERE id <= 100")
    db.execute("INSERT INTO rows VALUES (2, 'behind'), (999999, 'ahead')")
    assert _names([first, *pages]) == [*(f"row {n}" for n in range(1, 1000)), "ahead", "row 1000"]


def test_a_key_may_have_several_columns() -> None:
    """A tuple is a tuple again in the next call."""
    rows = [(day, number) for day in ("mon", "tue", "wed") for number in range(5)]

    def read(after: tuple[str, int] | None, limit: int) -> Sequence[tuple[str, int]]:
        assert after is None or isinstance(after, tuple)
        return [row for row in rows if after is None or row > after][:limit]

    def pages(checkpoint: bytes | None) -> Iterator[Page[Task]]:
        return keyset_pages(_run(checkpoint), read, key=lambda row: row, task=lambda row: Task(f"{row}"), limit=4)

    first = next(pages(None))
    assert _names([first, *pages(first.checkpoint)]) == [f"{row}" for row in rows]


def test_a_row_that_is_not_a_task_holds_up_no_other(db: sqlite3.Connection) -> None:
    """What ``task`` returns as invalid becomes a dead letter of its page."""

    def task(row: Row) -> Task | InvalidRecord:
        return InvalidRecord(row[1].encode(), "odd", row[0]) if row[0] % 2 else Task(row[1])

    def read(after: int | None, limit: int) -> Sequence[Row]:
        return db.execute("SELECT * FROM rows WHERE id > ? ORDER BY id LIMIT ?", (after or 0, limit)).fetchall()

    pages: list[Page[Task]] = list(keyset_pages(_run(), read, key=lambda row: row[0], task=task))
    assert [(len(page.tasks), len(page.invalid)) for page in pages] == [(250, 250)] * 2


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM rows WHERE id > ? ORDER BY id DESC LIMIT ?",
        "SELECT * FROM rows WHERE id > ? ORDER BY name LIMIT ?",
        "SELECT * FROM rows WHERE id >= ? ORDER BY id LIMIT ?",
        "SELECT id / 10, name FROM rows WHERE id > ? ORDER BY id LIMIT ?",
    ],
    ids=["descending", "another order", "the last row again", "not unique"],
)
def test_rows_out_of_order_are_an_error_of_the_job(query: str, db: sqlite3.Connection) -> None:
    """They would be left out or read for ever: the error says which rows."""

    def read(after: int | None, limit: int) -> Sequence[Row]:
        return db.execute(query, (after or 0, limit)).fetchall()

    with pytest.raises(JobError, match=r"job 'rows' reads a row with key \d+ after \d+: order the rows by their key"):
        list(keyset_pages(_run(), read, key=lambda row: row[0], task=lambda row: Task(row[1]), limit=100))


def test_a_database_that_is_away_is_unavailable() -> None:
    """An error that means so is one line; any other is the job's own."""

    def read(after: int | None, limit: int) -> Sequence[Row]:
        raise ConnectionError("server closed the connection\n\tunexpectedly")

    def pages(unavailable: type[Exception]) -> Iterator[Page[Task]]:
        task = lambda row: Task(row[1])  # noqa: E731
        return keyset_pages(_run(), read, key=lambda row: row[0], task=task, unavailable=unavailable)

    with pytest.raises(SourceUnavailable) as caught:
        next(pages(OSError))
    assert str(caught.value) == (
        "the database of job 'rows' cannot be read: server closed the connection unexpectedly; run again later"
    )
    with pytest.raises(ConnectionError):
        next(pages(LookupError))
