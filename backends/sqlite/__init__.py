"""SqliteOutbox: tasks in one file, written by one connection, synced at every commit."""

from .outbox import SqliteOutbox

__all__ = ["SqliteOutbox"]
