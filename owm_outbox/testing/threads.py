"""Doing the same thing on several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["in_threads"]


def in_threads(count: int, work: Callable[[int, threading.Barrier], None]) -> None:
    """Call ``work`` with 0, 1, … in as many threads at once, with a barrier to meet at; raise what any raised first."""
    failures: list[BaseException] = []
    meet = threading.Barrier(count)

    def guarded(number: int) -> None:
        try:
            work(number, meet)
        except BaseException as error:
            failures.append(error)
            meet.abort()  # or the others would wait for this one

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
