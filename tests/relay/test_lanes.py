"""Lanes: which relay holds which, and what becomes of them when relays come and go."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from owm_outbox import Batch, ConfigurationError, LaneRelay, Sink, SinkUnavailable, lane_of

from support.laned import LanedMemory

KEYS = [f"key {number}" for number in range(40)]


class Shared:
    """What the sinks of all lanes hold, and an event per thing that tests wait for."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.marks: dict[str, str] = {}
        self.numbers: dict[str, list[int]] = defaultdict(list)
        self.sinks: dict[int, int] = {}  # of a lane: which relay delivers from it
        self.error: Exception | None = None

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until this is so."""
        with self.changed:
            assert self.changed.wait_for(true, 20), (self.sinks, dict(self.numbers))

    def held_by(self, relay: int) -> int:
        """Count the lanes that a relay delivers from."""
        return sum(other == relay for other in self.sinks.values())


class LaneSink(Sink):
    """The sink of a lane."""

    def __init__(self, shared: Shared, lane: int, relay: int) -> None:
        self.shared, self.lane, self.relay = shared, lane, relay

    def mark(self, outbox_id: str) -> str:
        """Say how far it got, to the relay that holds the lane now."""
        if self.shared.error is not None:
            raise self.shared.error
        with self.shared.changed:
            assert self.shared.sinks.get(self.lane, self.relay) == self.relay, "two relays deliver from one lane"
            self.shared.sinks[self.lane] = self.relay
            self.shared.changed.notify_all()
        return self.shared.marks.get(outbox_id, "")

    def send(self, batch: Batch) -> None:
        """Note what came for which key."""
        with self.shared.changed:
            self.shared.marks[batch.outbox_id] = batch.mark
            for entry in batch.entries:
                task = json.loads(entry.payload)
                self.shared.numbers[task["key"]].append(task["number"])
            self.shared.changed.notify_all()

    def close(self) -> None:
        """Note that the lane was given up."""
        with self.shared.changed:
            if self.shared.sinks.get(self.lane) == self.relay:
                del self.shared.sinks[self.lane]
            self.shared.changed.notify_all()


def _hold_all(shared: Shared, relays: set[int]) -> bool:
    return sum(map(shared.held_by, relays)) == 8


class Relays:
    """Relays at work on the threads of one process."""

    def __init__(self, outbox: LanedMemory, shared: Shared) -> None:
        self.outbox, self.shared = outbox, shared
        self.errors: list[Exception] = []
        self._running: dict[int, tuple[threading.Thread, threading.Event]] = {}

    def start(self, number: int) -> None:
        """Let another one work."""
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=[number, stop])
        self._running[number] = thread, stop
        thread.start()

    def end(self, number: int) -> None:
        """Stop one."""
        thread, stop = self._running.pop(number)
        stop.set()
        thread.join(20)
        assert not thread.is_alive()

    def end_all(self) -> None:
        """Stop all."""
        for number in list(self._running):
            self.end(number)

    def _run(self, number: int, stop: threading.Event) -> None:
        relay = LaneRelay(self.outbox, lambda lane: LaneSink(self.shared, lane, number), balance_every=0.02)
        try:
            relay.run_forever(stop, poll=0.01)
        except Exception as error:
            self.errors.append(error)
            with self.shared.changed:
                self.shared.changed.notify_all()


@pytest.fixture
def outbox() -> LanedMemory:
    """Make an outbox of eight lanes."""
    return LanedMemory(8)


@pytest.fixture
def shared() -> Shared:
    """Make a target."""
    return Shared()


@pytest.fixture
def relays(outbox: LanedMemory, shared: Shared) -> Iterator[Relays]:
    """Give what starts and stops relays."""
    relays = Relays(outbox, shared)
    yield relays
    relays.end_all()


def test_a_key_is_in_the_same_lane_in_every_version() -> None:
    """Which lane it is must never change, or its order is lost; many keys are spread evenly."""
    assert [lane_of(key, 8) for key in ("a", "b", 7, "7", "\ud800", "köln")] == [3, 1, 2, 2, 0, 7]
    counts = [0] * 8
    for number in range(8000):
        counts[lane_of(number, 8)] += 1
    assert min(counts) > 900


def test_one_relay_delivers_all_lanes(outbox: LanedMemory, shared: Shared, relays: Relays) -> None:
    """What is appended arrives, each key in its order."""
    for number in range(5):
        outbox.append(KEYS, number)
    relays.start(1)
    shared.until(lambda: shared.numbers == {key: list(range(5)) for key in KEYS})
    assert shared.held_by(1) == 8


def test_relays_that_join_get_their_share(outbox: LanedMemory, shared: Shared, relays: Relays) -> None:
    """With a second and a third one, nobody keeps more than a fair part; all lanes are delivered."""
    relays.start(1)
    shared.until(lambda: shared.held_by(1) == 8)
    relays.start(2)
    shared.until(lambda: (shared.held_by(1), shared.held_by(2)) == (4, 4))
    relays.start(3)
    shared.until(lambda: sorted(map(shared.held_by, (1, 2, 3))) == [2, 3, 3])
    outbox.append(KEYS, 1)
    shared.until(lambda: shared.numbers == {key: [1] for key in KEYS})


def test_the_lanes_of_a_relay_that_ends_are_taken_over(outbox: LanedMemory, shared: Shared, relays: Relays) -> None:
    """Whichever ends, the others deliver all lanes, each key still in its order."""
    for number in (1, 2, 3):
        relays.start(number)
    shared.until(lambda: sorted(map(shared.held_by, (1, 2, 3))) == [2, 3, 3])
    for number, ends in enumerate((2, 1)):
        outbox.append(KEYS, number)
        relays.end(ends)
        left = {1, 2, 3} - {2, ends} if number else {1, 3}
        shared.until(partial(_hold_all, shared, left))
    shared.until(lambda: shared.numbers == {key: [0, 1] for key in KEYS})


def test_more_relays_than_lanes_stand_by(shared: Shared) -> None:
    """One lane, two relays: one delivers, and the other takes over when it ends."""
    outbox = LanedMemory(1)
    relays = Relays(outbox, shared)
    relays.start(1)
    shared.until(lambda: shared.held_by(1) == 1)
    relays.start(2)
    outbox.append(KEYS, 1)
    shared.until(lambda: len(shared.numbers) == len(KEYS))
    assert shared.held_by(1) == 1
    relays.end(1)
    shared.until(lambda: shared.held_by(2) == 1)
    relays.end_all()


def test_what_waiting_does_not_fix_ends_the_relay(outbox: LanedMemory, shared: Shared, relays: Relays) -> None:
    """A wrong password in one lane's sink is raised, after all lanes were given up."""
    shared.error = ConfigurationError("wrong password")
    relays.start(1)
    shared.until(lambda: bool(relays.errors))
    assert str(relays.errors[0]) == "wrong password"
    assert len(outbox.free()) == 8


def test_an_outage_is_waited_for(outbox: LanedMemory, shared: Shared, relays: Relays) -> None:
    """While the storage cannot tell who attends, and the sink is down, a relay goes on trying."""
    outbox.down, shared.error = True, SinkUnavailable("down")
    outbox.append(KEYS, 1)
    relays.start(1)
    outbox.asked.wait(20)
    outbox.down, shared.error = False, None
    shared.until(lambda: shared.numbers == {key: [1] for key in KEYS})
