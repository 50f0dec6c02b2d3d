"""LaneRelay: one process's share of an outbox that has lanes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from owm_outbox.errors import OutboxLocked, TryAgainLater
from owm_outbox.lanes import Attendance, LanedOutbox
from owm_outbox.observer import Observer
from owm_outbox.relay import OutboxRelay
from owm_outbox.sink import Sink
from owm_outbox.stop import Stop

__all__ = ["LaneRelay"]

log = logging.getLogger("owm_outbox.relay")

T = TypeVar("T")

_BALANCE_EVERY = 1.0  # seconds
_LONGEST_STOP = 5.0  # seconds


class LaneRelay:
    """Delivers from as many lanes of an outbox as are this relay's share: all of them, if it is the only one.

    A relay that joins gets its share within seconds, as the others give lanes up; those of one that dies are free as
    soon as the storage notices. Each lane is delivered on a thread of its own, by an `OutboxRelay` with its own sink.

    :param open_sink: opens the sink of a lane, by its number.
    :param batch_size: entries per batch, at most.
    :param wait_for_room: seconds to wait for room in a full sink before its lane tries again later.
    :param stop: ends ``drain`` between two commits once it is set, with `Stopped`.
    :param observers: returns those of a lane, by its number; they are called on its thread.
    :param alive: called before each look at who attends; a relay that hangs no longer calls it.
    :param balance_every: seconds between two looks at who attends.
    """

    def __init__(
        self,
        outbox: LanedOutbox,
        open_sink: Callable[[int], Sink],
        *,
        batch_size: int = 500,
        wait_for_room: float = 60.0,
        stop: Stop | None = None,
        observers: Callable[[int], Sequence[Observer]] = lambda lane: (),
        alive: Callable[[], object] = lambda: None,
        balance_every: float = _BALANCE_EVERY,
    ) -> None:
        self._outbox = outbox
        self._open_sink = open_sink
        self._batch_size = batch_size
        self._wait_for_room = wait_for_room
        self._stop = stop
        self._observers = observers
        self._alive = alive
        self._balance_every = balance_every

    def run_forever(self, stop: Stop | threading.Event, *, poll: float = 0.2) -> None:
        """Deliver what anybody appends, until ``stop`` is set; then return between two commits of every lane.

        Storage and sinks that are unavailable are waited for.

        :param poll: seconds between two looks at a lane that had nothing new.
        :raises OwmOutboxError: what waiting does not fix, in any lane; all lanes were given up before.
        """
        asked = stop if isinstance(stop, Stop) else Stop(stop)
        held: dict[int, _LaneThread] = {}
        level = logging.WARNING
        try:
            while not asked.is_set():
                self._alive()
                try:
                    with self._outbox.attend() as attendance:
                        level = logging.WARNING
                        self._share(held, attendance, asked, poll)
                except TryAgainLater as error:
                    log.log(level, "trying again until it works: %s", error)
                    level = logging.DEBUG  # once is enough: it is asked every second, and lanes have their own say
                    asked.wait(self._balance_every)
        finally:
            _give_up(held.values())

    def drain(self) -> int:
        """Deliver everything that is in any lane, lane after lane; return how many entries the sinks came to hold.

        :raises OutboxLocked: another relay holds a lane; what is in those before it was delivered.
        :raises TryAgainLater: a sink is down or full; the rest stays in the outbox.
        """
        return sum(self._on_lane(number, lambda relay: relay.drain()) for number in range(self._outbox.lanes))

    def _share(
        self, held: dict[int, _LaneThread], attendance: Callable[[], Attendance], stop: Stop, poll: float
    ) -> None:
        while not stop.is_set():
            self._alive()
            self._balance(held, attendance(), poll)
            stop.wait(self._balance_every)

    def _balance(self, held: dict[int, _LaneThread], attendance: Attendance, poll: float) -> None:
        """Give lanes up that are more than our share, take free ones that are less."""
        for number, thread in list(held.items()):
            if thread.has_ended():
                del held[number]
        share = -(-self._outbox.lanes // max(attendance.relays, 1))
        surplus = [held.pop(number) for number in sorted(held)[share:]]
        _give_up(surplus)
        for thread in surplus:
            log.info("gave lane %d up to another relay", thread.number)
        for number in sorted(attendance.free):
            if len(held) >= share:
                return
            if number not in held:
                held[number] = thread = _LaneThread(number, self._deliver, poll)
                thread.start()

    def _deliver(self, number: int, stop: Stop, poll: float) -> None:
        self._on_lane(number, lambda relay: relay.run_forever(stop, poll=poll))

    def _on_lane(self, number: int, work: Callable[[OutboxRelay], T]) -> T:
        with self._outbox.lane(number) as lane, self._open_sink(number) as sink:
            return work(
                OutboxRelay(
                    lane,
                    sink,
                    batch_size=self._batch_size,
                    wait_for_room=self._wait_for_room,
                    stop=self._stop,
                    observers=self._observers(number),
                )
            )


class _LaneThread(threading.Thread):
    """Holds and delivers one lane."""

    def __init__(self, number: int, deliver: Callable[[int, Stop, float], None], poll: float) -> None:
        super().__init__(name=f"lane {number}", daemon=True)
        self.number = number
        self.stop = Stop()
        self._deliver = deliver
        self._poll = poll
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._deliver(self.number, self.stop, self._poll)
        except Exception as error:
            self._error = error

    def has_ended(self) -> bool:
        """Return whether the lane is not held any more.

        :raises OwmOutboxError: for a reason that waiting does not fix.
        """
        if self.is_alive():
            return False
        if isinstance(self._error, OutboxLocked):
            log.info("lane %d is another relay's: %s", self.number, self._error)
        elif isinstance(self._error, TryAgainLater):
            log.warning("lane %d: %s", self.number, self._error)
        elif self._error is not None:
            raise self._error
        return True


def _give_up(threads: Collection[_LaneThread]) -> None:
    """Let lanes end between two commits."""
    for thread in threads:
        thread.stop.set()
    until = time.monotonic() + _LONGEST_STOP
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))
        if thread.is_alive():
            hangs = "lane %d did not end within %.0f s: its storage or its sink hangs"
            log.warning(hangs, thread.number, _LONGEST_STOP)
