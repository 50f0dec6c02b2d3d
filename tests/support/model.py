"""A model of the whole: what may become of tasks, over real files and a real server, whatever happens to either.

A history is a sequence of operations drawn from a seed: runs, appends, kills, backups, restores, clones at work at
once, streams and marks that are deleted or set back, vacuuming, clocks that jump, consumer groups that read, lag and
vanish. After each operation, and at the end, the promises are checked.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import shutil
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from owm_outbox import URL, Batch, Job, Observer, OutboxRelay, Page, Run, RunIncomplete, SinkFull, SourceUnavailable
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support.crash import Forge
from support.servers import Server

__all__ = ["History", "ModelJob", "Violation"]


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True)
class ModelTask:
    """A task of it."""

    task_id: uuid.UUID
    number: int


class ModelJob(Job[ModelTask]):
    """Yields one task for each key, three per page; a source that fails does so after some pages."""

    name = "model"

    def __init__(self, keys: Sequence[int], fails_after: int | None = None) -> None:
        super().__init__()
        self._keys = keys
        self._fails_after = fails_after

    def key(self, task: ModelTask) -> int:
        """Tell tasks apart by their number."""
        return task.number

    def pages(self, run: Run) -> Iterator[Page[ModelTask]]:
        """Yield all pages; those before the checkpoint are dropped as duplicates."""
        for count, first in enumerate(range(0, len(self._keys), 3)):
            if count == self._fails_after:
                raise SourceUnavailable("the source fails, as the history wants it")
            keys = self._keys[first : first + 3]
            yield Page([ModelTask(run.task_id(key), key) for key in keys], str(first).encode())


class _At(Observer):
    """Does something after the batch of this number."""

    def __init__(self, number: int, action: Any) -> None:
        self._left = number
        self._action = action

    def batch_delivered(self, batch: Batch) -> None:
        self._left -= 1
        if self._left == 0:
            self._action()


class _Warnings(logging.Handler):
    """Counts what the relay warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.forks = self.losses = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.forks += "not of this outbox's history" in text
        self.losses += "lost writes" in text


@dataclass
class _Known:
    """What is known of tasks, by id.

    :param committed: stored in an outbox, by a run or an application.
    :param seen: they were in the stream, after some operation.
    :param excused: an operator deleted or set back the only place that had them.
    """

    committed: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
    excused: set[str] = field(default_factory=set)


class History:
    """One history.

    :param bounded: with a small maxlen and consumer groups, instead of kills and losses.
    """

    def __init__(self, seed: str, server: Server, folder: Path, forge: Forge, *, bounded: bool) -> None:
        self.log: list[str] = []
        self._chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self._server = server
        self._stream = f"model-{seed}"
        self._marks = f"{{{self._stream}}}:positions"
        self._folder = folder
        self._forge = forge
        self._bounded = bounded
        self._files = [folder / "a.db"]
        self._backups: list[Path] = []
        self._snapshots: list[tuple[bytes, bytes | None, set[str]]] = []
        self._known = _Known()
        self._now = 1_900_000_000.0
        self._numbers = 0
        self._trimmed = 0
        self._may_repeat = False
        self._copies = False
        self._warned = _Warnings()
        self._client = redis.Redis(port=server.port, host="127.0.0.1")
        SqliteOutbox(self._files[0]).close()

    def run(self, length: int) -> Counter[str]:
        """Do this many operations, then bring everything to an end; return how many of each kind were done.

        :raises Violation: a promise was broken; its notes tell the history.
        """
        done: Counter[str] = Counter()
        logger = logging.getLogger("owm_outbox")
        logger.addHandler(self._warned)
        try:
            for _ in range(length):
                name = self._draw()
                done[name] += 1
                self.log.append(name)
                getattr(self, f"_do_{name}")()
                self._look()
            self._end()
        except Violation as violation:
            violation.add_note(" → ".join(self.log))
            raise
        finally:
            logger.removeHandler(self._warned)
            self._client.delete(self._stream, self._marks)
            self._client.close()
        return done

    def _draw(self) -> str:
        common = {"run": 4, "failing_run": 2, "append": 4, "rolled_back": 1, "drain": 3, "vacuum": 1, "clock": 1}
        if self._bounded:
            kinds = common | {"group": 2, "read": 4, "lag": 2, "ungroup": 1, "foreign": 1}
        else:
            kinds = common | {
                "kill": 4,
                "backup": 2,
                "restore": 2,
                "clone": 1,
                "delete_stream": 1,
                "delete_marks": 1,
                "flush": 1,
                "snapshot": 1,
                "fail_over": 1,
                "lose_in_run": 2,
                "remake": 1,
            }
        return self._chance.choices(list(kinds), list(kinds.values()))[0]

    # -- what a job and an application do

    def _do_run(self) -> None:
        self._relay(self._keys())

    def _do_failing_run(self) -> None:
        keys = self._keys()
        self._relay(keys, fails_after=self._chance.randrange(1 + len(keys) // 3))

    def _do_drain(self) -> None:
        self._relay(None)

    def _do_append(self) -> None:
        tasks = self._tasks()
        with self._outbox() as outbox:
            outbox.append(tasks)
        self._known.committed |= {str(task.task_id) for task in tasks}

    def _do_rolled_back(self) -> None:
        with self._outbox() as outbox, contextlib.closing(outbox.connect()) as connection:
            outbox.append(self._tasks(), connection=connection)
            connection.rollback()

    def _do_kill(self) -> None:
        path = self._chance.choice(self._files)
        keys = None if self._chance.random() < 0.3 else self._keys()
        self._forge.relay(path, self._url(), keys=keys, die_at=self._chance.randint(1, 40))
        self._learn(path)

    # -- what others do to the file and the clock

    def _do_vacuum(self) -> None:
        with contextlib.closing(sqlite3.connect(self._chance.choice(self._files), isolation_level=None)) as db:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _do_clock(self) -> None:
        self._now += self._chance.choice([-86_400 * 365, -7200, -60, 60, 7200, 86_400 * 365])

    def _do_backup(self) -> None:
        self._backups.append(self._copy(self._chance.choice(self._files), f"backup-{len(self._backups)}.db"))

    def _do_clone(self) -> None:
        if len(self._files) < 3:
            self._files.append(self._copy(self._chance.choice(self._files), f"clone-{len(self._files)}.db"))
            self._may_repeat = self._copies = True

    def _do_restore(self) -> None:
        if not self._backups:
            return
        path, backup = self._chance.choice(self._files), self._chance.choice(self._backups)
        before = self._stored()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        self._copy(backup, path.name)
        self._excuse(before - self._stored() - self._held())
        self._may_repeat = self._copies = True

    # -- what others do to the server

    def _do_delete_stream(self) -> None:
        self._lose(self._client.delete, self._stream)

    def _do_delete_marks(self) -> None:
        self._lose(self._client.delete, self._marks)

    def _do_flush(self) -> None:
        self._lose(self._client.delete, self._stream, self._marks)

    def _do_remake(self) -> None:
        def remake() -> None:
            self._client.delete(self._stream)
            time.sleep(0.002)  # within the very millisecond of our last entry, its id would be given a second time
            for _ in range(self._chance.randint(1, 60)):
                self._client.xadd(self._stream, {"data": "{}"})

        self._lose(remake)

    def _do_lose_in_run(self) -> None:
        ways: list[Any] = [self._do_delete_stream, self._do_flush, self._do_remake, self._do_delete_marks]
        self._relay(self._keys(), _At(self._chance.randint(1, 4), self._chance.choice(ways)))

    def _do_snapshot(self) -> None:
        stream: Any = self._client.dump(self._stream)
        marks: Any = self._client.dump(self._marks)
        if stream:
            self._snapshots.append((stream, marks, self._held()))

    def _do_fail_over(self) -> None:
        if not self._snapshots:
            return
        stream, marks, _ = self._chance.choice(self._snapshots)

        def fail_over() -> None:
            self._client.delete(self._stream, self._marks)
            self._client.restore(self._stream, 0, stream)
            if marks:
                self._client.restore(self._marks, 0, marks)

        self._lose(fail_over)

    # -- what workers do

    def _do_group(self) -> None:
        with contextlib.suppress(redis.ResponseError):
            self._client.xgroup_create(self._stream, self._chance.choice("ab"), id="0", mkstream=True)

    def _do_ungroup(self) -> None:
        with contextlib.suppress(redis.ResponseError):
            self._client.xgroup_destroy(self._stream, self._chance.choice("ab"))

    def _do_read(self) -> None:
        self._read(acknowledge=True)

    def _do_lag(self) -> None:
        self._read(acknowledge=False)

    def _do_foreign(self) -> None:
        self._client.xadd(self._stream, {"data": "{}"})

    def _read(self, *, acknowledge: bool) -> None:
        for group in self._groups():
            entries: Any = self._client.xreadgroup(group, "c", {self._stream: ">"}, count=self._chance.randint(1, 30))
            for _, found in entries:
                self._known.read |= {_task_id(fields) for _, fields in found}
                if acknowledge:
                    self._client.xack(self._stream, group, *(entry_id for entry_id, _ in found))

    def _groups(self) -> list[str]:
        if not self._client.exists(self._stream):
            return []
        groups: Any = self._client.xinfo_groups(self._stream)
        return [group["name"].decode() for group in groups]

    # -- doing and looking

    def _relay(self, keys: list[int] | None, *observers: Observer, fails_after: int | None = None) -> None:
        """Run a job, or drain, and check what may be said of it afterwards."""
        path = self._chance.choice(self._files)
        with (
            SqliteOutbox(path, now=lambda: self._now) as outbox,
            self._sink() as sink,
        ):
            relay = OutboxRelay(outbox, sink, batch_size=4, wait_for_room=0, observers=observers)
            pending = {entry.task_id for entry in outbox.read(outbox.stats().acknowledged.position, 10_000)}
            complete = True
            try:
                if keys is None:
                    relay.drain()
                else:
                    report = relay.run(ModelJob(keys, fails_after))
                    pending = {str(uuid.uuid5(uuid.UUID(report.run_id), str(key))) for key in keys}
            except (RunIncomplete, SinkFull) as error:
                if not isinstance(error, SinkFull) and not isinstance(error.__cause__, SourceUnavailable | SinkFull):
                    raise Violation(f"the run ended with {error!r}") from error
                complete = False
            self._trimmed += sink.trimmed
        self._learn(path)
        if complete and not self._bounded and not pending <= self._held() | self._known.excused:
            raise Violation(f"said to be delivered, but not in the stream: {pending - self._held()}")

    def _lose(self, way: Any, *args: Any) -> None:
        """Let the server lose something. What no file has any more, or sent under its last id, cannot be healed."""
        before = self._held()
        way(*args)
        self._excuse(before - self._held() - self._can_be_sent_again())
        self._may_repeat = True

    def _excuse(self, ids: set[str]) -> None:
        self._known.excused |= ids

    def _stored(self) -> set[str]:
        found: set[str] = set()
        for path in self._files:
            with SqliteOutbox(path) as outbox:
                found |= {entry.task_id for entry in outbox.read(0, 100_000)}
        return found

    def _can_be_sent_again(self) -> set[str]:
        """Return what a file has and would send again if the server lost it.

        Where there are copies, each may find the mark of another one instead of the loss, and take a new id: then it
        sends what it has not acknowledged, and believes that the rest is still held.
        """
        found: set[str] = set()
        for path in self._files:
            with SqliteOutbox(path) as outbox:
                after = outbox.stats().acknowledged.position if self._copies else 0
                found |= {entry.task_id for entry in outbox.read(after, 100_000)}
        return found

    def _held(self) -> set[str]:
        return {_task_id(fields) for _, fields in self._entries()} - {""}

    def _entries(self) -> list[Any]:
        entries: Any = self._client.xrange(self._stream)
        return list(entries)

    def _learn(self, path: Path) -> None:
        with SqliteOutbox(path) as outbox:
            self._known.committed |= {entry.task_id for entry in outbox.read(0, 100_000)}
        self._known.committed |= self._held()

    def _look(self) -> None:
        held = Counter(_task_id(fields) for _, fields in self._entries())
        del held[""]
        self._known.seen |= set(held)
        if not held.keys() <= self._known.committed:
            raise Violation(f"never committed, but in the stream: {held.keys() - self._known.committed}")
        if max(held.values(), default=0) > 1:
            if not self._may_repeat:
                raise Violation(f"twice in the stream: {[task for task, count in held.items() if count > 1]}")
            if not self._warned.forks + self._warned.losses and not any("kill" in name for name in self.log):
                raise Violation("twice in the stream, and no warning said so")

    def _end(self) -> None:
        """Let every outbox deliver what it has; then each task is in the stream, or where it is is known."""
        self.log.append("end")
        for _ in range(30):
            self._read(acknowledge=True)
            full = False
            for path in self._files:
                with SqliteOutbox(path) as outbox, self._sink() as sink:
                    try:
                        OutboxRelay(outbox, sink, batch_size=4, wait_for_room=0).drain()
                    except SinkFull:
                        full = True
                    self._trimmed += sink.trimmed
            self._look()
            if not full:
                break
        for path in self._files:
            with contextlib.closing(sqlite3.connect(path)) as db:
                if db.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                    raise Violation(f"{path} is damaged")
        missing = self._known.committed - self._held() - self._stored() - self._known.excused
        unread = missing - self._known.read
        if self._bounded:
            if len(unread) > self._trimmed:
                raise Violation(f"{len(unread)} unread tasks are not in the stream, {self._trimmed} were counted")
        elif missing:
            raise Violation(f"lost: {missing}")

    # -- names and files

    def _keys(self) -> list[int]:
        return list(range(self._chance.randint(0, 25)))

    def _tasks(self) -> list[ModelTask]:
        count = self._chance.randint(1, 12)
        return [ModelTask(uuid.UUID(int=self._chance.getrandbits(128), version=4), n) for n in range(count)]

    def _outbox(self) -> SqliteOutbox:
        return SqliteOutbox(self._chance.choice(self._files), now=lambda: self._now)

    def _url(self) -> str:
        maxlen = 40 if self._bounded else 0
        return self._server.url(self._stream, maxlen=maxlen, retries=0)

    def _sink(self) -> RedisStreamSink:
        return RedisStreamSink.from_url(URL(self._url()))

    def _copy(self, path: Path, name: str) -> Path:
        target = self._folder / name
        SqliteOutbox(path).close()  # it exists, and its WAL is folded into it
        shutil.copyfile(path, target)
        return target


def _task_id(fields: dict[bytes, bytes]) -> str:
    return str(json.loads(fields[b"data"]).get("task_id", ""))
