"""Database: the one writing connection of a SqliteOutbox, its transactions, and the space they take."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from owm_outbox import OutboxInvalid, OutboxUnavailable, StateStore

from .file import DatabaseFile
from .schema import APPLICATION_ID, prepare

__all__ = ["NO_SHARED_MEMORY", "Database", "FileState", "error_code", "is_in_use", "translated"]

log = logging.getLogger("owm_outbox.sqlite")

T = TypeVar("T")

NO_SHARED_MEMORY = (
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMLOCK,
    sqlite3.SQLITE_IOERR_SHMMAP,
)
"""What SQLite says on a file system that maps no shared memory."""

_MAX_WAL = 8 * 2**20  # bytes
_MAX_FREE = 64 * 2**20  # bytes of free pages that a file keeps for the next run
_MAX_COPIED = 16 * 2**20  # bytes of pages in use; a file with more keeps its free ones
_TO_BE_TRIED_AGAIN = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_OTHERS = (
    "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!' "
    "AND name NOT IN ('outbox_entries', 'outbox_runs', 'outbox_state', '_sqlite_migrations')"
)

_in_use: Counter[tuple[int, int]] = Counter()  # how often this process has a file open, by device and inode


def is_in_use(path: Path) -> bool:
    """Return whether this process has the file open: then nobody but SQLite may open and close it."""
    try:
        found = path.stat()
    except OSError:
        return False
    return _in_use[found.st_dev, found.st_ino] > 0


class Database:
    """An SQLite file, open for one outbox. Safe to use from several threads.

    :param timeout: seconds to wait for another program that writes.
    :param shared: it is an application's own database.
    :raises OutboxInvalid: it cannot be created, or is not ours.
    """

    def __init__(self, path: Path, *, timeout: float, shared: bool, create: bool) -> None:
        self.path = path
        self.file = DatabaseFile(path, application_id=None if shared else APPLICATION_ID, create=create)
        self._timeout = timeout
        self._shared = shared
        self._mutex = threading.RLock()  # an application's thread may append while a relay's thread reads
        self._alone = False
        self._folding: sqlite3.Connection | None = None  # made when it is needed
        self._conn = self._open()
        try:
            self.file.watch()
        except BaseException:
            self._conn.close()
            raise
        found = path.stat()
        self._identity: tuple[int, int] | None = (found.st_dev, found.st_ino)
        _in_use[self._identity] += 1

    def _open(self) -> sqlite3.Connection:
        """Open the connection, and bring the file to the newest version.

        A file system that maps no shared memory (9p, virtiofs, some volumes of containers) keeps the index of the WAL
        from other programs. A connection that has the file for itself needs none.
        """
        with self.translated():
            try:
                return self._prepared()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode not in NO_SHARED_MEMORY:
                    raise
                if self._shared:
                    raise OutboxInvalid(
                        f"{self.path} is on a file system that cannot map shared memory, so programs cannot share it: "
                        "move it to a local disk"
                    ) from error
            self._alone = True
            return self._prepared("PRAGMA locking_mode = EXCLUSIVE")

    def _prepared(self, *first: str) -> sqlite3.Connection:
        connection = self.connect(isolation_level=None, check_same_thread=False)
        try:
            for statement in first:
                connection.execute(statement)
            # Where it is ON, as in Debian, each page of a large task that is cleared is written to the WAL once more.
            connection.execute("PRAGMA secure_delete = FAST").fetchall()
            prepare(connection, self.path, shared=self._shared)
        except BaseException:
            connection.close()
            raise
        return connection

    def connect(self, **options: object) -> sqlite3.Connection:
        """Open another connection to the file, which leaves folding the WAL into it to `fold_wal`."""
        uri = f"file:{quote(os.fsencode(self.path))}?mode=rw"
        connection: sqlite3.Connection = sqlite3.connect(uri, uri=True, timeout=self._timeout, **options)  # type: ignore[call-overload]  # as sqlite3.connect takes them
        connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        connection.execute(f"PRAGMA journal_size_limit = {_MAX_WAL}").fetchall()
        return connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Make one commit, which is on disk, and in the file that the path names, once the block is left."""
        with self._mutex, self.translated():
            self.file.check()
            try:
                self._conn.execute("BEGIN IMMEDIATE")
                yield self._conn
                self._conn.execute("COMMIT")
            except BaseException:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")
                raise
            # A commit into a file that was deleted succeeds: only the path tells that nobody will find it.
            self.file.check()
            self.fold_wal()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for a single statement that only reads."""
        with self._mutex, self.translated():
            yield self._conn

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for several statements that read one state of the file."""
        with self.reading() as conn:
            conn.execute("BEGIN")
            try:
                yield conn
            finally:
                conn.execute("COMMIT")

    def check(self) -> None:
        """Raise if the path does not name the files in use any more."""
        self.file.check()

    def locked(self) -> AbstractContextManager[None]:
        """Hold the file for one relay; see `DatabaseFile.locked`."""
        return self.file.locked()

    def look(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Return what a function finds that reads one state of the file."""
        with self.snapshot() as conn:
            return query(conn)

    def fold_wal(self, *, larger_than: int = _MAX_WAL) -> None:
        """Fold a large WAL into the file, unless that would mean to wait.

        Before version 3.51.3, SQLite can damage a file where one connection commits while another one does this
        (sqlite.org/wal.html#walresetbug). So the file is locked for writing meanwhile. Whoever has it locked now may be
        the caller's own transaction, which then would never end.
        """
        if self.file.wal_size() <= larger_than or not self._mutex.acquire(blocking=False):
            return
        try:
            if self._alone:
                _fold(self._conn)
            elif self._lock_at_once():
                try:
                    _fold(self._folder())
                finally:
                    self._conn.execute("ROLLBACK")
        except sqlite3.Error as error:  # what was committed before is safe; the next commit tries it again
            log.info("the write-ahead log of %s stays large: %s", self.path, error)
        finally:
            self._mutex.release()

    def _folder(self) -> sqlite3.Connection:
        """Return the connection that folds: SQLite does not let the one do so that has locked the file."""
        if self._folding is None:
            self._folding = self.connect(isolation_level=None, check_same_thread=False)
        return self._folding

    def _lock_at_once(self) -> bool:
        """Lock the file for writing, and return whether it could be without waiting."""
        if self._conn.in_transaction:
            return False
        self._conn.execute("PRAGMA busy_timeout = 0")
        try:
            self._conn.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error_code(error) != sqlite3.SQLITE_BUSY:
                raise
            return False
        finally:
            self._conn.execute(f"PRAGMA busy_timeout = {int(self._timeout * 1000)}")
        return True

    def give_space_back(self) -> None:
        """Shrink a file that has much more free space than the next run is likely to need.

        By a VACUUM, where little is left that it has to copy: that takes milliseconds. An incremental one looks for
        each free page in the list of all of them: 46 s and 650 MiB of WAL for two million tasks.
        """
        with self.reading() as conn:
            page_size, free, pages = (
                conn.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "freelist_count", "page_count")
            )
            if free * page_size <= _MAX_FREE or (pages - free) * page_size > _MAX_COPIED:
                return
            if self._shared or conn.execute(_OTHERS).fetchone():  # a VACUUM may give their rows other numbers
                return
            try:
                conn.execute("PRAGMA temp_store = MEMORY")  # there may be no folder for temporary files
                conn.execute("VACUUM")
            except sqlite3.Error as error:  # another program writes, or the disk is full: the next run tries it again
                if error_code(error) not in _TO_BE_TRIED_AGAIN:
                    raise
                log.info("%s keeps its free space: %s", self.path, error)
        self.fold_wal(larger_than=0)  # only now does the file become smaller

    def close(self) -> None:
        """Close the file; the last one to do so folds the WAL into it."""
        with self._mutex, self.translated():
            if self._folding is not None:
                self._folding.close()
            self._conn.close()
        if self._identity is not None:
            _in_use[self._identity] -= 1
            self._identity = None

    def translated(self) -> AbstractContextManager[None]:
        """Raise our errors instead of SQLite's."""
        return translated(self.path)


class FileState(StateStore):
    """State in the file itself."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, name: str) -> bytes | None:
        """Return the value last set under ``name``."""
        row = self._db.look(
            lambda conn: conn.execute("SELECT value FROM outbox_state WHERE name = ?", (name,)).fetchone()
        )
        return None if row is None else bytes(row[0])

    def set(self, name: str, value: bytes) -> None:
        """Keep ``value`` under ``name``, in a commit of its own."""
        with self._db.transaction() as conn:
            conn.execute("INSERT OR REPLACE INTO outbox_state (name, value) VALUES (?, ?)", (name, value))


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise our errors instead of SQLite's."""
    try:
        yield
    except sqlite3.Error as error:
        raise _meaning(error, path) from error


def _fold(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def error_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary code of an error, 0 if it has none."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _meaning(error: sqlite3.Error, path: Path) -> OutboxInvalid | OutboxUnavailable:
    """Say what an error of SQLite means for the caller."""
    code = error_code(error)
    if code == sqlite3.SQLITE_FULL:
        return OutboxUnavailable(
            f"there is no room left for {path} ({error}): nothing of this page was kept; "
            "free some space, then run again"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return OutboxUnavailable(f"another program is using {path} ({error}): run again")
    if code == sqlite3.SQLITE_IOERR:
        return OutboxUnavailable(
            f"{path} cannot be written or read ({error}): check the disk, its quota and ulimit -f, then run again"
        )
    if code == sqlite3.SQLITE_NOTADB:
        return OutboxInvalid(f"{path} is not an SQLite file: name another one")
    if code == sqlite3.SQLITE_CORRUPT:
        return OutboxInvalid(f"{path} is damaged ({error}): move it away to start a new one, or try sqlite3's .recover")
    return OutboxInvalid(f"{path} cannot be used ({error})")
