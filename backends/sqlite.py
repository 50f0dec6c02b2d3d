"""SqliteOutbox: tasks in one file, written by one connection, synced at every commit."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Self
from urllib.parse import quote

import msgspec
import sqlite_utils
from sqlite_utils.migrations import Migrations

from owm_outbox import (
    RESUME_WITHIN,
    URL,
    ConfigurationError,
    DeadLetter,
    DeadLetterStore,
    Entry,
    Job,
    Key,
    Notes,
    Outbox,
    OutboxStats,
    OutboxUnavailable,
    OutboxUnusable,
    Rejected,
    Run,
    RunReport,
    RunSummary,
    encode,
)

from .own_file import OwnFile

__all__ = ["SqliteOutbox"]

_APPLICATION_ID = 0x4F574D31  # "OWM1" in the file's header: what tells our file from any other SQLite file
_KEPT_RUNS = 100

_migrations = Migrations("owm_outbox")


@_migrations()
def m001_tables(db: sqlite_utils.Database) -> None:
    """Create the tables of version 1."""
    db.create_table("outbox", {"id": str, "acknowledged": int}, pk="id", not_null={"acknowledged"}, strict=True)
    db.create_table("outbox_notes", {"name": str, "value": bytes}, pk="name", strict=True)
    db.create_table(
        "outbox_runs",
        {
            "number": int,
            "id": str,
            "job": str,
            "state": str,
            "started_at": float,
            "finished_at": float,
            "checkpoint": bytes,
            "expected": int,
            "extracted": int,
            "duplicates": int,
            "rejected": int,
            "unusable": int,
            "report": bytes,
        },
        pk="number",
        not_null={"id", "job", "state", "started_at"},
        defaults={"extracted": 0, "duplicates": 0, "rejected": 0, "unusable": 0},
        strict=True,
    )
    # AUTOINCREMENT: a position is never reused, not even that of a cleared last entry. sqlite-utils cannot say that,
    # nor UNIQUE (run, key), which costs little with keys that arrive in order (an index on task ids costs 5 times).
    db.execute(
        """
        CREATE TABLE outbox_entries (
            position INTEGER PRIMARY KEY AUTOINCREMENT,
            run INTEGER,
            key ANY,
            task_id TEXT,
            payload BLOB NOT NULL,
            stored_at REAL NOT NULL,
            reason TEXT,
            rejected_at REAL,
            UNIQUE (run, key)
        ) STRICT
        """
    )
    db.execute("CREATE INDEX outbox_dead ON outbox_entries (position) WHERE reason IS NOT NULL")
    db["outbox"].insert({"id": str(uuid.uuid4()), "acknowledged": 0})  # type: ignore[union-attr]  # a table, not a view


class SqliteOutbox(Outbox, DeadLetterStore):
    """Keeps tasks in an SQLite file: durable at every commit (WAL, synchronous=FULL), readable by its owner only.

    ``sqlite:////absolute/path.db`` or ``sqlite:///relative/path.db``; options: ``timeout``, seconds to wait for
    another program that writes to the file (5); ``shared=true``, the file is an application's own database, in which
    the outbox has the tables whose names begin with ``outbox``.

    :param path: created if it does not exist; its folder must. ``path.lock`` beside it is what ``lock`` holds.
    :param now: seconds since the epoch.
    :raises OutboxUnusable: the file cannot be created, is a symlink, belongs to somebody else, is no outbox or one of a
        newer version. It is untouched then.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 5.0,
        shared: bool = False,
        create: bool = True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path).absolute()
        self._now = now
        self._timeout = timeout
        self._mutex = threading.RLock()  # an application's thread may append while a relay's thread reads
        self._file = OwnFile(self.path, application_id=None if shared else _APPLICATION_ID, create=create)
        with self._translated():
            self._conn = sqlite3.connect(
                f"file:{quote(str(self.path))}?mode=rw",
                uri=True,
                timeout=timeout,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=64,
            )
        try:
            with self._translated():
                self.id = self._open(shared=shared)
        except BaseException:
            self._conn.close()
            raise
        self._file.watch()

    @classmethod
    def from_url(cls, url: URL, *, create: bool = True) -> Self:
        """Open the file that ``sqlite:///path`` names."""
        options = url.options(timeout=Annotated[float, msgspec.Meta(ge=0, le=600)], shared=bool)
        if url.hostname or not url.path.strip("/"):
            raise ConfigurationError(f"{url} names no file; write sqlite:////absolute/path or sqlite:///relative/path")
        return cls(url.path.removeprefix("/"), create=create, **options)

    @classmethod
    @contextmanager
    def scratch(cls, url: URL) -> Iterator[Callable[[], Outbox]]:
        """Give a file in a folder of its own beside the real one."""
        _options_of(url)  # refuses what is wrong with them
        beside = _path_of(url).absolute().parent
        if not beside.is_dir():
            raise OutboxUnusable(f"cannot create an outbox in {beside}, which is no folder: name another path")
        with TemporaryDirectory(prefix="check-", dir=beside) as folder:
            yield lambda: cls(Path(folder) / "tasks.db")

    def _open(self, *, shared: bool) -> str:
        if not shared and self._conn.execute("PRAGMA application_id").fetchone()[0] == 0:
            # Before WAL, so that it is in the file's header from the first commit on.
            self._conn.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        self._conn.execute("PRAGMA journal_mode = WAL")
        self._conn.execute("PRAGMA synchronous = FULL")
        db = sqlite_utils.Database(self._conn, execute_plugins=False)
        known = {migration.name for migration in _migrations.pending(sqlite_utils.Database(memory=True))}
        newer = [done.name for done in _migrations.applied(db) if done.name not in known]
        if newer:
            raise OutboxUnusable(
                f"{self.path} was written by a newer version of owm_outbox ({newer[-1]}): upgrade, or name another file"
            )
        if _migrations.pending(db):
            self._conn.execute("BEGIN IMMEDIATE")  # two that start at once: the second waits, and finds it done
            try:
                _migrations.apply(db)
                self._conn.execute("COMMIT")
            except BaseException:
                self._conn.rollback()
                raise
        return str(self._conn.execute("SELECT id FROM outbox").fetchone()[0])

    # -- the contract

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold ``path.lock`` with flock: the kernel frees it when the process dies, however it dies."""
        with self._file.locked():
            self._leap()
            yield

    def _leap(self) -> None:
        """Let positions go on from the microseconds since 1970.

        A file that is restored from a copy would give positions a second time, and a sink that holds them already
        would be taken to hold the new entries.
        """
        with self._transaction() as conn:
            self._set_last_position(conn, max(self._last_position(conn), int(self._now() * 1e6)))

    def start_run(self, job: Job[Any], *, resume_within: timedelta = RESUME_WITHIN) -> Run:
        """Return the unfinished run, or a new one."""
        with self._transaction() as conn:
            now = self._now()
            row = conn.execute(
                "SELECT number, started_at FROM outbox_runs WHERE job = ? AND state = 'open' "
                "ORDER BY number DESC LIMIT 1",
                (job.name,),
            ).fetchone()
            resumed = row is not None and now - row[1] < resume_within.total_seconds()
            if row is not None and not resumed:
                conn.execute(
                    "UPDATE outbox_runs SET state = 'incomplete', finished_at = ? WHERE number = ?", (now, row[0])
                )
                self._clear(conn, row[0])
            if not resumed:
                conn.execute(
                    "INSERT INTO outbox_runs (id, job, state, started_at) VALUES (?, ?, 'open', ?)",
                    (str(uuid.uuid4()), job.name, now),
                )
                conn.execute(
                    "DELETE FROM outbox_runs WHERE state <> 'open' "
                    "AND number <= (SELECT max(number) FROM outbox_runs) - ? "
                    "AND number NOT IN (SELECT run FROM outbox_entries WHERE run IS NOT NULL)",
                    (_KEPT_RUNS,),
                )
            row = conn.execute(
                "SELECT id, started_at, checkpoint, extracted, duplicates, rejected, unusable, expected "
                "FROM outbox_runs WHERE job = ? AND state = 'open' ORDER BY number DESC LIMIT 1",
                (job.name,),
            ).fetchone()
        return Run(
            id=row[0],
            job=job.name,
            started_at=_aware(row[1]),
            resumed=resumed,
            key=job.key,
            notes=self.notes,
            checkpoint=row[2],
            extracted=row[3],
            duplicates=row[4],
            rejected=row[5],
            unusable=row[6],
            expected=row[7],
        )

    def append(
        self,
        tasks: Iterable[Any],
        *,
        run: Run | None = None,
        checkpoint: bytes | None = None,
        rejected: Sequence[Rejected] = (),
        expected: int | None = None,
        connection: sqlite3.Connection | None = None,
    ) -> int:
        """Store tasks, checkpoint and dead letters in one commit.

        :param connection: a connection of the caller's own to the same file, see `connect`. The tasks become part of
            the transaction that it is in, and are committed or rolled back with it, not by this call. Without a run.
        """
        now = self._now()
        if connection is not None:
            if run is not None or rejected:
                raise ValueError("append(connection=…) is for tasks without a run")
            return self._append_within(connection, tasks, now)
        with self._transaction() as conn:
            number = None if run is None else self._run_number(conn, run)
            before, given = conn.total_changes, 0

            def rows() -> Iterator[tuple[Any, ...]]:
                nonlocal given
                for given, task in enumerate(tasks, start=1):  # noqa: B007 - the count is what is wanted
                    yield (number, None if run is None else _storable(run.key(task)), *encode(task), now)

            conn.executemany(
                "INSERT INTO outbox_entries (run, key, task_id, payload, stored_at) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                rows(),
            )
            new = conn.total_changes - before
            if rejected:
                conn.executemany(
                    "INSERT INTO outbox_entries (run, key, payload, stored_at, reason, rejected_at) "
                    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    ((number, _key_of(bad), bad.payload, now, bad.reason, now) for bad in rejected),
                )
            bad = conn.total_changes - before - new
            same = given - new + len(rejected) - bad
            if run is not None:
                conn.execute(
                    "UPDATE outbox_runs SET checkpoint = coalesce(?, checkpoint), expected = coalesce(?, expected), "
                    "extracted = extracted + ?, duplicates = duplicates + ?, rejected = rejected + ?, "
                    "unusable = unusable + ? WHERE number = ?",
                    (checkpoint, expected, new, same, bad, bad, number),
                )
        if run is not None:
            run.extracted += new
            run.duplicates += same
            run.rejected += bad
            run.unusable += bad
            run.checkpoint = run.checkpoint if checkpoint is None else checkpoint
            run.expected = run.expected if expected is None else expected
        return new

    def connect(self) -> sqlite3.Connection:
        """Open a connection to the same file, for an application's own tables and transactions.

        As durable as the outbox itself, and it leaves folding the WAL into the file to the outbox, because two that
        do so at once can damage the file with SQLite before 3.51.3. Close it before the outbox.
        """
        with self._translated():
            conn = sqlite3.connect(f"file:{quote(str(self.path))}?mode=rw", uri=True, timeout=self._timeout)
            conn.execute("PRAGMA synchronous = FULL")
            conn.execute("PRAGMA wal_autocheckpoint = 0")
            return conn

    def _append_within(self, conn: sqlite3.Connection, tasks: Iterable[Any], now: float) -> int:
        file = conn.execute("SELECT file FROM pragma_database_list WHERE name = 'main'").fetchone()[0]
        if not file or not self.path.samefile(file):
            raise OutboxUnusable(f"the connection is to {file or 'memory'}, not to {self.path}: use outbox.connect()")
        if conn.isolation_level is None and not conn.in_transaction:
            raise OutboxUnusable("the connection commits each statement by itself: BEGIN a transaction first")
        with self._translated():
            before = conn.total_changes
            conn.executemany(
                "INSERT INTO outbox_entries (task_id, payload, stored_at) VALUES (?, ?, ?)",
                ((*encode(task), now) for task in tasks),
            )
            return conn.total_changes - before

    def read(self, after: int, limit: int) -> Sequence[Entry]:
        """Return entries in order of position."""
        with self._mutex, self._translated():
            rows = self._conn.execute(
                "SELECT position, task_id, payload FROM outbox_entries WHERE position > ? AND reason IS NULL "
                "ORDER BY position LIMIT ?",
                (after, limit),
            )
            return [Entry(*row) for row in rows]

    def acknowledge(self, position: int) -> None:
        """Note what the sink holds, and clear what no unfinished run needs any more."""
        with self._transaction() as conn:
            before = conn.execute("SELECT acknowledged FROM outbox").fetchone()[0]
            conn.execute("UPDATE outbox SET acknowledged = ?", (position,))
            if position > self._last_position(conn):
                self._set_last_position(conn, position)
            conn.execute(
                "DELETE FROM outbox_entries WHERE position > ? AND position <= ? AND reason IS NULL AND "
                "(run IS NULL OR run NOT IN (SELECT number FROM outbox_runs WHERE state = 'open'))",
                (before, position),
            )

    def reject(self, reasons: Mapping[int, str]) -> None:
        """Turn entries into dead letters, where they are."""
        now = self._now()
        with self._transaction() as conn:
            for position, reason in reasons.items():
                row = conn.execute(
                    "UPDATE outbox_entries SET reason = ?, rejected_at = ? WHERE position = ? AND reason IS NULL "
                    "RETURNING run",
                    (reason, now, position),
                ).fetchone()
                if row is not None:
                    conn.execute("UPDATE outbox_runs SET rejected = rejected + 1 WHERE number = ?", row)

    def finish_run(self, run: Run, report: RunReport) -> None:
        """Keep the report; if it is complete, close the run and clear its delivered entries."""
        with self._transaction() as conn:
            number = self._run_number(conn, run)
            conn.execute("UPDATE outbox_runs SET report = ? WHERE number = ?", (msgspec.json.encode(report), number))
            if report.complete:
                conn.execute(
                    "UPDATE outbox_runs SET state = 'complete', finished_at = ? WHERE number = ?",
                    (self._now(), number),
                )
                self._clear(conn, number)

    def stats(self) -> OutboxStats:
        """Return what the outbox holds."""
        with self._mutex, self._translated(), self._snapshot() as conn:
            acknowledged = conn.execute("SELECT acknowledged FROM outbox").fetchone()[0]
            pending, oldest = conn.execute(
                "SELECT count(*), min(stored_at) FROM outbox_entries WHERE position > ? AND reason IS NULL",
                (acknowledged,),
            ).fetchone()
            dead = conn.execute("SELECT count(*) FROM outbox_entries WHERE reason IS NOT NULL").fetchone()[0]
            runs = conn.execute(
                "SELECT id, job, state, started_at, finished_at, extracted, rejected, report FROM outbox_runs "
                "ORDER BY number DESC LIMIT 10"
            ).fetchall()
            last_position = self._last_position(conn)
        return OutboxStats(
            pending=pending,
            oldest=None if oldest is None else _aware(oldest),
            dead=dead,
            acknowledged=acknowledged,
            last_position=last_position,
            runs=tuple(
                RunSummary(id_, job, state, _aware(start), None if end is None else _aware(end), *rest)
                for id_, job, state, start, end, *rest in runs
            ),
        )

    @property
    def notes(self) -> Notes:
        """Notes in the same file: they survive the process."""
        return _SqliteNotes(self)

    def close(self) -> None:
        """Close the file; the last one to do so folds the WAL into it."""
        with self._mutex, self._translated():
            self._conn.close()
            self._file.release()

    # -- dead letters

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Yield the dead letters in order of position, a few at a time."""
        after = 0
        while True:
            with self._mutex, self._translated():
                rows = self._conn.execute(
                    "SELECT position, task_id, payload, reason, rejected_at FROM outbox_entries "
                    "WHERE reason IS NOT NULL AND position > ? ORDER BY position LIMIT 100",
                    (after,),
                ).fetchall()
            if not rows:
                return
            for position, task_id, payload, reason, at in rows:
                yield DeadLetter(position, task_id, payload, reason, _aware(at))
            after = rows[-1][0]

    def retry(self, positions: Iterable[int]) -> int:
        """Store these letters again as entries, at new positions."""
        done = 0
        with self._transaction() as conn:
            for position in sorted(set(positions)):
                row = conn.execute(
                    "DELETE FROM outbox_entries WHERE position = ? AND reason IS NOT NULL AND task_id IS NOT NULL "
                    "RETURNING run, key, task_id, payload, stored_at",
                    (position,),
                ).fetchone()
                if row is not None:
                    conn.execute(
                        "INSERT INTO outbox_entries (run, key, task_id, payload, stored_at) VALUES (?, ?, ?, ?, ?)",
                        row,
                    )
                    conn.execute("UPDATE outbox_runs SET rejected = rejected - 1 WHERE number = ?", row[:1])
                    done += 1
        return done

    def drop(self, positions: Iterable[int]) -> int:
        """Delete these letters."""
        with self._transaction() as conn:
            before = conn.total_changes
            conn.executemany(
                "DELETE FROM outbox_entries WHERE position = ? AND reason IS NOT NULL",
                ((position,) for position in positions),
            )
            return conn.total_changes - before

    # -- within

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One commit, which is on disk, and in the file that the path names, once the block is left."""
        with self._mutex, self._translated():
            self._file.check()
            try:
                self._conn.execute("BEGIN IMMEDIATE")
                yield self._conn
                self._conn.execute("COMMIT")
            except BaseException:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")
                raise
            # A commit into a file that was deleted succeeds: only the path tells that nobody will find it.
            self._file.check()

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        self._conn.execute("BEGIN")
        try:
            yield self._conn
        finally:
            self._conn.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise OutboxUnavailable(
                    f"no room left for {self.path} ({error}): nothing of this page was kept; free some space, "
                    "then call again"
                ) from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise OutboxUnavailable(f"another program is writing to {self.path} ({error}): call again") from error
            if code == sqlite3.SQLITE_IOERR:
                raise OutboxUnavailable(
                    f"{self.path} cannot be written or read ({error}): check the disk and its quota, then call again"
                ) from error
            if code == sqlite3.SQLITE_NOTADB:
                raise OutboxUnusable(f"{self.path} is not an SQLite file: name another one") from error
            if code == sqlite3.SQLITE_CORRUPT:
                raise OutboxUnusable(
                    f"{self.path} is damaged ({error}): move it away to start anew, or try sqlite3's .recover"
                ) from error
            raise OutboxUnusable(f"{self.path} cannot be used ({error})") from error

    def _run_number(self, conn: sqlite3.Connection, run: Run) -> int:
        row = conn.execute("SELECT number FROM outbox_runs WHERE id = ?", (run.id,)).fetchone()
        if row is None:
            raise OutboxUnusable(f"{self.path} knows no run {run.id}: it is another outbox than the one it started in")
        return int(row[0])

    @staticmethod
    def _last_position(conn: sqlite3.Connection) -> int:
        row = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox_entries'").fetchone()
        return int(row[0]) if row else 0

    @staticmethod
    def _set_last_position(conn: sqlite3.Connection, position: int) -> None:
        conn.execute("DELETE FROM sqlite_sequence WHERE name = 'outbox_entries'")
        conn.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('outbox_entries', ?)", (position,))

    @staticmethod
    def _clear(conn: sqlite3.Connection, number: int) -> None:
        conn.execute(
            "DELETE FROM outbox_entries WHERE run = ? AND reason IS NULL "
            "AND position <= (SELECT acknowledged FROM outbox)",
            (number,),
        )


class _SqliteNotes(Notes):
    def __init__(self, outbox: SqliteOutbox) -> None:
        self._outbox = outbox

    def get(self, name: str) -> bytes | None:
        with self._outbox._mutex, self._outbox._translated():
            row = self._outbox._conn.execute("SELECT value FROM outbox_notes WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def set(self, name: str, value: bytes) -> None:
        with self._outbox._transaction() as conn:
            conn.execute("INSERT OR REPLACE INTO outbox_notes (name, value) VALUES (?, ?)", (name, value))


def _options_of(url: URL) -> dict[str, Any]:
    return url.options(timeout=Annotated[float, msgspec.Meta(ge=0, le=600)], shared=bool)


def _path_of(url: URL) -> Path:
    if url.hostname or not url.path.strip("/"):
        raise ConfigurationError(f"{url} names no file; write sqlite:////absolute/path or sqlite:///relative/path")
    return Path(url.path.removeprefix("/"))


def _aware(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _key_of(bad: Rejected) -> int | str | bytes:
    # Without a key of its own the record itself is the key: the same one on a second pass is not counted again.
    return hashlib.sha256(bad.payload).digest() if bad.key is None else _storable(bad.key)


def _storable(key: Key) -> int | str | bytes:
    # SQLite's integers have 64 bits, its text is UTF-8; any other key is kept as bytes, which equal neither.
    if isinstance(key, int):
        return key if -(2**63) <= key < 2**63 else str(key).encode()
    try:
        key.encode()
    except UnicodeEncodeError:
        return b"text:" + key.encode(errors="surrogatepass")
    return key
