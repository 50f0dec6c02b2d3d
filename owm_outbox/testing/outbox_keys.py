"""What an outbox promises of keys: what is the same task, and what is not."""

from __future__ import annotations

from owm_outbox.entry import NO_HEADERS, Key, NewEntry
from owm_outbox.outbox import Outbox, Stored
from owm_outbox.task import InvalidRecord
from owm_outbox.testing.outbox_fixtures import JOB, OutboxFixtures, bad_records, mark_at, report, run_of, store
from owm_outbox.testing.parcels import numbers

__all__ = ["OutboxKeys"]

_KEYS: tuple[Key, ...] = (
    *(0, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**70),
    *("", "0", "-1", "a", "A", "a ", " a", "á", "a\N{COMBINING ACUTE ACCENT}", "Ä 東京 📦", "'\"\\%", "x" * 1000),
)


class OutboxKeys(OutboxFixtures):
    """A key is stored once per run."""

    def test_a_key_is_stored_once_per_run(self, outbox: Outbox) -> None:
        """A second task of the same key is dropped, on the same page or on another."""
        run = outbox.start_run(JOB).id
        store(outbox, run, 1, 2, 2)
        store(outbox, run, 2, 1, 3)
        assert numbers(outbox.read(0, 10)) == [1, 2, 3]

    def test_the_first_task_of_a_key_is_kept(self, outbox: Outbox) -> None:
        """Of two different tasks with the same key, the one that was first stays as it was."""
        run = outbox.start_run(JOB).id
        first, second = (
            NewEntry(1, name, NO_HEADERS, b'{"name":"%s"}' % name.encode()) for name in ("first", "second")
        )
        assert outbox.store([first, second], run=run) == Stored(1, duplicates=1)
        assert outbox.store([second], run=run) == Stored(0, duplicates=1)
        assert [(entry.task_id, entry.payload) for entry in outbox.read(0, 10)] == [("first", b'{"name":"first"}')]

    def test_a_key_is_any_number_or_text(self, outbox: Outbox) -> None:
        """Keys are what they are: a number is not its digits; case, accents and blanks count; none is too large."""
        run = outbox.start_run(JOB).id
        entries = [NewEntry(key, str(at), NO_HEADERS, b"{}") for at, key in enumerate(_KEYS)]
        assert outbox.store(entries, run=run) == Stored(len(_KEYS))
        assert outbox.store(entries, run=run) == Stored(0, duplicates=len(_KEYS))
        found = [entry.key for entry in outbox.read(0, 100)]
        assert [(type(key), key) for key in found] == [(type(key), key) for key in _KEYS]

    def test_entries_without_a_key_are_all_stored(self, outbox: Outbox) -> None:
        """A task that has no key is never a duplicate, also within a run."""
        run = outbox.start_run(JOB).id
        entries = [NewEntry(None, "same", NO_HEADERS, b"{}")] * 2
        assert outbox.store(entries, run=run) == Stored(2)
        assert outbox.store(entries, run=run) == Stored(2)
        assert len(outbox.read(0, 10)) == 4

    def test_a_key_stays_taken_once_it_is_delivered(self, outbox: Outbox) -> None:
        """A repeat is dropped also when the first one has been acknowledged: within a run nothing is sent twice."""
        run = outbox.start_run(JOB).id
        store(outbox, run, 1, 2)
        outbox.acknowledge(mark_at(outbox, outbox.stats().last_position))
        assert store(outbox, run, 1, 2, 3) == Stored(1, duplicates=2)
        assert outbox.stats().pending == 1

    def test_another_run_may_use_the_same_keys(self, outbox: Outbox) -> None:
        """Keys are per run: tomorrow's run stores them all again, and so does another job's at the same time."""
        run = outbox.start_run(JOB)
        store(outbox, run.id, 1, 2)
        assert store(outbox, outbox.start_run("others").id, 1, 2) == Stored(2)
        last = outbox.stats().last_position
        outbox.acknowledge(mark_at(outbox, last))
        outbox.finish_run(run.id, report(run, complete=True))
        assert store(outbox, outbox.start_run(JOB).id, 1, 2) == Stored(2)
        assert numbers(outbox.read(last, 10)) == [1, 2]

    # records that are not valid tasks

    def test_a_record_becomes_a_dead_letter_once(self, outbox: Outbox) -> None:
        """Records that are not tasks are kept with their page, one per key or one per record, and never read."""
        run = outbox.start_run(JOB).id
        bad = (*bad_records(7), InvalidRecord(b"{}", "no number"))
        assert store(outbox, run, 1, checkpoint=b"x", invalid=bad) == Stored(1, 2)
        assert store(outbox, run, invalid=bad) == Stored(0, 0, 2)
        assert outbox.stats().dead == 2
        assert numbers(outbox.read(0, 10)) == [1]
        again = outbox.start_run(JOB)
        assert (again.extracted, again.rejected, again.unusable, again.duplicates) == (1, 2, 2, 2)

    def test_any_key_of_a_record_counts_once(self, outbox: Outbox) -> None:
        """Records of one key that differ are one dead letter, whatever the key: zero and out of range, too."""
        run = outbox.start_run(JOB).id
        for key in (0, -1, 2**70, "0", ""):
            for attempt in range(2):
                store(outbox, run, invalid=(InvalidRecord(f"{key!r} {attempt}".encode(), "no", key),))
        known = run_of(outbox, run)
        assert (known.rejected, known.duplicates) == (5, 5)
        assert outbox.stats().dead == 5

    def test_a_task_replaces_a_record_of_its_key(self, outbox: Outbox) -> None:
        """A record that is valid on a second pass becomes a task, and its dead letter is deleted."""
        run = outbox.start_run(JOB).id
        assert store(outbox, run, 1, invalid=bad_records(7, 8)) == Stored(1, 2)
        assert store(outbox, run, 1, 7) == Stored(1, 0, 1, replaced=1)
        assert numbers(outbox.read(0, 10)) == [1, 7]
        assert outbox.stats().dead == 1
        known = run_of(outbox, run)
        assert (known.extracted, known.rejected, known.unusable, known.duplicates) == (2, 1, 1, 1)
        assert store(outbox, run, 7, invalid=bad_records(7)) == Stored(0, 0, 2), "the task now has the key"

    def test_a_task_replaces_a_record_of_the_same_page(self, outbox: Outbox) -> None:
        """Within one commit, too, the task is kept, whichever of the two is first."""
        run = outbox.start_run(JOB).id
        dead, task = NewEntry(7, None, NO_HEADERS, b"7", "no object"), NewEntry(7, "seven", NO_HEADERS, b"{}")
        assert outbox.store([dead, task], run=run) == Stored(1, 1, 0, replaced=1)
        assert store(outbox, run, 8, invalid=bad_records(8)) == Stored(1, 0, 1)
        assert outbox.stats().dead == 0
        assert len(outbox.read(0, 10)) == 2
        known = run_of(outbox, run)
        assert (known.extracted, known.rejected, known.unusable) == (2, 0, 0)

    def test_a_record_of_another_run_is_not_replaced(self, outbox: Outbox) -> None:
        """Each run has its own keys: what one run could not use is still to be looked at."""
        store(outbox, outbox.start_run("others").id, invalid=bad_records(7))
        assert store(outbox, outbox.start_run(JOB).id, 7) == Stored(1)
        assert outbox.stats().dead == 1
