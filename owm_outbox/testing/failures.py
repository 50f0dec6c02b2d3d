"""Failures to test with: a disk that is full, and connections that are cut.

Connections are cut for clients that are written in Python and do not use TLS. All work on the whole process, so only
within a short block.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

__all__ = ["cut_requests", "full_disk", "lose_replies"]


@contextmanager
def full_disk(path: Path, left: int = 100) -> Iterator[None]:
    """Let no file become larger than this one and ``left`` bytes, as on a disk that is almost full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _cut(connection: socket.socket) -> NoReturn:
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


@contextmanager
def cut_requests(after: int = 500) -> Iterator[None]:
    """Cut each connection once this many bytes were sent within the block, in the middle of a request."""
    left = after

    def send(connection: socket.socket, data: Any, *flags: int) -> int:
        nonlocal left
        whole = memoryview(data).cast("B")
        part = whole[: max(left, 0)]
        left -= len(whole)
        socket.socket.__base__.sendall(connection, part, *flags)  # type: ignore[union-attr]  # the one in C
        if left < 0:
            _cut(connection)
        return len(whole)

    def send_parts(connection: socket.socket, parts: Iterable[Any], *rest: Any) -> int:  # asyncio's, from Python 3.12
        return send(connection, b"".join(parts))

    with (
        mock.patch.object(socket.socket, "send", send),
        mock.patch.object(socket.socket, "sendall", send),
        mock.patch.object(socket.socket, "sendmsg", send_parts),
    ):
        yield


@contextmanager
def lose_replies() -> Iterator[None]:
    """Cut each connection when the reply arrives: the request was heard, but nobody learns what became of it."""

    def receive(connection: socket.socket, *args: Any) -> NoReturn:
        socket.socket.__base__.recv(connection, 1)  # type: ignore[union-attr]  # the one in C
        _cut(connection)

    with (
        mock.patch.object(socket.socket, "recv", receive),
        mock.patch.object(socket.socket, "recv_into", receive),
    ):
        yield
