"""What a sink promises when it cannot take a batch: no room, poison, a failure, or nobody there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

import pytest

from owm_outbox.errors import EntriesRejected, SinkFull, SinkUnavailable
from owm_outbox.sink import Sink, pausing_with
from owm_outbox.testing.destination import Destination
from owm_outbox.testing.parcels import batch_of, parcel_batch, parcel_batches, payloads
from owm_outbox.testing.processes import ends_in_time
from owm_outbox.testing.refusal import Refusal
from owm_outbox.testing.sink_fixtures import SinkFixtures, needs_mark

__all__ = ["SinkRefusals"]

_USUAL = 500

Interrupt = Callable[[], AbstractContextManager[object]]


class SinkRefusals(SinkFixtures):
    """A batch that is not taken leaves nothing, and the error says why."""

    # no room

    @pytest.fixture
    def full(self, destination: Destination) -> Destination:
        """Give the destination, without room for 50 entries."""
        self.capabilities.need("bounded")
        assert destination.fill is not None, "Capabilities(bounded=True) needs Destination.fill"
        destination.fill()
        return destination

    def test_a_full_sink_takes_nothing_and_says_so(self, full: Destination, sink: Sink, outbox_id: str) -> None:
        """Without room for a batch, send raises SinkFull, holds nothing of it, and keeps its mark."""
        before = list(full.payloads())
        mark = sink.mark(outbox_id)
        with pytest.raises(SinkFull) as error:
            sink.send(parcel_batch(outbox_id, 0, 50))
        assert 0 <= error.value.room < 50
        assert list(full.payloads()) == before
        assert sink.mark(outbox_id) == mark

    def test_a_full_sink_takes_as_many_as_it_said(self, full: Destination, sink: Sink, outbox_id: str) -> None:
        """The room that SinkFull names is there: that many are taken, and if it is 0, not a single one."""
        with pytest.raises(SinkFull) as error:
            sink.send(parcel_batch(outbox_id, 0, 50))
        batch = parcel_batch(outbox_id, 0, error.value.room or 1)
        if error.value.room:
            sink.send(batch)
            assert list(full.payloads())[-len(batch.entries) :] == payloads(batch)
        else:
            with pytest.raises(SinkFull):
                sink.send(batch)

    # poison

    @pytest.fixture
    def poison(self, destination: Destination) -> bytes:
        """Give a payload that the sink will never take."""
        self.capabilities.need("rejects")
        assert destination.poison is not None, "Capabilities(rejects=True) needs Destination.poison"
        return destination.poison

    def test_poison_is_named_and_the_rest_untouched(
        self, destination: Destination, sink: Sink, outbox_id: str, poison: bytes
    ) -> None:
        """A payload that will never be taken is named by its position, and nothing of its batch is held."""
        first, good = parcel_batches(outbox_id, 4, 3)
        sink.send(first)
        mark = sink.mark(outbox_id)
        bad = good.entries[1]._replace(payload=poison)
        with pytest.raises(EntriesRejected) as rejected:
            sink.send(batch_of(outbox_id, 4, [good.entries[0], bad, good.entries[2]]))
        assert list(rejected.value.reasons) == [6]
        assert rejected.value.reasons[6].strip()
        assert list(destination.payloads()) == payloads(first)
        assert sink.mark(outbox_id) == mark

    def test_the_rest_of_a_batch_with_poison_is_taken(
        self, destination: Destination, sink: Sink, outbox_id: str, poison: bytes
    ) -> None:
        """Sent again without what was refused, until nothing more is, the batch is held, and nothing good was named."""
        good = parcel_batch(outbox_id, 0, 5)
        entries = [entry._replace(payload=poison) if entry.position in (2, 4) else entry for entry in good.entries]
        while len(entries) > 3:
            with pytest.raises(EntriesRejected) as rejected:
                sink.send(batch_of(outbox_id, 0, entries))
            assert rejected.value.reasons
            assert set(rejected.value.reasons) <= {2, 4}
            entries = [entry for entry in entries if entry.position not in rejected.value.reasons]
        rest = batch_of(outbox_id, 0, entries)
        sink.send(rest)
        assert list(destination.payloads()) == payloads(rest) == payloads(good)[::2]

    def test_poison_far_into_a_batch_is_named(
        self, destination: Destination, sink: Sink, outbox_id: str, poison: bytes
    ) -> None:
        """Wherever in a batch of the usual size the poison is, it is named, and nothing of the batch is taken."""
        good = parcel_batch(outbox_id, 0, _USUAL)
        entries = [entry._replace(payload=poison) if entry.position == _USUAL - 1 else entry for entry in good.entries]
        with Refusal(f"entry {_USUAL - 1} of {_USUAL} is poison", EntriesRejected) as refusal:
            sink.send(batch_of(outbox_id, 0, entries))
        assert list(refusal.error.reasons) == [_USUAL - 1]
        assert list(destination.payloads()) == []

    # a failure midway

    @pytest.fixture
    def interrupt(self, destination: Destination) -> Interrupt:
        """Give a block within which sending 20 entries fails midway."""
        assert destination.interrupt is not None, (
            "Capabilities(interruptible=True) needs Destination.interrupt, or a fixture named interrupt"
        )
        return destination.interrupt

    @pytest.fixture
    def _interruptible(self) -> None:
        self.capabilities.need("interruptible")

    @pytest.fixture
    def failing(self, _interruptible: None, interrupt: Interrupt) -> Interrupt:
        """Give ``interrupt`` to the tests, if the backend can be interrupted."""
        return interrupt

    def test_a_send_that_fails_says_so(self, sink: Sink, outbox_id: str, failing: Interrupt) -> None:
        """What fails midway raises SinkUnavailable, or SinkFull; no error of the storage itself, and not nothing."""
        first, second = parcel_batches(outbox_id, 3, 20)
        sink.send(first)
        with failing(), Refusal("sending failed midway", SinkUnavailable, SinkFull):
            sink.send(second)

    def test_a_send_that_fails_takes_all_or_nothing(
        self, destination: Destination, sink: Sink, outbox_id: str, failing: Interrupt
    ) -> None:
        """What fails midway leaves the whole batch or nothing of it, and the mark that belongs to that."""
        first, second = parcel_batches(outbox_id, 3, 20)
        sink.send(first)
        with failing(), suppress(SinkUnavailable, SinkFull):
            sink.send(second)
        mark = sink.mark(outbox_id)
        held = list(destination.payloads())
        assert held in (payloads(first), payloads(first, second))
        if self.capabilities.holds_mark:
            assert mark == (first if held == payloads(first) else second).mark

    def test_a_send_that_failed_can_be_repeated(
        self, destination: Destination, sink: Sink, outbox_id: str, failing: Interrupt
    ) -> None:
        """Once the trouble is over, the relay asks for the mark, sends what is not held, and all is there once."""
        first, second = parcel_batches(outbox_id, 3, 20)
        sink.send(first)
        with failing(), suppress(SinkUnavailable, SinkFull):
            sink.send(second)
        if sink.mark(outbox_id) != second.mark:
            sink.send(second)
        held = list(destination.payloads())
        assert len(held) == 23, f"after a failure, {len(held)} entries are held instead of 23"
        assert held == payloads(first, second)

    @needs_mark
    def test_after_a_failure_the_mark_is_asked_for_anew(
        self, destination: Destination, sink: Sink, outbox_id: str, failing: Interrupt
    ) -> None:
        """What a sink knew when a send failed may no longer be so: another one may have sent since."""
        first, second = parcel_batches(outbox_id, 3, 20)
        sink.send(first)
        with failing(), suppress(SinkUnavailable, SinkFull):
            sink.send(second)
        with destination.open() as other:
            if other.mark(outbox_id) != second.mark:
                other.send(second)
        held = sink.mark(outbox_id)
        assert held == second.mark, f"another sink sent a batch since, but this one still says that it holds {held!r}"

    # nobody there

    @pytest.fixture
    def unreachable(self, destination: Destination) -> Callable[[], Sink]:
        """Give a function that opens a sink whose target cannot be reached, once it is known to keep nobody waiting."""
        self.capabilities.need("remote")
        opened = destination.unreachable
        assert opened is not None, "Capabilities(remote=True) needs Destination.unreachable"

        def use() -> None:
            with pausing_with(lambda _: False):
                with suppress(SinkUnavailable), opened() as sink:
                    sink.mark("nobody")
                with opened() as sink:
                    sink.send(parcel_batch("nobody", 0, 3))

        def open_one() -> Sink:
            assert ends_in_time(use, self.patience), (
                f"the target cannot be reached, and mark and send did not end within {self.patience:g} s although "
                "owm_outbox.pause returned False: wait with it instead of time.sleep, and give each attempt a timeout"
            )
            return opened()

        return open_one

    def test_an_unreachable_sink_can_be_opened(self, unreachable: Callable[[], Sink]) -> None:
        """A target that is down is not a mistake in the URL, so that a job is extracted all the same."""
        with suppress(SinkUnavailable), unreachable():
            pass

    def test_an_unreachable_sink_can_be_closed(self, unreachable: Callable[[], Sink]) -> None:
        """Closing raises nothing: a run whose tasks wait in the outbox is over by then, and has said how it ended."""
        with suppress(SinkUnavailable):
            sink = unreachable()
            with suppress(SinkUnavailable):
                sink.mark("nobody")
            try:
                sink.close()
            except Exception as error:
                pytest.fail(f"the target cannot be reached, and close raised {type(error).__name__}: {error}")

    def test_an_unreachable_sink_takes_nothing(self, unreachable: Callable[[], Sink], outbox_id: str) -> None:
        """If the target cannot be reached, send raises SinkUnavailable, so that the relay tries again later."""
        with Refusal("the target cannot be reached", SinkUnavailable), unreachable() as sink:
            sink.send(parcel_batch(outbox_id, 0, 3))

    def test_an_unreachable_sink_gives_up_when_told(self, unreachable: Callable[[], Sink]) -> None:
        """Attempts end within seconds when `owm_outbox.pause` returns False: a stop and an extraction do not wait."""
        with suppress(SinkUnavailable), unreachable():  # which tries
            pass

    @needs_mark
    def test_an_unreachable_sink_does_not_know_its_mark(self, unreachable: Callable[[], Sink], outbox_id: str) -> None:
        """If the target cannot be reached, mark raises SinkUnavailable: "" would mean that it holds nothing."""
        with Refusal("the target cannot be reached", SinkUnavailable), unreachable() as sink:
            held = sink.mark(outbox_id)
            pytest.fail(f"the target cannot be reached, but the sink says that it holds {held!r}")
