"""ReadOnlyDatabase: a file of a SqliteOutbox for those who only look, which leaves no trace in its folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn, TypeVar
from urllib.parse import quote

from owm_outbox import OutboxInvalid, OutboxUnavailable

from .connection import NO_SHARED_MEMORY, Database, error_code, translated
from .file import foreign, refuse_unsafe_files
from .schema import APPLICATION_ID, is_newest

__all__ = ["ReadOnlyDatabase"]

T = TypeVar("T")

_TICK = 0.02  # seconds; times of files are as exact as the kernel's clock, which ticks every 1 to 10 ms
_FIRST_SHARED_BYTE, _SHARED_BYTES = 0x40000002, 510  # what readers lock (sqlite.org/lockingv3.html)
_ATTEMPTS = 20  # each of which fails only if another program opened, closed or changed the file meanwhile

_File = tuple[int, int, int, int] | None  # inode, size, and when content and inode changed; None where there is none


class _NotInPlaceError(Exception):
    """The file can be read only by a program that may write to it, so that a copy is read instead."""


class _BeingClosedError(Exception):
    """The last program that had the file open is closing it at this moment."""


class ReadOnlyDatabase(Database):
    """An SQLite file that is only read, in one of three ways. None of them makes, changes or removes anything.

    - There is a write-ahead log with its index: some program has the file open, or was killed. It is read as SQLite
      reads it, but the index, too, is opened for reading. Where nobody keeps it up to date, SQLite makes a private one.
    - There is no log: nobody has it open, and all is in the file itself. An ordinary connection would make a log and
      its index. This one takes the file for immutable; what it read counts only if the file is the same afterwards.
    - There is a log without an index (it is a backup, or on a file system without shared memory), a commit that was
      left in the middle, or tables of an older version: a private copy is read, made while nobody changed the file.

    The file may be another user's, and its folder read-only. Not for a process that has the file open otherwise:
    closing it drops the locks of that one (sqlite.org/howtocorrupt.html, section 2.2); `SqliteOutbox.look_at` knows.

    :param timeout: seconds to wait for another program.
    :raises OutboxInvalid: there is no such file, or it is not an outbox.
    """

    def __init__(self, path: Path, *, timeout: float, shared: bool) -> None:
        self.path = path
        self._timeout = timeout
        self._shared = shared
        self._copy: tuple[Database, TemporaryDirectory[str]] | None = None
        self.look(lambda _: None)

    def look(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Return what a function finds that reads one state of the file.

        :raises OutboxUnavailable: it was changed meanwhile, again and again.
        """
        for _ in range(_ATTEMPTS):
            if self._copy is not None:
                return self._copy[0].look(query)
            before = self._settled()
            try:
                with self._log_kept(), translated(self.path), closing(self._read(before)) as conn:
                    found = self._query(conn, query)
            except _NotInPlaceError:
                self._make_copy(before)
            except _BeingClosedError:
                time.sleep(_TICK)
            except (OutboxInvalid, OutboxUnavailable):
                if self._files() == before:
                    raise
            else:
                if _has_log(before) or self._files() == before:
                    return found
        raise self._never_still()

    @contextmanager
    def _log_kept(self) -> Iterator[None]:
        """Let no program that closes the file remove its log within the block.

        SQLite would make a log in its place, which belonged to this user, and which the owner's relay would refuse. The
        lock is the one that SQLite itself takes to read; whoever closes the file as the last one needs all of it.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            yield  # what follows says why
            return
        try:
            try:
                fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, _SHARED_BYTES, _FIRST_SHARED_BYTE)
            except (BlockingIOError, PermissionError):
                raise _BeingClosedError from None
            except OSError:
                pass  # a file system without locks
            yield
        finally:
            os.close(fd)

    def _settled(self) -> dict[str, _File]:
        """Return what there is, where that matters once the last change is too old to share its time with another."""
        for _ in range(_ATTEMPTS):
            files = self._files()
            newest = max((changed for file in files.values() if file is not None for changed in file[2:]), default=0)
            if _has_log(files) or abs(time.time_ns() - newest) > _TICK * 1e9:
                return files
            time.sleep(_TICK)
        raise self._never_still()

    def _never_still(self) -> OutboxUnavailable:
        return OutboxUnavailable(f"{self.path} was changed while it was read: run again")

    def _files(self) -> dict[str, _File]:
        """Return what there is, by suffix."""
        try:
            refuse_unsafe_files(self.path, own=False)
            return {suffix: _identity(f"{self.path}{suffix}") for suffix in ("", "-wal", "-shm", "-journal")}
        except OSError as error:
            raise OutboxInvalid(
                f"cannot open the outbox {self.path} ({error.strerror}): name another path with --outbox"
            ) from error

    def _read(self, files: dict[str, _File]) -> sqlite3.Connection:
        if _has_log(files) and not _has_log(self._files()):
            raise _BeingClosedError
        if files[""] is None:
            raise OutboxInvalid(
                f"cannot open the outbox {self.path} (No such file or directory): name another path with --outbox"
            )
        for suffix, file in files.items():
            if file is not None and not os.access(f"{self.path}{suffix}", os.R_OK):
                raise OutboxInvalid(
                    f"{self.path}{suffix} cannot be read (Permission denied): run this as its owner or as root, "
                    "or grant the right to read"
                )
        if not _size(files[""]) or _size(files["-journal"]) or (_size(files["-wal"]) and files["-shm"] is None):
            raise _NotInPlaceError
        option = "readonly_shm=1" if _has_log(files) else "immutable=1"
        uri = f"file:{quote(os.fsencode(self.path))}?mode=ro&{option}"
        return sqlite3.connect(uri, uri=True, timeout=self._timeout, isolation_level=None)

    def _query(self, conn: sqlite3.Connection, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            conn.execute("PRAGMA trusted_schema = OFF")  # it may be anybody's
            conn.execute("BEGIN")
            if not self._shared and conn.execute("PRAGMA application_id").fetchone()[0] not in (APPLICATION_ID, 0):
                raise foreign(self.path)
            if not is_newest(conn, self.path):
                raise _NotInPlaceError
            return query(conn)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if error_code(error) == sqlite3.SQLITE_READONLY or code in NO_SHARED_MEMORY:  # it has to be recovered first
                raise _NotInPlaceError from error
            raise

    def _make_copy(self, before: dict[str, _File]) -> None:
        """Copy what there is, and keep the copy if nothing changed meanwhile."""
        try:
            folder = TemporaryDirectory(prefix="owm-look-", ignore_cleanup_errors=True)
            path = Path(folder.name) / "tasks.db"
            try:
                for suffix in ("", "-wal", "-journal"):
                    if before[suffix] is not None:
                        shutil.copyfile(f"{self.path}{suffix}", f"{path}{suffix}", follow_symlinks=False)
                if self._files() == before:
                    self._copy = self._opened(path), folder
            finally:
                if self._copy is None:
                    folder.cleanup()
        except FileNotFoundError:  # of a program that closed the file at this moment
            return
        except OSError as error:
            raise OutboxUnavailable(
                f"{self.path} cannot be copied to look at it ({error.strerror}): check TMPDIR and the room there"
            ) from error

    def _opened(self, path: Path) -> Database:
        try:
            return Database(path, timeout=self._timeout, shared=self._shared, create=False)
        except (OutboxInvalid, OutboxUnavailable) as error:
            raise type(error)(str(error).replace(str(path), str(self.path))) from error

    # -- what a Database has and this has not

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Refuse, as all these do."""
        self._refuse()
        yield  # type: ignore[unreachable]  # what makes it a context manager

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Refuse: entries are for a relay."""
        self._refuse()
        yield  # type: ignore[unreachable]  # what makes it a context manager

    def locked(self) -> AbstractContextManager[None]:
        """Refuse."""
        self._refuse()

    def connect(self, **_: object) -> sqlite3.Connection:
        """Refuse."""
        self._refuse()

    def check(self) -> None:
        """Refuse: what asks for it is about to write."""
        self._refuse()

    def fold_wal(self, *, larger_than: int = 0) -> None:
        """Do nothing."""

    def _refuse(self) -> NoReturn:
        raise OutboxInvalid(f"{self.path} was opened to look at it only: open it without read_only for more")

    def close(self) -> None:
        """Remove the copy, if there is one."""
        if self._copy is not None:
            database, folder = self._copy
            database.close()
            folder.cleanup()


def _identity(path: str) -> _File:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _size(file: _File) -> int:
    return 0 if file is None else file[1]


def _has_log(files: dict[str, _File]) -> bool:
    return files["-wal"] is not None and files["-shm"] is not None
