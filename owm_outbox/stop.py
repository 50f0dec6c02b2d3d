"""Asks a relay to end between two commits: a flag, and a wake-up for whatever the main thread waits for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType

from owm_outbox.errors import Stopped

__all__ = ["Stop"]


class Stop:
    """A flag that is set from any thread or by a signal, and wakes whoever waits for it.

    A signal handler runs inside whatever the main thread does. It raises nothing there, and takes no lock:
    ``SimpleQueue.put`` is reentrant, ``threading.Event.set`` is not. So nothing is interrupted, and nobody's
    ``except Exception`` can swallow a stop: whoever calls foreign code looks at the flag afterwards.

    :param event: another flag that also counts, such as one that an application has already.
    """

    def __init__(self, event: threading.Event | None = None) -> None:
        self._event = event
        self._asked = False
        self._signum: int = signal.SIGTERM
        self._wake_ups: list[Callable[[], None]] = []

    def set(self) -> None:
        """Ask for a stop. Safe within a signal handler."""
        self._asked = True
        for wake_up in tuple(self._wake_ups):
            wake_up()

    def is_set(self) -> bool:
        """Return whether a stop was asked for."""
        return self._asked or (self._event is not None and self._event.is_set())

    def check(self) -> None:
        """Raise `Stopped` if a stop was asked for."""
        if self.is_set():
            raise Stopped(self._signum)

    def wait(self, seconds: float) -> bool:
        """Wait this long, or until a stop is asked for; return whether it was."""
        if self._event is not None:
            return self._event.wait(seconds) or self.is_set()
        woken: SimpleQueue[None] = SimpleQueue()
        with self.waking(lambda: woken.put(None)):
            if not self._asked:
                with suppress(Empty):
                    woken.get(timeout=seconds)
        return self._asked

    @contextmanager
    def waking(self, wake_up: Callable[[], None]) -> Iterator[None]:
        """Call ``wake_up`` when a stop is asked for within the block: a put into the queue that the block waits on.

        It may run within a signal handler, so it must not take a lock. Look at ``is_set`` before the first wait.
        """
        self._wake_ups.append(wake_up)
        try:
            yield
        finally:
            self._wake_ups.remove(wake_up)

    @contextmanager
    def on_signals(self, *signums: int) -> Iterator[None]:
        """Listen to these signals within the block. The second one has its old effect, so that it ends a hang."""
        before = {signum: signal.getsignal(signum) for signum in signums}

        def handle(signum: int, frame: FrameType | None) -> None:
            self._signum = signum
            for number, handler in before.items():
                signal.signal(number, handler)
            self.set()

        for signum in signums:
            signal.signal(signum, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
