"""What sinks on the same destination promise each other."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable

import pytest

from owm_outbox.errors import MarkConflict
from owm_outbox.sink import Sink
from owm_outbox.testing.destination import Destination
from owm_outbox.testing.parcels import parcel_batches, payloads
from owm_outbox.testing.processes import killed_at_random
from owm_outbox.testing.sink_fixtures import SinkFixtures, needs_mark
from owm_outbox.testing.threads import in_threads

__all__ = ["SinkSharing"]

_KILLS = 30
_IN_ONE = "are the entries and the mark stored in one transaction, which also reads the mark before?"


class SinkSharing(SinkFixtures):
    """Several objects, threads and processes agree on what is held."""

    def test_the_mark_of_an_unknown_outbox_is_empty_or_untold(self, sink: Sink, outbox_id: str) -> None:
        """A sink that holds marks says "" for an outbox that it has not heard of; one that does not says None."""
        assert sink.mark(outbox_id) == ("" if self.capabilities.holds_mark else None)

    @needs_mark
    def test_another_sink_knows_what_the_first_one_sent(
        self, destination: Destination, sink: Sink, outbox_id: str
    ) -> None:
        """The mark belongs to the destination, not to the object: one that asked before is told the news, too."""
        batch, following = parcel_batches(outbox_id, 3, 2)
        with destination.open() as other:
            assert other.mark(outbox_id) == ""
            sink.send(batch)
            assert other.mark(outbox_id) == batch.mark
            with pytest.raises(MarkConflict) as conflict:
                other.send(batch)
            assert conflict.value.held == batch.mark
            other.send(following)
        assert sink.mark(outbox_id) == following.mark
        assert list(destination.payloads()) == payloads(batch, following)

    @needs_mark
    def test_two_at_once_add_a_batch_once(self, destination: Destination, outbox_id: str) -> None:
        """Of several sinks that send the same batch at the same time, one is taken and the others are refused."""
        batches = parcel_batches(outbox_id, *[8] * 10)
        outcomes: dict[str, list[str]] = {batch.mark: [] for batch in batches}

        def send(_: int, meet: threading.Barrier) -> None:
            with destination.open() as sink:
                for batch in batches:
                    meet.wait()
                    try:
                        sink.send(batch)
                    except MarkConflict:
                        outcomes[batch.mark].append("refused")
                    else:
                        outcomes[batch.mark].append("taken")

        in_threads(4, send)
        for batch in batches:
            taken = outcomes[batch.mark].count("taken")
            assert taken == 1, f"4 sinks sent one batch at once, and it was taken {taken} times: {_IN_ONE}"
        assert list(destination.payloads()) == payloads(*batches), _IN_ONE

    def test_two_outboxes_at_once_lose_nothing(self, destination: Destination) -> None:
        """Sinks that deliver for different outboxes at the same time do not undo what the other one did."""
        ids = [str(uuid.uuid4()) for _ in range(3)]
        batches = {outbox_id: parcel_batches(outbox_id, *[3] * 10) for outbox_id in ids}

        def send(number: int, meet: threading.Barrier) -> None:
            with destination.open() as sink:
                for batch in batches[ids[number]]:
                    meet.wait()
                    sink.send(batch)

        in_threads(len(ids), send)
        held = list(destination.payloads())
        with destination.open() as sink:
            for outbox_id in ids:
                own = payloads(*batches[outbox_id])
                mine = set(own)
                assert [payload for payload in held if payload in mine] == own
                last = batches[outbox_id][-1].mark
                assert sink.mark(outbox_id) == (last if self.capabilities.holds_mark else None)
        assert len(held) == 30 * len(ids)

    def test_it_survives_the_object(self, destination: Destination, outbox_id: str) -> None:
        """What a sink holds, and its mark, is there for the next one that is opened on the same destination."""
        self.capabilities.need("durable")
        batch, following = parcel_batches(outbox_id, 3, 2)
        with destination.open() as sink:
            sink.send(batch)
        with destination.open() as sink:
            assert sink.mark(outbox_id) == (batch.mark if self.capabilities.holds_mark else None)
            sink.send(following)
        assert list(destination.payloads()) == payloads(batch, following)

    @needs_mark
    def test_entries_and_mark_agree_after_a_kill(self, destination: Destination, outbox_id: str) -> None:
        """Killed with SIGKILL at any moment, a sink leaves whole batches and the mark of the last one of them."""
        self.capabilities.need("durable")
        batches = parcel_batches(outbox_id, *[20] * 8 * _KILLS)
        sent = {"": 0} | {batch.mark: number for number, batch in enumerate(batches, start=1)}

        def send(finish_step: Callable[[], None]) -> None:
            with destination.open() as sink:
                for batch in batches[sent[sink.mark(outbox_id) or ""] :]:
                    sink.send(batch)
                    finish_step()

        chance, before = random.Random(20), 0  # noqa: S311 - chooses moments
        for _ in range(_KILLS):
            finished = killed_at_random(send, chance)
            deadline = time.monotonic() + 2.0  # a server may still be at work on what a dead client sent
            while True:
                with destination.open() as sink:
                    mark = sink.mark(outbox_id)
                held = len(destination.payloads())
                if mark in sent and held == 20 * sent[mark] >= 20 * (before + finished):
                    break
                assert time.monotonic() < deadline, (
                    f"after a kill, the mark is that of batch {sent.get(mark or '')}, {held} entries are held, and "
                    f"send had returned from {before + finished} batches of 20: {_IN_ONE}"
                )
                time.sleep(0.05)
            before = sent[mark]
        assert list(destination.payloads()) == payloads(*batches[:before])

    def test_it_can_be_closed_twice(self, destination: Destination) -> None:
        """Closing is safe at any time, also for the second time."""
        sink = destination.open()
        sink.close()
        sink.close()
