"""Ends a request that takes too long in all, however steadily its bytes arrive."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

__all__ = ["Deadline", "Watchdog"]


class Deadline:
    """When one request has to end, and whether that has passed."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.passed = False
        self.socket: socket.socket | None = None


class Watchdog:
    """Shuts down the socket of a request at its deadline, which wakes the thread that reads from it.

    The timeout that requests takes is for each gap between two bytes: an answer that trickles in, headers included,
    would outlive any number. One daemon thread watches all requests.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[Deadline] = set()
        self._looks_at: float | None = None  # when the thread looks next, once there is one
        self._closed = False

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Iterator[Deadline]:
        """Give a request this long, within the block."""
        deadline = Deadline(time.monotonic() + seconds)
        with self._changed:
            self._running.add(deadline)
            if self._looks_at is None:
                self._looks_at = deadline.at
                threading.Thread(target=self._watch, name="deadlines", daemon=True).start()
            elif deadline.at < self._looks_at:
                self._changed.notify()
        try:
            yield deadline
        finally:
            with self._changed:
                self._running.discard(deadline)

    def watch(self, sock: socket.socket, deadline: Deadline) -> None:
        """Take this socket for the request's, and no longer for that of the request before."""
        with self._changed:
            for other in self._running:
                if other.socket is sock:
                    other.socket = None
            deadline.socket = sock
            if deadline.passed:
                self._strike(deadline)

    def close(self) -> None:
        """End the requests under way, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            for deadline in self._running:
                self._strike(deadline)

    def _strike(self, deadline: Deadline) -> None:
        deadline.passed = True
        if deadline.socket is not None:
            with contextlib.suppress(OSError):  # it may be closed by now
                # Not its own method: over TLS that takes the session away under the thread that reads from it.
                socket.socket.shutdown(deadline.socket, socket.SHUT_RDWR)

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for deadline in [known for known in self._running if known.at <= now and not known.passed]:
                    self._strike(deadline)
                self._looks_at = min((known.at for known in self._running if not known.passed), default=now + 3600)
                self._changed.wait(self._looks_at - now)
