"""A sink that holds no marks and keeps every promise that is left: one line per task in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from owm_outbox import Batch, Sink, SinkUnavailable

__all__ = ["LinesSink"]


class LinesSink(Sink):
    """Appends lines, after the end of a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mark(self, outbox_id: str) -> None:
        """Return ``None``."""

    def send(self, batch: Batch) -> None:
        """Append the batch's lines, or none."""
        try:
            with self.path.open("ab", buffering=0) as file:
                start = file.tell()
                try:
                    self.end_line(file)
                    for entry in batch.entries:
                        self.write(file, entry.payload)
                except OSError:
                    file.truncate(start)
                    raise
        except OSError as error:
            raise SinkUnavailable(f"{self.path} cannot be written ({error.strerror})") from error

    def end_line(self, file: BinaryIO) -> None:
        """End the line that a process which was killed began."""
        if start := file.tell():
            with self.path.open("rb") as other:
                other.seek(start - 1)
                if other.read(1) != b"\n":
                    file.write(b"\n")

    def write(self, file: BinaryIO, payload: bytes) -> None:
        """Write one line."""
        if file.write(payload + b"\n") <= len(payload):
            raise OSError(os.EX_IOERR, "not all of it was written")
