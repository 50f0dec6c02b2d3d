"""Copies, backups and lost streams: a sink's word counts only for the history that it belongs to."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from owm_outbox import Batch, Observer, OutboxRelay, SinkUnavailable
from owm_outbox.testing import ParcelJob
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import run
from support.servers import Server
from support.streams import tasks


@dataclass
class Order:
    """A task."""

    task_id: uuid.UUID
    number: int


class Place:
    """One outbox file and one stream, with what an operator may do to either."""

    def __init__(self, server: Server, stream: str, folder: Path) -> None:
        self.server = server
        self.stream = stream
        self.path = folder / "tasks.db"

    def append(self, numbers: Sequence[int], path: Path | None = None) -> None:
        """Store orders as an application does."""
        with SqliteOutbox(path or self.path) as outbox:
            outbox.append([Order(uuid.uuid4(), number) for number in numbers])

    def drain(self, path: Path | None = None, **options: object) -> int:
        """Deliver what is there."""
        with SqliteOutbox(path or self.path) as outbox, self.sink() as sink:
            return OutboxRelay(outbox, sink, batch_size=10, **options).drain()  # type: ignore[arg-type]  # passed on

    def sink(self) -> RedisStreamSink:
        """Make a sink of its own."""
        return RedisStreamSink(f"redis://{self.server.address}/0", stream=self.stream, maxlen=0, retries=0)

    def copy(self, name: str) -> Path:
        """Copy the file as a backup does, while nothing writes to it."""
        target = self.path.with_name(name)
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{self.path}{suffix}", f"{target}{suffix}")
        return target

    def restore(self, backup: Path) -> None:
        """Put a backup in the place of the file."""
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{backup}{suffix}", f"{self.path}{suffix}")

    def numbers(self) -> list[int]:
        """Return what the stream holds, in order."""
        return [task["number"] for task in tasks(self.server, self.stream)]


@pytest.fixture
def place(server: Server, stream: str, tmp_path: Path) -> Place:
    """Give an empty file and an empty stream."""
    return Place(server, stream, tmp_path)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_restored_backup_loses_nothing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Backup, more traffic, restore: what is appended then is delivered, although the sink holds a higher position."""
    place.append(range(30))
    place.drain()
    backup = place.copy("backup.db")
    place.append(range(100, 150))
    place.drain()
    place.restore(backup)
    place.append(range(200, 220))
    assert place.drain() == 20
    assert place.numbers() == [*range(30), *range(100, 150), *range(200, 220)]
    [warning] = _warnings(caplog)
    assert "restored from a copy" in warning
    caplog.clear()
    place.append([300])
    assert place.drain() == 1
    assert not _warnings(caplog), "the new id is a history of its own"


@pytest.mark.slow
def test_the_command_says_that_an_outbox_was_restored(place: Place) -> None:
    """``drain`` of a restored outbox delivers what was appended, and says on stderr what it found."""
    place.append(range(5))
    place.drain()
    backup = place.copy("backup.db")
    place.append(range(5, 50))
    place.drain()
    place.restore(backup)
    place.append(range(100, 120))
    url = place.server.url(place.stream)
    outcome = run("owm-outbox", "drain", "--outbox", f"sqlite:///{place.path}", "--sink", url, "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["delivered"] == 20
    assert "restored from a copy" in outcome.line
    assert place.numbers()[-20:] == list(range(100, 120))


def test_pending_tasks_of_a_backup_are_sent_at_least_once(place: Place) -> None:
    """What was pending in the backup was delivered by the original, too: it is there twice, and nothing is lost."""
    place.append(range(10))
    backup = place.copy("backup.db")
    place.drain()
    place.append(range(10, 50))
    place.drain()
    place.restore(backup)
    place.append([60])
    assert place.drain() == 11
    assert Counter(place.numbers()) == Counter([*range(10), *range(10), *range(10, 50), 60])


def test_a_backup_made_during_a_session_is_told_apart(place: Place) -> None:
    """The copy knows the lease under which the original went on; the task at the sink's position is another one."""
    with SqliteOutbox(place.path) as outbox, place.sink() as sink:
        outbox.append([Order(uuid.uuid4(), number) for number in range(10)])

        class Backup(Observer):
            def batch_delivered(self, batch: Batch) -> None:
                if not place.path.with_name("backup.db").exists():
                    place.copy("backup.db")
                    outbox.append([Order(uuid.uuid4(), number) for number in range(100, 120)])

        OutboxRelay(outbox, sink, batch_size=10, observers=[Backup()]).drain()
    place.restore(place.path.with_name("backup.db"))
    place.append(range(200, 220))  # at the very positions of the original's last twenty
    place.drain()
    assert set(place.numbers()) == {*range(10), *range(100, 120), *range(200, 220)}


@pytest.mark.parametrize("turns", [1, 5])
def test_two_copies_at_work_at_once_lose_nothing(turns: int, place: Place) -> None:
    """A cloned volume: both copies append and deliver in turn to one stream; each of their tasks arrives."""
    place.append(range(10))
    place.drain()
    clone = place.copy("clone.db")
    for turn in range(turns):
        mine, other = range(1000 + 20 * turn, 1010 + 20 * turn), range(1010 + 20 * turn, 1020 + 20 * turn)
        place.append(mine)
        place.append(other, clone)
        place.drain()
        place.drain(clone)
    assert Counter(place.numbers()) == Counter([*range(10), *range(1000, 1000 + 20 * turns)])


def test_two_copies_that_deliver_within_each_other_lose_nothing(place: Place) -> None:
    """While one copy is between two batches, the other delivers everything it has."""
    place.append(range(10))
    clone = place.copy("clone.db")
    place.append(range(100, 130))
    place.append(range(200, 230), clone)

    class Meanwhile(Observer):
        done = False

        def batch_delivered(self, batch: Batch) -> None:
            if not self.done:
                self.done = True
                place.drain(clone)

    place.drain(observers=[Meanwhile()])
    found = Counter(place.numbers())
    assert set(found) == {*range(10), *range(100, 130), *range(200, 230)}
    assert all(found[number] == 1 for number in (*range(100, 130), *range(200, 230)))


def test_a_clock_that_was_set_back_changes_nothing(place: Place) -> None:
    """Positions do not depend on the clock."""
    for year, numbers in ((2031, range(10)), (2001, range(10, 20)), (2020, range(20, 30))):
        now = datetime(year, 1, 1, tzinfo=UTC).timestamp()
        with SqliteOutbox(place.path, now=lambda now=now: now) as outbox, place.sink() as sink:  # type: ignore[misc]
            outbox.append([Order(uuid.uuid4(), number) for number in numbers])
            assert OutboxRelay(outbox, sink).drain() == 10
    assert place.numbers() == list(range(30))


def test_a_recreated_file_is_another_outbox(place: Place) -> None:
    """A deleted file gives its positions a second time, under an id of its own."""
    place.append(range(30))
    place.drain()
    place.path.unlink()
    place.append(range(100, 110))
    assert place.drain() == 10
    assert place.numbers() == [*range(30), *range(100, 110)]


class _At(Observer):
    """Does something after the batch of this number."""

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self._left = number
        self._action = action

    def batch_delivered(self, batch: Batch) -> None:
        self._left -= 1
        if self._left == 0:
            self._action()


def _delete(place: Place) -> None:
    with place.server.client() as client:
        client.delete(place.stream)


def _delete_and_recreate_for_a_group(place: Place) -> None:
    _delete(place)
    with place.server.client() as client:
        client.xgroup_create(place.stream, "workers", id="0", mkstream=True)


def _recreate_by_another_program(place: Place) -> None:
    _delete(place)
    with place.server.client() as client:
        for _ in range(50):
            client.xadd(place.stream, {"data": '{"number": -1}'})


def _delete_marks(place: Place) -> None:
    with place.server.client() as client:
        client.delete(f"{{{place.stream}}}:positions")


def _flush(place: Place) -> None:
    with place.server.client() as client:
        client.flushall()


LOSSES = [_delete, _delete_and_recreate_for_a_group, _recreate_by_another_program, _flush]


@pytest.mark.parametrize("at", [1, 2, 5])
@pytest.mark.parametrize("lose", LOSSES)
def test_a_stream_that_is_lost_in_mid_run_is_made_good(
    lose: Callable[[Place], None], at: int, place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Deleted, evicted, made again by another program: before it is done, a run sends again what the outbox has."""
    with SqliteOutbox(place.path) as outbox, place.sink() as sink:
        observer = _At(at, lambda: lose(place))
        report = OutboxRelay(outbox, sink, batch_size=10, observers=[observer]).run(ParcelJob(50, 10))
    assert (report.complete, report.delivered, report.redelivered) == (True, 50, 10 * at)
    assert [number for number in place.numbers() if number >= 0] == list(range(50))
    assert any("lost writes" in warning for warning in _warnings(caplog))


def test_marks_that_are_lost_cost_a_repeat_not_a_task(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """If only the marks were deleted, what the outbox still has is sent again, and a warning says so."""
    with SqliteOutbox(place.path) as outbox, place.sink() as sink:
        observer = _At(2, lambda: _delete_marks(place))
        report = OutboxRelay(outbox, sink, batch_size=10, observers=[observer]).run(ParcelJob(50, 10))
    assert (report.complete, report.delivered, report.redelivered) == (True, 50, 20)
    assert Counter(place.numbers()) == Counter([*range(50), *range(20)])
    assert any("lost writes" in warning for warning in _warnings(caplog))


def test_a_stream_that_is_lost_again_and_again_ends_the_run_incomplete(place: Place) -> None:
    """A server that evicts the stream after each batch is not fed for ever: the run ends with what is the matter."""

    class Evicting(Observer):
        def batch_delivered(self, batch: Batch) -> None:
            _delete(place)

    place.append(range(50))
    with pytest.raises(SinkUnavailable, match="does it evict keys"):
        place.drain(observers=[Evicting()])
    with SqliteOutbox(place.path) as outbox:
        assert outbox.stats().pending > 0
