"""Where a sink under test delivers to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from owm_outbox.sink import Sink

__all__ = ["Destination"]


@dataclass(frozen=True, slots=True)
class Destination:
    """A place to deliver to, made for one test: empty at first, and of no use to anybody else.

    One that is bounded has room for 10,000 entries, until it is filled.

    :param open: opens a sink on it; called again, another one on the same place.
    :param payloads: returns the payloads of all entries that it holds, in their order.
    :param fill: leaves room for fewer than 50 entries.
    :param poison: a payload that is never taken.
    :param interrupt: makes a block within which sending 20 entries fails midway, as on a full disk or when a
        connection is cut.
    :param unreachable: opens a sink whose target cannot be reached, such as a port at which nothing listens; called
        several times.
    :param lose: loses all entries that it holds, as when somebody deletes the target, but not what is stored elsewhere.
    """

    open: Callable[[], Sink]
    payloads: Callable[[], Sequence[bytes]]
    fill: Callable[[], object] | None = None
    poison: bytes | None = None
    interrupt: Callable[[], AbstractContextManager[object]] | None = None
    unreachable: Callable[[], Sink] | None = None
    lose: Callable[[], object] | None = None
