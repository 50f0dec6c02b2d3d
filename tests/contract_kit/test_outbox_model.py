"""A Hypothesis state machine: whatever is done to an outbox, in whatever order, it agrees with a plain model."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from owm_outbox import DeadLetterStore, Outbox, Rejected, Run, RunReport
from owm_outbox.testing import Parcel, ParcelJob
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.sqlite import SqliteOutbox

KEYS = st.lists(st.integers(0, 12), max_size=6)


@dataclass
class Row:
    """What the model keeps of an entry."""

    run: str
    key: int
    dead: bool = False
    task: bool = True


@dataclass
class Model:
    """The plain model: positions to rows, and what is said of runs."""

    rows: dict[int, Row] = field(default_factory=dict)
    acknowledged: int = 0
    last: int = 0
    extracted: int = 0
    rejected: int = 0
    checkpoint: bytes | None = None

    def entries(self) -> list[int]:
        """Return the positions that can be read."""
        return sorted(position for position, row in self.rows.items() if not row.dead)

    def taken(self, run: str, key: int) -> bool:
        """Tell whether the run has this key."""
        return any(row.run == run and row.key == key for row in self.rows.values())


class OutboxMachine(RuleBasedStateMachine):
    """Appends, rejects, acknowledges, finishes, crashes and reopens in random order."""

    def open(self) -> Outbox:
        """Open the outbox under test; again, the same one."""
        raise NotImplementedError

    def crash(self) -> None:
        """Let the outbox go as a killed process would."""
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        """Start with a new outbox and a run."""
        self.model = Model()
        self.job = ParcelJob()
        self.outbox = self.open()
        self.id = self.outbox.id
        self.run: Run = self.outbox.start_run(self.job)

    @rule(keys=KEYS, bad=KEYS, checkpoint=st.none() | st.binary(min_size=1, max_size=3))
    def append(self, keys: list[int], bad: list[int], checkpoint: bytes | None) -> None:
        """Append a page, perhaps with repeats and invalid records."""
        new: list[Row] = []
        for key in keys:
            if not self.model.taken(self.run.id, key) and all(row.key != key for row in new):
                new.append(Row(self.run.id, key))
        count = len(new)
        for key in bad:
            if not self.model.taken(self.run.id, key) and all(row.key != key for row in new):
                new.append(Row(self.run.id, key, dead=True, task=False))
        parcels = [Parcel(self.run.task_id(key), key) for key in keys]
        rejected = [Rejected(b"%d" % key, "bad", key) for key in bad]
        assert self.outbox.append(parcels, run=self.run, checkpoint=checkpoint, rejected=rejected) == count
        self.learn(new)
        self.model.extracted += count
        self.model.rejected += len(new) - count
        self.model.checkpoint = checkpoint if checkpoint is not None else self.model.checkpoint

    def learn(self, new: list[Row]) -> None:
        """Take over the positions that were given: as many as expected, in order, beyond all given before."""
        assert isinstance(self.outbox, DeadLetterStore)
        there = {entry.position for entry in self.outbox.read(0, 10_000)}
        there |= {letter.position for letter in self.outbox.dead_letters()}
        given = sorted(there - set(self.model.rows))
        assert len(given) == len(new)
        assert all(position > self.model.last for position in given)
        self.model.rows.update(zip(given, new, strict=True))
        self.model.last = self.outbox.stats().last_position
        assert self.model.last >= max(given, default=0)

    @precondition(lambda self: self.model.rows)
    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        """Refuse some entries."""
        for position in data.draw(st.lists(st.sampled_from(sorted(self.model.rows)), max_size=3, unique=True)):
            row = self.model.rows[position]
            self.model.rejected += not row.dead and row.run == self.run.id
            row.dead = True
            self.outbox.reject({position: "refused"})

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """Acknowledge any position, also a lower one than before, also one beyond all."""
        position = data.draw(st.integers(0, self.model.last + 3))
        self.outbox.acknowledge(position)
        self.model.acknowledged = position
        self.model.last = max(self.model.last, position)
        assert self.outbox.stats().last_position == self.model.last
        # Entries of closed runs may go once they are acknowledged; whether they did is up to the outbox.
        there = {entry.position for entry in self.outbox.read(0, 10_000)}
        for gone in [p for p in self.model.entries() if p not in there]:
            assert self.model.rows[gone].run != self.run.id
            assert gone <= position
            del self.model.rows[gone]

    @rule(complete=st.booleans())
    def finish(self, complete: bool) -> None:
        """Finish the run; if it is complete, a new one follows."""
        report = RunReport(
            run_id=self.run.id,
            job=self.run.job,
            resumed=False,
            complete=complete,
            expected=None,
            extracted=0,
            duplicates=0,
            delivered=0,
            redelivered=0,
            rejected=0,
            pending=0,
            missing=[],
            seconds=0.0,
        )
        self.outbox.finish_run(self.run, report)
        if complete:
            for position in self.model.entries():
                if self.model.rows[position].run == self.run.id and position <= self.model.acknowledged:
                    del self.model.rows[position]
            self.new_run()
        else:
            self.resume()

    @precondition(lambda self: any(row.dead for row in self.model.rows.values()))
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """Retry a dead letter: it moves to a new position, unless it never was a task."""
        assert isinstance(self.outbox, DeadLetterStore)
        dead = sorted(position for position, row in self.model.rows.items() if row.dead)
        position = data.draw(st.sampled_from(dead))
        row = self.model.rows[position]
        assert self.outbox.retry([position]) == row.task
        if row.task:
            del self.model.rows[position]
            self.learn([Row(row.run, row.key)])
            self.model.rejected -= row.run == self.run.id

    @precondition(lambda self: self.model.rows)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Drop a position: only dead letters go."""
        assert isinstance(self.outbox, DeadLetterStore)
        position = data.draw(st.sampled_from(sorted(self.model.rows)))
        assert self.outbox.drop([position]) == self.model.rows[position].dead
        if self.model.rows[position].dead:
            del self.model.rows[position]

    @rule()
    def resume(self) -> None:
        """Start the unfinished run again: it is the same."""
        run = self.outbox.start_run(self.job)
        assert (run.resumed, run.id) == (True, self.run.id)
        self.run = run

    @rule()
    def restart(self) -> None:
        """Lose the process: everything that was returned from is still there."""
        self.crash()
        self.outbox = self.open()
        assert self.outbox.id == self.id
        self.resume()

    def new_run(self) -> None:
        """Get a new run from the outbox."""
        self.run = self.outbox.start_run(self.job)
        assert not self.run.resumed
        self.model.extracted, self.model.rejected, self.model.checkpoint = 0, 0, None

    @invariant()
    def agrees(self) -> None:
        """Everything that can be asked has the model's answer."""
        if not hasattr(self, "model"):
            return
        model = self.model
        entries = self.outbox.read(0, 10_000)
        assert [entry.position for entry in entries] == model.entries()
        assert [int(entry.payload.partition(b'"number":')[2].partition(b",")[0]) for entry in entries] == [
            model.rows[position].key for position in model.entries()
        ]
        stats = self.outbox.stats()
        assert stats.pending == sum(position > model.acknowledged for position in model.entries())
        assert stats.dead == sum(row.dead for row in model.rows.values())
        assert stats.acknowledged == model.acknowledged
        assert stats.last_position == model.last
        assert (self.run.extracted, self.run.checkpoint) == (model.extracted, model.checkpoint)
        assert stats.runs[0].rejected == model.rejected
        assert isinstance(self.outbox, DeadLetterStore)
        dead = sorted(position for position, row in model.rows.items() if row.dead)
        assert [letter.position for letter in self.outbox.dead_letters()] == dead


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
        """Append in a child process that is killed in the middle of its transaction, then go on without closing."""
        pid = os.fork()
        if pid == 0:
            # SQLite must not be used over a fork with an open connection: the child opens the file anew.
            with contextlib.suppress(BaseException):
                db = sqlite3.connect(self.path, isolation_level=None)
                db.execute("BEGIN IMMEDIATE")
                db.execute("INSERT INTO outbox_entries (task_id, payload, stored_at) VALUES ('x', x'00', 0)")
                db.execute("UPDATE outbox SET acknowledged = 999")
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
TestSqliteModel = SqliteMachine.TestCase
TestSqliteModel.settings = common
TestMemoryModel = MemoryMachine.TestCase
TestMemoryModel.settings = common
