"""Lanes: an outbox split by key, so that several relays deliver from it at once, each key in its order."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import NamedTuple

from owm_outbox.entry import Key
from owm_outbox.outbox import Outbox

__all__ = ["Attendance", "LanedOutbox", "lane_of"]


def lane_of(key: Key, lanes: int) -> int:
    """Return which of so many lanes a key belongs to: the same in every process and every version."""
    return zlib.crc32(str(key).encode(errors="surrogatepass")) % lanes


class Attendance(NamedTuple):
    """Who works on an outbox.

    :param relays: how many relays attend, the one that asks among them.
    :param free: the lanes that no relay holds.
    """

    relays: int
    free: Collection[int]


class LanedOutbox(ABC):
    """What an outbox may add, so that several relays share it.

    An entry is in the lane that `lane_of` gives for its key, or for its ``task_id`` where it has none. Each lane is an
    outbox of its own, with its own id, lock, order and mark; no two lanes ever give the same position.
    """

    @property
    @abstractmethod
    def lanes(self) -> int:
        """How many lanes there are, at least one. With one, this object is it."""

    @abstractmethod
    def lane(self, number: int) -> Outbox:
        """Open a lane, by its number from 0. It has to be closed before this object."""

    @abstractmethod
    def attend(self) -> AbstractContextManager[Callable[[], Attendance]]:
        """Be counted among the relays of this outbox, within the block, and until the process ends at the latest.

        The function tells who attends now.

        :raises OutboxUnavailable: the storage cannot be reached; so does the function, which may be called again.
        """
