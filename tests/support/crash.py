"""Processes that die at a boundary or a moment the test names, without a word, as after ``kill -9`` or a power cut.

A child is forked from a process that has imported everything, so that a death costs milliseconds. That process is
this file, run as a script; it has one thread and no sockets, so forking it is safe.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from owm_outbox import URL, InvalidRecord, Job, OutboxRelay, OwmOutboxError, Page, Run, RunRecord
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

# -- what the test sees


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    :param killed: by SIGKILL, its own or ours.
    :param code: its exit code, if it was not.
    :param passed: the boundaries that it passed, in order; the last is where it died.
    :param said: what it wrote to stdout and stderr.
    """

    killed: bool
    code: int | None
    seconds: float
    passed: list[str]
    said: str


class Forge:
    """Starts children, one at a time, and says how each ended.

    :param folder: for what the children write.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "child.log"
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # it ends at the end of its orders
        self._process.wait(30)
        self._process.stdout.close()

    def produce(self, *args: str, kill_after: float | None = None) -> Ending:
        """Run ``owm-producer`` with these arguments, and kill it after this many seconds."""
        return self._order(kind="produce", args=args, kill_after=kill_after)

    def sweep(self, path: Path | str, sink_url: str, *, level: str, die_at: int | None = None) -> Ending:
        """Run the small job of the sweep, which kills itself at the boundary of this number, counted from 1.

        :param path: of an SQLite file, or the URL of a PostgreSQL outbox.
        :param level: ``calls`` of outbox and sink, SQL ``statements`` that do more than read, or ``ticks`` of
            SQLite's virtual machine, which come within statements too.
        """
        return self._order(kind="sweep", path=str(path), sink_url=sink_url, level=level, die_at=die_at)

    def relay(self, path: Path, sink_url: str, *, keys: list[int] | None, die_at: int) -> Ending:
        """Run the model's job with these keys, or drain without any, and die at the boundary of this number."""
        return self._order(kind="relay", path=str(path), sink_url=sink_url, keys=keys, die_at=die_at)

    def _order(self, **order: Any) -> Ending:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order | {"log": str(self._log)}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        lines = self._log.read_text(errors="replace").splitlines()
        return Ending(
            killed=answer["signal"] == signal.SIGKILL,
            code=None if answer["signal"] else answer["code"],
            seconds=answer["seconds"],
            passed=[line[len(_MARK) :] for line in lines if line.startswith(_MARK)],
            said="\n".join(line for line in lines if line and not line.startswith(_MARK)),
        )


@contextlib.contextmanager
def looking_at(path: Path) -> Iterator[SqliteOutbox | None]:
    """Open a copy of what a death left on disk, so that only the next run repairs the original; ``None``: nothing.

    The copy is checked for integrity.
    """
    copy = path.with_suffix(".copy")
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{copy}{suffix}").unlink(missing_ok=True)
    for suffix in ("", "-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    if not copy.exists():
        yield None
        return
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with SqliteOutbox(copy) as outbox:
        yield outbox


def newest_run(path: Path) -> RunRecord | None:
    """Return the newest run in an outbox; ``None`` if there is none yet."""
    with looking_at(path) as outbox:
        return None if outbox is None else next(iter(outbox.stats().runs), None)


# -- the small job of the sweep


@dataclass(frozen=True)
class SweepTask:
    """A task of it."""

    task_id: uuid.UUID
    city_id: int
    ballast: str


class SweepJob(Job[SweepTask]):
    """Has several pages, with a task that is listed twice, an invalid record, and a task that no server takes."""

    name = "sweep"
    pages_in_all, page_size = 5, 40
    huge, twice, bad = 90, 5, -1

    def key(self, task: SweepTask) -> int:
        """Two tasks for the same city are one."""
        return task.city_id

    def pages(self, run: Run) -> Iterator[Page[SweepTask]]:
        """Yield the pages after the checkpoint."""
        for number in range(int(run.checkpoint or b"0"), self.pages_in_all):
            first = number * self.page_size + 1
            cities = [*range(first, first + self.page_size), *([self.twice] if number == 4 else [])]
            yield Page(
                [SweepTask(run.task_id(city), city, "x" * (2**20 if city == self.huge else 100)) for city in cities],
                checkpoint=str(number + 1).encode(),
                invalid=[InvalidRecord(b"{}", "not a city at all", key=self.bad)] if number == 2 else (),
                expected=self.pages_in_all * self.page_size + 1,
            )


class _Boundaries:
    """Counts boundaries, and kills this process at one of them."""

    def __init__(self, die_at: int | None) -> None:
        self._die_at = die_at
        self._count = 0

    def reach(self, name: str) -> None:
        self._count += 1
        os.write(1, f"\n{_MARK}{name}\n".encode())
        if self._count == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)


_MARK = "boundary: "


def _around(cls: Any, names: list[str], boundaries: _Boundaries) -> Any:
    """Return a subclass with a boundary before and after each call of these methods."""

    def wrap(name: str) -> Any:
        original = getattr(cls, name)

        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if issubclass(cls, sqlite3.Connection) and args[0].lower().startswith("select"):
                return original(self, *args, **kwargs)  # to the disk the moments before and after are the same
            what = f"{name} {args[0][:60]!r}" if args and isinstance(args[0], str) else name
            boundaries.reach(f"before {what}")
            try:
                return original(self, *args, **kwargs)
            finally:
                boundaries.reach(f"after {what}")

        return method

    return type(cls.__name__, (cls,), {name: wrap(name) for name in names})


_OUTBOX_CALLS = ["__init__", "start_run", "store", "acknowledge", "reject", "finish_run"]
_SINK_CALLS = ["send", "mark"]


def _relay(order: dict[str, Any]) -> int:
    from support.model import ModelJob

    boundaries = _Boundaries(order["die_at"])
    outbox_class = _around(SqliteOutbox, _OUTBOX_CALLS, boundaries)
    sink_class = _around(RedisStreamSink, _SINK_CALLS, boundaries)
    with sink_class.from_url(URL(order["sink_url"])) as sink, outbox_class(order["path"]) as outbox:
        relay = OutboxRelay(outbox, sink, batch_size=4, wait_for_room=0)
        try:
            if order["keys"] is None:
                relay.drain()
            else:
                relay.run(ModelJob(order["keys"]))
        except OwmOutboxError as error:
            return error.exit_code
    return 0


def _sweep(order: dict[str, Any]) -> int:
    boundaries = _Boundaries(order["die_at"])
    if order["path"].startswith("postgresql:"):
        return _sweep_postgresql(order, boundaries)
    outbox_class: Any = SqliteOutbox
    sink_class: Any = RedisStreamSink
    if order["level"] == "calls":
        outbox_class = _around(SqliteOutbox, _OUTBOX_CALLS, boundaries)
        sink_class = _around(RedisStreamSink, _SINK_CALLS, boundaries)
    else:
        connect: Any = sqlite3.connect
        watched = _around(sqlite3.Connection, ["execute", "executemany"], boundaries)

        def connect_watched(database: str, **options: Any) -> Any:
            if database == ":memory:":
                return connect(database, **options)
            if order["level"] == "statements":
                return connect(database, **options, factory=watched)
            connection = connect(database, **options)
            connection.set_progress_handler(lambda: boundaries.reach("tick"), 500)
            return connection

        sqlite3.connect = connect_watched  # type: ignore[assignment]  # not all of its overloads
    with sink_class.from_url(URL(order["sink_url"])) as sink, outbox_class(order["path"]) as outbox:
        report = OutboxRelay(outbox, sink, batch_size=30).run(SweepJob())
    return 0 if report.complete else 75


def _sweep_postgresql(order: dict[str, Any], boundaries: _Boundaries) -> int:
    import psycopg

    from owm_outbox_backends.postgresql import PostgresqlOutbox

    execute = psycopg.Cursor.execute

    def watched(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        what = query.decode() if isinstance(query, bytes) else str(query)
        boundaries.reach(f"before {what.split()[:2]}")
        try:
            return execute(self, query, *args, **options)
        finally:
            boundaries.reach(f"after {what.split()[:2]}")

    outbox_class: Any = PostgresqlOutbox
    if order["level"] == "calls":
        outbox_class = _around(PostgresqlOutbox, _OUTBOX_CALLS, boundaries)
    else:
        psycopg.Cursor.execute = watched  # type: ignore[method-assign]  # to kill before and after each statement
    with RedisStreamSink.from_url(URL(order["sink_url"])) as sink, outbox_class.from_url(URL(order["path"])) as outbox:
        try:
            report = OutboxRelay(outbox, sink, batch_size=30).run(SweepJob())
        except OwmOutboxError as error:  # the server has not noticed yet that the one before is dead
            return error.exit_code
    return 0 if report.complete else 75


# -- the process that forks


def _serve() -> None:
    # Everything that the commands import late; one that is missing here only costs time.
    import click  # noqa: F401
    import pybreaker  # noqa: F401
    import requests  # noqa: F401
    import stevedore.driver  # noqa: F401
    import tenacity  # noqa: F401

    import owm_outbox.cli.run
    import owm_outbox.jobs.owm
    import owm_outbox.paging.api
    import owm_outbox.plugins  # noqa: F401

    sys.path.insert(0, str(Path(__file__).parent.parent))
    for line in sys.stdin:
        order = json.loads(line)
        ended, held_by_child = os.pipe()
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os.close(ended)
            _be_child(order)
        os.close(held_by_child)
        alive = not select.select([ended], [], [], order.get("kill_after"))[0]
        if alive:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(ended)
        answer = {
            "seconds": time.monotonic() - began,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _be_child(order: dict[str, Any]) -> None:
    code = 70
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for fd in (1, 2):
            os.dup2(log, fd)
        if order["kind"] == "sweep":
            code = _sweep(order)
        elif order["kind"] == "relay":
            code = _relay(order)
        else:
            from owm_outbox.cli import producer

            sys.argv = ["owm-producer", *order["args"]]
            producer()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:
        import traceback

        traceback.print_exception(error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
