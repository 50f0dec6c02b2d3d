"""What a sink promises of marks."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from owm_outbox.entry import Mark
from owm_outbox.errors import MarkConflict
from owm_outbox.sink import Sink
from owm_outbox.testing.destination import Destination
from owm_outbox.testing.parcels import deliver, parcel_batch, parcel_batches, parcel_mark, payloads
from owm_outbox.testing.refusal import Refusal
from owm_outbox.testing.sink_fixtures import SinkFixtures, needs_mark

__all__ = ["SinkMarks"]

_MANY = 5_000
_OUTBOXES = 150

_ODD = (
    "1 5ca1ab1e task",
    "1 5ca1ab1e Task",
    "1 5ca1ab1e task ",
    "1 5ca1ab1e  task",
    "1 5ca1ab1e tásk",
    "1 5ca1ab1e 東京 📦",
    "1 5ca1ab1e 'a' \"b\" \\c {d} %s ?*:;,=&#/",
    "1 5ca1ab1e one line\nand\ttwo",
    "1 -",
    "1",
    "01",
    "9007199254740992",
    "9007199254740993",
    "no number at all",
    "1 5ca1ab1e " + "x" * 4000,
    "1 5ca1ab1e " + "x" * 3999 + "y",
)
"""Texts of which each differs from the one before in what some store might overlook."""


class SinkMarks(SinkFixtures):
    """The mark is stored in one step with the batch, and compared with the next one's."""

    @needs_mark
    def test_the_mark_is_there_with_the_batch(self, sink: Sink, outbox_id: str) -> None:
        """When send returns, the sink holds the mark of the batch; each batch replaces that of the one before."""
        for batch in parcel_batches(outbox_id, 3, 2):
            sink.send(batch)
            held = sink.mark(outbox_id)
            assert isinstance(held, str)
            assert held == batch.mark

    @needs_mark
    def test_a_mark_is_returned_exactly(self, destination: Destination, outbox_id: str) -> None:
        """A mark is opaque text of up to some 4,000 characters: blanks at its end, accents and new lines are kept."""
        after = parcel_mark(outbox_id, 0)
        for number, text in enumerate(_ODD):
            batch = replace(parcel_batch(outbox_id, number, 1), after=after, mark=Mark(text))
            with destination.open() as sink:
                sink.send(batch)
            with destination.open() as sink:
                assert sink.mark(outbox_id) == text
            after = batch.mark

    @needs_mark
    def test_marks_that_differ_in_a_trifle_differ(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """Marks are compared as they are: case, accents, blanks, leading zeros and digits beyond 2^53 all count."""
        after = parcel_mark(outbox_id, 0)
        for number, text in enumerate(_ODD):
            batch = replace(parcel_batch(outbox_id, number, 1), after=after, mark=Mark(text))
            for other in _ODD:
                if Mark(other) != after:
                    with pytest.raises(MarkConflict) as conflict:
                        sink.send(replace(batch, after=Mark(other)))
                    assert conflict.value.held == after
            sink.send(batch)
            after = batch.mark
        assert len(destination.payloads()) == len(_ODD)

    @needs_mark
    def test_a_batch_sent_again_is_refused_whole(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """A batch that does not start from the held mark adds nothing, and the error says what is held."""
        batch = parcel_batch(outbox_id, 0, 3)
        sink.send(batch)
        with pytest.raises(MarkConflict) as conflict:
            sink.send(batch)
        assert conflict.value.held == batch.mark
        assert list(destination.payloads()) == payloads(batch)
        assert sink.mark(outbox_id) == batch.mark

    @needs_mark
    def test_a_large_batch_sent_again_is_refused_whole(
        self, destination: Destination, sink: Sink, outbox_id: str
    ) -> None:
        """However many entries a batch has, its mark is stored with it, and compared before it is taken."""
        batch = parcel_batch(outbox_id, 0, _MANY)
        deliver(sink, batch)
        held = sink.mark(outbox_id)
        assert held == batch.mark, f"a batch of {_MANY} entries was sent, but its mark is not held: {held!r} is"
        with Refusal(f"a batch of {_MANY} entries that is held was sent again", MarkConflict) as refusal:
            sink.send(batch)
        assert refusal.error.held == batch.mark
        count = len(destination.payloads())
        assert count == _MANY, f"a batch of {_MANY} entries was sent twice, and {count} entries are held"

    @needs_mark
    def test_an_overlapping_batch_is_refused_whole(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """A batch of which the sink holds a part adds nothing, not even what is new in it."""
        batch = parcel_batch(outbox_id, 0, 3)
        sink.send(batch)
        with pytest.raises(MarkConflict) as conflict:
            sink.send(parcel_batch(outbox_id, 1, 4))
        assert conflict.value.held == batch.mark
        assert list(destination.payloads()) == payloads(batch)
        assert sink.mark(outbox_id) == batch.mark

    @needs_mark
    def test_a_batch_from_the_future_is_refused_whole(
        self, destination: Destination, sink: Sink, outbox_id: str
    ) -> None:
        """A batch that would leave a hole behind the held mark adds nothing, also where nothing is held yet."""
        with pytest.raises(MarkConflict) as conflict:
            sink.send(parcel_batch(outbox_id, 10, 3))
        assert conflict.value.held == ""
        assert list(destination.payloads()) == []
        assert sink.mark(outbox_id) == ""

    @needs_mark
    def test_a_batch_of_another_history_is_refused_whole(
        self, destination: Destination, sink: Sink, outbox_id: str
    ) -> None:
        """The position alone proves nothing: after a mark of the same position, but another lease, nothing is taken."""
        batch, following = parcel_batches(outbox_id, 3, 2)
        sink.send(batch)
        other = Mark(batch.mark.replace(batch.mark.lease, "0ddba11"))
        with pytest.raises(MarkConflict) as conflict:
            sink.send(replace(following, after=other))
        assert conflict.value.held == batch.mark
        assert list(destination.payloads()) == payloads(batch)

    @needs_mark
    def test_a_mark_may_go_back(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """A sink compares, and does not order: the batch that starts from the held mark is taken whatever it leaves."""
        first, second = parcel_batch(outbox_id, 0, 3), parcel_batch(outbox_id, 3, 2)
        lower = replace(second, mark=Mark("2 5ca1ab1e restored"))
        sink.send(first)
        sink.send(lower)
        assert sink.mark(outbox_id) == lower.mark
        assert list(destination.payloads()) == payloads(first, second)

    @needs_mark
    def test_after_a_conflict_the_right_batch_is_taken(
        self, destination: Destination, sink: Sink, outbox_id: str
    ) -> None:
        """A refused batch leaves nothing in the way of the one that starts from the held mark."""
        batch, following = parcel_batches(outbox_id, 3, 2)
        sink.send(batch)
        with pytest.raises(MarkConflict):
            sink.send(batch)
        sink.send(following)
        assert list(destination.payloads()) == payloads(batch, following)

    @needs_mark
    def test_outboxes_do_not_mix(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """Each outbox has a mark of its own, even if all deliver to the same destination."""
        mine, other = parcel_batch(outbox_id, 0, 3), parcel_batch(str(uuid.uuid4()), 0, 2)
        sink.send(mine)
        sink.send(other)
        assert sink.mark(mine.outbox_id) == mine.mark
        assert sink.mark(other.outbox_id) == other.mark
        assert list(destination.payloads()) == payloads(mine, other)

    @needs_mark
    def test_outboxes_of_similar_ids_do_not_mix(self, sink: Sink) -> None:
        """The id of an outbox is any text: ids that differ in a letter's case, an end or a sign are different."""
        ids = ["Depot/Ä 1", "depot/Ä 1", "Depot/Ä 1 ", "Depot/Ä", "Depot_Ä 1", "Depot/Ä:{1}?*"]
        batches = [parcel_batch(outbox_id, 0, count) for count, outbox_id in enumerate(ids, start=1)]
        for batch in batches:
            sink.send(batch)
        assert [sink.mark(outbox_id) for outbox_id in ids] == [batch.mark for batch in batches]

    @needs_mark
    def test_marks_of_many_outboxes_are_kept(self, sink: Sink) -> None:
        """Every outbox that ever delivered here may come back: no mark makes room for another one."""
        ids = [str(uuid.uuid4()) for _ in range(_OUTBOXES)]
        for outbox_id in ids:
            sink.send(parcel_batch(outbox_id, 0, 1))
        lost = sum(sink.mark(outbox_id) != parcel_mark(outbox_id, 1) for outbox_id in ids)
        assert not lost, f"{_OUTBOXES} outboxes delivered, and the marks of {lost} of them are no longer held"

    @needs_mark
    def test_a_mark_whose_entries_were_lost_is_not_held(self, destination: Destination, outbox_id: str) -> None:
        """If the target was deleted, evicted or made from scratch, its mark counts for nothing: all is sent again."""
        self.capabilities.need("notices_loss")
        assert destination.lose is not None, "Capabilities(notices_loss=True) needs Destination.lose"
        first, second = parcel_batches(outbox_id, 3, 2)
        with destination.open() as sink:
            sink.send(first)
            destination.lose()
            assert sink.mark(outbox_id) == ""
            with pytest.raises(MarkConflict) as conflict:
                sink.send(second)
            assert conflict.value.held == ""
            sink.send(first)
        assert list(destination.payloads()) == payloads(first)
