"""Ends the wait for a server that does not answer: libpq itself would wait for ever."""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["Patience"]

_LOOK_EVERY = 1.0  # seconds


class Patience:
    """Cuts a connection whose server takes longer than one that works ever does.

    A machine that is paused, or whose disk hangs, keeps its connections open, and acknowledges what it is sent: no
    timeout of TCP ends that wait. One thread looks after all connections of the process.
    """

    longest = 120.0
    """Seconds. To count a long backlog on a slow disk may take one of these two minutes."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._since: float | None = None

    def attach(self, fd: int) -> None:
        """Look after this connection from now on."""
        self.detach()
        # A descriptor of our own: it stays this connection's, whoever closes the other one in the meantime.
        self._socket = socket.socket(fileno=os.dup(fd))
        _watch(self)

    def detach(self) -> None:
        """Look after none."""
        if self._socket is not None:
            self._socket.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Cut the connection if the block takes too long; one within another counts for the outer one."""
        before = self._since
        self._since = time.monotonic() if before is None else before
        try:
            yield
        finally:
            self._since = before

    def look(self) -> None:
        """Cut the connection if it is waited on for too long."""
        since, connection = self._since, self._socket
        if connection is not None and since is not None and time.monotonic() - since > self.longest:
            with suppress(OSError):  # it was closed in the meantime
                connection.shutdown(socket.SHUT_RDWR)


_watched: weakref.WeakSet[Patience] = weakref.WeakSet()
_starting = threading.Lock()
_thread: threading.Thread | None = None


def _watch(patience: Patience) -> None:
    global _thread
    with _starting:
        _watched.add(patience)
        if _thread is None or not _thread.is_alive():  # also after a fork, which copies no thread
            _thread = threading.Thread(target=_look, name="owm_outbox patience", daemon=True)
            _thread.start()


def _look() -> None:
    while True:
        time.sleep(_LOOK_EVERY)
        with _starting:
            patient = list(_watched)
        for one in patient:
            one.look()
