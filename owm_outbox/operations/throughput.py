"""Throughput: how many tasks were delivered in each of the last minutes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from owm_outbox.entry import Batch
from owm_outbox.observer import Observer

__all__ = ["Throughput"]

_MINUTES = 60


class Throughput(Observer):
    """Counts what several relays deliver, each on its thread.

    :param clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._first = self._minute()
        self._delivered: Counter[int] = Counter()

    def batch_delivered(self, batch: Batch) -> None:
        """Count what the sink holds, and forget what is too old."""
        now = self._minute()
        with self._lock:
            self._delivered[now] += len(batch.entries)
            for old in [minute for minute in self._delivered if minute <= now - _MINUTES]:
                del self._delivered[old]

    def last_hour(self) -> list[int | None]:
        """Return the tasks of each of the last 60 minutes, the present one last; ``None`` before the start."""
        now = self._minute()
        with self._lock:
            return [
                self._delivered[minute] if minute >= self._first else None
                for minute in range(now - _MINUTES + 1, now + 1)
            ]

    def _minute(self) -> int:
        return int(self._clock() // 60)
