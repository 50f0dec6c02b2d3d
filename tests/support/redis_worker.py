"""The workers that docs/redis.md shows, run as processes."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support.commands import environment

PAGE = (Path(__file__).parents[2] / "docs" / "redis.md").read_text("utf-8")


@dataclass
class Worker:
    """What a worker has said so far; one that ends is started again, as a service is."""

    code: str
    env: Mapping[str, str]
    lines: list[str] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def shipped(self) -> list[int]:
        """The numbers of the tasks that it has done, in order."""
        return [int(line.split()[1]) for line in list(self.lines) if line.startswith("ship ")]

    def run(self) -> None:
        """Run it, and again, until it is ended."""
        while True:
            with self._lock:
                if self._over.is_set():
                    return
                process = self._process = subprocess.Popen(
                    [sys.executable, "-c", self.code],
                    env=environment(WORKER="one", **self.env),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    self.lines.append(line.rstrip())
            process.wait()

    def end(self) -> None:
        """Kill it for good."""
        with self._lock:
            self._over.set()
            if self._process is not None:
                self._process.kill()


@contextlib.contextmanager
def worker(name: str, env: Mapping[str, str]) -> Iterator[Worker]:
    """Run the page's example of this name for the length of a block."""
    (code,) = re.findall(rf"^```python\n# {name}\.py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    found = Worker(code, env)
    thread = threading.Thread(target=found.run)
    thread.start()
    try:
        yield found
    finally:
        found.end()
        thread.join(20)
