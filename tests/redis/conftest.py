"""Fixtures: a producer with an outbox of its own, and a proxy before the shared server."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from owm_outbox_backends.redis_stream.sink import MARK_SCRIPT, SEND_SCRIPT

from support.producer import Producer
from support.proxy import FaultProxy
from support.servers import Server

SCRIPTS = {
    hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest(): name
    for name, script in (("MARK", MARK_SCRIPT), ("SEND", SEND_SCRIPT))
}

Before = Callable[[Server], AbstractContextManager[FaultProxy]]


@contextlib.contextmanager
def _before(server: Server) -> Iterator[FaultProxy]:
    with server.client() as client:
        for script in (MARK_SCRIPT, SEND_SCRIPT):
            client.script_load(script)
    with FaultProxy("127.0.0.1", server.port, scripts=SCRIPTS) as proxy:
        yield proxy


@pytest.fixture
def before() -> Before:
    """Put a proxy before a server that knows the scripts: each SEND is then a batch, each MARK a question for it."""
    return _before


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    """Put a proxy before the shared server."""
    with _before(server) as proxy:
        yield proxy


@pytest.fixture
def producer(tmp_path: Path, stream: str) -> Producer:
    """Give a producer with an outbox of its own."""
    return Producer(tmp_path / "tasks.db", stream)
