"""How many tasks a source says it has, and what becomes of a run that gets fewer."""

from __future__ import annotations

import json
import re
import sqlite3
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import (
    Batch,
    Job,
    Outbox,
    OutboxRelay,
    Page,
    Run,
    RunIncomplete,
    RunReport,
    Sink,
    SinkUnavailable,
    SourceUnavailable,
)
from owm_outbox_backends.jsonl import JsonLinesSink
from owm_outbox_backends.memory import MemoryOutbox


@dataclass
class Row:
    """A task."""

    task_id: str
    number: int


class Table(Job[Row]):
    """Counts a table, and then reads it by its key, ten rows per page."""

    name = "table"

    def __init__(self, path: Path, *, after: Callable[[int], None] = lambda number: None) -> None:
        super().__init__()
        self.path = path
        self.after = after
        self.pages_read = 0

    def key(self, task: Row) -> int:
        """Tell rows apart by their number."""
        return task.number

    def pages(self, run: Run) -> Iterator[Page[Row]]:
        """Yield what comes after the checkpoint."""
        last = int(run.checkpoint or 0)
        with closing(sqlite3.connect(self.path)) as db:
            (count,) = db.execute("SELECT count(*) FROM numbers").fetchone()
            query = "SELECT number FROM numbers WHERE number > ? ORDER BY number LIMIT 10"
            while numbers := [number for (number,) in db.execute(query, (last,))]:
                self.pages_read += 1
                last = numbers[-1]
                tasks = [Row(str(run.task_id(number)), number) for number in numbers]
                yield Page(tasks, checkpoint=str(last).encode(), expected=count)
                self.after(last)


class EndsEarly(Table):
    """Leaves out the last row of each full page, and goes on behind it."""

    def pages(self, run: Run) -> Iterator[Page[Row]]:
        """Yield nine rows of ten."""
        for page in super().pages(run):
            yield Page(page.tasks[:9], page.checkpoint, expected=page.expected)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Make a table of 35 rows."""
    path = tmp_path / "table.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY)")
        db.executemany("INSERT INTO numbers VALUES (?)", ((number,) for number in range(1, 36)))
    return path


class Down(Sink):
    """Takes nothing."""

    def mark(self, outbox_id: str) -> None:
        """Hold no mark."""
        return

    def send(self, batch: Batch) -> None:
        """Refuse."""
        raise SinkUnavailable("the sink is down")


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    """Write to a file."""
    with JsonLinesSink(tmp_path / "lines") as sink:
        yield sink


def _sent(folder: Path) -> list[int]:
    return [json.loads(line)["number"] for line in (folder / "lines").read_text().splitlines()]


def _run(job: Job[Any], outbox: Outbox, sink: Sink) -> RunReport | str:
    """Run a job; return the report if it is complete, else the line that says why not."""
    try:
        return OutboxRelay(outbox, sink).run(job)
    except RunIncomplete as error:
        return str(error)


def test_a_row_deleted_while_the_job_reads_holds_a_run_up_once(table: Path, sink: Sink, tmp_path: Path) -> None:
    """The next call counts again: the run is complete, with the same tasks, each of which is sent once."""

    def delete(last: int) -> None:
        with closing(sqlite3.connect(table)) as db, db:
            db.execute("DELETE FROM numbers WHERE number = 25 AND ? = 10", (last,))

    outbox = MemoryOutbox()
    assert _run(Table(table, after=delete), outbox, sink) == (
        "job 'table': expected 35 distinct tasks, got 34; the next run reads all of it once more"
    )
    report = _run(Table(table), outbox, sink)
    assert isinstance(report, RunReport)
    assert (report.resumed, report.expected, report.extracted, report.delivered) == (True, 34, 34, 0)
    assert _sent(tmp_path) == [number for number in range(1, 36) if number != 25]


def test_a_source_that_ended_too_early_is_read_to_its_end(table: Path, sink: Sink, tmp_path: Path) -> None:
    """What a first call did not get, although its checkpoint is beyond it, the next one gets, and sends that alone."""
    outbox = MemoryOutbox()
    assert "expected 35 distinct tasks, got 32" in str(_run(EndsEarly(table), outbox, sink))
    report = _run(Table(table), outbox, sink)
    assert isinstance(report, RunReport)
    assert (report.resumed, report.extracted, report.delivered) == (True, 35, 3)
    assert sorted(_sent(tmp_path)) == list(range(1, 36))


def test_a_source_that_ended_too_early_while_the_sink_was_down(table: Path, sink: Sink, tmp_path: Path) -> None:
    """The sink's failure is what is reported; the next call reads the source from its start all the same."""
    outbox = MemoryOutbox()
    assert _run(EndsEarly(table), outbox, Down()) == "the sink is down"
    assert isinstance(_run(Table(table), outbox, sink), RunReport)
    assert sorted(_sent(tmp_path)) == list(range(1, 36))


def test_a_second_reading_that_is_interrupted_is_continued(table: Path, sink: Sink, tmp_path: Path) -> None:
    """It begins at the start once, not in each call until one gets through."""

    def fail(last: int) -> None:
        if last == 20:
            raise SourceUnavailable("the source is gone")

    outbox, interrupted, last = MemoryOutbox(), Table(table, after=fail), Table(table)
    _run(EndsEarly(table), outbox, sink)
    assert _run(interrupted, outbox, sink) == "the source is gone"
    assert isinstance(_run(last, outbox, sink), RunReport)
    assert (interrupted.pages_read, last.pages_read) == (2, 2)
    assert sorted(_sent(tmp_path)) == list(range(1, 36))


def test_a_source_that_holds_something_back_is_incomplete_in_each_call(table: Path, sink: Sink) -> None:
    """As long as the source says that there is more, no call takes the run for complete."""

    class ClaimsMore(Table):
        def pages(self, run: Run) -> Iterator[Page[Row]]:
            for page in super().pages(run):
                yield Page(page.tasks, page.checkpoint, expected=36)

    outbox = MemoryOutbox()
    for _ in range(3):
        job = ClaimsMore(table)
        assert "expected 36 distinct tasks, got 35" in str(_run(job, outbox, sink))
        assert job.pages_read == 4


@pytest.mark.parametrize("correct", [lambda run: run.accounted, lambda run: 0], ids=["as many as there are", "none"])
def test_a_figure_is_corrected_at_the_end(correct: Callable[[Run], int], table: Path, sink: Sink) -> None:
    """The newest figure counts, also on an empty page."""

    class Corrected(Table):
        def pages(self, run: Run) -> Iterator[Page[Row]]:
            for page in super().pages(run):
                yield Page(page.tasks, page.checkpoint, expected=99)
            yield Page([], expected=correct(run))

    assert isinstance(_run(Corrected(table), MemoryOutbox(), sink), RunReport)


def test_a_call_that_ended_otherwise_is_continued_at_its_checkpoint(table: Path, sink: Sink) -> None:
    """Only a run that came to its end and was short is read from its start."""
    outbox, job = MemoryOutbox(), Table(table)
    assert _run(Table(table), outbox, Down()) == "the sink is down"
    assert isinstance(_run(job, outbox, sink), RunReport)
    assert job.pages_read == 0


def test_what_one_run_lacked_is_not_believed_of_the_next(table: Path, sink: Sink) -> None:
    """The next run is continued at its checkpoint, as any is that was not short itself."""

    class ClaimsMore(Table):
        def pages(self, run: Run) -> Iterator[Page[Row]]:
            yield from super().pages(run)
            yield Page([], expected=99)

    outbox, job = MemoryOutbox(), Table(table)
    _run(ClaimsMore(table), outbox, sink)
    assert isinstance(_run(Table(table), outbox, sink), RunReport)
    _run(Table(table), outbox, Down())
    report = _run(job, outbox, sink)
    assert isinstance(report, RunReport)
    assert (report.resumed, report.duplicates, job.pages_read) == (True, 0, 0)


# -- the checkpoint of the last page


class Cursors(Job[Row]):
    """Pages by a cursor, which is null on the last page; ``end`` is what it writes down there."""

    name = "cursors"

    def __init__(self, end: bytes | None) -> None:
        super().__init__()
        self.end = end
        self.asked: list[str | None] = []

    def fetch(self, cursor: str | None) -> tuple[list[Any], str | None]:
        """Ask the source."""
        self.asked.append(cursor)
        return {None: ([1, 2], "b"), "b": ([3, 4], "c"), "c": ([5], None)}[cursor]

    def key(self, task: Row) -> int:
        """Tell rows apart by their number."""
        return task.number

    def pages(self, run: Run) -> Iterator[Page[Row]]:
        """Yield what comes after the checkpoint."""
        if run.checkpoint is not None and run.checkpoint == self.end:
            return
        cursor = None if run.checkpoint is None else run.checkpoint.decode()
        while True:
            numbers, following = self.fetch(cursor)
            tasks = [Row(str(run.task_id(number)), number) for number in numbers]
            yield Page(tasks, checkpoint=self.end if following is None else following.encode())
            if following is None:
                return
            cursor = following


@pytest.mark.parametrize(("end", "again"), [(None, ["c"]), (b"end", [])], ids=["None", "a word of its own"])
def test_a_run_that_is_resumed_after_its_last_page(end: bytes | None, again: list[str], sink: Sink) -> None:
    """Without a checkpoint of its own the last page is asked for again, which stores nothing twice."""
    outbox = MemoryOutbox()
    first, second = Cursors(end), Cursors(end)
    assert _run(first, outbox, Down()) == "the sink is down"
    report = _run(second, outbox, sink)
    assert isinstance(report, RunReport)
    assert (first.asked, second.asked) == ([None, "b", "c"], again)
    assert (report.resumed, report.extracted, report.delivered) == (True, 5, 5)


def test_the_documented_way_to_end_with_a_cursor(sink: Sink) -> None:
    """What docs/job.md shows asks for each page once, and for none in a run that is resumed after the last one."""
    text = (Path(__file__).parent.parent.parent / "docs" / "job.md").read_text("utf-8")
    (code,) = re.findall(r"^  ```python\n(.*?)^  ```$", text, re.MULTILINE | re.DOTALL)
    names = {"Iterator": Iterator, "Page": Page, "Run": Run, "Trip": Row, "json": json}
    exec(textwrap.dedent(code), names)  # noqa: S102 - that is what it is for

    class Documented(Cursors):
        pages: Any = names["pages"]

        def fetch(self, cursor: str | None) -> tuple[list[Any], str | None]:
            numbers, following = super().fetch(cursor)
            return [Row(f"id-{number}", number) for number in numbers], following

    outbox = MemoryOutbox()
    first, second = Documented(None), Documented(None)
    assert _run(first, outbox, Down()) == "the sink is down"
    report = _run(second, outbox, sink)
    assert isinstance(report, RunReport)
    assert (first.asked, second.asked, report.delivered) == ([None, "b", "c"], [], 5)
