"""An outbox file of version 0.1, with a run in the middle: this version continues with it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from owm_outbox import InvalidRecord, Job, OutboxRelay, Page, Run
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support.servers import Server
from support.streams import tasks

DUMP = Path(__file__).with_name("version_0_1.sql")  # 60 of 100 parcels stored, 39 of them acknowledged, 1 dead letter
OUTBOX_ID = "54a23319-2c25-414f-ae38-c10449c319f5"
RUN_ID = "646359e3-daba-49b7-af65-d14f991988a5"
WRITTEN_AT = 1795691841.7


@dataclass
class Parcel:
    """The task of that run."""

    task_id: uuid.UUID
    number: int


class Parcels(Job[Parcel]):
    """The job of that run: 100 parcels, 10 per page."""

    name = "parcels"

    def key(self, task: Parcel) -> int:
        """Tell parcels apart by their number."""
        return task.number

    def pages(self, run: Run) -> Iterator[Page[Parcel]]:
        """Yield what comes after the checkpoint."""
        for first in range(int(run.checkpoint or 0), 100, 10):
            numbers = range(first, first + 10)
            yield Page([Parcel(run.task_id(n), n) for n in numbers], str(first + 10).encode(), expected=101)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make the file again from its dump."""
    path = tmp_path / "tasks.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(DUMP.read_text("utf-8"))
    return path


def _hold(server: Server, stream: str, path: Path, count: int) -> None:
    """Let the server hold the first entries of the file, as version 0.1 left them there."""
    with contextlib.closing(sqlite3.connect(path)) as db, server.client() as client:
        rows = db.execute(
            "SELECT position, payload FROM outbox_entries WHERE reason IS NULL ORDER BY position LIMIT ?", (count,)
        ).fetchall()
        for _, payload in rows:
            client.xadd(stream, {"data": payload})
        client.hset(f"{{{stream}}}:positions", OUTBOX_ID, rows[-1][0])


@pytest.mark.parametrize(
    ("held", "delivered", "redelivered"),
    [(39, 61, 0), (52, 61, 0), (26, 61, 13)],
    ids=["as acknowledged", "a reply was lost", "the server lost a batch"],
)
def test_a_run_of_version_0_1_is_completed(
    held: int, delivered: int, redelivered: int, server: Server, stream: str, path: Path
) -> None:
    """The run continues at its checkpoint, under its id; each task is in the stream once, wherever the server stood."""
    _hold(server, stream, path, held)
    with (
        SqliteOutbox(path, now=lambda: WRITTEN_AT + 600) as outbox,
        RedisStreamSink(f"redis://{server.address}/0", stream=stream) as sink,
    ):
        assert (outbox.id, outbox.stats().pending, outbox.stats().dead) == (OUTBOX_ID, 21, 1)
        report = OutboxRelay(outbox, sink, batch_size=13).run(Parcels())
        assert outbox.id == OUTBOX_ID
        assert outbox.read(0, 10) == []
    assert (report.complete, report.resumed, report.run_id, report.forked) == (True, True, RUN_ID, False)
    assert (report.extracted, report.rejected, report.expected) == (100, 1, 101)
    assert (report.delivered, report.redelivered) == (delivered, redelivered)
    found = tasks(server, stream)
    assert [task["number"] for task in found] == list(range(100))
    assert len({task["task_id"] for task in found}) == 100


def test_a_run_of_version_0_1_that_is_too_old_is_closed(server: Server, stream: str, path: Path) -> None:
    """After an hour a new run enqueues everything; what the old one left pending is delivered first."""
    _hold(server, stream, path, 39)
    with (
        SqliteOutbox(path, now=lambda: WRITTEN_AT + 3601) as outbox,
        RedisStreamSink(f"redis://{server.address}/0", stream=stream) as sink,
    ):
        report = OutboxRelay(outbox, sink, batch_size=13).run(_WithoutTotal())
        assert [run.state for run in outbox.stats().runs] == ["complete", "incomplete"]
    assert (report.complete, report.resumed, report.delivered) == (True, False, 121)
    assert [task["number"] for task in tasks(server, stream)] == [*range(60), *range(100)]


class _WithoutTotal(Parcels):
    def pages(self, run: Run) -> Iterator[Page[Parcel]]:
        for page in super().pages(run):
            yield Page(page.tasks, page.checkpoint)


def test_what_was_kept_for_jobs_is_still_there(path: Path) -> None:
    """The breaker's state of version 0.1 is state of this version; opening the file twice changes nothing more."""
    for _ in range(2):
        with SqliteOutbox(path) as outbox:
            assert json.loads(outbox.state.get("breaker:http://x/cities/") or b"null") == {}


def test_the_letters_of_earlier_versions_become_one(path: Path) -> None:
    """One letter per run, as version 0.1 kept them, is counted as soon as the record is rejected again."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "INSERT INTO outbox_entries (run, key, payload, stored_at, reason, rejected_at) "
            "SELECT run, 'late', payload, stored_at, reason, rejected_at FROM outbox_entries WHERE reason IS NOT NULL"
        )
        db.execute("INSERT INTO outbox_runs (id, job, state, started_at) VALUES ('old', 'parcels', 'complete', 0)")
        db.execute(
            "INSERT INTO outbox_entries (run, key, payload, stored_at, reason, rejected_at) "
            "SELECT last_insert_rowid(), 'late', payload, 0, reason, 1 FROM outbox_entries WHERE reason IS NOT NULL "
            "AND key = 'late'"
        )
    with SqliteOutbox(path) as outbox:
        before = [letter for letter in outbox.dead_letters() if letter.first_rejected_at == letter.rejected_at]
        assert [letter.times for letter in before] == [1, 1, 1]
        run = outbox.start_run("parcels", resume_within=timedelta(0)).id
        outbox.append([], run=run, invalid=[InvalidRecord(b"{}", before[-1].reason, "late")])
        first, last = outbox.dead_letters()
        assert (first.times, last.times, last.payload) == (1, 3, b"{}")
        assert last.first_rejected_at.timestamp() == 1
