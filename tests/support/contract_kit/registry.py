"""Which test of a contract must fail with which broken backend."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["CAUGHT_BY", "SAYS", "caught_by", "sync"]

C = TypeVar("C", bound=type)

CAUGHT_BY: dict[type, str] = {}
"""The contract's test that must fail, by broken backend."""

SAYS: dict[type, str] = {}
"""What its message must say, for flaws that are hard to see."""


def caught_by(test: str, says: str = "") -> Callable[[C], C]:
    """Name the test that must fail with this backend, and words that lead its author to the flaw."""

    def note(cls: C) -> C:
        CAUGHT_BY[cls] = test
        SAYS[cls] = says
        return cls

    return note


def sync() -> None:
    """Take as long as a disk needs for a commit: our own databases here do not wait for theirs."""
    time.sleep(0.002)
