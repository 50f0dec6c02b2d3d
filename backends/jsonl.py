"""JsonLinesSink: one line per task, on stdout or in a file. For dry runs, and for piping into something else."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path
from typing import Self

from owm_outbox import URL, Batch, ConfigurationError, Sink, SinkFull, SinkUnavailable, pause

__all__ = ["JsonLinesSink"]

_PATIENCE = 5.0  # seconds that a reader of stdout may rest before a stop is looked for
_AT_ONCE = select.PIPE_BUF  # bytes that a pipe which can be written to takes without blocking


class JsonLinesSink(Sink):
    """Appends each task's JSON as a line: ``jsonl:-`` is stdout, ``jsonl:/path`` a file (synced per batch).

    It cannot tell its mark: delivery is at least once. A batch that cannot be written whole to a file is taken back,
    so that no half line stays; one that a killed process left is ended before the next batch.

    :param path: ``-`` for stdout; else a file, created if need be, appended to. Its folder must exist.
    """

    def __init__(self, path: str | os.PathLike[str] = "-") -> None:
        self._path = Path(path)
        self._stdout = _Stdout() if str(path) == "-" else None
        if self._stdout is None and (self._path.is_dir() or not _is_there(self._path)):
            raise ConfigurationError(f"jsonl:{path} cannot be written: give a file in a folder that exists, or -")

    @classmethod
    def from_url(cls, url: URL) -> Self:
        """Write where ``jsonl:PATH`` says."""
        url.options()
        if not url.path or url.hostname:
            raise ConfigurationError(f"{url} does not name a file; write jsonl:- for stdout or jsonl:/path/to/file")
        return cls(url.path)

    def mark(self, outbox_id: str) -> None:
        """Return ``None``: lines carry no mark."""

    def send(self, batch: Batch) -> None:
        """Append the batch's lines in one go."""
        lines = b"".join(entry.payload + b"\n" for entry in batch.entries)
        if self._stdout is None:
            self._append(lines)
        else:
            self._stdout.write(lines)

    def close(self) -> None:
        """Release stdout; a file is only open within ``send``."""
        if self._stdout is not None:
            self._stdout.close()

    def _append(self, lines: bytes) -> None:
        try:
            with self._path.open("a+b", buffering=0) as file:
                start = file.tell()
                if start and os.pread(file.fileno(), 1, start - 1) != b"\n":
                    lines = b"\n" + lines  # or the first task would become part of a half line
                try:
                    written = file.write(lines)
                    if written != len(lines):
                        raise SinkFull(f"{self._path} took only {written} of {len(lines)} bytes: is the disk full?")
                    os.fsync(file.fileno())
                except BaseException:
                    file.truncate(start)
                    raise
        except OSError as error:
            raise SinkUnavailable(f"{self._path} cannot be written ({error.strerror})") from error


def _is_there(path: Path) -> bool:
    """Return whether the folder of a file exists."""
    try:
        return path.absolute().parent.is_dir()
    except FileNotFoundError:  # the current folder was deleted
        return False


class _Stdout:
    """Standard output, through a descriptor of its own: nothing that the process does with ``sys.stdout`` changes."""

    def __init__(self) -> None:
        if sys.stdout is None:  # then descriptor 1 may be anything that was opened since, such as a database
            raise ConfigurationError("jsonl:- cannot be written: stdout is closed; give a file")
        self._file = open(os.dup(1), "wb", buffering=0)  # noqa: SIM115 - open until the sink is closed
        self._unfinished = b""  # what is left of a line when a write ended in the middle of it

    def write(self, lines: bytes) -> None:
        data = memoryview(self._unfinished + lines)
        at = 0
        try:
            while at < len(data):
                self._wait_for_reader()
                at += self._file.write(data[at : at + _AT_ONCE]) or 0
        except BrokenPipeError as error:
            raise SinkUnavailable("stdout was closed by the reader") from error
        except OSError as error:
            raise SinkUnavailable(f"stdout cannot be written ({error.strerror})") from error
        finally:
            within_line = data[at - 1] != ord("\n") if at else bool(self._unfinished)
            self._unfinished = bytes(data[at:]).partition(b"\n")[0] + b"\n" if within_line else b""

    def close(self) -> None:
        self._file.close()

    def _wait_for_reader(self) -> None:
        poll = select.poll()
        poll.register(self._file, select.POLLOUT)
        while not poll.poll(_PATIENCE * 1000):
            if not pause(0):
                raise SinkUnavailable(f"the reader of stdout took nothing for {_PATIENCE:.0f} s")
