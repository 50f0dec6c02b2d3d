"""What an outbox promises to other objects, threads and processes."""

from __future__ import annotations

import threading
import uuid
from contextlib import ExitStack

import pytest

from owm_outbox.entry import Entry
from owm_outbox.errors import OutboxLocked, OutboxUnavailable
from owm_outbox.outbox import Outbox
from owm_outbox.testing.outbox_fixtures import JOB, Begin, OpenOutbox, OutboxFixtures, bad_records, mark_at, store
from owm_outbox.testing.parcels import Parcel, numbers
from owm_outbox.testing.processes import holding_the_lock
from owm_outbox.testing.threads import in_threads

__all__ = ["OutboxSharing"]


class OutboxSharing(OutboxFixtures):
    """One relay at a time, and any number of writers."""

    # the lock

    def test_one_relay_at_a_time(self, outbox: Outbox, open_outbox: OpenOutbox) -> None:
        """A second relay is refused at once while the lock is held, and let in after."""
        with outbox.lock():
            other = open_outbox()
            with pytest.raises(OutboxLocked), other.lock():
                pytest.fail("two relays at once")
        with other.lock():
            pass

    def test_an_error_frees_the_lock(self, outbox: Outbox, open_outbox: OpenOutbox) -> None:
        """However a relay ends, the next one is let in."""
        with pytest.raises(LookupError), outbox.lock():
            raise LookupError
        with open_outbox() as other, other.lock():
            pass

    def test_the_lock_does_not_outlive_its_process(self, open_outbox: OpenOutbox) -> None:
        """Killed with SIGKILL, a relay holds the lock no longer: nobody has to clear it away."""
        self.capabilities.need("durable")
        with open_outbox():
            pass  # it exists, and nothing of it is open when the process forks
        with holding_the_lock(open_outbox) as kill, open_outbox() as outbox:
            with pytest.raises(OutboxLocked), outbox.lock():
                pytest.fail("two relays at once")
            kill()
            for _ in range(40):  # a file is free at once; a server may first have to notice that its client ended
                try:
                    with outbox.lock():
                        return
                except OutboxLocked:
                    threading.Event().wait(0.05)
            pytest.fail("still locked by a process that is dead")

    # its id and its state

    def test_the_id_is_its_own(self, outbox: Outbox, open_outbox: OpenOutbox) -> None:
        """The id is some text, and the same each time the outbox is opened."""
        assert outbox.id
        with open_outbox() as other:
            assert other.id == outbox.id

    def test_the_id_can_be_renewed(self, outbox: Outbox, open_outbox: OpenOutbox) -> None:
        """A new id is another one, and all that open the outbox have it."""
        with open_outbox() as other:
            before = other.id
            outbox.renew_id()
            assert outbox.id != before
            assert other.id == outbox.id

    def test_state_is_what_was_last_set(self, outbox: Outbox, open_outbox: OpenOutbox) -> None:
        """A value of the state is any bytes, the last that were set under its name, and None if none were."""
        values = (b"rain", b"", b"\x00\xff", b"x" * 100_000, b"sun")
        with open_outbox() as other:
            assert outbox.state.get("weather") is None
            for value in values:
                outbox.state.set("weather", value)
                outbox.state.set("Weather", b"another name")
                assert outbox.state.get("weather") == value
                assert other.state.get("weather") == value

    # opening and closing

    def test_it_can_be_closed_twice(self, open_outbox: OpenOutbox) -> None:
        """Closing is safe at any time, also for the second time."""
        outbox = open_outbox()
        outbox.close()
        outbox.close()

    def test_everything_survives_a_restart(self, open_outbox: OpenOutbox) -> None:
        """Entries, positions, marks, dead letters, runs and state are there when it is opened again."""
        self.capabilities.need("durable")
        with open_outbox() as outbox:
            run = outbox.start_run(JOB)
            store(outbox, run.id, *range(5), checkpoint=b"here", invalid=bad_records(7))
            positions = [entry.position for entry in outbox.read(0, 10)]
            outbox.acknowledge(mark_at(outbox, positions[1]))
            outbox.reject({positions[3]: "too heavy"})
            outbox.state.set("weather", b"rain")
            id_, before = outbox.id, outbox.stats()
        with open_outbox() as outbox:
            assert outbox.id == id_
            assert outbox.stats() == before
            assert numbers(outbox.read(positions[1], 10)) == [2, 4]
            assert outbox.state.get("weather") == b"rain"
            again = outbox.start_run(JOB)
            assert (again.resumed, again.id, again.checkpoint, again.extracted) == (True, run.id, b"here", 5)

    # at once

    def test_threads_may_append_side_by_side(self, outbox: Outbox) -> None:
        """Several threads that append at once each store all of theirs, in their own order, at distinct positions."""

        def work(worker: int, meet: threading.Barrier) -> None:
            meet.wait()
            for number in range(20):
                outbox.append([Parcel(uuid.uuid4(), worker * 100 + number)])

        in_threads(4, work)
        entries = outbox.read(0, 1000)
        assert len({entry.position for entry in entries}) == 80
        found = numbers(entries)
        for worker in range(4):
            own = [number for number in found if number // 100 == worker]
            assert own == list(range(worker * 100, worker * 100 + 20))

    def test_a_transaction_that_ends_late_is_read_late(self, outbox: Outbox, begin: Begin) -> None:
        """In whatever order transactions begin, append and commit, a reader passes none of their tasks."""
        with ExitStack() as second:  # an outbox that cannot have two at once refuses the second one
            with begin() as append_first:
                append_first([Parcel(uuid.uuid4(), 1)])
                append_second = second.enter_context(begin())
                try:
                    append_second([Parcel(uuid.uuid4(), 2)])
                    both = True
                except OutboxUnavailable:
                    both = False
                append_first([Parcel(uuid.uuid4(), 3)])
            seen = list(outbox.read(0, 10))
            assert numbers(seen) == [1, 3], "a transaction was committed, another one was not, and this is read"
        seen += outbox.read(seen[-1].position, 10)
        assert numbers(seen) == ([1, 3, 2] if both else [1, 3]), (
            "a transaction that was committed last became readable behind a reader: are its positions given when it "
            "inserts, rather than by whoever reads, to what is committed?"
        )

    def test_nothing_appears_behind_a_reader(self, outbox: Outbox, open_outbox: OpenOutbox) -> None:
        """A reader that continues from its last position misses nothing that others append meanwhile."""
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
                more = any(appending)  # asked before reading: then one more look finds what was last
                entries = outbox.read(seen[-1].position if seen else 0, 7)
                seen.extend(entries)
                more = more or bool(entries)

        in_threads(len(appending) + 1, work)
        missed = set(numbers(outbox.read(0, 1000))).difference(numbers(seen))
        assert not missed, (
            f"{len(missed)} entries appeared at positions that the reader had passed ({sorted(missed)[:5]}): does each "
            "position become readable only after all lower ones?"
        )
        assert seen == list(outbox.read(0, 1000))
        assert sorted(numbers(seen)) == [worker * 100 + number for worker in range(3) for number in range(20)]
