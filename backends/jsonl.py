"""JsonLinesSink: one line a task, on stdout or in a file. For dry runs, and for piping into something else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from owm_outbox import URL, Batch, ConfigurationError, Place, Sink, SinkFull, SinkUnavailable

__all__ = ["JsonLinesSink"]


class JsonLinesSink(Sink):
    """Appends each task's JSON as a line: ``jsonl:-`` is stdout, ``jsonl:/path`` a file (synced a batch).

    It cannot tell its position: delivery is at least once. A batch that cannot be written whole to a file is taken
    back, so that no half line stays.

    :param path: ``-`` for stdout; else a file, created if need be, appended to. Its folder must exist.
    """

    def __init__(self, path: str | os.PathLike[str] = "-") -> None:
        self._stdout = str(path) == "-"
        self._path = Path(path)
        self._left = False  # whether what read stdout is gone
        if not self._stdout and (self._path.is_dir() or not self._path.absolute().parent.is_dir()):
            raise ConfigurationError(f"jsonl:{path} cannot be written: give a file in a folder that exists, or -")

    @classmethod
    def from_url(cls, url: URL) -> Self:
        """Write where ``jsonl:PATH`` says."""
        url.options()
        if not url.path or url.hostname:
            raise ConfigurationError(f"{url} names no file; write jsonl:- for stdout or jsonl:/path/to/file")
        return cls(url.path)

    @classmethod
    @contextmanager
    def scratch(cls, url: URL) -> Iterator[Place]:
        """Give a file beside the real one; for stdout, in the folder for temporary files."""
        cls.from_url(url)  # refuses what is wrong with it
        folder = None if url.path == "-" else Path(url.path).absolute().parent
        with TemporaryDirectory(prefix="check-", dir=folder) as scratch:
            path = Path(scratch) / "tasks.jsonl"
            yield Place(open=lambda: cls(path), held=lambda: path.read_bytes().splitlines() if path.exists() else [])

    def position(self, outbox_id: str) -> None:
        """Return ``None``: lines carry no position."""

    def send(self, batch: Batch) -> None:
        """Append the batch's lines in one go."""
        data = b"".join(entry.payload + b"\n" for entry in batch.entries)
        if self._stdout:
            if self._left:
                raise SinkUnavailable("stdout takes no more lines: what read it is gone")
            try:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            except OSError as error:
                # What reads the pipe is gone, and Python would complain once more when it closes stdout at exit.
                self._left = True
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - stays open until the process ends
                raise SinkUnavailable(f"stdout takes no more lines ({error.strerror})") from error
            return
        try:
            with self._path.open("ab", buffering=0) as file:
                start = file.tell()
                try:
                    written = file.write(data)
                    if written != len(data):
                        raise SinkFull(f"{self._path} took only {written} of {len(data)} bytes: is the disk full?")
                    os.fsync(file.fileno())
                except BaseException:
                    file.truncate(start)
                    raise
        except OSError as error:
            raise SinkUnavailable(f"{self._path} cannot be written ({error.strerror})") from error
