"""Where an outbox under test keeps its tasks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

from owm_outbox.outbox import Outbox

__all__ = ["Storage"]


@dataclass(frozen=True, slots=True)
class Storage:
    """A place to keep tasks in, made for one test: empty at first, and of no use to anybody else.

    :param open: opens the outbox; called again, another object on the same place, if that is possible.
    :param interrupt: makes a block within which storing 20 tasks fails, as on a full disk or when a connection is cut.
    :param turn_clock: turns the outbox's clock forward by this much, or back.
    """

    open: Callable[[], Outbox]
    interrupt: Callable[[], AbstractContextManager[object]] | None = None
    turn_clock: Callable[[timedelta], None] | None = None
