"""What an outbox promises where something fails, or its process is killed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial

import pytest

from owm_outbox.errors import OutboxInvalid, OutboxLocked, OutboxUnavailable
from owm_outbox.outbox import DeadLetterStore, Outbox
from owm_outbox.testing.outbox_fixtures import (
    JOB,
    OpenOutbox,
    OutboxFixtures,
    bad_records,
    mark_at,
    parcels,
    report,
    store,
)
from owm_outbox.testing.parcels import numbers
from owm_outbox.testing.processes import killed_at_random
from owm_outbox.testing.refusal import Refusal
from owm_outbox.testing.sweep import killed_at_each_call

__all__ = ["OutboxFailures"]

Look = dict[str, object]
Failing = Callable[[], AbstractContextManager[object]]

_KILLS = 10
_LARGE = 600  # more than most statements and requests take at once
_NUMBERS = 100  # of parcels per life


class OutboxFailures(OutboxFixtures):
    """Nothing that a failure or a crash could tear apart."""

    def test_a_store_that_fails_stores_nothing(self, outbox: Outbox, failing: Failing) -> None:
        """What cannot be stored raises OutboxUnavailable or OutboxInvalid, and changes neither entries nor run."""
        run = outbox.start_run(JOB)
        store(outbox, run.id, 1, checkpoint=b"one")
        before = outbox.stats()
        with failing(), Refusal("storing fails", OutboxUnavailable, OutboxInvalid):
            store(outbox, run.id, *range(2, 22), checkpoint=b"two", invalid=bad_records(50))
        assert outbox.stats() == before
        assert numbers(outbox.read(0, 100)) == [1]

    def test_a_store_that_failed_can_be_repeated(self, outbox: Outbox, failing: Failing) -> None:
        """Once the trouble is over, the same page can be stored by the same object."""
        run = outbox.start_run(JOB).id
        with failing(), suppress(OutboxUnavailable, OutboxInvalid):
            store(outbox, run, *range(20), checkpoint=b"here")
        assert store(outbox, run, *range(20), checkpoint=b"here").new == 20
        assert numbers(outbox.read(0, 100)) == list(range(20))

    def test_what_returns_while_there_is_trouble_was_done(
        self, outbox: Outbox, open_outbox: OpenOutbox, failing: Failing
    ) -> None:
        """Whatever else is called then either raises and changes nothing, or returns and has done it for good."""
        store(outbox, outbox.start_run(JOB).id, 1, 2, 3)
        outbox.state.set("weather", b"rain")
        outbox.read(0, 10)
        first, last = (entry.position for entry in outbox.read(0, 10)[::2])
        mark = mark_at(outbox, first)
        steps: dict[str, Callable[[], object]] = {
            "acknowledge": lambda: outbox.acknowledge(mark),
            "reject": lambda: outbox.reject({last: "too heavy"}),
            "state.set": lambda: outbox.state.set("weather", b"sun"),
        }
        returned = dict.fromkeys(steps, False)
        with failing():
            for name, step in steps.items():
                with suppress(OutboxUnavailable, OutboxInvalid):
                    step()
                    returned[name] = True
        with open_outbox() as other:
            stats = other.stats()
            done = {
                "acknowledge": stats.acknowledged == mark,
                "reject": stats.dead == 1,
                "state.set": other.state.get("weather") == b"sun",
            }
        for name in steps:
            how = "returned, but did nothing" if returned[name] else "raised, but did it all the same"
            assert done[name] == returned[name], f"while storing fails, {name} {how}"

    def test_a_failure_does_not_free_the_lock(self, outbox: Outbox, open_outbox: OpenOutbox, failing: Failing) -> None:
        """A relay that goes through trouble holds the outbox until it lets go of it: nobody comes in meanwhile."""
        run = outbox.start_run(JOB).id
        with outbox.lock():
            with failing(), suppress(OutboxUnavailable, OutboxInvalid):
                store(outbox, run, *range(20))
            other = open_outbox()
            with suppress(OutboxLocked), other.lock():
                pytest.fail("a store failed under the lock, and another relay was let in: what does the lock hang on?")

    # a process that is killed

    def test_pages_are_whole_after_a_kill(self, open_outbox: OpenOutbox) -> None:
        """Killed with SIGKILL at any call or moment, an outbox has whole pages, and all whose append had returned."""
        self.capabilities.need("durable")

        def extract(finish_step: Callable[[], None], size: int, pages: int) -> None:
            with open_outbox() as outbox:
                run = outbox.start_run(JOB)
                first = int(run.checkpoint or 0)
                for at in range(first, first + size * pages, size):
                    keys = range(at, at + size)
                    store(outbox, run.id, *keys, checkpoint=b"%d" % (at + size), invalid=bad_records(-1 - at))
                    finish_step()

        def kills() -> Iterator[tuple[int, str]]:
            for finished, where in killed_at_each_call(partial(extract, size=_LARGE, pages=1), most=30):
                yield finished * _LARGE, where
            chance = random.Random(20)  # noqa: S311 - chooses moments
            for _ in range(_KILLS):
                yield killed_at_random(partial(extract, size=20, pages=50), chance) * 20, "at a random moment"

        with open_outbox():
            pass
        before = 0
        for finished, where in kills():
            with open_outbox() as outbox:
                run, stats = outbox.start_run(JOB), outbox.stats()
                stored = int(run.checkpoint or 0)
                assert stored >= before + finished, (
                    f"killed {where}: append had returned from {before + finished} tasks, but the checkpoint is that "
                    f"of {stored}: are they written before append returns?"
                )
                assert stats.pending == stored, (
                    f"killed {where}: the checkpoint is that of {stored} tasks, but {stats.pending} are there: are "
                    "the entries and the checkpoint stored in one transaction?"
                )
                assert (run.extracted, run.unusable) == (stored, stats.dead), (
                    f"killed {where}: {stored} tasks and {stats.dead} dead letters are there, but the run's figures "
                    f"are {run.extracted} and {run.unusable}: are they brought up to date in the same transaction?"
                )
            before = stored
        with open_outbox() as outbox:
            assert numbers(outbox.read(0, 10**6, 2**40)) == list(range(before))

    def test_each_step_is_whole_after_a_kill(self, open_outbox: OpenOutbox) -> None:
        """Killed with SIGKILL at any call of any method, an outbox is as before this method, or as after it."""
        self.capabilities.need("durable")
        dead_letters = self.capabilities.dead_letters
        life = 0

        def live(finish_step: Callable[[], None]) -> None:
            with open_outbox() as outbox:
                for _ in _live(outbox, life, dead_letters):
                    finish_step()

        with open_outbox() as outbox:
            outbox.state.set("life", b"before")
            looks, names = [_look(outbox, life)], [""]
            for name in _live(outbox, life, dead_letters):
                looks.append(_look(outbox, life))
                names.append(name)
        life += 1
        for finished, where in killed_at_each_call(live, most=8):
            with open_outbox() as outbox:
                found = _look(outbox, life)
            before, after = looks[finished], looks[min(finished + 1, len(looks) - 1)]
            assert found in (before, after), (
                f"killed {where}, within {names[min(finished + 1, len(names) - 1)]}, which is therefore not one "
                f"transaction: {_mixture(found, before, after)}"
            )
            life += 1


def _live(outbox: Outbox, life: int, dead_letters: bool) -> Iterator[str]:
    """Do all that may be done with an outbox, in a run of its own; yield the name of each method after it."""
    run, first, before = outbox.start_run(f"life {life}"), _NUMBERS * life, outbox.stats().last_position
    yield "start_run"
    store(outbox, run.id, *range(first, first + 6), checkpoint=b"here", expected=7, invalid=bad_records(first + 9))
    yield "append to a run"
    entries = outbox.read(before, _NUMBERS)
    outbox.acknowledge(mark_at(outbox, entries[1].position))
    yield "acknowledge"
    outbox.reject({entries[2].position: "too heavy"})
    yield "reject"
    if dead_letters and isinstance(outbox, DeadLetterStore):
        outbox.retry([entries[2].position])
        yield "retry"
        outbox.drop([letter.position for letter in outbox.dead_letters() if letter.position > before])
        yield "drop"
    outbox.state.set("life", b"%d" % life)
    yield "state.set"
    outbox.append(parcels(run.id, first + 7, first + 8))
    yield "append"
    outbox.acknowledge(mark_at(outbox, outbox.stats().last_position))
    yield "acknowledge"
    outbox.finish_run(run.id, report(run, complete=True))
    yield "finish_run"


def _mixture(found: Look, before: Look, after: Look) -> str:
    """Say of all that changes, or was not to change, whether it is as before or as after."""
    said = []
    for what, value in found.items():
        if value not in (before[what], after[what]):
            said.append(f"{what}: {value!r}, which is neither {before[what]!r} nor {after[what]!r}")
        elif before[what] != after[what]:
            said.append(f"{what}: {value!r}, as {'before' if value == before[what] else 'after'}")
    return "; ".join(said)


def _look(outbox: Outbox, life: int) -> Look:
    """Tell what an outbox holds of a life, apart from what it may clear sooner or later."""
    stats, state, numbers_of = outbox.stats(), outbox.state.get("life"), range(_NUMBERS * life, _NUMBERS * (life + 1))
    run = next((run for run in stats.runs if run.job == f"life {life}"), None)
    tasks = {str(parcel.task_id): parcel.number for parcel in parcels(run.id, *numbers_of)} if run else {}
    is_open = run is not None and run.state == "open"
    entries = [
        entry
        for entry in outbox.read(0, 10**6)
        if entry.position > stats.acknowledged.position or (is_open and entry.key is not None)
    ]
    return {
        "run": run and (run.state, run.extracted, run.rejected, run.unusable, run.checkpoint, run.report is not None),
        "entries": [number - numbers_of.start for number in numbers(entries) if number in numbers_of],
        "dead letters": [
            int(json.loads(letter.payload)["number"]) - numbers_of.start
            for letter in (outbox.dead_letters() if isinstance(outbox, DeadLetterStore) else ())
            if int(json.loads(letter.payload)["number"]) in numbers_of
        ],
        "acknowledged": tasks.get(stats.acknowledged.task_id, numbers_of.start) - numbers_of.start,
        "state": state if state is None else state == b"%d" % life,
    }
