"""The contracts as pytest classes: subclass one, give it a fixture, and it says whether your plugin keeps its promises.

For a sink::

    class TestCarrierPigeonSink(SinkContract):
        capabilities = Capabilities(tracks_position=False)

        @pytest.fixture
        def place(self, tmp_path):
            loft = tmp_path / "loft"
            return Place(lambda: CarrierPigeonSink(loft), lambda: read_payloads(loft))

For an outbox::

    class TestDrawerOutbox(OutboxContract):
        @pytest.fixture
        def open_outbox(self, tmp_path):
            return lambda: DrawerOutbox(tmp_path / "drawer")

The names and docstrings of the tests are the specification. What a backend cannot do, its `Capabilities` say: the
tests for it are then skipped, with the reason. Needs pytest, which this package does not install; it shows the values
of a failed comparison if your ``conftest.py`` says, before anything imports this module::

    pytest.register_assert_rewrite("owm_outbox.testing")

Versions follow the package's: a minor one may add tests for what the docstrings of `Sink` and `Outbox` already say, a
new field of `Capabilities` only with a default that asks nothing more of you.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import pytest

from owm_outbox.errors import (
    EntriesRejected,
    OutboxLocked,
    PositionConflict,
    SinkFull,
    SinkUnavailable,
    TaskError,
)
from owm_outbox.job import Job, Page, Run
from owm_outbox.outbox import DeadLetterStore, Outbox
from owm_outbox.report import RunReport
from owm_outbox.sink import Place, Sink
from owm_outbox.task import Batch, Entry, Key, Rejected

__all__ = ["Capabilities", "OutboxContract", "Parcel", "ParcelJob", "Place", "SinkContract", "parcel_batch"]


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do. The defaults are the most that a contract asks.

    :param durable: what it holds survives the object: opened again, it is there.
    :param tracks_position: a sink stores the position with each batch, so that delivery is effectively once.
    :param bounded: a sink says `SinkFull` at some point; `Place.fill` brings it there.
    :param rejects: a sink refuses some payloads for good; `Place.poison` is one.
    :param interruptible: a send can be made to fail midway: the contract's fixture ``interrupt`` does so.
    :param dead_letters: an outbox is a `DeadLetterStore`, too.
    """

    durable: bool = True
    tracks_position: bool = True
    bounded: bool = False
    rejects: bool = False
    interruptible: bool = False
    dead_letters: bool = True

    def need(self, what: str) -> None:
        """Skip the running test, with the reason, unless the backend can do ``what``."""
        if not getattr(self, what):
            pytest.skip(f"this backend says {what}=False in its Capabilities")


class Parcel(msgspec.Struct, frozen=True):
    """A task to test with."""

    task_id: uuid.UUID
    number: int
    address: str = "Zürich, 東京"


class ParcelJob(Job[Parcel]):
    """A job to test with: ``count`` parcels in pages of ``size``, keyed by their number."""

    name = "parcels"

    def __init__(self, count: int = 30, size: int = 10) -> None:
        super().__init__()
        self.count = count
        self.size = size

    def key(self, task: Parcel) -> Key:
        """Tell parcels apart by their number."""
        return task.number

    def pages(self, run: Run) -> Iterator[Page[Parcel]]:
        """Yield what comes after the checkpoint, which is the number of the next parcel."""
        for first in range(int(run.checkpoint or 0), self.count, self.size):
            after = min(first + self.size, self.count)
            tasks = [Parcel(run.task_id(number), number) for number in range(first, after)]
            yield Page(tasks, str(after).encode(), expected=self.count)


def parcel_batch(outbox_id: str, after: int, count: int) -> Batch:
    """Make a batch of ``count`` entries at the positions that follow ``after``.

    No other encoder writes these payloads: who decodes them and encodes them again changes them. In one text they hold
    escapes, Latin, Japanese, four-byte characters and both characters at which only Unicode ends a line.
    """
    entries = []
    for position in range(after + 1, after + 1 + count):
        task_id = str(uuid.uuid5(uuid.UUID(int=0), f"{outbox_id} {position}"))
        text = f'{{"task_id":"{task_id}" , "number": {position},"address":"Z\\u00fcrich ü 東京 📦 \x85 \u2028 \\n"}}'
        entries.append(Entry(position, task_id, text.encode()))
    return Batch(outbox_id, after, entries)


def _payloads(*batches: Batch) -> list[bytes]:
    return [entry.payload for batch in batches for entry in batch.entries]


def _in_threads(count: int, work: Callable[[int, threading.Barrier], None]) -> None:
    """Call ``work`` with 0, 1, … in as many threads at once, with a barrier to meet at; raise what any raised first."""
    failures: list[BaseException] = []
    meet = threading.Barrier(count)

    def guarded(number: int) -> None:
        try:
            work(number, meet)
        except BaseException as error:
            failures.append(error)
            meet.abort()  # or the others would wait for this one

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# -- sinks


class SinkContract:
    """What `owm_outbox.Sink` promises. Give it a fixture ``place``, which is new and empty for each test.

    A place that is bounded has room for 100 entries, until ``Place.fill`` leaves less than 50.
    """

    capabilities = Capabilities()

    @pytest.fixture
    def place(self) -> Place:
        """Give the place to deliver to; every subclass has its own."""
        raise NotImplementedError("give your subclass a fixture named place, see owm_outbox.testing")

    @pytest.fixture
    def sink(self, place: Place) -> Iterator[Sink]:
        """Open the sink under test."""
        with place.open() as sink:
            yield sink

    @pytest.fixture
    def outbox_id(self) -> str:
        """Name an outbox that no sink has heard of."""
        return str(uuid.uuid4())

    def test_a_batch_is_held_whole_and_in_order(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """When send returns, every entry of the batch is there, once, in order, byte for byte."""
        batch = parcel_batch(outbox_id, 0, 7)
        sink.send(batch)
        assert list(place.held()) == _payloads(batch)

    def test_batches_follow_each_other(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """Batches are held in the order in which they were sent, with nothing between, twice or missing."""
        batches = [parcel_batch(outbox_id, after, 5) for after in (0, 5, 10)]
        for batch in batches:
            sink.send(batch)
        assert list(place.held()) == _payloads(*batches)

    def test_a_batch_of_one_is_held(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """A batch may be a single entry."""
        batch = parcel_batch(outbox_id, 0, 1)
        sink.send(batch)
        assert list(place.held()) == _payloads(batch)

    def test_gaps_between_positions_are_fine(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """Positions of a batch need not be consecutive, nor start right after the held one: dead letters leave gaps."""
        whole = parcel_batch(outbox_id, 0, 9)
        first = Batch(outbox_id, 0, (whole.entries[1], whole.entries[4]))
        second = Batch(outbox_id, first.position, (whole.entries[6], whole.entries[8]))
        sink.send(first)
        sink.send(second)
        assert list(place.held()) == _payloads(first, second)

    def test_the_same_task_at_two_positions_is_held_twice(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """An application may append a task again: only the position says what is a repeat."""
        entry = parcel_batch(outbox_id, 0, 1).entries[0]
        again = [Entry(position, entry.task_id, entry.payload) for position in (2, 3)]
        sink.send(Batch(outbox_id, 0, [entry, again[0]]))
        sink.send(Batch(outbox_id, 2, [again[1]]))
        assert list(place.held()) == [entry.payload] * 3

    def test_a_large_payload_is_held_whole(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """A payload of 64 KiB comes out as it went in."""
        entry = parcel_batch(outbox_id, 0, 1).entries[0]
        payload = entry.payload[:-1] + b', "contents": "' + b"x" * 64 * 1024 + b'"}'
        sink.send(Batch(outbox_id, 0, [Entry(1, entry.task_id, payload)]))
        assert list(place.held()) == [payload]

    # the position

    def test_the_position_of_an_unknown_outbox_is_zero_or_untold(self, sink: Sink, outbox_id: str) -> None:
        """A sink that tracks positions says 0 for an outbox it never heard of; one that does not says None."""
        assert sink.position(outbox_id) == (0 if self.capabilities.tracks_position else None)

    def test_the_position_comes_with_the_batch(self, sink: Sink, outbox_id: str) -> None:
        """Once a batch is held, so is its position: an integer."""
        self.capabilities.need("tracks_position")
        batch = parcel_batch(outbox_id, 0, 3)
        sink.send(batch)
        position = sink.position(outbox_id)
        assert type(position) is int
        assert position == batch.position

    def test_positions_are_exact_beyond_53_bits(self, sink: Sink, outbox_id: str) -> None:
        """Positions are integers, not floats: neighbours beyond 2^53 stay apart."""
        self.capabilities.need("tracks_position")
        entry = parcel_batch(outbox_id, 0, 1).entries[0]
        far = 2**53
        sink.send(Batch(outbox_id, 0, [Entry(far, entry.task_id, entry.payload)]))
        assert sink.position(outbox_id) == far
        with pytest.raises(PositionConflict):
            sink.send(Batch(outbox_id, far + 1, [Entry(far + 2, entry.task_id, entry.payload)]))

    def test_a_batch_sent_again_is_refused_whole(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """A batch that does not start from the held position adds nothing, and the answer says what is held."""
        self.capabilities.need("tracks_position")
        batch = parcel_batch(outbox_id, 0, 3)
        sink.send(batch)
        with pytest.raises(PositionConflict) as conflict:
            sink.send(batch)
        assert conflict.value.held == batch.position
        assert list(place.held()) == _payloads(batch)
        assert sink.position(outbox_id) == batch.position

    def test_an_overlapping_batch_is_refused_whole(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """A batch of which the sink holds a part adds nothing, not even what is new in it."""
        self.capabilities.need("tracks_position")
        batch = parcel_batch(outbox_id, 0, 3)
        sink.send(batch)
        with pytest.raises(PositionConflict) as conflict:
            sink.send(parcel_batch(outbox_id, 1, 4))
        assert conflict.value.held == batch.position
        assert list(place.held()) == _payloads(batch)
        assert sink.position(outbox_id) == batch.position

    def test_a_batch_from_the_future_is_refused_whole(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """A batch that would leave a hole behind the held position adds nothing."""
        self.capabilities.need("tracks_position")
        with pytest.raises(PositionConflict) as conflict:
            sink.send(parcel_batch(outbox_id, 10, 3))
        assert conflict.value.held == 0
        assert list(place.held()) == []
        assert sink.position(outbox_id) == 0

    def test_after_a_conflict_the_right_batch_is_taken(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """A refused batch leaves nothing in the way of the one that starts from the held position."""
        self.capabilities.need("tracks_position")
        batch, following = parcel_batch(outbox_id, 0, 3), parcel_batch(outbox_id, 3, 2)
        sink.send(batch)
        with pytest.raises(PositionConflict):
            sink.send(batch)
        sink.send(following)
        assert list(place.held()) == _payloads(batch, following)

    def test_outboxes_do_not_mix(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """Each outbox has a position of its own, even if all deliver to the same place."""
        self.capabilities.need("tracks_position")
        mine, other = parcel_batch(outbox_id, 0, 3), parcel_batch(str(uuid.uuid4()), 0, 2)
        sink.send(mine)
        sink.send(other)
        assert sink.position(mine.outbox_id) == 3
        assert sink.position(other.outbox_id) == 2
        assert list(place.held()) == _payloads(mine, other)

    def test_outboxes_of_similar_names_do_not_mix(self, sink: Sink) -> None:
        """The id of an outbox is any text; ids that differ in a letter's case, an end or a sign are different."""
        self.capabilities.need("tracks_position")
        ids = ["Depot/Ä 1", "depot/Ä 1", "Depot/Ä 1 ", "Depot/Ä", "Depot_Ä 1", "Depot/Ä:{1}?*"]
        for count, outbox_id in enumerate(ids, start=1):
            sink.send(parcel_batch(outbox_id, 0, count))
        assert [sink.position(outbox_id) for outbox_id in ids] == list(range(1, len(ids) + 1))

    # more than one sink on the same place

    def test_another_sink_knows_what_the_first_one_sent(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """The position belongs to the place, not to the object: one that asked before is told the news, too."""
        self.capabilities.need("tracks_position")
        batch, following = parcel_batch(outbox_id, 0, 3), parcel_batch(outbox_id, 3, 2)
        with place.open() as other:
            assert other.position(outbox_id) == 0
            sink.send(batch)
            assert other.position(outbox_id) == batch.position
            with pytest.raises(PositionConflict) as conflict:
                other.send(batch)
            assert conflict.value.held == batch.position
            other.send(following)
        assert sink.position(outbox_id) == following.position
        assert list(place.held()) == _payloads(batch, following)

    def test_two_at_once_add_a_batch_once(self, place: Place, outbox_id: str) -> None:
        """Of several sinks that send the same batch at the same time, one is taken and the others are refused."""
        self.capabilities.need("tracks_position")
        batches = [parcel_batch(outbox_id, after, 8) for after in range(0, 80, 8)]
        outcomes: list[tuple[int, str]] = []

        def send(_: int, meet: threading.Barrier) -> None:
            with place.open() as sink:
                for batch in batches:
                    meet.wait()
                    try:
                        sink.send(batch)
                        outcomes.append((batch.after, "taken"))
                    except PositionConflict:
                        outcomes.append((batch.after, "refused"))

        _in_threads(4, send)
        for batch in batches:
            assert sorted(what for after, what in outcomes if after == batch.after) == [*["refused"] * 3, "taken"]
        assert list(place.held()) == _payloads(*batches)

    def test_two_outboxes_at_once_lose_nothing(self, place: Place) -> None:
        """Sinks that deliver for different outboxes at the same time do not undo what the other one did."""
        ids = [str(uuid.uuid4()) for _ in range(3)]
        batches = {outbox_id: [parcel_batch(outbox_id, after, 3) for after in range(0, 30, 3)] for outbox_id in ids}

        def send(number: int, meet: threading.Barrier) -> None:
            with place.open() as sink:
                for batch in batches[ids[number]]:
                    meet.wait()
                    sink.send(batch)

        _in_threads(len(ids), send)
        held = list(place.held())
        with place.open() as sink:
            for outbox_id in ids:
                own = _payloads(*batches[outbox_id])
                mine = set(own)
                assert [payload for payload in held if payload in mine] == own
                assert sink.position(outbox_id) == (30 if self.capabilities.tracks_position else None)
        assert len(held) == 30 * len(ids)

    def test_it_survives_the_object(self, place: Place, outbox_id: str) -> None:
        """What a sink holds, and its position, is there for the next one that is opened on the same place."""
        self.capabilities.need("durable")
        batch = parcel_batch(outbox_id, 0, 3)
        with place.open() as sink:
            sink.send(batch)
        with place.open() as sink:
            assert sink.position(outbox_id) == (3 if self.capabilities.tracks_position else None)
            following = parcel_batch(outbox_id, 3, 2)
            sink.send(following)
        assert list(place.held()) == _payloads(batch, following)

    def test_it_can_be_closed_twice(self, place: Place) -> None:
        """Closing is safe at any time, also again."""
        sink = place.open()
        sink.close()
        sink.close()

    # saying no

    @pytest.fixture
    def full_place(self, place: Place) -> Place:
        """Give the place, without room for 50 entries."""
        self.capabilities.need("bounded")
        assert place.fill is not None, "a bounded sink needs Place.fill"
        place.fill()
        return place

    def test_a_full_sink_takes_nothing_and_says_so(self, full_place: Place, sink: Sink, outbox_id: str) -> None:
        """Without room for a batch, send raises SinkFull, holds nothing of it, and keeps its position."""
        before = list(full_place.held())
        position = sink.position(outbox_id)
        with pytest.raises(SinkFull) as full:
            sink.send(parcel_batch(outbox_id, 0, 50))
        assert 0 <= full.value.room < 50
        assert list(full_place.held()) == before
        assert sink.position(outbox_id) == position

    def test_a_full_sink_takes_as_many_as_it_said(self, full_place: Place, sink: Sink, outbox_id: str) -> None:
        """The room that SinkFull tells is there: so many are taken, and if it is 0, not a single one."""
        with pytest.raises(SinkFull) as full:
            sink.send(parcel_batch(outbox_id, 0, 50))
        batch = parcel_batch(outbox_id, 0, full.value.room or 1)
        if full.value.room:
            sink.send(batch)
            assert list(full_place.held())[-len(batch.entries) :] == _payloads(batch)
        else:
            with pytest.raises(SinkFull):
                sink.send(batch)

    @pytest.fixture
    def poison(self, place: Place) -> bytes:
        """Give a payload that the sink will never take."""
        self.capabilities.need("rejects")
        assert place.poison is not None, "a sink that rejects needs Place.poison"
        return place.poison

    def test_poison_is_named_and_the_rest_untouched(
        self, place: Place, sink: Sink, outbox_id: str, poison: bytes
    ) -> None:
        """A payload that will never be taken is named by its position, and nothing of its batch is held."""
        first = parcel_batch(outbox_id, 0, 4)
        sink.send(first)
        good = parcel_batch(outbox_id, 4, 3)
        bad = Entry(6, good.entries[1].task_id, poison)
        position = sink.position(outbox_id)
        with pytest.raises(EntriesRejected) as rejected:
            sink.send(Batch(outbox_id, 4, [good.entries[0], bad, good.entries[2]]))
        assert list(rejected.value.reasons) == [6]
        assert rejected.value.reasons[6].strip()
        assert list(place.held()) == _payloads(first)
        assert sink.position(outbox_id) == position

    def test_the_rest_of_a_batch_with_poison_is_taken(
        self, place: Place, sink: Sink, outbox_id: str, poison: bytes
    ) -> None:
        """Sent again without what was refused, until nothing more is, the batch is held, and nothing good was named."""
        good = parcel_batch(outbox_id, 0, 5)
        entries = [
            Entry(entry.position, entry.task_id, poison) if entry.position in (2, 4) else entry
            for entry in good.entries
        ]
        while len(entries) > 3:
            with pytest.raises(EntriesRejected) as rejected:
                sink.send(Batch(outbox_id, 0, entries))
            assert rejected.value.reasons
            assert set(rejected.value.reasons) <= {2, 4}
            entries = [entry for entry in entries if entry.position not in rejected.value.reasons]
        rest = Batch(outbox_id, 0, entries)
        sink.send(rest)
        assert list(place.held()) == _payloads(rest) == _payloads(good)[::2]

    @pytest.fixture
    def interrupt(self) -> Callable[[], AbstractContextManager[object]]:
        """Give a block within which sending 20 entries fails midway, as on a full disk or a connection that is cut.

        A subclass whose capabilities say ``interruptible`` has its own.
        """
        raise NotImplementedError("give your subclass a fixture named interrupt, see owm_outbox.testing")

    @pytest.fixture
    def _interruptible(self) -> None:
        self.capabilities.need("interruptible")

    @pytest.fixture
    def trouble(
        self, _interruptible: None, interrupt: Callable[[], AbstractContextManager[object]]
    ) -> Callable[[], AbstractContextManager[object]]:
        """Give ``interrupt`` to the tests, if the backend can be interrupted."""
        return interrupt

    def test_a_send_that_fails_says_so(
        self, sink: Sink, outbox_id: str, trouble: Callable[[], AbstractContextManager[object]]
    ) -> None:
        """What fails midway raises SinkUnavailable, or SinkFull; no error of the storage itself, and not nothing."""
        sink.send(parcel_batch(outbox_id, 0, 3))
        with trouble(), pytest.raises((SinkUnavailable, SinkFull)):
            sink.send(parcel_batch(outbox_id, 3, 20))

    def test_a_send_that_fails_takes_all_or_nothing(
        self, place: Place, sink: Sink, outbox_id: str, trouble: Callable[[], AbstractContextManager[object]]
    ) -> None:
        """What fails midway leaves the whole batch or nothing of it, and the position that belongs to that."""
        first, second = parcel_batch(outbox_id, 0, 3), parcel_batch(outbox_id, 3, 20)
        sink.send(first)
        with trouble(), pytest.raises((SinkUnavailable, SinkFull)):
            sink.send(second)
        position = sink.position(outbox_id)
        held = list(place.held())
        assert held in (_payloads(first), _payloads(first, second))
        if self.capabilities.tracks_position:
            assert position == (first if held == _payloads(first) else second).position

    def test_a_send_that_failed_can_be_repeated(
        self, place: Place, sink: Sink, outbox_id: str, trouble: Callable[[], AbstractContextManager[object]]
    ) -> None:
        """Once the trouble is over, the relay asks for the position, sends what is not held, and all is there once."""
        first, second = parcel_batch(outbox_id, 0, 3), parcel_batch(outbox_id, 3, 20)
        sink.send(first)
        with trouble(), pytest.raises((SinkUnavailable, SinkFull)):
            sink.send(second)
        if sink.position(outbox_id) != second.position:
            sink.send(second)
        assert list(place.held()) == _payloads(first, second)


# -- outboxes


def _report(run: Run, *, complete: bool) -> RunReport:
    return RunReport(
        run_id=run.id,
        job=run.job,
        resumed=run.resumed,
        complete=complete,
        expected=run.expected,
        extracted=run.extracted,
        duplicates=run.duplicates,
        delivered=0,
        redelivered=0,
        rejected=run.rejected,
        pending=0,
        missing=[],
        seconds=0.0,
    )


def _numbers(entries: Sequence[Entry]) -> list[int]:
    return [json.loads(entry.payload)["number"] for entry in entries]


@contextmanager
def _holding_the_lock(open_outbox: Callable[[], Outbox]) -> Iterator[Callable[[], None]]:
    """Have another process hold the lock; yield what kills it."""
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        # A fork beside threads is deprecated, but open_outbox cannot be sent to a process that starts otherwise.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.close(ours)
            with open_outbox() as outbox, outbox.lock():
                os.write(theirs, b"held")
                while True:
                    signal.pause()
        finally:
            os._exit(1)  # whatever happened: the rest of the tests is the parent's
    os.close(theirs)

    def kill() -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        alive.clear()

    alive = [pid]
    try:
        assert os.read(ours, 4) == b"held", "the other process could not take the lock"
        yield kill
    finally:
        os.close(ours)
        if alive:
            kill()


class OutboxContract:
    """What `owm_outbox.Outbox` promises. Its fixture ``open_outbox`` is a function that opens the same one again."""

    capabilities = Capabilities()

    @pytest.fixture
    def open_outbox(self) -> Callable[[], Outbox]:
        """Give a function that opens the outbox under test; every subclass has its own."""
        raise NotImplementedError("give your subclass a fixture named open_outbox, see owm_outbox.testing")

    @pytest.fixture
    def outbox(self, open_outbox: Callable[[], Outbox]) -> Iterator[Outbox]:
        """Open the outbox under test."""
        with open_outbox() as outbox:
            yield outbox

    @pytest.fixture
    def job(self) -> ParcelJob:
        """Give a job to store tasks for."""
        return ParcelJob()

    @staticmethod
    def _parcels(run: Run, *numbers: int) -> list[Parcel]:
        return [Parcel(run.task_id(number), number) for number in numbers]

    def _stored(self, outbox: Outbox, job: ParcelJob, *numbers: int) -> Run:
        run = outbox.start_run(job)
        outbox.append(self._parcels(run, *numbers), run=run)
        return run

    # reading and writing

    def test_a_new_outbox_is_empty(self, outbox: Outbox) -> None:
        """Nothing is in a new outbox, and its first position is still to be given."""
        stats = outbox.stats()
        assert (stats.pending, stats.dead, stats.acknowledged, stats.last_position) == (0, 0, 0, 0)
        assert stats.oldest is None
        assert list(outbox.read(0, 10)) == []

    def test_tasks_are_read_in_the_order_of_their_positions(self, outbox: Outbox, job: ParcelJob) -> None:
        """What was appended is read back in order, at positions that grow from above 0."""
        self._stored(outbox, job, 3, 1, 2)
        entries = outbox.read(0, 10)
        assert _numbers(entries) == [3, 1, 2]
        positions = [entry.position for entry in entries]
        assert positions == sorted(set(positions))
        assert positions[0] > 0
        assert outbox.stats().last_position == positions[-1]

    def test_payloads_and_task_ids_come_back_exactly(self, outbox: Outbox, job: ParcelJob) -> None:
        """An entry is the task as JSON, with its task_id as the usual text."""
        run = self._stored(outbox, job, 1)
        entry = outbox.read(0, 1)[0]
        assert entry.task_id == str(run.task_id(1))
        assert msgspec.json.decode(entry.payload, type=Parcel) == Parcel(run.task_id(1), 1)

    def test_reading_goes_on_after_a_position_and_stops_at_a_limit(self, outbox: Outbox, job: ParcelJob) -> None:
        """Read returns what is beyond ``after``, at most ``limit`` entries, and changes nothing."""
        self._stored(outbox, job, *range(10))
        before = outbox.stats()
        first = outbox.read(0, 4)
        assert _numbers(first) == [0, 1, 2, 3]
        assert _numbers(outbox.read(first[-1].position, 3)) == [4, 5, 6]
        assert list(outbox.read(before.last_position, 3)) == []
        assert _numbers(outbox.read(0, 4)) == [0, 1, 2, 3]
        assert outbox.stats() == before

    def test_what_append_returned_from_is_committed(
        self, outbox: Outbox, open_outbox: Callable[[], Outbox], job: ParcelJob
    ) -> None:
        """As soon as append returns, its tasks and its checkpoint are there for whoever else opens the outbox."""
        run = outbox.start_run(job)
        outbox.append(self._parcels(run, 1), run=run, checkpoint=b"here")
        outbox.append([Parcel(uuid.uuid4(), 2)])
        with open_outbox() as other:
            assert _numbers(other.read(0, 10)) == [1, 2]
            assert other.stats().pending == 2
            again = other.start_run(job)
            assert (again.id, again.checkpoint, again.extracted) == (run.id, b"here", 1)

    def test_objects_on_the_same_outbox_share_it(self, outbox: Outbox, open_outbox: Callable[[], Outbox]) -> None:
        """An application may append with an object of its own: what either does, the other one sees and builds on."""
        with open_outbox() as other:
            for number, writer in enumerate((outbox, other, outbox, other), start=1):
                writer.append([Parcel(uuid.uuid4(), number)])
                for reader in (outbox, other):
                    assert _numbers(reader.read(0, 10)) == list(range(1, number + 1))
            entries = outbox.read(0, 10)
            outbox.acknowledge(entries[0].position)
            outbox.reject({entries[3].position: "too heavy"})
            other.append([])  # a write: an acknowledge may wait in memory for the next one
            stats = other.stats()
            assert (stats.acknowledged, stats.pending, stats.dead) == (entries[0].position, 2, 1)

    def test_append_tells_how_many_were_new(self, outbox: Outbox, job: ParcelJob) -> None:
        """Append counts the tasks it stored, not those it dropped."""
        run = outbox.start_run(job)
        assert outbox.append(self._parcels(run, 1, 2, 3), run=run) == 3
        assert outbox.append(self._parcels(run, 3, 4, 4), run=run) == 1
        assert (run.extracted, run.duplicates) == (4, 2)

    def test_a_key_is_stored_once_a_run(self, outbox: Outbox, job: ParcelJob) -> None:
        """A second task of the same key is dropped, whichever of the two came with more."""
        run = outbox.start_run(job)
        outbox.append(self._parcels(run, 1, 2, 2), run=run)
        outbox.append(self._parcels(run, 2, 1, 3), run=run)
        assert _numbers(outbox.read(0, 10)) == [1, 2, 3]

    def test_a_key_is_any_number_or_text(self, outbox: Outbox) -> None:
        """Keys are what they are: a number is not its digits, zero, empty text and large ones are keys."""
        keys: list[Key] = [0, -1, 2**53, 2**53 + 1, -(2**63), 2**70, "", "0", "a", "A", "Ä 東京", "x" * 1000]

        class KeyedJob(ParcelJob):
            def key(self, task: Parcel) -> Key:
                return keys[task.number]

        run = outbox.start_run(KeyedJob())
        parcels = self._parcels(run, *range(len(keys)))
        assert outbox.append(parcels, run=run) == len(keys)
        assert outbox.append(parcels, run=run) == 0

    def test_a_key_stays_taken_once_it_is_delivered(self, outbox: Outbox, job: ParcelJob) -> None:
        """A repeat is dropped also when the first one has been acknowledged: within a run nothing is sent twice."""
        run = self._stored(outbox, job, 1, 2)
        outbox.acknowledge(outbox.read(0, 10)[-1].position)
        assert outbox.append(self._parcels(run, 1, 2, 3), run=run) == 1
        assert outbox.stats().pending == 1

    def test_another_run_may_use_the_same_keys(self, outbox: Outbox, job: ParcelJob) -> None:
        """Keys are per run: tomorrow's run stores them all again, under other task ids."""
        run = self._stored(outbox, job, 1, 2)
        before = {entry.task_id for entry in outbox.read(0, 10)}
        position = outbox.stats().last_position
        outbox.acknowledge(position)
        outbox.finish_run(run, _report(run, complete=True))
        self._stored(outbox, job, 1, 2)
        after = {entry.task_id for entry in outbox.read(position, 10)}
        assert len(after) == 2
        assert not before & after

    def test_without_a_run_nothing_is_dropped(self, outbox: Outbox) -> None:
        """An application's own tasks have no run: each append is new."""
        parcel = Parcel(uuid.uuid4(), 1)
        assert outbox.append([parcel]) == 1
        assert outbox.append([parcel, Parcel(uuid.uuid4(), 2)]) == 2
        assert _numbers(outbox.read(0, 10)) == [1, 1, 2]

    def test_a_page_is_stored_whole_or_not_at_all(self, outbox: Outbox, job: ParcelJob) -> None:
        """If one task of a page cannot be stored, none is, and the checkpoint stays what it was."""
        run = outbox.start_run(job)
        outbox.append(self._parcels(run, 1), run=run, checkpoint=b"one")

        class Nameless(msgspec.Struct):
            number: int

        with pytest.raises(TaskError):
            outbox.append(
                [*self._parcels(run, 2), Nameless(3)],
                run=run,
                checkpoint=b"two",
                expected=3,
                rejected=[Rejected(b"{}", "no number")],
            )
        assert _numbers(outbox.read(0, 10)) == [1]
        assert outbox.stats().dead == 0
        again = outbox.start_run(job)
        for known in (run, again):
            assert (known.checkpoint, known.extracted, known.rejected, known.expected) == (b"one", 1, 0, None)
        assert outbox.append(self._parcels(again, 2), run=again) == 1

    def test_an_error_between_two_tasks_stores_none(self, outbox: Outbox, job: ParcelJob) -> None:
        """Tasks may come one by one from a generator; what that raises comes out, and none of the call is stored."""
        run = outbox.start_run(job)
        assert outbox.append((parcel for parcel in self._parcels(run, 1, 2)), run=run) == 2

        def failing() -> Iterator[Parcel]:
            yield from self._parcels(run, 3)
            raise LookupError("the source is gone")

        with pytest.raises(LookupError, match="the source is gone"):
            outbox.append(failing(), run=run, checkpoint=b"three")
        assert _numbers(outbox.read(0, 10)) == [1, 2]
        assert (run.checkpoint, run.extracted) == (None, 2)
        assert outbox.append(self._parcels(run, 3), run=run) == 1

    # runs

    def test_an_unfinished_run_is_resumed(self, outbox: Outbox, job: ParcelJob) -> None:
        """The unfinished run comes back with its id, checkpoint and figures, so that its task ids are the same."""
        run = outbox.start_run(job)
        assert not run.resumed
        outbox.append(self._parcels(run, 1, 1), run=run, checkpoint=b"here", expected=7)
        again = outbox.start_run(job)
        assert again.resumed
        assert (again.id, again.checkpoint, again.expected) == (run.id, b"here", 7)
        assert (again.extracted, again.duplicates) == (1, 1)
        assert again.task_id(5) == run.task_id(5)

    def test_a_checkpoint_left_out_stays(self, outbox: Outbox, job: ParcelJob) -> None:
        """A page without checkpoint or total leaves those of the page before."""
        run = outbox.start_run(job)
        outbox.append([], run=run, checkpoint=b"here", expected=7)
        outbox.append(self._parcels(run, 1), run=run)
        assert (run.checkpoint, run.expected) == (b"here", 7)
        assert outbox.start_run(job).checkpoint == b"here"

    def test_an_old_run_is_not_resumed_and_its_tasks_stay(self, outbox: Outbox, job: ParcelJob) -> None:
        """A run older than ``resume_within`` is closed as incomplete; what it left pending is still delivered."""
        old = self._stored(outbox, job, 1, 2)
        run = outbox.start_run(job, resume_within=timedelta(0))
        assert not run.resumed
        assert run.id != old.id
        assert _numbers(outbox.read(0, 10)) == [1, 2]
        states = {summary.id: summary.state for summary in outbox.stats().runs}
        assert states == {old.id: "incomplete", run.id: "open"}

    def test_a_closed_run_is_never_resumed(self, outbox: Outbox, job: ParcelJob) -> None:
        """A run that was closed as incomplete stays closed, also when the one after it is complete."""
        old = self._stored(outbox, job, 1)
        run = outbox.start_run(job, resume_within=timedelta(0))
        outbox.finish_run(run, _report(run, complete=True))
        following = outbox.start_run(job, resume_within=timedelta(days=1))
        assert not following.resumed
        assert following.id not in (old.id, run.id)

    def test_a_complete_run_is_never_resumed(self, outbox: Outbox, job: ParcelJob) -> None:
        """After a complete run, the next call gets a new one."""
        run = self._stored(outbox, job, 1)
        outbox.acknowledge(outbox.stats().last_position)
        outbox.finish_run(run, _report(run, complete=True))
        following = outbox.start_run(job)
        assert not following.resumed
        assert following.id != run.id
        assert following.checkpoint is None

    def test_an_incomplete_report_leaves_the_run_open(self, outbox: Outbox, job: ParcelJob) -> None:
        """A run that is finished with an incomplete report is resumed by the next call, with all it had."""
        run = self._stored(outbox, job, 1, 2)
        outbox.finish_run(run, _report(run, complete=False))
        again = outbox.start_run(job)
        assert (again.resumed, again.id) == (True, run.id)
        assert outbox.stats().pending == 2
        report = next(summary.report for summary in outbox.stats().runs if summary.id == run.id)
        assert report is not None
        assert json.loads(report)["run_id"] == run.id

    def test_a_complete_run_leaves_no_task_behind(self, outbox: Outbox, job: ParcelJob) -> None:
        """Finishing a run completely clears its delivered entries."""
        run = self._stored(outbox, job, 1, 2)
        outbox.acknowledge(outbox.stats().last_position)
        outbox.finish_run(run, _report(run, complete=True))
        assert list(outbox.read(0, 10)) == []
        assert outbox.stats().pending == 0

    def test_a_complete_run_loses_nothing_undelivered(self, outbox: Outbox, job: ParcelJob) -> None:
        """Finishing a run clears what is acknowledged, and nothing else of it."""
        run = self._stored(outbox, job, 1, 2, 3)
        outbox.acknowledge(outbox.read(0, 1)[0].position)
        outbox.finish_run(run, _report(run, complete=True))
        assert _numbers(outbox.read(outbox.stats().acknowledged, 10)) == [2, 3]
        assert outbox.stats().pending == 2

    def test_jobs_have_their_own_runs(self, outbox: Outbox, job: ParcelJob) -> None:
        """One job's unfinished run is not another's, and goes on when the other's is complete, with all it had."""

        class OtherJob(ParcelJob):
            name = "others"

        mine, other = self._stored(outbox, job, 1), self._stored(outbox, OtherJob(), 1, 2)
        assert mine.id != other.id
        outbox.acknowledge(outbox.stats().last_position)
        outbox.finish_run(other, _report(other, complete=True))
        assert _numbers(outbox.read(0, 10)) == [1]
        again = outbox.start_run(job)
        assert (again.resumed, again.id) == (True, mine.id)

    def test_runs_are_remembered_newest_first(self, outbox: Outbox, job: ParcelJob) -> None:
        """Stats tell of each run its job, its state, its figures and, timezone-aware, when it began and ended."""
        first = self._stored(outbox, job, 1, 2)
        outbox.acknowledge(outbox.stats().last_position)
        outbox.finish_run(first, _report(first, complete=True))
        second = self._stored(outbox, job, 1)
        outbox.append([], run=second, rejected=[Rejected(b"{}", "no number")])
        runs = outbox.stats().runs
        assert [(known.id, known.job, known.state, known.extracted, known.rejected) for known in runs] == [
            (second.id, "parcels", "open", 1, 1),
            (first.id, "parcels", "complete", 2, 0),
        ]
        assert runs[0].finished_at is None
        assert runs[1].finished_at is not None
        assert runs[1].finished_at >= runs[1].started_at
        assert all(known.started_at.tzinfo is not None for known in runs)

    # acknowledging

    def test_acknowledged_entries_are_no_longer_pending(self, outbox: Outbox, job: ParcelJob) -> None:
        """Acknowledging a position says that everything up to it is delivered, and nothing beyond."""
        self._stored(outbox, job, *range(5))
        outbox.acknowledge(outbox.read(0, 3)[-1].position)
        stats = outbox.stats()
        assert stats.pending == 2
        assert _numbers(outbox.read(stats.acknowledged, 10)) == [3, 4]

    def test_the_oldest_pending_entry_has_an_age(self, outbox: Outbox) -> None:
        """Stats tell, timezone-aware, when the oldest pending entry was stored, and nothing if none is pending."""
        outbox.append([Parcel(uuid.uuid4(), 1)])
        first = outbox.stats().oldest
        assert first is not None
        assert first.tzinfo is not None
        outbox.append([Parcel(uuid.uuid4(), 2)])
        assert outbox.stats().oldest == first
        outbox.acknowledge(outbox.read(0, 1)[0].position)
        second = outbox.stats().oldest
        assert second is not None
        assert second >= first
        outbox.acknowledge(outbox.stats().last_position)
        assert outbox.stats().oldest is None

    def test_an_unfinished_run_keeps_what_was_acknowledged(self, outbox: Outbox, job: ParcelJob) -> None:
        """Acknowledged entries of an unfinished run can be read again, in case the sink loses them."""
        run = self._stored(outbox, job, *range(5))
        outbox.acknowledge(outbox.stats().last_position)
        assert _numbers(outbox.read(0, 10)) == [0, 1, 2, 3, 4]
        outbox.finish_run(run, _report(run, complete=False))
        outbox.start_run(job)
        assert _numbers(outbox.read(0, 10)) == [0, 1, 2, 3, 4]

    def test_acknowledging_can_go_back(self, outbox: Outbox, job: ParcelJob) -> None:
        """When a sink lost writes, a lower position makes what is beyond it pending again; at 0, all of it."""
        self._stored(outbox, job, *range(5))
        positions = [entry.position for entry in outbox.read(0, 10)]
        for position, pending in ((positions[4], 0), (positions[1], 3), (positions[2], 2), (0, 5)):
            outbox.acknowledge(position)
            stats = outbox.stats()
            assert (stats.acknowledged, stats.pending, stats.last_position) == (position, pending, positions[4])

    def test_positions_are_never_reused(self, outbox: Outbox, job: ParcelJob) -> None:
        """After everything is cleared, new entries get positions beyond all that were ever given."""
        run = self._stored(outbox, job, 1, 2, 3)
        last = outbox.stats().last_position
        outbox.acknowledge(last)
        outbox.finish_run(run, _report(run, complete=True))
        self._stored(outbox, job, 1)
        assert [entry.position > last for entry in outbox.read(0, 10)] == [True]

    def test_positions_are_never_reused_after_a_restart(
        self, open_outbox: Callable[[], Outbox], job: ParcelJob
    ) -> None:
        """An outbox that was opened again, with nothing left in it, still knows the last position it gave."""
        self.capabilities.need("durable")
        with open_outbox() as outbox:
            run = self._stored(outbox, job, 1, 2, 3)
            last = outbox.stats().last_position
            outbox.acknowledge(last)
            outbox.finish_run(run, _report(run, complete=True))
            assert list(outbox.read(0, 10)) == []
        with open_outbox() as outbox:
            assert outbox.stats().last_position == last
            self._stored(outbox, job, 1)
            assert [entry.position > last for entry in outbox.read(0, 10)] == [True]

    def test_positions_grow_beyond_what_a_sink_holds(self, outbox: Outbox, job: ParcelJob) -> None:
        """Acknowledging beyond the last position (an outbox restored from a copy) moves the next position past it."""
        self._stored(outbox, job, 1)
        beyond = outbox.stats().last_position + 1000
        outbox.acknowledge(beyond)
        run = outbox.start_run(job)
        outbox.append(self._parcels(run, 2), run=run)
        assert [entry.position > beyond for entry in outbox.read(beyond, 10)] == [True]
        assert outbox.stats().pending == 1

    def test_an_application_s_entries_are_cleared_once_delivered(self, outbox: Outbox) -> None:
        """Entries without a run leave the outbox at some point after they were acknowledged: it does not grow."""
        for number in range(50):
            outbox.append([Parcel(uuid.uuid4(), number)])
            outbox.acknowledge(outbox.stats().last_position)
        assert len(outbox.read(0, 100)) < 50

    # dead letters

    def test_a_rejected_entry_is_out_of_the_way(self, outbox: Outbox, job: ParcelJob) -> None:
        """A dead letter is neither read nor pending, and the entries around it stay."""
        self._stored(outbox, job, 1, 2, 3)
        outbox.reject({outbox.read(0, 10)[1].position: "too heavy", 10**9: "no such position"})
        assert _numbers(outbox.read(0, 10)) == [1, 3]
        stats = outbox.stats()
        assert (stats.pending, stats.dead) == (2, 1)
        assert stats.runs[0].rejected == 1

    def test_an_entry_is_rejected_once(self, outbox: Outbox, job: ParcelJob) -> None:
        """Rejecting what is a dead letter already counts nothing twice, also in the run that is resumed."""
        self._stored(outbox, job, 1, 2)
        position = outbox.read(0, 1)[0].position
        outbox.reject({position: "too heavy"})
        outbox.reject({position: "too large"})
        assert outbox.stats().dead == 1
        assert outbox.stats().runs[0].rejected == 1
        assert outbox.start_run(job).rejected == 1

    def test_a_dead_letter_keeps_its_key(self, outbox: Outbox, job: ParcelJob) -> None:
        """A task that was rejected is not stored again by a repeat of its page."""
        run = self._stored(outbox, job, 1)
        outbox.reject({outbox.read(0, 1)[0].position: "too heavy"})
        assert outbox.append(self._parcels(run, 1), run=run) == 0

    def test_dead_letters_outlive_their_run(self, outbox: Outbox, job: ParcelJob) -> None:
        """Finishing a run clears what was delivered, not what was refused."""
        run = self._stored(outbox, job, 1, 2)
        outbox.reject({outbox.read(0, 1)[0].position: "too heavy"})
        outbox.acknowledge(outbox.stats().last_position)
        outbox.finish_run(run, _report(run, complete=True))
        assert outbox.stats().dead == 1

    def test_a_record_that_is_no_task_becomes_a_dead_letter_once(self, outbox: Outbox, job: ParcelJob) -> None:
        """Invalid records are kept with their page, one a key or one a record, and never read as entries."""
        run = outbox.start_run(job)
        bad = [Rejected(b'{"number": -1}', "negative", key=7), Rejected(b"{}", "no number")]
        outbox.append(self._parcels(run, 1), run=run, checkpoint=b"x", rejected=bad)
        outbox.append([], run=run, rejected=bad)
        assert (run.extracted, run.rejected, run.duplicates, run.accounted) == (1, 2, 2, 3)
        assert outbox.stats().dead == 2
        assert _numbers(outbox.read(0, 10)) == [1]
        again = outbox.start_run(job)
        assert (again.extracted, again.rejected, again.duplicates, again.accounted) == (1, 2, 2, 3)

    def test_any_key_of_a_rejected_record_counts_once(self, outbox: Outbox, job: ParcelJob) -> None:
        """Records of one key that differ are one dead letter, whatever the key: zero and out of range, too."""
        run = outbox.start_run(job)
        for key in (0, -1, 2**70, "0"):
            bad = [Rejected(f'{{"number": {key}, "try": {n}}}'.encode(), "no", key=key) for n in range(2)]
            outbox.append([], run=run, rejected=bad)
        assert (run.rejected, run.duplicates) == (4, 4)
        assert outbox.stats().dead == 4

    def test_a_rejected_record_is_any_bytes(self, outbox: Outbox, job: ParcelJob) -> None:
        """What came instead of a task need not be JSON, nor text, and is kept as it came."""
        letters = self._letters(outbox)
        run = outbox.start_run(job)
        payloads = [b"\xff\x00\xfe", b"", "東京 \u2028".encode()]
        outbox.append([], run=run, rejected=[Rejected(payload, "no JSON") for payload in payloads])
        assert [letter.payload for letter in letters.dead_letters()] == payloads

    def _letters(self, outbox: Outbox) -> DeadLetterStore:
        self.capabilities.need("dead_letters")
        assert isinstance(outbox, DeadLetterStore)
        return outbox

    def test_dead_letters_can_be_listed(self, outbox: Outbox, job: ParcelJob) -> None:
        """A dead letter shows its payload, its reason and when it was rejected."""
        letters = self._letters(outbox)
        run = self._stored(outbox, job, 1)
        outbox.reject({outbox.read(0, 1)[0].position: "too heavy"})
        outbox.append([], run=run, rejected=[Rejected(b"{}", "no number")])
        first, second = letters.dead_letters()
        assert (first.task_id, first.reason) == (str(run.task_id(1)), "too heavy")
        assert json.loads(first.payload)["number"] == 1
        assert (second.task_id, second.payload, second.reason) == (None, b"{}", "no number")
        assert first.rejected_at.tzinfo is not None

    def test_a_retried_letter_is_pending_at_a_new_position(self, outbox: Outbox, job: ParcelJob) -> None:
        """Retrying stores the same task again beyond all positions, since the sink has moved past its old one."""
        letters = self._letters(outbox)
        run = self._stored(outbox, job, 1, 2)
        last = outbox.stats().last_position
        outbox.reject({outbox.read(0, 1)[0].position: "too heavy"})
        outbox.acknowledge(last)
        outbox.append([], run=run, rejected=[Rejected(b"{}", "no number")])
        assert letters.retry([letter.position for letter in letters.dead_letters()]) == 1
        (entry,) = outbox.read(last, 10)
        assert entry.task_id == str(run.task_id(1))
        assert outbox.stats().pending == 1
        assert [letter.payload for letter in letters.dead_letters()] == [b"{}"]
        assert outbox.append(self._parcels(run, 1), run=run) == 0, "a retried letter keeps its key"

    def test_a_dropped_letter_is_gone(self, outbox: Outbox, job: ParcelJob) -> None:
        """Dropping deletes dead letters only; entries cannot be dropped."""
        letters = self._letters(outbox)
        self._stored(outbox, job, 1, 2)
        first, second = outbox.read(0, 2)
        outbox.reject({first.position: "too heavy"})
        assert letters.drop([first.position, second.position]) == 1
        assert list(letters.dead_letters()) == []
        assert _numbers(outbox.read(0, 10)) == [2]

    def test_the_position_of_a_dropped_letter_is_never_reused(self, outbox: Outbox) -> None:
        """Not even if it was the last one given: the sink may hold it."""
        letters = self._letters(outbox)
        outbox.append([Parcel(uuid.uuid4(), 1)])
        last = outbox.stats().last_position
        outbox.reject({last: "too heavy"})
        letters.drop([last])
        outbox.append([Parcel(uuid.uuid4(), 2)])
        assert [entry.position > last for entry in outbox.read(0, 10)] == [True]

    # one relay at a time, and over restarts

    def test_one_relay_at_a_time(self, outbox: Outbox, open_outbox: Callable[[], Outbox]) -> None:
        """A second relay is refused at once while the lock is held, and let in after."""
        with outbox.lock():
            other = open_outbox()
            with pytest.raises(OutboxLocked), other.lock():
                pytest.fail("two relays at once")
        with other.lock():
            pass

    def test_an_error_lets_go_of_the_lock(self, outbox: Outbox, open_outbox: Callable[[], Outbox]) -> None:
        """However a relay ends, the next one is let in."""
        with pytest.raises(LookupError), outbox.lock():
            raise LookupError
        with open_outbox() as other, other.lock():
            pass

    def test_the_lock_does_not_outlive_its_process(self, open_outbox: Callable[[], Outbox]) -> None:
        """Killed with SIGKILL, a relay holds the lock no longer: nobody has to clear it away."""
        self.capabilities.need("durable")
        with open_outbox():
            pass  # it exists, and nothing of it is open when the process forks
        with _holding_the_lock(open_outbox) as kill, open_outbox() as outbox:
            with pytest.raises(OutboxLocked), outbox.lock():
                pytest.fail("two relays at once")
            kill()
            for _ in range(40):  # a file is free at once; a server may first have to notice that its client is gone
                try:
                    with outbox.lock():
                        return
                except OutboxLocked:
                    threading.Event().wait(0.05)
            pytest.fail("still locked by a process that is dead")

    def test_the_id_is_its_own(self, outbox: Outbox, open_outbox: Callable[[], Outbox]) -> None:
        """The id is some text, and the same each time the outbox is opened."""
        assert outbox.id
        assert open_outbox().id == outbox.id

    def test_notes_can_be_left(self, outbox: Outbox) -> None:
        """A note is what was last set under its name, None if nothing was."""
        assert outbox.notes.get("weather") is None
        outbox.notes.set("weather", b"rain")
        outbox.notes.set("weather", b"sun")
        assert outbox.notes.get("weather") == b"sun"

    def test_a_run_brings_the_notes(self, outbox: Outbox, job: ParcelJob) -> None:
        """What a job notes through its run is a note of the outbox, and the other way round."""
        run = outbox.start_run(job)
        run.notes.set("weather", b"rain")
        outbox.notes.set("wind", b"north")
        assert outbox.notes.get("weather") == b"rain"
        assert outbox.start_run(job).notes.get("wind") == b"north"

    def test_it_can_be_closed_twice(self, open_outbox: Callable[[], Outbox]) -> None:
        """Closing is safe at any time, also again."""
        outbox = open_outbox()
        outbox.close()
        outbox.close()

    def test_everything_survives_a_restart(self, open_outbox: Callable[[], Outbox], job: ParcelJob) -> None:
        """Entries, positions, acknowledges, dead letters, runs and notes are there when it is opened again."""
        self.capabilities.need("durable")
        with open_outbox() as outbox:
            run = self._stored(outbox, job, *range(5))
            outbox.append([], run=run, checkpoint=b"here")
            positions = [entry.position for entry in outbox.read(0, 10)]
            outbox.acknowledge(positions[1])
            outbox.reject({positions[3]: "too heavy"})
            outbox.notes.set("weather", b"rain")
            id_, before = outbox.id, outbox.stats()
        with open_outbox() as outbox:
            assert outbox.id == id_
            assert outbox.stats() == before
            assert _numbers(outbox.read(positions[1], 10)) == [2, 4]
            assert outbox.notes.get("weather") == b"rain"
            again = outbox.start_run(job)
            assert (again.resumed, again.id, again.checkpoint, again.extracted) == (True, run.id, b"here", 5)

    def test_threads_may_append_side_by_side(self, outbox: Outbox) -> None:
        """Several threads that append at once each store all of theirs, in their own order, at distinct positions."""

        def work(worker: int, meet: threading.Barrier) -> None:
            meet.wait()
            for number in range(20):
                outbox.append([Parcel(uuid.uuid4(), worker * 100 + number)])

        _in_threads(4, work)
        entries = outbox.read(0, 1000)
        assert len({entry.position for entry in entries}) == 80
        numbers = _numbers(entries)
        for worker in range(4):
            own = [number for number in numbers if number // 100 == worker]
            assert own == list(range(worker * 100, worker * 100 + 20))

    def test_nothing_appears_behind_a_reader(self, outbox: Outbox, open_outbox: Callable[[], Outbox]) -> None:
        """Who reads on from the last position while others append misses nothing: positions show up in their order."""
        seen: list[Entry] = []
        appending = [True, True, True]

        def work(worker: int, meet: threading.Barrier) -> None:
            meet.wait()
            if worker < len(appending):
                try:
                    with open_outbox() as own:
                        for number in range(20):
                            own.append([Parcel(uuid.uuid4(), worker * 100 + number)])
                finally:
                    appending[worker] = False
                return
            more = True
            while more:
                more = any(appending)  # asked before reading: then one more look finds what came last
                entries = outbox.read(seen[-1].position if seen else 0, 7)
                seen.extend(entries)
                more = more or bool(entries)

        _in_threads(len(appending) + 1, work)
        assert seen == list(outbox.read(0, 1000))
        assert sorted(_numbers(seen)) == [worker * 100 + number for worker in range(3) for number in range(20)]
