"""Limits how many requests there are at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from owm_outbox.errors import SourceUnavailable

__all__ = ["Limiter"]

_CALM = 20  # good answers after which one more request at once is tried again


class Limiter:
    """Lets at most ``most`` requests be made at once, and fewer for a while after the server was overloaded."""

    def __init__(self, most: int) -> None:
        self._changed = threading.Condition()
        self._most = self._allowed = most
        self._taken = self._good = 0  # requests under way; good answers since the limit last changed
        self._closed = False

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait until a request may be made, and hold its slot within the block.

        :raises SourceUnavailable: the limiter is or was closed meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._taken < self._allowed)
            if self._closed:
                raise SourceUnavailable("the API was closed while a request waited to be sent")
            self._taken += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken -= 1
                self._changed.notify()

    def halve(self) -> None:
        """Allow half as many requests at once, but at least one. Those being made are not interrupted."""
        with self._changed:
            self._allowed, self._good = max(1, self._allowed // 2), 0

    def count_good(self) -> None:
        """Count a good answer: 20 of them allow one more request at once, up to the most."""
        with self._changed:
            self._good += 1
            if self._allowed < self._most and self._good >= _CALM:
                self._allowed, self._good = self._allowed + 1, 0
                self._changed.notify()

    def close(self) -> None:
        """Let nobody wait any longer: `SourceUnavailable` for all that do, and for all that come later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
