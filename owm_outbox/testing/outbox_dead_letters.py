"""What an outbox promises of dead letters."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest

from owm_outbox.entry import NewEntry
from owm_outbox.errors import OutboxLocked
from owm_outbox.outbox import Outbox, Stored
from owm_outbox.run import RunRecord
from owm_outbox.task import InvalidRecord
from owm_outbox.testing.outbox_fixtures import (
    JOB,
    OpenOutbox,
    OutboxFixtures,
    bad_records,
    mark_at,
    parcels,
    report,
    run_of,
    store,
)
from owm_outbox.testing.parcels import Parcel, numbers

__all__ = ["OutboxDeadLetters"]


class OutboxDeadLetters(OutboxFixtures):
    """What was rejected is out of the way, and kept until somebody retries or drops it."""

    def test_a_rejected_entry_is_out_of_the_way(self, outbox: Outbox) -> None:
        """A dead letter is neither read nor pending, and the entries around it stay."""
        run = outbox.start_run(JOB).id
        store(outbox, run, 1, 2, 3)
        outbox.reject({outbox.read(0, 10)[1].position: "too heavy", 10**9: "no such position"})
        assert numbers(outbox.read(0, 10)) == [1, 3]
        stats = outbox.stats()
        assert (stats.pending, stats.dead) == (2, 1)
        known = run_of(outbox, run)
        assert (known.extracted, known.rejected, known.unusable) == (3, 1, 0)

    def test_an_entry_is_rejected_once(self, outbox: Outbox) -> None:
        """Rejecting what is a dead letter already counts nothing twice, also in the run that is resumed."""
        store(outbox, outbox.start_run(JOB).id, 1, 2)
        position = outbox.read(0, 1)[0].position
        outbox.reject({position: "too heavy"})
        outbox.reject({position: "too large"})
        assert outbox.stats().dead == 1
        assert outbox.start_run(JOB).rejected == 1

    def test_a_dead_letter_keeps_its_key(self, outbox: Outbox) -> None:
        """A task that a sink rejected is neither stored again by a repeat of its page, nor replaced."""
        run = outbox.start_run(JOB).id
        store(outbox, run, 1)
        outbox.reject({outbox.read(0, 1)[0].position: "too heavy"})
        assert store(outbox, run, 1) == Stored(0, duplicates=1)
        assert outbox.stats().dead == 1

    def test_dead_letters_outlive_their_run(self, outbox: Outbox) -> None:
        """Finishing a run clears what was delivered, not what was refused."""
        run = outbox.start_run(JOB)
        store(outbox, run.id, 1, 2, invalid=bad_records(3))
        last = mark_at(outbox, outbox.read(0, 10)[-1].position)
        outbox.reject({outbox.read(0, 1)[0].position: "too heavy"})
        outbox.acknowledge(last)
        outbox.finish_run(run.id, report(run, complete=True))
        assert outbox.stats().dead == 2

    def test_a_record_is_any_bytes(self, outbox: Outbox) -> None:
        """What was received instead of a task need not be JSON, nor text, and is kept as it was."""
        letters = self.letters(outbox)
        payloads = [b"\xff\x00\xfe", b"", "東京 \u2028".encode()]
        bad = tuple(InvalidRecord(payload, "no JSON") for payload in payloads)
        store(outbox, outbox.start_run(JOB).id, invalid=bad)
        assert [letter.payload for letter in letters.dead_letters()] == payloads

    def test_dead_letters_can_be_listed(self, outbox: Outbox) -> None:
        """A dead letter shows its payload, its reason and, timezone-aware, when it was rejected."""
        letters = self.letters(outbox)
        run = outbox.start_run(JOB).id
        store(outbox, run, 1)
        outbox.reject({outbox.read(0, 1)[0].position: "too heavy"})
        store(outbox, run, invalid=(InvalidRecord(b"{}", "no number"),))
        first, second = letters.dead_letters()
        assert (first.task_id, first.reason) == (str(parcels(run, 1)[0].task_id), "too heavy")
        assert json.loads(first.payload)["number"] == 1
        assert (second.task_id, second.payload, second.reason) == (None, b"{}", "no number")
        assert first.rejected_at.tzinfo is not None

    def test_a_letter_says_where_it_came_from(self, outbox: Outbox) -> None:
        """A dead letter has the run, the key and the headers that it had as an entry; an application's has no run."""
        letters = self.letters(outbox)
        run = outbox.start_run(JOB).id
        outbox.store([NewEntry("seven", "7", {"traceparent": "00-1"}, b"{}")], run=run)
        store(outbox, run, invalid=bad_records(8))
        outbox.append([Parcel(uuid.uuid4(), 9)])
        outbox.reject({entry.position: "too heavy" for entry in outbox.read(0, 10)})
        assert [(letter.run, letter.key, dict(letter.headers)) for letter in letters.dead_letters()] == [
            (run, "seven", {"traceparent": "00-1"}),
            (run, 8, {}),
            (None, None, {}),
        ]

    def test_a_retried_letter_is_pending_at_a_new_position(self, outbox: Outbox) -> None:
        """Retrying stores the same task again beyond all positions, since the sink has moved past its old one."""
        letters = self.letters(outbox)
        run = outbox.start_run(JOB).id
        store(outbox, run, 1, 2)
        last = outbox.stats().last_position
        outbox.acknowledge(mark_at(outbox, last))
        outbox.reject({outbox.read(0, 1)[0].position: "too heavy"})
        store(outbox, run, invalid=(InvalidRecord(b"{}", "no number"),))
        assert letters.retry([letter.position for letter in letters.dead_letters()]) == 1
        (entry,) = outbox.read(last, 10)
        assert entry.task_id == str(parcels(run, 1)[0].task_id)
        assert outbox.stats().pending == 1
        assert [letter.payload for letter in letters.dead_letters()] == [b"{}"]
        assert store(outbox, run, 1) == Stored(0, duplicates=1), "a retried letter keeps its key"
        assert run_of(outbox, run).rejected == 1

    def test_a_retried_letter_is_as_it_was(self, outbox: Outbox) -> None:
        """A letter that is retried has the key, the headers and the payload that it had as an entry."""
        letters = self.letters(outbox)
        given = NewEntry("seven", "7", {"traceparent": "00-1"}, b'{ "number": 7}')
        outbox.store([given], run=outbox.start_run(JOB).id)
        (before,) = outbox.read(0, 10)
        outbox.reject({before.position: "too heavy"})
        letters.retry([before.position])
        (after,) = outbox.read(0, 10)
        assert after.position > before.position
        assert (after.key, after.task_id, dict(after.headers), after.payload) == given[:4]

    def test_a_dropped_letter_is_gone(self, outbox: Outbox) -> None:
        """Dropping deletes dead letters only; entries cannot be dropped."""
        letters = self.letters(outbox)
        store(outbox, outbox.start_run(JOB).id, 1, 2)
        first, second = outbox.read(0, 2)
        outbox.reject({first.position: "too heavy"})
        assert letters.drop([first.position, second.position]) == 1
        assert list(letters.dead_letters()) == []
        assert numbers(outbox.read(0, 10)) == [2]

    def test_the_position_of_a_dropped_letter_is_never_reused(self, outbox: Outbox) -> None:
        """Not even if it was the last one given: the sink may hold it."""
        letters = self.letters(outbox)
        outbox.append([Parcel(uuid.uuid4(), 1)])
        last = outbox.stats().last_position
        outbox.reject({last: "too heavy"})
        letters.drop([last])
        outbox.append([Parcel(uuid.uuid4(), 2)])
        assert [entry.position > last for entry in outbox.read(0, 10)] == [True]

    def test_letters_are_free_while_a_relay_is_at_work(self, outbox: Outbox, open_outbox: OpenOutbox) -> None:
        """While one holds the lock, anybody else retries and drops letters, and what is retried is read next."""
        with open_outbox() as other, outbox.lock():
            outbox.append([Parcel(uuid.uuid4(), number) for number in (1, 2, 3)])
            first, second, last = (entry.position for entry in outbox.read(0, 10))
            outbox.reject({first: "too heavy", second: "too large"})
            try:
                assert self.letters(other).retry([first]) == 1
                assert self.letters(other).drop([second]) == 1
            except OutboxLocked as error:
                pytest.fail(f"a relay that never ends would keep its dead letters for itself: {error}")
            assert numbers(outbox.read(last, 10)) == [1]
            assert outbox.stats().dead == 0

    # what every run rejects anew

    def _next_run(self, outbox: Outbox, job: str = JOB) -> RunRecord:
        return outbox.start_run(job, resume_within=timedelta(0))

    def test_a_record_that_no_run_can_use_is_one_letter(self, outbox: Outbox) -> None:
        """Each run counts it as rejected; the letters do not grow, and the one shows the record as it was last."""
        letters = self.letters(outbox)
        for attempt in (b"first", b"second", b"third"):
            run = self._next_run(outbox).id
            bad = (InvalidRecord(attempt, "no number", 7), InvalidRecord(b"the same", "no number"))
            assert store(outbox, run, invalid=bad) == Stored(0, 2)
            assert store(outbox, run, invalid=bad) == Stored(0, 0, 2), "a repeat within the run is not counted"
            assert (run_of(outbox, run).rejected, run_of(outbox, run).unusable) == (2, 2)
        assert [(letter.payload, letter.times) for letter in letters.dead_letters()] == [
            (b"third", 3),
            (b"the same", 3),
        ]
        assert outbox.stats().dead == 2
        assert store(outbox, run, 7) == Stored(1, replaced=1), "the letter is the newest run's"

    def test_a_task_that_every_run_rejects_is_one_letter(self, outbox: Outbox) -> None:
        """The letter is the newest task, which can be retried and keeps its key; of older runs nothing is left."""
        letters = self.letters(outbox)
        for _ in range(3):
            run = self._next_run(outbox).id
            store(outbox, run, 1)
            outbox.reject({outbox.read(0, 10)[-1].position: "too heavy"})
            assert run_of(outbox, run).rejected == 1
        (letter,) = letters.dead_letters()
        assert (letter.times, letter.task_id) == (3, str(parcels(run, 1)[0].task_id))
        assert store(outbox, run, 1) == Stored(0, duplicates=1)
        assert letters.retry([letter.position]) == 1
        assert [entry.task_id for entry in outbox.read(0, 10)] == [letter.task_id]

    def test_a_letter_of_an_older_run_does_not_take_the_newest_run_s_key(self, outbox: Outbox) -> None:
        """Where an older run's task is rejected after the newest run's, letter and key stay the newest run's."""
        letters = self.letters(outbox)
        older = self._next_run(outbox).id
        store(outbox, older, 1)
        newest = self._next_run(outbox).id
        store(outbox, newest, 1)
        first, second = (entry.position for entry in outbox.read(0, 10))
        for position in (second, first):
            outbox.reject({position: "too heavy"})
        assert [(letter.position, letter.times) for letter in letters.dead_letters()] == [(second, 2)]
        assert store(outbox, newest, 1) == Stored(0, duplicates=1)

    def test_letters_that_differ_are_not_one(self, outbox: Outbox) -> None:
        """Another key, reason or job, a task instead of a record, and what has no run: each is its own."""
        letters = self.letters(outbox)
        store(outbox, self._next_run(outbox).id, 1, invalid=bad_records(7))
        outbox.reject({outbox.read(0, 1)[0].position: "not a number"})
        run = self._next_run(outbox).id
        store(outbox, run, invalid=bad_records(8, 1))
        store(outbox, run, invalid=(InvalidRecord(b"{}", "another reason", 7),))
        store(outbox, self._next_run(outbox, "others").id, invalid=bad_records(7))
        for number in (7, 7):
            outbox.append([Parcel(uuid.uuid4(), number)], key=lambda parcel: parcel.number)
            outbox.reject({outbox.stats().last_position: "not a number"})
        assert [letter.times for letter in letters.dead_letters()] == [1] * 8

    def test_a_letter_that_is_retried_and_rejected_again_counts_on(self, outbox: Outbox) -> None:
        """Its times go on, also without a run."""
        letters = self.letters(outbox)
        outbox.append([Parcel(uuid.uuid4(), 1)])
        for times in (1, 2, 3):
            outbox.reject({outbox.read(0, 1)[0].position: "too heavy"})
            (letter,) = letters.dead_letters()
            assert letter.times == times
            letters.retry([letter.position])
        assert outbox.stats().pending == 1

    def test_a_letter_says_since_when(self, outbox: Outbox, later: Callable[[timedelta], None]) -> None:
        """It has the times of its first and of its last rejection, whichever run they were in."""
        letters = self.letters(outbox)
        store(outbox, self._next_run(outbox).id, invalid=bad_records(7))
        (first,) = letters.dead_letters()
        assert first.first_rejected_at == first.rejected_at
        later(timedelta(days=1))
        store(outbox, self._next_run(outbox).id, invalid=bad_records(7))
        (second,) = letters.dead_letters()
        assert second.first_rejected_at == first.rejected_at
        assert timedelta(days=1) <= second.rejected_at - first.rejected_at < timedelta(days=2)
