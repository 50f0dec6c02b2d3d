"""Where an outbox under test keeps its tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from owm_outbox.outbox import Outbox

__all__ = ["AppendWithin", "Storage"]

AppendWithin = Callable[[Sequence[Any]], object]
"""Appends tasks, in a transaction that is ended elsewhere."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A place to keep tasks in, made for one test: empty at first, and of no use to anybody else.

    :param open: opens the outbox; called again, another object on the same place, if that is possible.
    :param interrupt: makes a block within which storing 20 tasks fails, as on a full disk or when a connection is cut.
    :param transaction: makes a block that is a transaction of an application's own, of which there may be several at
        once: it gives a function that appends tasks within it, and commits at its end.
    :param turn_clock: turns the outbox's clock forward by this much, or back.
    """

    open: Callable[[], Outbox]
    interrupt: Callable[[], AbstractContextManager[object]] | None = None
    transaction: Callable[[], AbstractContextManager[AppendWithin]] | None = None
    turn_clock: Callable[[timedelta], None] | None = None
