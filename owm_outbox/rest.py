"""Rest: for how long a sink that failed is left alone."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Rest"]


class Rest:
    """For how long a sink that failed is left alone: the longer it took to fail, the longer.

    So a sink that is down costs an extraction a tenth of its time at most.

    :param clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: float | None = None

    def is_over(self) -> bool:
        """Return whether it may be asked again."""
        return self._until is None or self._clock() >= self._until

    def begin(self, seconds: float) -> bool:
        """Begin a rest after a failure that took this long; return whether it is the first of its kind."""
        first = self._until is None
        self._until = self._clock() + max(1.0, 10 * seconds)
        return first

    def end(self) -> None:
        """Ask it again from now on."""
        self._until = None
