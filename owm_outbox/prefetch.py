"""Fetches numbered pages ahead with a bounded number of threads, and hands them over in order."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["Prefetch"]

R = TypeVar("R")

_PROBE = 4  # pages fetched one by one before threads are thought of, unless the first is very slow
_WORTH_A_THREAD = 0.0015  # seconds a page is waited for; below that, threads cost more than they gain
_REVIEW = 64  # pages after which threads have to show that they are faster
_SETTLE = 512  # pages to go on one by one after they were not


class Prefetch(Generic[R]):
    """Calls ``fetch`` for each number, several calls at once, and yields the outcomes in order.

    It begins without threads, on the caller's own: where answers come at once, threads only get in each other's way.
    They are used once the pages are worth waiting for, and given up again where they turn out slower. Memory is
    bounded: no more than twice ``concurrency`` numbers are taken ahead of what was handed over.

    :param fetch: called from any thread; what it raises is an outcome, too.
    :param concurrency: calls at once; 1 makes all of them on the caller's thread.
    :param spare: calls more than that, which only prepare what ``fetch`` itself will not do at once more often.
    """

    def __init__(
        self,
        fetch: Callable[[int], R],
        *,
        concurrency: int,
        spare: int = 0,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._fetch = fetch
        self._concurrency = concurrency
        self._spare = spare
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._todo: queue.SimpleQueue[_Call[R] | None] = queue.SimpleQueue()
        self._threads = 0
        self._closed = False

    def close(self) -> None:
        """Let the threads end as soon as their call is over; they do not keep the process alive."""
        self._closed = True
        for _ in range(self._threads):
            self._todo.put(None)

    def outcomes(self, numbers: Iterable[int]) -> Iterator[tuple[int, R | Exception]]:
        """Yield each number with what ``fetch`` returned or raised for it.

        ``numbers`` is asked for the next one no sooner than needed, so it may depend on what was handed over; it has
        to cope with being asked a little ahead.
        """
        left = _Numbers(numbers)
        alone = _PROBE
        while not left.ended:
            began, waited, done = self._clock(), 0.0, 0
            while (number := left.take()) is not None:
                start, cpu = self._clock(), self._cpu_clock()
                outcome = self._outcome(number)
                waited += (self._clock() - start) - (self._cpu_clock() - cpu)
                done += 1
                yield number, outcome
                clearly = waited / done >= 10 * _WORTH_A_THREAD
                if self._concurrency > 1 and (clearly or (done >= alone and waited / done >= _WORTH_A_THREAD)):
                    yield from self._side_by_side(left, pace_to_beat=(self._clock() - began) / done)
                    break
            alone = _SETTLE

    def _side_by_side(self, left: _Numbers, pace_to_beat: float) -> Iterator[tuple[int, R | Exception]]:
        """Yield the outcomes of several threads, for as long as that is faster than seconds a page alone."""
        while self._threads < self._concurrency + self._spare:
            self._threads += 1
            threading.Thread(target=self._work, name=f"prefetch-{self._threads}", daemon=True).start()
        ahead: deque[_Call[R]] = deque()
        began, done, faster = self._clock(), 0, True
        while True:
            while faster and len(ahead) < 2 * self._concurrency and (number := left.take()) is not None:
                ahead.append(_Call(number))
                self._todo.put(ahead[-1])
            if not ahead:
                return
            call = ahead.popleft()
            yield call.number, call.result()
            done += 1
            if done % _REVIEW == 0:
                now = self._clock()
                faster = faster and (now - began) / _REVIEW < pace_to_beat
                began = now

    def _work(self) -> None:
        while (call := self._todo.get()) is not None and not self._closed:
            call.finish(self._outcome(call.number))

    def _outcome(self, number: int) -> R | Exception:
        try:
            return self._fetch(number)
        except Exception as error:  # handed to the caller, who raises it or knows what to do
            return error


class _Call(Generic[R]):
    """A number on its way; whoever gave up waiting for it leaves nothing behind."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._outcome: R | Exception  # once it is done
        self._done = threading.Lock()  # a bare one: of all that waits, it costs the least
        self._done.acquire()

    def finish(self, outcome: R | Exception) -> None:
        self._outcome = outcome
        self._done.release()

    def result(self) -> R | Exception:
        self._done.acquire()
        return self._outcome


class _Numbers:
    """The numbers still to be fetched."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._left = iter(numbers)
        self.ended = False

    def take(self) -> int | None:
        """Return the next one, ``None`` if there is none (any more)."""
        number = None if self.ended else next(self._left, None)
        self.ended = number is None
        return number
