"""Fixtures: servers with Sentinels, one set for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.producer import Producer
from support.redis_cluster import Guarded, ask, guarded


@pytest.fixture(scope="session")
def shared_guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Run a primary, a replica and three Sentinels."""
    with guarded(tmp_path_factory.mktemp("sentinel")) as found:
        yield found


@pytest.fixture
def servers(shared_guarded: Guarded) -> Guarded:
    """Give servers that are up, in step and empty; tests may kill them, and start them again before they end."""
    shared_guarded.settle()
    shared_guarded.suspect_after(30_000)
    ask(shared_guarded.primary, "FLUSHALL")
    return shared_guarded


@pytest.fixture
def producer(tmp_path: Path, stream: str) -> Producer:
    """Give a producer with an outbox of its own."""
    return Producer(tmp_path / "tasks.db", stream)
