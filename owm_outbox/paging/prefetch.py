"""Fetches ahead with a bounded number of threads, and hands the outcomes over in order."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from owm_outbox.errors import SourceUnavailable
from owm_outbox.stop import Stop

__all__ = ["Prefetch"]

log = logging.getLogger("owm_outbox.paging")

S = TypeVar("S")
R = TypeVar("R")

_LOOK_AFTER = 1.0  # seconds; a stop that is somebody's own event wakes nobody


class Prefetch(Generic[S, R]):
    """Calls ``fetch`` for each step on daemon threads of its own, and yields the outcomes in the order of the steps.

    At most twice ``concurrency`` steps are taken ahead of what was handed over, so memory is bounded. An executor of
    the standard library would not do: its threads are waited for when the process ends, however long they take.

    :param fetch: what it raises is an outcome, too.
    :param concurrency: calls at once, at most.
    """

    def __init__(self, fetch: Callable[[S], R], *, concurrency: int) -> None:
        self._fetch = fetch
        self._concurrency = concurrency
        self._started = 0
        self._todo: SimpleQueue[tuple[S, Future[R]] | None] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()  # one item for each call that ended, and for a stop
        self._closed = False

    def close(self) -> None:
        """Let each thread end after the call that it is in; what waits is not fetched any more."""
        self._closed = True
        for _ in range(self._started):
            self._todo.put(None)

    def outcomes(self, steps: Iterable[S | None], stop: Stop) -> Iterator[tuple[S, Future[R]]]:
        """Yield each step with the future, which is done, of its call.

        ``steps`` is asked for the next one no sooner than needed, so it may depend on what was handed over. It may
        answer ``None``: nothing more before another outcome was handed over. A round that is given up half-way leaves
        nothing to the next one: what no thread has begun is not fetched any more.

        :raises SourceUnavailable: the system allows not even one thread. If it allows fewer than wanted, they do.
        :raises Stopped: a stop was asked for; calls under way are abandoned.
        """
        left = iter(steps)
        ahead: deque[tuple[S, Future[R]]] = deque()
        try:
            with stop.waking(lambda: self._done.put(None)):
                while True:
                    while len(ahead) < 2 * self._concurrency and (step := next(left, None)) is not None:
                        ahead.append((step, Future()))
                        self._todo.put(ahead[-1])
                        if self._started < min(len(ahead), self._concurrency):
                            self._start()
                    if not ahead:
                        return
                    stop.check()
                    while not ahead[0][1].done():
                        with suppress(Empty):
                            self._done.get(timeout=_LOOK_AFTER)
                        stop.check()
                    yield ahead.popleft()
        finally:
            for _, future in ahead:
                future.cancel()

    def _start(self) -> None:
        try:
            threading.Thread(target=self._work, name=f"prefetch-{self._started + 1}", daemon=True).start()
        except RuntimeError as error:  # a limit of processes, which counts threads as well
            if not self._started:
                raise SourceUnavailable(f"no page can be fetched: {error}; raise the limit of processes") from error
            log.warning("%s: continuing with %d requests at once", error, self._started)
            self._concurrency = self._started
        else:
            self._started += 1

    def _work(self) -> None:
        while (call := self._todo.get()) is not None and not self._closed:
            step, future = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._fetch(step))
            except Exception as error:  # handed over to the caller
                future.set_exception(error)
            self._done.put(None)
