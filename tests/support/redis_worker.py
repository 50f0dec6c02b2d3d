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
from typing import IO

from support.commands import environment

PAGE = (Path(__file__).parents[2] / "docs" / "redis.md").read_text("utf-8")


@dataclass
class Worker:
    """What a worker has said so far."""

    lines: list[str] = field(default_factory=list)

    @property
    def shipped(self) -> list[int]:
        """The numbers of the tasks that it has done, in order."""
        return [int(line.split()[1]) for line in list(self.lines) if line.startswith("ship ")]

    def listen(self, out: IO[str]) -> None:
        """Note each line."""
        for line in out:
            self.lines.append(line.rstrip())


@contextlib.contextmanager
def worker(name: str, env: Mapping[str, str]) -> Iterator[Worker]:
    """Run the page's example of this name for the length of a block."""
    (code,) = re.findall(rf"^```python\n# {name}\.py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(WORKER="one", **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    found = Worker()
    assert process.stdout is not None
    thread = threading.Thread(target=found.listen, args=[process.stdout])
    thread.start()
    try:
        yield found
    finally:
        process.kill()
        process.wait()
        thread.join(20)
        process.stdout.close()
