"""Health: whether the loop of each relay turns, what it does, and whether its sink answered last."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from owm_outbox.errors import OwmOutboxError
from owm_outbox.observer import Observer

__all__ = ["Health", "Pulse"]


class Pulse(Observer):
    """What one relay told last. Used on its thread, and read on any other."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.held = False
        self.sink_error: OwmOutboxError | None = None
        self.beat: float | None = None
        """When it was last alive; ``None`` while it need not be, as before it began, or after it gave its lane up."""
        self._clock = clock

    def alive(self) -> None:
        """Note the time."""
        self.beat = self._clock()

    def lock_changed(self, held: bool) -> None:
        """Note that it holds its outbox or lane, or does not any more; then it may well have ended."""
        self.held = held
        self.beat = self._clock() if held else None

    def sink_answered(self, error: OwmOutboxError | None) -> None:
        """Note the sink's last answer."""
        self.sink_error = error


class Health:
    """The pulses of a process.

    :param clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pulses: dict[str, Pulse] = {}
        self.is_open = False
        """Whether the outbox was opened; a relay waits for one whose storage is down."""
        self.outbox_error: OwmOutboxError | None = None
        """Why it could not be opened yet."""

    def pulse(self, name: str) -> Pulse:
        """Return the observer for what has this name: a lane's relay, or the loop that shares lanes out."""
        with self._lock:
            return self._pulses.setdefault(name, Pulse(name, self._clock))

    def hanging(self, seconds: float) -> list[str]:
        """Return the names of those that were not alive for so long."""
        now = self._clock()
        return [pulse.name for pulse in self._all() if pulse.beat is not None and now - pulse.beat > seconds]

    def held(self, prefix: str) -> list[str]:
        """Return the names, of those that begin so, of what is held now."""
        return [pulse.name for pulse in self._all() if pulse.held and pulse.name.startswith(prefix)]

    @property
    def ready(self) -> bool:
        """Whether it was opened, and the sink answers."""
        return self.is_open and not self.sink_errors

    @property
    def sink_errors(self) -> list[OwmOutboxError]:
        """What the sinks of those at work answered last, where that was an error."""
        return [pulse.sink_error for pulse in self._all() if pulse.held and pulse.sink_error is not None]

    def line(self) -> str:
        """Say in one line what the process does."""
        held = sum(pulse.held for pulse in self._all())
        if not self.is_open:
            return f"waiting for the outbox: {self.outbox_error or 'it is being opened'}"
        if errors := self.sink_errors:
            return f"waiting for the sink: {errors[0]}"
        return "standing by: another relay holds the outbox" if not held else f"delivering: {held} held"

    def _all(self) -> list[Pulse]:
        with self._lock:
            return list(self._pulses.values())
