"""A Hypothesis state machine: whatever is done to an outbox, in whatever order, it agrees with a plain model."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from owm_outbox import Outbox
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.sqlite import SqliteOutbox

from support.outbox_machine import OutboxMachine


class SqliteMachine(OutboxMachine):
    """The machine on a file. A crash leaves it as SIGKILL would: a copy of the files as they are at that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "tasks.db"

    def open(self) -> Outbox:
        """Open the file."""
        return SqliteOutbox(self.path)

    def crash(self) -> None:
        """Append in a child process that is killed in the middle of its transaction, then continue without closing."""
        pid = os.fork()
        if pid == 0:
            # SQLite must not be used over a fork with an open connection: the child opens the file itself.
            with contextlib.suppress(BaseException):
                db = sqlite3.connect(self.path, isolation_level=None)
                db.execute("BEGIN IMMEDIATE")
                db.execute("INSERT INTO outbox_entries (task_id, payload, stored_at) VALUES ('x', x'00', 0)")
                db.execute("UPDATE outbox_state SET value = x'393939' WHERE name = 'acknowledged'")
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        self.outbox.close()

    def teardown(self) -> None:
        """Check the file, then throw it away."""
        if hasattr(self, "outbox"):
            self.outbox.close()
            with contextlib.closing(sqlite3.connect(self.path)) as db:
                assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        self.folder.cleanup()


class MemoryMachine(OutboxMachine):
    """The machine on memory, which knows no crash."""

    def open(self) -> Outbox:
        """Give the same object each time."""
        if not hasattr(self, "kept"):
            self.kept: Any = MemoryOutbox()
        outbox: Outbox = self.kept
        return outbox

    def crash(self) -> None:
        """Do nothing: there is no other process to lose."""


common = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
TestSqliteModel = pytest.mark.slow(SqliteMachine.TestCase)
TestSqliteModel.settings = common
TestMemoryModel = pytest.mark.slow(MemoryMachine.TestCase)
TestMemoryModel.settings = common
