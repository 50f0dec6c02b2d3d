"""The outboxes that the broken ones are made of, and the clock that they go by."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from owm_outbox_backends.sqlite import SqliteOutbox

__all__ = ["Clock", "HastySqliteOutbox"]


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


class HastySqliteOutbox(SqliteOutbox):
    """SqliteOutbox without waiting for the disk: no power is cut here."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        super().__init__(path, now=lambda: now().timestamp())
        with self._db.reading() as connection:
            connection.execute("PRAGMA synchronous = OFF")
