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

_PROBE = 4  # pages fetched one by one before more threads are thought of, unless the first is very slow
_WORTH_A_THREAD = 0.0015  # seconds a page is waited for; below that, threads cost more than they gain
_REVIEW = 64  # pages after which threads have to show that they are faster
_SETTLE = 512  # pages to go on one by one after they were not


class Prefetch(Generic[R]):
    """Calls ``fetch`` for each number, several calls at once where that helps, and yields the outcomes in order.

    It begins with one call at a time: where answers come at once, threads only get in each other's way. More are used
    once the pages are worth waiting for, and given up again where they turn out slower. Memory is bounded: no more than
    twice ``concurrency`` numbers are taken ahead of what was handed over.

    All calls are made on threads of its own, also where there is only one at a time. The caller does nothing but wait,
    so a signal handler may raise there: within a call it could leave a lock held for ever.

    :param fetch: what it raises is an outcome, too.
    :param concurrency: calls at once, at most.
    :param spare: calls more than that, which only prepare what ``fetch`` itself will not do at once more often.
    :param clock: monotonic seconds.
    :param cpu_clock: seconds that the calling thread has computed.
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
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._one = _Threads(1, self._work)
        self._many = _Threads(concurrency + spare, self._work)
        self._closed = False

    def close(self) -> None:
        """Let the threads end as soon as their call is over; they do not keep the process alive."""
        self._closed = True
        self._one.close()
        self._many.close()

    def outcomes(self, numbers: Iterable[int | None]) -> Iterator[tuple[int, R | Exception]]:
        """Yield each number with what ``fetch`` returned or raised for it.

        ``numbers`` is asked for the next one no sooner than needed, so it may depend on what was handed over. It may
        answer ``None``: none as long as there are calls under way.
        """
        ahead: deque[_Call[R]] = deque()
        try:
            yield from self._one_by_one(ahead, _Numbers(numbers))
        finally:
            for call in ahead:  # given up half-way: what nobody has begun is not fetched any more
                call.wanted = False

    def _one_by_one(self, ahead: deque[_Call[R]], left: _Numbers) -> Iterator[tuple[int, R | Exception]]:
        """Yield the outcomes of one thread, and of several for as long as that is better."""
        alone = _PROBE
        while not left.ended:
            began, waited, done = self._clock(), 0.0, 0
            # The first one has nothing beside it: it may show that nothing follows, or be a trial.
            while self._fill(ahead, left, 2 if done else 1, self._one):
                call = ahead.popleft()
                outcome = call.result()
                waited, done = waited + call.waited, done + 1
                yield call.number, outcome
                clearly = waited / done >= 10 * _WORTH_A_THREAD
                if self._concurrency > 1 and (clearly or (done >= alone and waited / done >= _WORTH_A_THREAD)):
                    yield from self._side_by_side(ahead, left, pace_to_beat=(call.ended - began) / done)
                    break
            alone = _SETTLE

    def _side_by_side(
        self, ahead: deque[_Call[R]], left: _Numbers, pace_to_beat: float
    ) -> Iterator[tuple[int, R | Exception]]:
        """Yield the outcomes of several threads, for as long as that is faster than so many seconds a page."""
        began, done, faster = self._clock(), 0, True
        while (faster and self._fill(ahead, left, 2 * self._concurrency, self._many)) or ahead:
            call = ahead.popleft()
            yield call.number, call.result()
            done += 1
            if done % _REVIEW == 0:
                now = self._clock()
                faster = faster and (now - began) / _REVIEW < pace_to_beat
                began = now

    def _fill(self, ahead: deque[_Call[R]], left: _Numbers, most: int, threads: _Threads[R]) -> bool:
        """Give these threads work, so that there are so many calls ahead; return whether there are any."""
        while len(ahead) < most and (number := left.take()) is not None:
            ahead.append(_Call(number))
            threads.put(ahead[-1])
        return bool(ahead)

    def _work(self, call: _Call[R]) -> bool:
        """Make a call; return whether to go on."""
        if self._closed:
            return False
        if not call.wanted:
            return True
        start, cpu = self._clock(), self._cpu_clock()
        outcome: R | Exception
        try:
            outcome = self._fetch(call.number)
        except Exception as error:  # handed to the caller, who raises it or knows what to do
            outcome = error
        call.ended = self._clock()
        call.waited = (call.ended - start) - (self._cpu_clock() - cpu)
        call.finish(outcome)
        return True


class _Call(Generic[R]):
    """A number on its way; whoever gave up waiting for it leaves nothing behind."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.wanted = True
        self.ended = 0.0
        self.waited = 0.0  # seconds in which it did not compute
        self._outcome: R | Exception  # once it is done
        self._done = threading.Lock()  # a bare one: of all that waits, it costs the least
        self._done.acquire()

    def finish(self, outcome: R | Exception) -> None:
        self._outcome = outcome
        self._done.release()

    def result(self) -> R | Exception:
        self._done.acquire()
        return self._outcome


class _Threads(Generic[R]):
    """So many threads that take calls from a queue; started with the first one."""

    def __init__(self, count: int, work: Callable[[_Call[R]], bool]) -> None:
        self._count = count
        self._work = work
        self._todo: queue.SimpleQueue[_Call[R] | None] = queue.SimpleQueue()
        self._started = 0

    def put(self, call: _Call[R]) -> None:
        self._todo.put(call)
        while self._started < self._count:
            self._started += 1
            name = f"prefetch-{self._started}-of-{self._count}"
            threading.Thread(target=self._run, name=name, daemon=True).start()

    def close(self) -> None:
        for _ in range(self._started):
            self._todo.put(None)

    def _run(self) -> None:
        while (call := self._todo.get()) is not None and self._work(call):
            pass


class _Numbers:
    """The numbers still to be fetched."""

    def __init__(self, numbers: Iterable[int | None]) -> None:
        self._left = iter(numbers)
        self.ended = False

    def take(self) -> int | None:
        """Return the next one, ``None`` if there is none now."""
        if self.ended:
            return None
        try:
            return next(self._left)
        except StopIteration:
            self.ended = True
            return None
