"""Servers of NATS for the tests of the sink."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.nats import NatsServer, running


@pytest.fixture(scope="session")
def shared_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Run a server as it comes; tests make streams of their own."""
    with running(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def nats(shared_nats: NatsServer) -> Iterator[NatsServer]:
    """Give the shared server with a stream TASKS for the subject ``tasks``, which is removed afterwards."""
    shared_nats.make("TASKS", "tasks")
    yield shared_nats
    shared_nats.remove("TASKS")


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[NatsServer]:
    """Run a server that a test may break, with a stream TASKS for the subject ``tasks``."""
    with running(tmp_path / "nats") as server:
        server.make("TASKS", "tasks")
        yield server
