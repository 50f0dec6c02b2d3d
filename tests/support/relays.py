"""``owm-outbox relay`` as a process: what it says, and when."""

from __future__ import annotations

import queue
import re
import subprocess
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import start
from support.servers import Server

__all__ = ["Note", "Relay", "append", "relay", "wait_for_entries"]

PATIENCE = 30.0  # seconds in which what is waited for must happen


@dataclass
class Note:
    """A task."""

    task_id: uuid.UUID
    text: str


class Relay:
    """A relay at work. Its stderr is read as it comes, so that a test can wait for a line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._unread: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._unread.put(line.decode().rstrip("\n"))
        self._unread.put(None)

    def says(self, pattern: str, within: float = PATIENCE) -> re.Match[str]:
        """Wait for a line in which the pattern is found; fail if it ends before that."""
        while (line := self._unread.get(timeout=within)) is not None:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"it ended without a line {pattern!r}: {self.lines}")

    def read_all(self) -> None:
        """Wait until all that it said was read; it must have ended."""
        self._reader.join(PATIENCE)

    def ends(self, within: float = PATIENCE) -> int:
        """Wait for its end, collect all that it said, and return its code; nothing is on its stdout."""
        code = self.process.wait(within)
        self.read_all()
        while (line := self._unread.get()) is not None:
            self.lines.append(line)
        assert self.process.stdout is not None
        assert self.process.stdout.read() == b""
        return code


@contextmanager
def relay(*args: str, cwd: Path, env: Mapping[str, str] | None = None, program: Iterable[str] = ()) -> Iterator[Relay]:
    """Run a relay for the length of a block, at most.

    :param program: options of ``owm-outbox`` itself.
    """
    with start("owm-outbox", *program, "relay", *args, cwd=cwd, env=env) as process:
        working = Relay(process)
        try:
            yield working
        finally:
            process.kill()
            process.wait()
            working.read_all()


def append(path: Path, *texts: str) -> None:
    """Append tasks, as an application in another process than the relay does."""
    with SqliteOutbox(path) as outbox:
        outbox.append([Note(uuid.uuid4(), text) for text in texts])


def wait_for_entries(server: Server, stream: str, count: int) -> None:
    """Wait until this many entries were added to a stream."""
    after, seen = b"0", 0
    with server.client() as client:
        while seen < count:
            found = client.xread({stream: after}, block=30_000)  # longer than a relay waits between attempts
            assert found, f"{seen} of {count} came"
            entries = found[0][1]
            after, seen = entries[-1][0], seen + len(entries)
