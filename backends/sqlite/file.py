"""DatabaseFile: an SQLite file made safely in a folder that others can write to, locked, and watched while in use.

Nothing here opens the database itself but through SQLite: closing *any* descriptor of a file drops every POSIX lock
that the process holds on it, those of SQLite's other connections too (sqlite.org/howtocorrupt.html, section 2.2).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from owm_outbox import OutboxInvalid, OutboxLocked, OutboxUnavailable

__all__ = ["DatabaseFile", "absolute", "foreign", "refuse_unsafe_files"]

_SMALLEST = 512  # bytes of a database with anything in it: one page of the smallest size


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return the path as it is from everywhere.

    :raises OutboxInvalid: it is relative to a folder that was deleted.
    """
    try:
        return Path(path).absolute()
    except FileNotFoundError as error:
        raise OutboxInvalid(
            f"cannot open the outbox {os.fspath(path)}: the current folder was deleted; give an absolute path"
        ) from error


class DatabaseFile:
    """An SQLite file of our own.

    :param application_id: what the header of the file must say, ``None`` for anything; an empty file is fine, too.
    :param create: whether it is made if it does not exist.
    :raises OutboxInvalid: it cannot be made or opened, or is not ours. It is untouched then.
    """

    def __init__(self, path: Path, *, application_id: int | None, create: bool) -> None:
        self.path = path
        self._watched: dict[Path, tuple[int, int]] = {}
        try:
            if create:
                self._make(application_id)
            found = path.lstat()
            refuse_unsafe_files(path, own=True)
            if found.st_size and application_id is not None:
                self._refuse_foreign(application_id)
        except OSError as error:
            doing = "create" if create else "open"
            raise OutboxInvalid(
                f"cannot {doing} the outbox {path} ({error.strerror}): name another path with --outbox"
            ) from error

    def _make(self, application_id: int | None) -> None:
        """Make the file with its header in it, under a name of its own, and only then give it the one it is known by.

        So whoever opens it at the same moment finds no file, or a whole one.
        """
        if self.path.exists() or self.path.is_symlink():
            return
        new = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.new")
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchmod(fd, 0o600)  # a umask may have taken our own rights away
        os.close(fd)
        try:
            if application_id is not None:
                with closing(sqlite3.connect(new, isolation_level=None)) as connection:
                    connection.execute(f"PRAGMA application_id = {application_id}")
            self._name(new)
        except sqlite3.Error as error:
            raise OutboxUnavailable(
                f"cannot write {new} ({error}): check the disk, its quota and ulimit -f, then run again"
            ) from error
        finally:
            new.unlink(missing_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or a power cut can take the name away from a file whose content was synced
        finally:
            os.close(folder)

    def _name(self, new: Path) -> None:
        """Give a new file its name, unless another process was faster."""
        try:
            os.link(new, self.path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not self.path.exists():
                new.rename(self.path)

    def _refuse_foreign(self, application_id: int) -> None:
        """Read the header through SQLite, as a file that nobody changes, so that a foreign one stays as it is.

        A process that was killed while it folded its WAL into the file may have left a header that promises more pages
        than there are yet. Only with its WAL is such a file whole.
        """
        try:
            try:
                found = self._application_id("immutable=1")
            except sqlite3.DatabaseError as error:
                if not (_is_damage(error) and self.wal_size()):
                    raise
                found = self._application_id("immutable=0")
        except sqlite3.DatabaseError as error:
            if _is_damage(error):
                raise OutboxInvalid(
                    f"{self.path} is damaged ({error}): move it away to start a new one, or try sqlite3's .recover"
                ) from error
            raise OutboxInvalid(
                f"{self.path} is not an SQLite file, so it is not an outbox: name another path"
            ) from error
        if found != application_id:
            raise foreign(self.path)

    def _application_id(self, option: str) -> int:
        uri = f"file:{quote(os.fsencode(self.path))}?mode=ro&{option}"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            return int(connection.execute("PRAGMA application_id").fetchone()[0])

    def watch(self) -> None:
        """Remember which files these are, now that SQLite has them open.

        :raises OutboxInvalid: somebody else put a file in the place of one of them meanwhile.
        """
        refuse_unsafe_files(self.path, own=True)
        for suffix in ("", "-wal"):
            path = Path(f"{self.path}{suffix}")
            self._watched[path] = _inode(path.lstat())

    def check(self) -> None:
        """Raise if the path does not name the files in use any more. Their sizes may change: others may vacuum."""
        for path, inode in self._watched.items():
            try:
                found = path.lstat()
            except FileNotFoundError:
                raise OutboxInvalid(
                    f"{path} was deleted while in use: what it held is lost to the next run; "
                    "run again to make a new one"
                ) from None
            if _inode(found) != inode:
                raise OutboxInvalid(f"{path} was replaced while in use: nothing more is written; run again")
            if path == self.path and found.st_size < _SMALLEST:
                raise OutboxInvalid(f"{path} was cut short while in use: move it away to start a new one")

    def wal_size(self) -> int:
        """Return the bytes of the write-ahead log."""
        try:
            return os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold ``path.lock`` with flock, which the kernel frees when the process dies; it says who holds it."""
        path = Path(f"{self.path}.lock")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OutboxInvalid(
                f"cannot open the lock file {path} ({error.strerror}): check its folder and its owner"
            ) from error
        try:
            found = os.fstat(fd)
            _refuse_unsafe(path, found, own=True)
            if found.st_mode & 0o600 != 0o600:  # a umask has taken our own rights away
                os.fchmod(fd, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(fd, 100, 0).decode(errors="replace").strip() or "another process"
                raise OutboxLocked(f"{self.path} is in use by {holder}: run again once that has ended") from None
            try:
                if not path.exists() or _inode(path.lstat()) != _inode(os.fstat(fd)):
                    raise OutboxLocked(f"{path} was replaced at this moment: run again")
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"process {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode(), 0)
                yield
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough: a forked child has the descriptor, too
        finally:
            os.close(fd)


def refuse_unsafe_files(path: Path, *, own: bool) -> None:
    """Raise if the database, or one of the files that SQLite keeps next to it, is not a regular file.

    :param own: they must be the user's own, too.
    """
    for suffix in ("", "-wal", "-shm", "-journal"):
        file = Path(f"{path}{suffix}")
        try:
            found = file.lstat()
        except FileNotFoundError:
            continue
        _refuse_unsafe(file, found, own=own)


def foreign(path: Path) -> OutboxInvalid:
    """Return the error that says whose file this is."""
    return OutboxInvalid(
        f"{path} is an SQLite file of another program: name another path, or say shared=true if it is "
        "the database of an application that appends within its own transactions"
    )


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF == sqlite3.SQLITE_CORRUPT


def _refuse_unsafe(path: Path, found: os.stat_result, *, own: bool) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise OutboxInvalid(f"{path} is a symbolic link; an outbox is never opened through one: name its target")
    if not stat.S_ISREG(found.st_mode):
        raise OutboxInvalid(f"{path} is not a regular file: name another path")
    if own and found.st_uid != os.geteuid():
        raise OutboxInvalid(f"{path} belongs to user {found.st_uid}, not to you: name another path")


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
