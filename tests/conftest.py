"""Fixtures: one server of each kind for the whole session, a stream and a folder for each test."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.servers import Server, binaries, running

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control ignores it for what it starts with &, and so would every command that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

BINARIES = binaries()

# The inner loop has one kind of server.
KINDS = [kind if kind == "valkey" else pytest.param(kind, marks=pytest.mark.slow) for kind in sorted(BINARIES)]


@pytest.fixture(scope="session", params=KINDS)
def any_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run each kind of server in turn; shared, so it is emptied by ``server``."""
    with running(BINARIES[request.param], tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def server(any_server: Server) -> Server:
    """Give an empty server: each test that asks for it runs once on each kind."""
    with any_server.client() as client:
        client.flushall()
    return any_server


@pytest.fixture(params=KINDS)
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Give a server that the test may kill, pause or configure; once on each kind."""
    with running(BINARIES[request.param], tmp_path / "server") as server, contextlib.suppress(ProcessLookupError):
        yield server


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """Name a stream after the test."""
    return re.sub(r"\W+", "-", request.node.name).strip("-")


@pytest.fixture
def outbox_url(tmp_path: Path) -> str:
    """Name an outbox in the test's folder."""
    return f"sqlite:///{tmp_path}/tasks.db"
