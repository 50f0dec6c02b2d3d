"""A Hypothesis state machine of an outbox next to a plain model of it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import timedelta

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from owm_outbox import (
    NOTHING,
    RESUME_WITHIN,
    DeadLetterStore,
    InvalidRecord,
    Mark,
    MemoryState,
    Outbox,
    Run,
    RunRecord,
    Stop,
    Stored,
)
from owm_outbox.testing import Parcel, ParcelJob

from support.reports import report_of

__all__ = ["OutboxMachine"]

KEYS = st.lists(st.integers(0, 12), max_size=6)


@dataclass
class Row:
    """What the model keeps of an entry.

    :param run: empty for an application's own.
    """

    run: str
    key: int
    dead: bool = False
    task: bool = True
    times: int = 0


@dataclass
class Model:
    """The plain model: positions to rows, and what is said of the run."""

    rows: dict[int, Row] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    acknowledged: Mark = NOTHING
    last: int = 0
    extracted: int = 0
    duplicates: int = 0
    rejected: int = 0
    unusable: int = 0
    checkpoint: bytes | None = None

    def entries(self) -> list[int]:
        """Return the positions that can be read."""
        return sorted(position for position, row in self.rows.items() if not row.dead)

    def at(self, run: str, key: int) -> int | None:
        """Return the position at which the run has this key."""
        return next((at for at, row in self.rows.items() if (row.run, row.key) == (run, key)), None)

    def page(self, run: str, keys: list[int], bad: list[int]) -> tuple[list[Row], Stored]:
        """Return the rows that a page adds, and what becomes of it; take out those that it replaces."""
        new: list[Row] = []
        replaced = 0
        for key, task in [(key, True) for key in keys] + [(key, False) for key in bad]:
            before = self.at(run, key)
            if any(row.key == key for row in new):
                continue
            if before is not None:
                if not task or self.rows[before].task:
                    continue
                del self.rows[before]
                replaced += 1
            new.append(Row(run, key, dead=not task, task=task, times=int(not task)))
        rejected = sum(row.dead for row in new)
        return new, Stored(len(new) - rejected, rejected, len(keys) + len(bad) - len(new), replaced)

    def merge(self, position: int) -> None:
        """Let the letter of the newest run be the only one of its key and kind; the reason follows from the kind."""
        letter = self.rows[position]
        same = [
            at
            for at, row in self.rows.items()
            if letter.run and row.run and row.dead and (row.key, row.task) == (letter.key, letter.task)
        ]
        if same:
            kept = max(same, key=lambda at: self.runs.index(self.rows[at].run))
            self.rows[kept].times = sum(self.rows[at].times for at in same)
            for at in same:
                if at != kept:
                    del self.rows[at]


class OutboxMachine(RuleBasedStateMachine):
    """Appends, rejects, acknowledges, finishes, crashes and reopens in random order."""

    def open(self) -> Outbox:
        """Open the outbox under test; again, the same one."""
        raise NotImplementedError

    def crash(self) -> None:
        """Leave the outbox as a killed process would."""
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        """Start with a new outbox and a run."""
        self.model = Model()
        self.job = ParcelJob()
        self.outbox = self.open()
        self.id = self.outbox.id
        self.run: RunRecord = self.outbox.start_run(self.job.name)
        self.model.runs.append(self.run.id)

    @rule(keys=KEYS, bad=KEYS, checkpoint=st.none() | st.binary(max_size=3))
    def append(self, keys: list[int], bad: list[int], checkpoint: bytes | None) -> None:
        """Append a page, perhaps with repeats and invalid records."""
        model = self.model
        new, stored = model.page(self.run.id, keys, bad)
        task_id = Run.of(self.run, MemoryState(), Stop()).task_id
        found = self.outbox.append(
            [Parcel(task_id(key), key) for key in keys],
            key=self.job.key,
            run=self.run.id,
            checkpoint=checkpoint,
            invalid=[InvalidRecord(b"%d" % key, "bad", key) for key in bad],
        )
        assert found == stored
        self.learn(new)
        model.extracted += stored.new
        model.duplicates += stored.duplicates
        model.rejected += stored.rejected - stored.replaced
        model.unusable += stored.rejected - stored.replaced
        model.checkpoint = checkpoint if checkpoint is not None else model.checkpoint

    @rule(keys=KEYS)
    def append_without_a_run(self, keys: list[int]) -> None:
        """Append an application's own tasks: each is new."""
        tasks = [Parcel(uuid.uuid4(), key) for key in keys]
        assert self.outbox.append(tasks, key=self.job.key) == Stored(len(keys))
        self.learn([Row("", key) for key in keys])

    def learn(self, new: list[Row]) -> None:
        """Note the positions that were given: as many as expected, in order, beyond all given before."""
        assert isinstance(self.outbox, DeadLetterStore)
        there = {entry.position for entry in self.outbox.read(0, 10_000)}
        there |= {letter.position for letter in self.outbox.dead_letters()}
        given = sorted(there - set(self.model.rows))
        assert len(given) == len(new)
        assert all(position > self.model.last for position in given)
        self.model.rows.update(zip(given, new, strict=True))
        for position, row in zip(given, new, strict=True):
            if row.dead:
                self.model.merge(position)
        self.model.last = self.outbox.stats().last_position
        assert self.model.last >= max(given, default=0)

    def forget(self) -> None:
        """Note what was cleared: only what is acknowledged and does not belong to the open run."""
        there = {entry.position for entry in self.outbox.read(0, 10_000)}
        for cleared in [position for position in self.model.entries() if position not in there]:
            assert self.model.rows[cleared].run != self.run.id
            assert cleared <= self.model.acknowledged.position
            del self.model.rows[cleared]

    @precondition(lambda self: self.model.rows)
    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        """Refuse some entries."""
        for position in data.draw(st.lists(st.sampled_from(sorted(self.model.rows)), max_size=3, unique=True)):
            self.outbox.reject({position: "refused"})
            row = self.model.rows.get(position)
            if row is not None and not row.dead:
                self.model.rejected += row.run == self.run.id
                row.dead = True
                row.times += 1
                self.model.merge(position)

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """Acknowledge any position, also a lower one than before, under any lease."""
        position = data.draw(st.integers(0, self.model.last))
        rest = data.draw(st.sampled_from([" 5ca1ab1e a", " 5ca1ab1e A ", " -", ""]))
        self.model.acknowledged = Mark(f"{position}{rest}") if position else NOTHING
        self.outbox.acknowledge(self.model.acknowledged)
        self.forget()

    @rule(complete=st.booleans())
    def finish(self, complete: bool) -> None:
        """Finish the run; if it is complete, a new one follows."""
        report = report_of(self.run.id, self.run.job, complete=complete)
        self.outbox.finish_run(self.run.id, report)
        if complete:
            for position in self.model.entries():
                if self.model.rows[position].run == self.run.id and position <= self.model.acknowledged.position:
                    del self.model.rows[position]
            self.new_run()
        else:
            self.resume()
        self.forget()

    @rule()
    def start_afresh(self) -> None:
        """Close the run, whatever it has, and begin a new one: nothing pending is lost."""
        pending = self.outbox.stats().pending
        self.new_run(timedelta(0))
        self.forget()
        assert self.outbox.stats().pending == pending
        self.run = self.outbox.start_run(self.job.name)
        assert self.run.resumed

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
            self.learn([Row(row.run, row.key, times=row.times)])
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
        run = self.outbox.start_run(self.job.name)
        assert (run.resumed, run.id) == (True, self.run.id)
        self.run = run

    @rule()
    def restart(self) -> None:
        """Lose the process: everything that was returned from is still there."""
        self.crash()
        self.outbox = self.open()
        assert self.outbox.id == self.id
        self.resume()

    def new_run(self, resume_within: timedelta = RESUME_WITHIN) -> None:
        """Get a new run from the outbox."""
        before = self.run.id
        self.run = self.outbox.start_run(self.job.name, resume_within=resume_within)
        assert not self.run.resumed
        assert self.run.id != before
        self.model.runs.append(self.run.id)
        self.model.extracted = self.model.duplicates = self.model.rejected = self.model.unusable = 0
        self.model.checkpoint = None

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
        assert stats.pending == sum(position > model.acknowledged.position for position in model.entries())
        assert stats.dead == sum(row.dead for row in model.rows.values())
        assert stats.acknowledged == model.acknowledged
        assert stats.last_position == model.last
        run = stats.runs[0]
        assert (run.id, run.state, run.checkpoint) == (self.run.id, "open", model.checkpoint)
        assert (run.extracted, run.duplicates, run.rejected, run.unusable) == (
            model.extracted,
            model.duplicates,
            model.rejected,
            model.unusable,
        )
        assert isinstance(self.outbox, DeadLetterStore)
        dead = sorted((position, row.times) for position, row in model.rows.items() if row.dead)
        assert [(letter.position, letter.times) for letter in self.outbox.dead_letters()] == dead
