"""Again: the waits of what works for months between one failed attempt and the next."""

from __future__ import annotations

import logging

from owm_outbox.errors import TryAgainLater
from owm_outbox.stop import Stop

__all__ = ["Again"]

_FIRST = 1.0  # seconds
_LONGEST = 30.0  # seconds


class Again:
    """Waits 1 s after a first failure, and up to 30 s after the next ones, unless a stop is asked for.

    :param log: is told of each failure.
    """

    def __init__(self, stop: Stop, log: logging.Logger) -> None:
        self._stop = stop
        self._log = log
        self._delay = _FIRST

    def wait(self, error: TryAgainLater) -> None:
        """Say what failed, and wait."""
        self._log.warning("trying again in %.0f s: %s", self._delay, error, extra={"seconds": self._delay})
        self._stop.wait(self._delay)
        self._delay = min(2 * self._delay, _LONGEST)

    def reset(self) -> None:
        """Note that it works."""
        self._delay = _FIRST
