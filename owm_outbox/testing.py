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
tests for it are then skipped, with the reason. Needs pytest, which this package does not install.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import pytest

from owm_outbox.errors import EntriesRejected, OutboxLocked, PositionConflict, SinkFull, TaskError
from owm_outbox.job import Job, Page, Run
from owm_outbox.outbox import DeadLetterStore, Outbox
from owm_outbox.report import RunReport
from owm_outbox.sink import Sink
from owm_outbox.task import Batch, Entry, Rejected

__all__ = ["Capabilities", "OutboxContract", "Parcel", "ParcelJob", "Place", "SinkContract", "parcel_batch"]


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do. The defaults are the most that a contract asks.

    :param durable: what it holds survives the object: opened again, it is there.
    :param tracks_position: a sink stores the position with each batch, so that delivery is effectively once.
    :param bounded: a sink says `SinkFull` at some point; `Place.fill` brings it there.
    :param rejects: a sink refuses some payloads for good; `Place.poison` is one.
    :param dead_letters: an outbox is a `DeadLetterStore`, too.
    """

    durable: bool = True
    tracks_position: bool = True
    bounded: bool = False
    rejects: bool = False
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

    def key(self, task: Parcel) -> int:
        """Tell parcels apart by their number."""
        return task.number

    def pages(self, run: Run) -> Iterator[Page[Parcel]]:
        """Yield what comes after the checkpoint, which is the number of the next parcel."""
        for first in range(int(run.checkpoint or 0), self.count, self.size):
            after = min(first + self.size, self.count)
            tasks = [Parcel(run.task_id(number), number) for number in range(first, after)]
            yield Page(tasks, str(after).encode(), expected=self.count)


def parcel_batch(outbox_id: str, after: int, count: int) -> Batch:
    """Make a batch of ``count`` entries at the positions that follow ``after``."""
    entries = []
    for position in range(after + 1, after + 1 + count):
        task_id = str(uuid.uuid5(uuid.UUID(int=0), f"{outbox_id} {position}"))
        payload = json.dumps({"task_id": task_id, "number": position, "address": "Zürich, 東京"}).encode()
        entries.append(Entry(position, task_id, payload))
    return Batch(outbox_id, after, entries)


def _payloads(*batches: Batch) -> list[bytes]:
    return [entry.payload for batch in batches for entry in batch.entries]


# -- sinks


@dataclass(frozen=True)
class Place:
    """Where a sink under test delivers to.

    :param open: makes a sink that delivers there; called again, another one to the same place.
    :param held: returns the payloads that are there now, in the order in which a worker would get them.
    :param fill: for a bounded sink: makes it full, whatever it holds.
    :param poison: for a sink that rejects: a payload it will never take.
    """

    open: Callable[[], Sink]
    held: Callable[[], Sequence[bytes]]
    fill: Callable[[], None] | None = None
    poison: bytes | None = None


class SinkContract:
    """What `owm_outbox.Sink` promises. Give it a fixture ``place``, which is new for each test."""

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
        first = Batch(outbox_id, 0, [whole.entries[1], whole.entries[4]])
        second = Batch(outbox_id, first.position, [whole.entries[6], whole.entries[8]])
        sink.send(first)
        sink.send(second)
        assert list(place.held()) == _payloads(first, second)

    def test_the_position_of_an_unknown_outbox_is_zero_or_untold(self, sink: Sink, outbox_id: str) -> None:
        """A sink that tracks positions says 0 for an outbox it never heard of; one that does not says None."""
        assert sink.position(outbox_id) == (0 if self.capabilities.tracks_position else None)

    def test_the_position_comes_with_the_batch(self, sink: Sink, outbox_id: str) -> None:
        """Once a batch is held, so is its position."""
        self.capabilities.need("tracks_position")
        batch = parcel_batch(outbox_id, 0, 3)
        sink.send(batch)
        assert sink.position(outbox_id) == batch.position

    def test_a_batch_sent_again_is_refused_whole(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """A batch that does not start from the held position adds nothing, and the answer says what is held."""
        self.capabilities.need("tracks_position")
        batch = parcel_batch(outbox_id, 0, 3)
        sink.send(batch)
        with pytest.raises(PositionConflict) as conflict:
            sink.send(batch)
        assert conflict.value.held == batch.position
        assert list(place.held()) == _payloads(batch)

    def test_a_batch_from_the_future_is_refused_whole(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """A batch that would leave a hole behind the held position adds nothing."""
        self.capabilities.need("tracks_position")
        with pytest.raises(PositionConflict) as conflict:
            sink.send(parcel_batch(outbox_id, 10, 3))
        assert conflict.value.held == 0
        assert list(place.held()) == []
        assert sink.position(outbox_id) == 0

    def test_positions_are_exact_beyond_53_bits(self, sink: Sink, outbox_id: str) -> None:
        """Positions are integers, not floats: neighbours beyond 2^53 stay apart."""
        self.capabilities.need("tracks_position")
        entry = parcel_batch(outbox_id, 0, 1).entries[0]
        far = 2**53
        sink.send(Batch(outbox_id, 0, [Entry(far, entry.task_id, entry.payload)]))
        assert sink.position(outbox_id) == far
        with pytest.raises(PositionConflict):
            sink.send(Batch(outbox_id, far + 1, [Entry(far + 2, entry.task_id, entry.payload)]))

    def test_outboxes_do_not_mix(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """Each outbox has a position of its own, even if all deliver to the same place."""
        self.capabilities.need("tracks_position")
        mine, other = parcel_batch(outbox_id, 0, 3), parcel_batch(str(uuid.uuid4()), 0, 2)
        sink.send(mine)
        sink.send(other)
        assert sink.position(mine.outbox_id) == 3
        assert sink.position(other.outbox_id) == 2
        assert list(place.held()) == _payloads(mine, other)

    def test_two_at_once_add_a_batch_once(self, place: Place, outbox_id: str) -> None:
        """Of several sinks that send the same batch at the same time, one is taken and the others are refused."""
        self.capabilities.need("tracks_position")
        batch = parcel_batch(outbox_id, 0, 20)
        outcomes: list[str] = []
        begin = threading.Barrier(4)

        def send() -> None:
            with place.open() as sink:
                begin.wait()
                try:
                    sink.send(batch)
                    outcomes.append("taken")
                except PositionConflict:
                    outcomes.append("refused")

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["refused", "refused", "refused", "taken"]
        assert list(place.held()) == _payloads(batch)

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

    def test_a_full_sink_takes_nothing_and_says_so(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """Without room for a batch, send raises SinkFull, holds nothing of it, and keeps its position."""
        self.capabilities.need("bounded")
        assert place.fill is not None, "a bounded sink needs Place.fill"
        place.fill()
        before = list(place.held())
        position = sink.position(outbox_id)
        with pytest.raises(SinkFull) as full:
            sink.send(parcel_batch(outbox_id, 0, 50))
        assert full.value.room < 50
        assert list(place.held()) == before
        assert sink.position(outbox_id) == position

    def test_poison_is_named_and_the_rest_untouched(self, place: Place, sink: Sink, outbox_id: str) -> None:
        """A payload that will never be taken is named by its position, and nothing of its batch is held."""
        self.capabilities.need("rejects")
        assert place.poison is not None, "a sink that rejects needs Place.poison"
        good = parcel_batch(outbox_id, 0, 3)
        bad = Entry(2, good.entries[1].task_id, place.poison)
        with pytest.raises(EntriesRejected) as rejected:
            sink.send(Batch(outbox_id, 0, [good.entries[0], bad, good.entries[2]]))
        assert list(rejected.value.reasons) == [2]
        assert rejected.value.reasons[2].strip()
        assert list(place.held()) == []

    def test_it_can_be_closed_twice(self, place: Place) -> None:
        """Closing is safe at any time, also again."""
        sink = place.open()
        sink.close()
        sink.close()


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
        first = outbox.read(0, 4)
        assert _numbers(first) == [0, 1, 2, 3]
        assert _numbers(outbox.read(first[-1].position, 3)) == [4, 5, 6]
        assert _numbers(outbox.read(0, 4)) == [0, 1, 2, 3]

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
            outbox.append([*self._parcels(run, 2), Nameless(3)], run=run, checkpoint=b"two")
        assert _numbers(outbox.read(0, 10)) == [1]
        assert (run.checkpoint, run.extracted) == (b"one", 1)
        again = outbox.start_run(job)
        assert (again.checkpoint, again.extracted) == (b"one", 1)

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

    def test_jobs_have_their_own_runs(self, outbox: Outbox, job: ParcelJob) -> None:
        """One job's unfinished run is not another's."""

        class OtherJob(ParcelJob):
            name = "others"

        mine, other = outbox.start_run(job), outbox.start_run(OtherJob())
        assert mine.id != other.id
        assert outbox.start_run(job).id == mine.id

    # acknowledging

    def test_acknowledged_entries_are_no_longer_pending(self, outbox: Outbox, job: ParcelJob) -> None:
        """Acknowledging a position says that everything up to it is delivered, and nothing beyond."""
        self._stored(outbox, job, *range(5))
        outbox.acknowledge(outbox.read(0, 3)[-1].position)
        stats = outbox.stats()
        assert stats.pending == 2
        assert _numbers(outbox.read(stats.acknowledged, 10)) == [3, 4]

    def test_an_unfinished_run_keeps_what_was_acknowledged(self, outbox: Outbox, job: ParcelJob) -> None:
        """Acknowledged entries of an unfinished run can be read again, in case the sink loses them."""
        self._stored(outbox, job, *range(5))
        outbox.acknowledge(outbox.stats().last_position)
        assert _numbers(outbox.read(0, 10)) == [0, 1, 2, 3, 4]

    def test_acknowledging_can_go_back(self, outbox: Outbox, job: ParcelJob) -> None:
        """When a sink lost writes, a lower position makes what is beyond it pending again."""
        self._stored(outbox, job, *range(5))
        positions = [entry.position for entry in outbox.read(0, 10)]
        outbox.acknowledge(positions[4])
        outbox.acknowledge(positions[1])
        assert outbox.stats().pending == 3
        assert outbox.stats().acknowledged == positions[1]

    def test_positions_are_never_reused(self, outbox: Outbox, job: ParcelJob) -> None:
        """After everything is cleared, new entries get positions beyond all that were ever given."""
        run = self._stored(outbox, job, 1, 2, 3)
        last = outbox.stats().last_position
        outbox.acknowledge(last)
        outbox.finish_run(run, _report(run, complete=True))
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

    def test_a_dropped_letter_is_gone(self, outbox: Outbox, job: ParcelJob) -> None:
        """Dropping deletes dead letters only; entries cannot be dropped."""
        letters = self._letters(outbox)
        self._stored(outbox, job, 1, 2)
        first, second = outbox.read(0, 2)
        outbox.reject({first.position: "too heavy"})
        assert letters.drop([first.position, second.position]) == 1
        assert list(letters.dead_letters()) == []
        assert _numbers(outbox.read(0, 10)) == [2]

    # one relay at a time, and over restarts

    def test_one_relay_at_a_time(self, outbox: Outbox, open_outbox: Callable[[], Outbox]) -> None:
        """A second relay is refused at once while the lock is held, and let in after."""
        with outbox.lock():
            other = open_outbox()
            with pytest.raises(OutboxLocked), other.lock():
                pytest.fail("two relays at once")
        with other.lock():
            pass

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
        failures: list[BaseException] = []

        def work(worker: int) -> None:
            try:
                for number in range(20):
                    outbox.append([Parcel(uuid.uuid4(), worker * 100 + number)])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        entries = outbox.read(0, 1000)
        assert len({entry.position for entry in entries}) == 80
        numbers = _numbers(entries)
        for worker in range(4):
            own = [number for number in numbers if number // 100 == worker]
            assert own == sorted(own)
            assert len(own) == 20
