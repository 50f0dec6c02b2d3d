"""Fetches ahead with a bounded number of threads, and hands the outcomes over in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from owm_outbox.stop import Stop

__all__ = ["Prefetch"]

S = TypeVar("S")
R = TypeVar("R")

_LOOK_AFTER = 1.0  # seconds; a stop that is somebody's own event wakes nobody


class Prefetch(Generic[S, R]):
    """Calls ``fetch`` for each step on daemon threads of its own, and yields the outcomes in the order of the steps.

    At most twice ``concurrency`` steps are taken ahead of what was handed over, so memory is bounded.

    :param fetch: what it raises is an outcome, too.
    :param concurrency: calls at once, at most.
    """

    def __init__(self, fetch: Callable[[S], R], *, concurrency: int) -> None:
        self._fetch = fetch
        self._concurrency = concurrency
        self._started = 0
        self._todo: SimpleQueue[_Call[S, R] | None] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()  # one item for each call that ended, and for a stop
        self._closed = False

    def close(self) -> None:
        """Let each thread end after the call that it is in; what waits is not fetched any more."""
        self._closed = True
        for _ in range(self._started):
            self._todo.put(None)

    def outcomes(self, steps: Iterable[S | None], stop: Stop) -> Iterator[tuple[S, R | Exception]]:
        """Yield each step with what ``fetch`` returned or raised for it.

        ``steps`` is asked for the next one no sooner than needed, so it may depend on what was handed over. It may
        answer ``None``: nothing more before another outcome was handed over.

        :raises Stopped: a stop was asked for; calls under way are abandoned.
        """
        left = iter(steps)
        ahead: deque[_Call[S, R]] = deque()
        try:
            with stop.waking(lambda: self._done.put(None)):
                while True:
                    while len(ahead) < 2 * self._concurrency and (step := next(left, None)) is not None:
                        ahead.append(_Call(step))
                        self._put(ahead[-1], len(ahead))
                    if not ahead:
                        return
                    call = ahead[0]
                    stop.check()
                    while call.outcome is None:
                        with suppress(Empty):
                            self._done.get(timeout=_LOOK_AFTER)
                        stop.check()
                    ahead.popleft()
                    yield call.step, call.outcome[0]
        finally:
            for call in ahead:  # given up half-way: what no thread has begun is not fetched any more
                call.wanted = False

    def _put(self, call: _Call[S, R], under_way: int) -> None:
        self._todo.put(call)
        if self._started < min(under_way, self._concurrency):
            self._started += 1
            threading.Thread(target=self._work, name=f"prefetch-{self._started}", daemon=True).start()

    def _work(self) -> None:
        while (call := self._todo.get()) is not None and not self._closed:
            if not call.wanted:
                continue
            try:
                call.outcome = (self._fetch(call.step),)
            except Exception as error:  # handed over to the caller
                call.outcome = (error,)
            self._done.put(None)


class _Call(Generic[S, R]):
    """A step on its way."""

    def __init__(self, step: S) -> None:
        self.step = step
        self.wanted = True
        self.outcome: tuple[R | Exception] | None = None  # once there is one
