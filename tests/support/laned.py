"""An outbox in memory that has lanes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from uuid import UUID, uuid4

from owm_outbox import Attendance, LanedOutbox, Outbox, OutboxLocked, OutboxUnavailable, lane_of
from owm_outbox_backends.memory import MemoryOutbox


@dataclass
class Numbered:
    """A task; those with the same key have to arrive in the order of their numbers."""

    task_id: UUID
    key: str
    number: int


class LanedMemory(LanedOutbox):
    """Lanes as outboxes in memory, shared by the relays of one process."""

    def __init__(self, lanes: int) -> None:
        self.outboxes = [MemoryOutbox() for _ in range(lanes)]
        self.down = False
        self.asked = threading.Event()  # while it was down
        self._attending = 0
        self._mutex = threading.Lock()

    @property
    def lanes(self) -> int:
        """How many there are."""
        return len(self.outboxes)

    def lane(self, number: int) -> Outbox:
        """Return a lane."""
        return self.outboxes[number]

    def append(self, keys: Iterable[str], number: int) -> None:
        """Append a task for each key."""
        for key in keys:
            self.outboxes[lane_of(key, self.lanes)].append([Numbered(uuid4(), key, number)])

    @contextmanager
    def attend(self) -> Iterator[Callable[[], Attendance]]:
        """Count."""
        with self._mutex:
            self._attending += 1
        try:
            yield self._attendance
        finally:
            with self._mutex:
                self._attending -= 1

    def _attendance(self) -> Attendance:
        if self.down:
            self.asked.set()
            raise OutboxUnavailable("the storage is down")
        with self._mutex:
            return Attendance(self._attending, self.free())

    def free(self) -> list[int]:
        """Return the lanes that nobody holds."""
        free = []
        for number, outbox in enumerate(self.outboxes):
            with suppress(OutboxLocked), outbox.lock():
                free.append(number)
        return free
