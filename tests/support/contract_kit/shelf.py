"""A sink in memory that keeps every promise, one step after the other, so that each step can be broken."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from owm_outbox import Batch, EntriesRejected, MarkConflict, Sink, SinkFull, SinkUnavailable

__all__ = ["POISON", "HonestSink", "Shelf"]

POISON = b"\x00poison"


@dataclass
class Shelf:
    """Where sinks deliver to: a place in memory with limited room, which can be made to fail."""

    payloads: list[bytes] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)
    capacity: int = 10_000
    breaks_after: int | None = None
    reachable: bool = True
    mutex: threading.RLock = field(default_factory=threading.RLock)

    def reach(self) -> None:
        """Fail if it cannot be reached."""
        if not self.reachable:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    def put(self, payload: bytes) -> None:
        """Hold one more payload, unless it is broken."""
        if self.breaks_after is not None:
            if self.breaks_after == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.breaks_after -= 1
        self.payloads.append(payload)

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """Fail after a few payloads, for the length of a block."""
        self.breaks_after = 7
        yield
        self.breaks_after = None


class HonestSink(Sink):
    """Does all that the contract asks, one step after the other."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def mark(self, outbox_id: str) -> str | None:
        """Return what the shelf holds for this outbox."""
        self.reach()
        with self.shelf.mutex:
            return self.held(outbox_id)

    def send(self, batch: Batch) -> None:
        """Refuse what cannot be taken, else take it."""
        self.reach()
        with self.shelf.mutex:
            self.refuse_conflict(batch)
            self.refuse_poison(batch)
            self.refuse_more_than_fits(batch)
            self.take(batch)

    def reach(self) -> None:
        """Connect to the shelf."""
        try:
            self.shelf.reach()
        except OSError as error:
            raise SinkUnavailable(f"the shelf cannot be reached ({error.strerror})") from error

    def held(self, outbox_id: str) -> str:
        """Look up the mark."""
        return self.shelf.marks.get(outbox_id, "")

    def refuse_conflict(self, batch: Batch) -> None:
        """Compare the held mark with the batch's start."""
        held = self.held(batch.outbox_id)
        if held != batch.after:
            raise MarkConflict(held)

    def refuse_poison(self, batch: Batch) -> None:
        """Name what will never be taken."""
        if bad := {entry.position: "poison" for entry in batch.entries if entry.payload == POISON}:
            raise EntriesRejected(bad)

    def refuse_more_than_fits(self, batch: Batch) -> None:
        """Compare the size of the batch with the room."""
        room = self.shelf.capacity - len(self.shelf.payloads)
        if len(batch.entries) > room:
            raise SinkFull("the shelf is full", room=room)

    def take(self, batch: Batch) -> None:
        """Put the entries on the shelf, and the mark next to them; take all back if one does not go."""
        before = len(self.shelf.payloads)
        try:
            for payload in self.payloads(batch):
                self.shelf.put(payload)
        except OSError as error:
            del self.shelf.payloads[before:]
            raise SinkUnavailable(f"the shelf is broken ({error.strerror})") from error
        self.move(batch)

    def payloads(self, batch: Batch) -> Sequence[bytes]:
        """Return what is put on the shelf."""
        return [entry.payload for entry in batch.entries]

    def move(self, batch: Batch) -> None:
        """Hold the batch's mark."""
        self.shelf.marks[batch.outbox_id] = batch.mark
