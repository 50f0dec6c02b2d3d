"""Ends a request that takes too long in all, however steadily its bytes arrive.

The timeout that requests takes is for each gap between two bytes: an answer that trickles in, headers included, would
outlive any number. So an answer is read through a reader that allows each read no more than what is left.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from typing import Any

import urllib3
from requests.adapters import HTTPAdapter

__all__ = ["DeadlineAdapter", "begin", "time_left"]

_current = threading.local()  # of the request that this thread is making: .ends_at, .closed


def begin(seconds: float, closed: threading.Event) -> None:
    """Give the request that this thread is going to make this long.

    :param closed: ends it within a second once it is set.
    """
    _current.ends_at, _current.closed = time.monotonic() + seconds, closed


def time_left() -> float:
    """Return the seconds that are left to it, negative if none are."""
    return float(_current.ends_at - time.monotonic())


class _UntilDeadline(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw  # holds the socket open until the answer has been read
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while (left := time_left()) > 0 and not _current.closed.is_set():
            self._sock.settimeout(min(left, 1.0))
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                continue  # to see whether the client was closed
        raise TimeoutError("it took too long, or was closed")

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_UntilDeadline(self.fp.detach(), sock))

    def begin(self) -> None:
        super().begin()
        while 102 <= self.status < 200:  # such as 103 Early Hints: the answer follows
            self.headers = self.msg = None  # type: ignore[assignment]  # as before the first one
            super().begin()


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _Response


class _TLSConnection(urllib3.connection.HTTPSConnection):
    response_class = _Response


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class DeadlineAdapter(HTTPAdapter):
    """Makes requests by connections whose answers are read within the deadline."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools, of such connections."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
