"""What an outbox promises of the tasks that are stored in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import msgspec
import pytest

from owm_outbox.entry import NO_HEADERS, NOTHING, Key, NewEntry
from owm_outbox.errors import TaskError
from owm_outbox.outbox import Outbox, Stored
from owm_outbox.task import InvalidRecord
from owm_outbox.testing.outbox_fixtures import (
    JOB,
    OpenOutbox,
    OutboxFixtures,
    bad_records,
    mark_at,
    parcels,
    run_of,
    store,
)
from owm_outbox.testing.parcels import Parcel, numbers

__all__ = ["OutboxEntries"]


class OutboxEntries(OutboxFixtures):
    """Entries are stored whole and in order, and are read back as they were."""

    def test_a_new_outbox_is_empty(self, outbox: Outbox) -> None:
        """Nothing is in a new outbox, and its first position is still to be given."""
        stats = outbox.stats()
        assert (stats.pending, stats.dead, stats.acknowledged, stats.last_position) == (0, 0, NOTHING, 0)
        assert stats.oldest is None
        assert list(stats.runs) == []
        assert list(outbox.read(0, 10)) == []

    def test_tasks_are_read_in_the_order_of_their_positions(self, outbox: Outbox) -> None:
        """What was appended is read back in order, at positions that grow from above 0."""
        store(outbox, outbox.start_run(JOB).id, 3, 1, 2)
        entries = outbox.read(0, 10)
        assert numbers(entries) == [3, 1, 2]
        positions = [entry.position for entry in entries]
        assert positions == sorted(set(positions))
        assert positions[0] > 0
        assert outbox.stats().last_position == positions[-1]

    def test_a_task_is_read_as_its_json(self, outbox: Outbox) -> None:
        """An appended task is read as one JSON object, with its task_id as the usual text of a UUID."""
        (parcel,) = parcels(outbox.start_run(JOB).id, 1)
        outbox.append([parcel])
        (entry,) = outbox.read(0, 10)
        assert entry.task_id == str(parcel.task_id)
        assert msgspec.json.decode(entry.payload, type=Parcel) == parcel

    def test_an_entry_is_read_as_it_was_stored(self, outbox: Outbox, open_outbox: OpenOutbox) -> None:
        """Task id, key, headers and payload are the same afterwards, also those that nothing of ours would write."""
        run = outbox.start_run(JOB).id
        odd = {"traceparent": "00-ä 東京 📦", "": "", "two lines": "'a'\n\"b\"\\"}
        given = [
            NewEntry(7, "not a UUID", odd, b'{ "b":1,  "a":"\\u00e4 \xc3\xa4 \xe2\x80\xa8"\n}'),
            NewEntry("7", str(uuid.UUID(int=7)), NO_HEADERS, b"{}"),
            NewEntry(None, "Ä ' 東京", {"a": "b"}, b'{"a": "' + b"x" * 100_000 + b'"}'),
        ]
        assert outbox.store(given, run=run) == Stored(3)
        with open_outbox() as other:
            entries = other.read(0, 10)
            assert [(entry.task_id, entry.payload) for entry in entries] == [
                (entry.task_id, entry.payload) for entry in given
            ]
            assert [dict(entry.headers) for entry in entries] == [dict(entry.headers) for entry in given]
            assert [entry.key for entry in entries] == [7, "7", None]

    def test_headers_are_stored_with_each_task(self, outbox: Outbox) -> None:
        """The headers of an append belong to each of its tasks, and to no others; without any they are empty."""
        outbox.append([Parcel(uuid.uuid4(), 1), Parcel(uuid.uuid4(), 2)], headers={"traceparent": "00-1"})
        outbox.append([Parcel(uuid.uuid4(), 3)])
        assert [dict(entry.headers) for entry in outbox.read(0, 10)] == [{"traceparent": "00-1"}] * 2 + [{}]

    def test_reading_continues_after_a_position_and_stops_at_a_limit(self, outbox: Outbox) -> None:
        """Read returns what is beyond ``after``, at most ``limit`` entries, and changes nothing."""
        store(outbox, outbox.start_run(JOB).id, *range(10))
        before = outbox.stats()
        first = outbox.read(0, 4)
        assert numbers(first) == [0, 1, 2, 3]
        assert numbers(outbox.read(first[-1].position, 3)) == [4, 5, 6]
        assert list(outbox.read(before.last_position, 3)) == []
        assert numbers(outbox.read(0, 4)) == [0, 1, 2, 3]
        assert outbox.stats() == before

    def test_reading_stops_before_there_are_too_many_bytes(self, outbox: Outbox) -> None:
        """Read returns no more than fits into ``max_bytes`` of payload, counted exactly, but at least one entry."""
        outbox.store(
            [NewEntry(None, str(n), NO_HEADERS, b'{"":"%s"}' % (b"x" * (n - 7))) for n in (100, 1000, 100, 100)]
        )
        positions = [entry.position for entry in outbox.read(0, 10)]
        fitting = [len(outbox.read(0, 10, max_bytes)) for max_bytes in (1, 100, 1099, 1100, 1199, 1200, 1300)]
        assert fitting == [1, 1, 1, 2, 2, 3, 4]
        assert len(outbox.read(positions[0], 10, 1)) == 1
        outbox.reject({positions[1]: "too heavy"})
        assert len(outbox.read(0, 10, 200)) == 2, "the payload of a dead letter is not read, and does not count"

    def test_append_tells_what_became_of_each(self, outbox: Outbox) -> None:
        """Append counts what was stored, rejected and dropped, and so do the figures of the run."""
        run = outbox.start_run(JOB).id
        assert store(outbox, run, 1, 2, 3, invalid=bad_records(8)) == Stored(3, 1, 0, 0)
        assert store(outbox, run, 3, 4, 4, invalid=bad_records(8, 9)) == Stored(1, 1, 3, 0)
        assert store(outbox, run) == Stored(0, 0, 0, 0)
        known = run_of(outbox, run)
        assert (known.extracted, known.rejected, known.unusable, known.duplicates) == (4, 2, 2, 3)

    def test_without_a_run_nothing_is_dropped(self, outbox: Outbox) -> None:
        """An application's own tasks have no run: each append is new, also one with a key."""
        parcel = Parcel(uuid.uuid4(), 1)
        assert outbox.append([parcel]) == Stored(1)
        assert outbox.append([parcel, Parcel(uuid.uuid4(), 2)]) == Stored(2)
        assert outbox.append([parcel, parcel], key=lambda task: 1) == Stored(2)
        assert numbers(outbox.read(0, 10)) == [1, 1, 2, 1, 1]

    def test_what_append_returned_from_is_committed(self, outbox: Outbox, open_outbox: OpenOutbox) -> None:
        """As soon as append returns, its tasks and its checkpoint are there for all that open the outbox."""
        run = outbox.start_run(JOB)
        store(outbox, run.id, 1, checkpoint=b"here")
        outbox.append([Parcel(uuid.uuid4(), 2)])
        with open_outbox() as other:
            assert numbers(other.read(0, 10)) == [1, 2]
            assert other.stats().pending == 2
            again = other.start_run(JOB)
            assert (again.id, again.checkpoint, again.extracted) == (run.id, b"here", 1)

    def test_objects_on_the_same_outbox_share_it(self, outbox: Outbox, open_outbox: OpenOutbox) -> None:
        """An application may append with an object of its own: each sees what the other one did, and builds on it."""
        with open_outbox() as other:
            for number, writer in enumerate((outbox, other, outbox, other), start=1):
                writer.append([Parcel(uuid.uuid4(), number)])
                for reader in (outbox, other):
                    assert numbers(reader.read(0, 10)) == list(range(1, number + 1))
            entries = outbox.read(0, 10)
            mark = mark_at(outbox, entries[0].position)
            outbox.acknowledge(mark)
            outbox.reject({entries[3].position: "too heavy"})
            stats = other.stats()
            assert (stats.acknowledged, stats.pending, stats.dead) == (mark, 2, 1)

    def test_a_page_is_stored_whole_or_not_at_all(self, outbox: Outbox) -> None:
        """If one task of a page cannot be stored, none is, and the checkpoint stays what it was."""
        run = outbox.start_run(JOB).id
        store(outbox, run, 1, checkpoint=b"one")

        class Nameless(msgspec.Struct):
            number: int

        with pytest.raises(TaskError):
            outbox.append(
                [*parcels(run, 2), Nameless(3)],
                run=run,
                checkpoint=b"two",
                expected=3,
                invalid=[InvalidRecord(b"{}", "no number")],
            )
        assert numbers(outbox.read(0, 10)) == [1]
        assert outbox.stats().dead == 0
        again = outbox.start_run(JOB)
        assert (again.checkpoint, again.extracted, again.rejected, again.expected) == (b"one", 1, 0, None)
        assert store(outbox, run, 2) == Stored(1)

    def test_an_error_between_two_tasks_stores_none(self, outbox: Outbox) -> None:
        """Tasks may come from a generator; what that raises is passed on, and none of the call is stored."""
        run = outbox.start_run(JOB).id
        assert outbox.append((parcel for parcel in parcels(run, 1, 2)), run=run) == Stored(2)

        def failing() -> Iterator[Parcel]:
            yield from parcels(run, 3)
            raise LookupError("the source was closed")

        with pytest.raises(LookupError, match="the source was closed"):
            outbox.append(failing(), run=run, checkpoint=b"three")
        assert numbers(outbox.read(0, 10)) == [1, 2]
        again = outbox.start_run(JOB)
        assert (again.checkpoint, again.extracted) == (None, 2)

    def test_a_key_of_another_kind_is_refused(self, outbox: Outbox) -> None:
        """A key is an int or a str: for any other, the error names its type, and nothing is stored."""
        run = outbox.start_run(JOB).id
        keys = (uuid.UUID(int=1), 1.5, None, (1, 2), b"1")
        for key in keys:

            def wrong(task: Parcel, key: object = key) -> Key:
                return key if task.number == 2 else task.number  # type: ignore[return-value]  # which is the mistake

            with pytest.raises(TaskError, match=type(key).__name__):
                outbox.append(parcels(run, 1, 2), key=wrong, run=run)
        assert list(outbox.read(0, 10)) == []
