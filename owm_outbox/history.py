"""Whose progress a mark speaks of: the rules by which a relay believes a sink, without any I/O."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection

from owm_outbox.entry import NOTHING, Entry, Mark

__all__ = ["Standing", "standing"]


class Standing(enum.Enum):
    """Where a sink's mark stands, seen from what the outbox has acknowledged."""

    SAME = enum.auto()
    """The sink holds what the outbox knows it to hold."""

    AHEAD = enum.auto()
    """The sink holds more: only the news of it was lost, a reply or an acknowledge before a crash."""

    BEHIND = enum.auto()
    """The sink lost writes that it had confirmed, or is another one."""

    FOREIGN = enum.auto()
    """The mark is not of this outbox's history: it was restored from a backup, or a copy of it is at work."""


def standing(
    held: Mark, acknowledged: Mark, leases: Collection[str], entry_at: Callable[[int], Entry | None]
) -> Standing:
    """Say where the mark that a sink holds stands.

    :param held: `NOTHING` if the sink holds none.
    :param leases: those under which this outbox was delivered from, as far back as it remembers.
    :param entry_at: returns the entry at exactly this position, if the outbox has it.
    :raises ValueError: ``held`` is not a mark.
    """
    if held == acknowledged:
        return Standing.SAME
    if held == NOTHING:
        return Standing.SAME if acknowledged in (NOTHING, Mark.unsent(acknowledged.position)) else Standing.BEHIND
    position = held.position
    if held.lease not in leases and (held.lease or acknowledged.lease):
        return Standing.FOREIGN
    if position < acknowledged.position:
        return Standing.BEHIND
    if position == acknowledged.position:
        return Standing.FOREIGN
    entry = entry_at(position)
    if entry is None or held.task_id not in ("", entry.task_id):
        return Standing.FOREIGN
    return Standing.AHEAD
