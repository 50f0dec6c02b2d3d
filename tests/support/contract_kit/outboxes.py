"""The outboxes that the broken ones are made of, and the clock that they go by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from owm_outbox_backends.sqlite import SqliteOutbox

__all__ = ["Clock", "HastySqliteOutbox", "within"]


class Clock:
    """The time, which can be turned forward and back."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def now(self) -> datetime:
        """Return the time that it shows."""
        return datetime(2026, 1, 1, tzinfo=UTC) + self.offset

    def turn(self, by: timedelta) -> None:
        """Turn it by this much."""
        self.offset += by


@contextmanager
def within(path: Path) -> Iterator[Callable[[Sequence[Any]], object]]:
    """Give a function that appends in a transaction on this file, which is committed at the end of the block."""
    with SqliteOutbox(path, timeout=0.1) as outbox, closing(outbox.connect()) as connection:
        yield lambda tasks: outbox.append(tasks, connection=connection)
        connection.commit()


class HastySqliteOutbox(SqliteOutbox):
    """SqliteOutbox without waiting for the disk: no power is cut here."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        super().__init__(path, now=lambda: now().timestamp())
        with self._db.reading() as connection:
            connection.execute("PRAGMA synchronous = OFF")
