"""Ends a relay between two commits when the process is asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from owm_outbox.errors import Stopped

__all__ = ["Following", "Stop"]


class Stop(threading.Event):
    """An event that can also be set by signals, and then cuts short what the main thread waits for.

    A signal handler may not set a plain event: it runs inside whatever the main thread does, and could wait for a
    lock that this thread holds. So the handler leaves a note, and raises `Stopped` where that is safe: within
    ``interruptible()``, which surrounds every wait and no commit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._signum: int | None = None
        self._armed = 0

    def is_set(self) -> bool:
        """Return whether a stop was asked for, by a signal or with ``set()``."""
        return self._signum is not None or super().is_set()

    def check(self) -> None:
        """Raise `Stopped` if a stop was asked for."""
        if self.is_set():
            raise Stopped(self._signum or signal.SIGTERM)

    def sleep(self, seconds: float) -> None:
        """Wait, and raise `Stopped` as soon as a stop is asked for."""
        with self.interruptible():
            self.wait(seconds)
        self.check()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end the block with `Stopped`, wherever in it the main thread is."""
        self._armed += 1
        try:
            self.check()
            yield
        finally:
            self._armed -= 1

    @contextmanager
    def on_signals(self, *signums: int) -> Iterator[None]:
        """Listen to these signals within the block. The second one has its old effect, so that it ends a hang."""
        before = {signum: signal.getsignal(signum) for signum in signums}

        def handle(signum: int, frame: FrameType | None) -> None:
            self._signum = signum
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._armed:
                raise Stopped(signum)

        for signum in signums:
            signal.signal(signum, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Following(Stop):
    """A stop that is asked for by setting another event, such as one that an application has anyway."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self._event = event

    def is_set(self) -> bool:
        """Return whether the event is set."""
        return self._event.is_set() or super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the event."""
        return self._event.wait(timeout)
