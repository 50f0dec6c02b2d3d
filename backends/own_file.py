"""OwnFile: a file made safely in a folder that others can write to, locked, and watched while in use."""

from __future__ import annotations

import fcntl
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from owm_outbox import OutboxLocked, OutboxUnusable

__all__ = ["OwnFile"]

_SQLITE_MAGIC = b"SQLite format 3\x00"


class OwnFile:
    """An SQLite file of ours.

    :param application_id: what the header of the file must say, ``None`` for anything; an empty file is fine, too.
    :param create: whether it is made if it does not exist.
    :raises OutboxUnusable: it cannot be made or opened, or is not ours. It is untouched then.
    """

    def __init__(self, path: Path, *, application_id: int | None, create: bool) -> None:
        self.path = path
        self._application_id = application_id
        self._seen: dict[Path, tuple[int, int, int]] = {}
        self._watched: tuple[int, int] | None = None
        try:
            self._make() if create else path.lstat()
            self._refuse_foreign()
        except OSError as error:
            doing = "create" if create else "open"
            raise OutboxUnusable(
                f"cannot {doing} the outbox {path} ({error.strerror}): name another path with --outbox"
            ) from error

    def _make(self) -> None:
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or a power cut can take the name away from a file whose content was synced
        finally:
            os.close(folder)

    def _refuse_foreign(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            path = Path(f"{self.path}{suffix}")
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue
            self._refuse_unsafe(path, found)
        key = _inode(self.path.lstat())
        if _in_use[key]:
            return  # reading it here would drop the locks of this process's other connection, as POSIX has it
        with self.path.open("rb") as file:
            header = file.read(100)
        if not header:
            return
        if not header.startswith(_SQLITE_MAGIC):
            raise OutboxUnusable(f"{self.path} is not an SQLite file, so it is not ours: name another path")
        if self._application_id not in (None, int.from_bytes(header[68:72], "big")):
            raise OutboxUnusable(f"{self.path} is an SQLite file of another program: name another path")

    @staticmethod
    def _refuse_unsafe(path: Path, found: os.stat_result) -> None:
        if stat.S_ISLNK(found.st_mode):
            raise OutboxUnusable(f"{path} is a symbolic link; an outbox is never opened through one: name its target")
        if not stat.S_ISREG(found.st_mode):
            raise OutboxUnusable(f"{path} is no regular file: name another path")
        if found.st_uid != os.geteuid():
            raise OutboxUnusable(f"{path} belongs to user {found.st_uid}, not to you: name another path")

    def watch(self) -> None:
        """Remember which files these are."""
        for suffix in ("", "-wal"):
            path = Path(f"{self.path}{suffix}")
            found = path.lstat()
            self._seen[path] = (*_inode(found), found.st_size)
        self._watched = _inode(self.path.lstat())
        _in_use[self._watched] += 1

    def release(self) -> None:
        """Forget the file, once no connection to it is open: its inode may become another file's."""
        if self._watched is not None:
            _in_use[self._watched] -= 1
            self._watched = None

    def check(self) -> None:
        """Raise if the path no longer names the file in use, or if that was cut short."""
        for path, (device, inode, size) in self._seen.items():
            try:
                found = path.lstat()
            except FileNotFoundError:
                raise OutboxUnusable(
                    f"{path} was deleted while in use: what it held is lost to the next call; run again to make it anew"
                ) from None
            if _inode(found) != (device, inode):
                raise OutboxUnusable(f"{path} was replaced while in use: nothing more is written; run again")
            if found.st_size < size:
                raise OutboxUnusable(f"{path} was cut short while in use: move it away to start anew")
            if found.st_size > size:
                self._seen[path] = (device, inode, found.st_size)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold ``path.lock`` with flock, which the kernel frees when the process dies; it says who holds it."""
        path = Path(f"{self.path}.lock")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OutboxUnusable(f"cannot open the lock file {path} ({error.strerror})") from error
        try:
            self._refuse_unsafe(path, os.fstat(fd))
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(fd, 100, 0).decode(errors="replace").strip() or "another process"
                raise OutboxLocked(f"{self.path} is in use by {holder}: call again once that has ended") from None
            if not path.exists() or _inode(path.lstat()) != _inode(os.fstat(fd)):
                raise OutboxLocked(f"{path} was replaced at this moment: call again")
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode(), 0)
            yield
        finally:
            os.close(fd)


_in_use: Counter[tuple[int, int]] = Counter()  # how many outboxes of this process have a file open


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
