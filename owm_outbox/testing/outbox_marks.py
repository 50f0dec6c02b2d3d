"""What an outbox promises of what is acknowledged, and of positions."""

from __future__ import annotations

import uuid

from owm_outbox.entry import NOTHING, Mark
from owm_outbox.outbox import Outbox
from owm_outbox.testing.outbox_fixtures import JOB, OpenOutbox, OutboxFixtures, mark_at, report, store
from owm_outbox.testing.parcels import Parcel, numbers

__all__ = ["OutboxMarks"]


class OutboxMarks(OutboxFixtures):
    """What is acknowledged is no longer pending, may be taken back, and its positions are never given again."""

    def test_acknowledged_entries_are_no_longer_pending(self, outbox: Outbox) -> None:
        """Acknowledging a mark says that everything up to its position is delivered, and nothing beyond."""
        store(outbox, outbox.start_run(JOB).id, *range(5))
        mark = mark_at(outbox, outbox.read(0, 3)[-1].position)
        outbox.acknowledge(mark)
        stats = outbox.stats()
        assert (stats.pending, stats.acknowledged) == (2, mark)
        assert numbers(outbox.read(mark.position, 10)) == [3, 4]

    def test_the_acknowledged_mark_is_kept_exactly(self, outbox: Outbox, open_outbox: OpenOutbox) -> None:
        """Stats return the mark as it was acknowledged, and not just its position: the relay compares it."""
        store(outbox, outbox.start_run(JOB).id, 1, 2)
        last = outbox.stats().last_position
        for rest in (" 5ca1ab1e task", " 5ca1ab1e Task", " 5ca1ab1e task ", " 5ca1ab1e 東京 'ä'\n", " -", ""):
            mark = Mark(f"{last}{rest}")
            outbox.acknowledge(mark)
            with open_outbox() as other:
                found = other.stats().acknowledged
                assert isinstance(found, Mark)
                assert (found, found.position, found.lease) == (mark, last, mark.lease)

    def test_the_oldest_pending_entry_has_an_age(self, outbox: Outbox) -> None:
        """Stats tell, timezone-aware, when the oldest pending entry was stored, and nothing if none is pending."""
        outbox.append([Parcel(uuid.uuid4(), 1)])
        first = outbox.stats().oldest
        assert first is not None
        assert first.tzinfo is not None
        outbox.append([Parcel(uuid.uuid4(), 2)])
        assert outbox.stats().oldest == first
        outbox.acknowledge(mark_at(outbox, outbox.read(0, 1)[0].position))
        second = outbox.stats().oldest
        assert second is not None
        assert second >= first
        outbox.acknowledge(mark_at(outbox, outbox.stats().last_position))
        assert outbox.stats().oldest is None

    def test_an_unfinished_run_keeps_what_was_acknowledged(self, outbox: Outbox) -> None:
        """Acknowledged entries of an unfinished run can be read again, in case the sink loses them."""
        run = outbox.start_run(JOB)
        store(outbox, run.id, *range(5))
        outbox.acknowledge(mark_at(outbox, outbox.stats().last_position))
        assert numbers(outbox.read(0, 10)) == [0, 1, 2, 3, 4]
        outbox.finish_run(run.id, report(run, complete=False))
        outbox.start_run(JOB)
        assert numbers(outbox.read(0, 10)) == [0, 1, 2, 3, 4]

    def test_acknowledging_can_go_back(self, outbox: Outbox) -> None:
        """When a sink lost writes, a lower mark makes what is beyond it pending again; with none at all, everything."""
        store(outbox, outbox.start_run(JOB).id, *range(5))
        positions = [entry.position for entry in outbox.read(0, 10)]
        marks = [mark_at(outbox, position) for position in positions]
        unsent = Mark.unsent(positions[0])
        for mark, pending in ((marks[4], 0), (marks[1], 3), (marks[2], 2), (NOTHING, 5), (unsent, 4)):
            outbox.acknowledge(mark)
            stats = outbox.stats()
            assert (stats.acknowledged, stats.pending, stats.last_position) == (mark, pending, positions[4])
        assert numbers(outbox.read(0, 10)) == [0, 1, 2, 3, 4]

    def test_an_application_s_entries_are_cleared_once_delivered(self, outbox: Outbox) -> None:
        """Entries without a run leave the outbox at some point after they were acknowledged: it does not grow."""
        for number in range(50):
            outbox.append([Parcel(uuid.uuid4(), number)])
            outbox.acknowledge(mark_at(outbox, outbox.stats().last_position))
        assert len(outbox.read(0, 100)) < 50

    def test_positions_are_never_reused(self, outbox: Outbox) -> None:
        """After everything is cleared, new entries get positions beyond all that were ever given."""
        run = outbox.start_run(JOB)
        store(outbox, run.id, 1, 2, 3)
        last = outbox.stats().last_position
        outbox.acknowledge(mark_at(outbox, last))
        outbox.finish_run(run.id, report(run, complete=True))
        store(outbox, outbox.start_run(JOB).id, 1)
        assert [entry.position > last for entry in outbox.read(0, 10)] == [True]

    def test_positions_are_never_reused_after_a_restart(self, open_outbox: OpenOutbox) -> None:
        """An outbox that was opened again, with nothing left in it, still knows the last position it gave."""
        self.capabilities.need("durable")
        with open_outbox() as outbox:
            run = outbox.start_run(JOB)
            store(outbox, run.id, 1, 2, 3)
            last = outbox.stats().last_position
            outbox.acknowledge(mark_at(outbox, last))
            outbox.finish_run(run.id, report(run, complete=True))
            assert list(outbox.read(0, 10)) == []
        with open_outbox() as outbox:
            assert outbox.stats().last_position == last
            store(outbox, outbox.start_run(JOB).id, 1)
            assert [entry.position > last for entry in outbox.read(0, 10)] == [True]
