"""What outbox and sink are known to agree on, for the length of one call of a relay."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence

import msgspec

from owm_outbox.entry import NOTHING, Batch, Entry, Mark
from owm_outbox.errors import SinkUnavailable
from owm_outbox.history import Standing, standing
from owm_outbox.outbox import Outbox, OutboxStats

__all__ = ["Agreement"]

log = logging.getLogger("owm_outbox.delivery")

_CHUNK = 500  # entries read at a time
_MAX_LOSSES = 3  # of one call: what is sent again is lost again
_KEPT_LEASES = 1000  # sessions that a sink may be set back by


class Agreement:
    """Keeps the cursor and the marks of one call, and counts what the sink came to hold.

    :param stats: of the outbox, as the call found it.
    :param sink_name: for messages.
    """

    def __init__(self, outbox: Outbox, stats: OutboxStats, sink_name: str) -> None:
        self._outbox = outbox
        self._sink_name = sink_name
        self._acknowledged = stats.acknowledged  # what the outbox knows the sink to hold
        self._high_water = stats.acknowledged.position  # what is below it is sent again
        self._lease: str | None = None
        self._leases: list[str] = msgspec.json.decode(outbox.state.get("leases") or b"[]", type=list[str])
        self._losses = 0

        self.outbox_id = outbox.id
        self.held = stats.acknowledged
        """The mark that the sink is known to hold; before it was asked, what the outbox acknowledged."""
        self.cursor = stats.acknowledged.position
        """The position up to which the sink holds everything."""
        self.delivered = 0
        self.redelivered = 0
        self.forked = False

    def taken(self, batch: Batch) -> None:
        """Note that the sink took a batch."""
        self._count(batch.entries)
        self.cursor, self.held = batch.entries[-1].position, batch.mark

    def acknowledge(self) -> None:
        """Note in the outbox what the sink is known to hold."""
        if self.held != self._acknowledged:
            self._outbox.acknowledge(self.held)
            self._acknowledged = self.held

    def take_lease(self) -> str:
        """Return the proof of this session; it is in the outbox before anything is sent under it."""
        if self._lease is None:
            self._lease = secrets.token_hex(6)
            self._leases = [*self._leases, self._lease][-_KEPT_LEASES:]
            self._outbox.state.set("leases", msgspec.json.encode(self._leases))
        return self._lease

    def agree(self, held: Mark) -> None:
        """Make the outbox agree with the mark that the sink holds.

        Nothing is acknowledged before that: the sink may have lost what it took last, and an outbox clears what is
        acknowledged.
        """
        known = self.held
        match standing(held, known, self._leases, self._entry_at):
            case Standing.SAME:
                self.held = held
                return
            case Standing.AHEAD:
                log.info(
                    "the sink already holds entries up to position %d", held.position, extra={"held": held.position}
                )
                self._count_up_to(held.position)
            case Standing.BEHIND:
                self._losses += 1
            case Standing.FOREIGN:
                self._fork(held)
                return
        if held != self._acknowledged:
            self._outbox.acknowledge(held)
            self._acknowledged = held
        self.held, self.cursor = held, held.position
        self._high_water = max(self._high_water, known.position, held.position)
        if held.position < known.position:
            pending = self._outbox.stats().pending
            log.warning(
                "the sink holds position %d, but had held %d: it lost writes or is another one; "
                "sending again what is still in the outbox, %d entries",
                held.position,
                known.position,
                pending,
                extra={"held": held.position, "had_held": known.position, "pending": pending},
            )
        if self._losses > _MAX_LOSSES:
            self._losses = 0
            raise SinkUnavailable(
                f"{self._sink_name} lost what it had taken {_MAX_LOSSES + 1} times in a row: does it evict "
                "keys, or does another program delete them?"
            )

    def _fork(self, held: Mark) -> None:
        """Begin a history of its own: what the sink holds under the old id is not this outbox's progress."""
        acknowledged = Mark.unsent(self._acknowledged.position)
        self._outbox.acknowledge(acknowledged)  # first: after a crash here the old id leads to this place again
        old, pending = self.outbox_id, self._outbox.stats().pending
        self._outbox.renew_id()
        self.outbox_id = self._outbox.id
        self._acknowledged, self.held, self.cursor = acknowledged, NOTHING, acknowledged.position
        self._high_water = max(self._high_water, acknowledged.position)
        self.forked = True
        log.warning(
            "the sink's mark of outbox %s (%s) is not of this outbox's history: the outbox was restored from a copy, "
            "or a copy of it is at work; it now has the id %s, and its %d pending entries are sent, some of them "
            "perhaps for the second time",
            old,
            held,
            self.outbox_id,
            pending,
            extra={"pending": pending},
        )

    def _count(self, entries: Sequence[Entry]) -> None:
        last = entries[-1].position
        if entries[0].position > self._high_water:
            again = 0
        else:
            again = sum(entry.position <= self._high_water for entry in entries)
        self.redelivered += again
        self.delivered += len(entries) - again
        self._high_water = max(self._high_water, last)

    def _count_up_to(self, position: int) -> None:
        at = self.cursor
        while entries := self._outbox.read(at, _CHUNK):
            held = [entry for entry in entries if entry.position <= position]
            if held:
                self._count(held)
            if len(held) < len(entries):
                return
            at = entries[-1].position

    def _entry_at(self, position: int) -> Entry | None:
        found = self._outbox.read(position - 1, 1)
        return found[0] if found and found[0].position == position else None
