"""Where the contract kit may write, for the backends that are one module each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from owm_outbox import URL, Sink
from owm_outbox.testing import Destination, Storage, full_disk

from .jsonl import JsonLinesSink
from .memory import MemoryOutbox

__all__ = ["jsonl", "memory"]


@contextmanager
def jsonl(url: URL) -> Iterator[Destination]:
    """Give a file next to the one that ``jsonl:PATH`` names; for stdout, in the folder for temporary files."""
    JsonLinesSink.from_url(url)  # refuses what is wrong with it
    parent = None if url.path == "-" else Path(url.path).absolute().parent
    with TemporaryDirectory(prefix="check-", dir=parent) as folder:
        path = Path(folder) / "tasks.jsonl"

        def unreachable() -> Sink:
            unmounted = Path(folder) / "unmounted"
            unmounted.mkdir()
            sink = JsonLinesSink(unmounted / "tasks.jsonl")
            unmounted.rmdir()
            return sink

        yield Destination(
            open=lambda: JsonLinesSink(path),
            payloads=lambda: path.read_bytes().splitlines() if path.exists() else [],
            interrupt=lambda: full_disk(path),
            unreachable=unreachable,
        )


@contextmanager
def memory(url: URL) -> Iterator[Storage]:
    """Give the same new object each time."""
    outbox = MemoryOutbox.from_url(url)
    yield Storage(open=lambda: outbox)
