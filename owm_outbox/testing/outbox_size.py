"""What an outbox promises of many tasks at once: that nothing is left out where a statement or a page is full."""

from __future__ import annotations

from owm_outbox.outbox import Outbox, Stored
from owm_outbox.testing.outbox_fixtures import JOB, OutboxFixtures, mark_at, report, run_of, store
from owm_outbox.testing.parcels import numbers

__all__ = ["OutboxSize"]

_MANY = 3_000
_RUNS = 120


class OutboxSize(OutboxFixtures):
    """What holds for three tasks holds for thousands."""

    def test_a_large_page_is_stored_whole(self, outbox: Outbox) -> None:
        """A page of thousands of tasks is stored whole and in order, and counted exactly."""
        run = outbox.start_run(JOB).id
        assert store(outbox, run, *range(_MANY), checkpoint=b"here") == Stored(_MANY)
        found = numbers(outbox.read(0, 2 * _MANY))
        assert len(found) == _MANY, f"a page of {_MANY} tasks was stored, but {len(found)} are there"
        assert found == list(range(_MANY)), "the tasks of a large page are in another order"
        counted = (outbox.stats().pending, run_of(outbox, run).extracted)
        assert counted == (_MANY, _MANY), f"{_MANY} tasks are there, but (pending, extracted) is {counted}"

    def test_a_key_is_found_among_many(self, outbox: Outbox) -> None:
        """However many keys a run has, the first is still known, within a large page and after it."""
        run = outbox.start_run(JOB).id
        for what, repeats in (("within its page", [0]), ("on a later page", [0, 1, _MANY // 2])):
            new = range(_MANY) if what == "within its page" else range(0)
            stored = store(outbox, run, *new, *repeats)
            assert stored == Stored(len(new), duplicates=len(repeats)), (
                f"of {_MANY} keys, {len(repeats)} were repeated {what}, and {stored.duplicates} were found"
            )
        assert len(outbox.read(0, 2 * _MANY)) == _MANY

    def test_a_large_run_leaves_no_task_behind(self, outbox: Outbox) -> None:
        """Finishing a run completely clears all of its delivered entries, in as many steps as that takes."""
        run = outbox.start_run(JOB)
        store(outbox, run.id, *range(_MANY))
        outbox.acknowledge(mark_at(outbox, outbox.stats().last_position))
        outbox.finish_run(run.id, report(run, complete=True))
        left = len(outbox.read(0, 2 * _MANY))
        assert left == 0, f"a run of {_MANY} delivered tasks is complete, and {left} of them are still there"

    def test_an_open_run_outlasts_any_number_of_others(self, outbox: Outbox) -> None:
        """Old runs may be forgotten, but not one that is open: its checkpoint and its keys stay."""
        run = outbox.start_run("patient")
        store(outbox, run.id, 1, checkpoint=b"here")
        for _ in range(_RUNS):
            other = outbox.start_run(JOB)
            outbox.finish_run(other.id, report(other, complete=True))
        again = outbox.start_run("patient")
        assert (again.id, again.checkpoint) == (run.id, b"here"), f"an open run was forgotten after {_RUNS} others"
        assert store(outbox, run.id, 1) == Stored(0, duplicates=1)

    def test_many_letters_are_rejected_listed_retried_and_dropped(self, outbox: Outbox) -> None:
        """Hundreds of dead letters at once are treated like one."""
        letters = self.letters(outbox)
        store(outbox, outbox.start_run(JOB).id, *range(_MANY))
        positions = [entry.position for entry in outbox.read(0, _MANY)]
        outbox.reject(dict.fromkeys(positions, "too heavy"))
        dead = outbox.stats().dead
        assert dead == _MANY, f"{_MANY} entries were rejected, and {dead} are dead letters"
        listed = [letter.position for letter in letters.dead_letters()]
        assert listed == positions, f"of {_MANY} dead letters, {len(listed)} are listed"
        half = positions[::2]
        assert letters.retry(half) == len(half)
        pending = len(outbox.read(0, _MANY))
        assert pending == len(half), f"{len(half)} dead letters were retried, and {pending} are pending"
        assert letters.drop(positions[1::2]) == _MANY - len(half)
        assert outbox.stats().dead == 0
