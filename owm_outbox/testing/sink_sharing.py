"""What sinks on the same destination promise each other."""

from __future__ import annotations

import itertools
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
from owm_outbox.testing.sweep import killed_at_each_call
from owm_outbox.testing.threads import in_threads

__all__ = ["SinkSharing"]

_KILLS = 10
_LARGE = 600  # more than a relay's usual batch
_LARGE_ONES = 12
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

    def test_it_may_be_used_on_another_thread(self, destination: Destination, outbox_id: str) -> None:
        """A service opens and closes a sink on its main thread, and its relay sends on one of its own."""
        first, *others = parcel_batches(outbox_id, 3, 3, 3)

        def send(_: int, __: threading.Barrier) -> None:
            for batch in others:
                sink.mark(outbox_id)
                sink.send(batch)

        sink = destination.open()
        sink.mark(outbox_id)
        sink.send(first)
        try:
            in_threads(1, send)
        except Exception as error:
            pytest.fail(f"used on another thread than the one that opened it, the sink failed: {error}")
        sink.close()
        assert list(destination.payloads()) == payloads(first, *others)

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
        """Killed with SIGKILL at any call or moment, a sink leaves whole batches and the mark of the last of them."""
        self.capabilities.need("durable")
        batches = parcel_batches(outbox_id, *[_LARGE] * _LARGE_ONES, *[20] * 8 * _KILLS)
        number_of = {"": 0} | {batch.mark: number for number, batch in enumerate(batches, start=1)}
        entries = [0, *itertools.accumulate(len(batch.entries) for batch in batches)]
        before = 0

        def send(finish_step: Callable[[], None], most: int | None = None) -> None:
            with destination.open() as sink:
                for batch in batches[number_of.get(sink.mark(outbox_id) or "", 0) :][:most]:
                    sink.send(batch)
                    finish_step()

        def check(finished: int, where: str) -> int:
            deadline = time.monotonic() + self.settling
            while True:
                with destination.open() as sink:
                    mark = sink.mark(outbox_id)
                held, number = len(destination.payloads()), number_of.get(mark or "", -1)
                if number >= before + finished and held == entries[number]:
                    return number
                assert time.monotonic() < deadline, (
                    f"killed {where}: the mark is that of {entries[number]} entries, {held} are held, and send had "
                    f"returned from {entries[before + finished]}: {_IN_ONE}"
                )
                time.sleep(0.05)

        for kill in killed_at_each_call(lambda finish_step: send(finish_step, most=1), most=40):
            before = check(*kill)
            if before == _LARGE_ONES:
                break
        chance = random.Random(20)  # noqa: S311 - chooses moments
        for _ in range(_KILLS):
            before = check(killed_at_random(send, chance), "at a random moment")
        assert list(destination.payloads()) == payloads(*batches[:before])

    def test_what_was_sent_is_held_after_a_kill(self, destination: Destination, outbox_id: str) -> None:
        """Killed with SIGKILL at any call, a sink holds what send had returned from, and what is sent afterwards."""
        self.capabilities.need("durable")
        batches = parcel_batches(outbox_id, *[20] * 100)
        number_of = {"": 0} | {batch.mark: number for number, batch in enumerate(batches, start=1)}
        before = 0

        def send(finish_step: Callable[[], None]) -> None:
            with destination.open() as sink:
                mark = sink.mark(outbox_id)
                for batch in batches[before if mark is None else number_of[mark] :][:2]:
                    sink.send(batch)
                    finish_step()

        for finished, where in killed_at_each_call(send, most=15):
            before += finished
            missing = set(payloads(*batches[:before])).difference(destination.payloads())
            assert not missing, (
                f"killed {where}: send had returned from {20 * before} entries, but {len(missing)} of them are not "
                f"held as they were sent, such as {min(missing)!r}: are they written before send returns, and what "
                "does the next one do with what a killed one left?"
            )

    def test_it_can_be_closed_twice(self, destination: Destination) -> None:
        """Closing is safe at any time, also for the second time."""
        sink = destination.open()
        sink.close()
        sink.close()
