"""Ends what takes too long, however busily it does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

__all__ = ["Deadline", "Deadlines"]


class Deadline:
    """One request's end; its socket is shut down when it comes, which wakes whoever reads from it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at = float("inf")  # once it runs
        self.passed = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def watch(self, sock: socket.socket) -> None:
        """Take this socket for the request's."""
        with self._lock:
            self._socket = sock
        if self.passed:
            self.strike()

    def let_go(self) -> None:
        """Leave the socket alone from now on: it is another request's."""
        with self._lock:
            self._socket = None

    def strike(self) -> None:
        """End it now."""
        self.passed = True
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):  # it may be closed by now
                    # Not its own method: over TLS that takes the session away under the thread that reads from it.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Deadlines:
    """Watches the requests under way, with one thread.

    The timeout that requests takes is for each gap between two bytes: an answer that trickles in, headers included,
    would outlive any number.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[Deadline] = set()
        self._thread: threading.Thread | None = None
        self._looks_at = 0.0  # when the thread looks next: it need not be woken for what ends later
        self._closed = False

    def start(self, deadline: Deadline) -> None:
        """Let its time begin."""
        deadline.at = time.monotonic() + deadline.seconds
        with self._changed:
            self._running.add(deadline)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="deadlines", daemon=True)
                self._thread.start()
            elif deadline.at < self._looks_at:
                self._changed.notify()

    def stop(self, deadline: Deadline) -> None:
        """Forget it: the request is over, or was never sent."""
        with self._changed:
            self._running.discard(deadline)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for deadline in [known for known in self._running if known.at <= now]:
                    self._running.discard(deadline)
                    deadline.strike()
                self._looks_at = min((known.at for known in self._running), default=now + 3600)
                self._changed.wait(self._looks_at - now)
