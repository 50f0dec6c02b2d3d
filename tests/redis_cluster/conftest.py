"""Fixtures: one cluster for the whole session, with every node up and in step before each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.producer import Producer
from support.redis_cluster import Cluster, running_cluster


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Run three primaries, each with a replica."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """Give an empty cluster with every node up; tests may kill nodes, and start them again before they end."""
    shared_cluster.settle()
    shared_cluster.empty()
    return shared_cluster


@pytest.fixture
def producer(tmp_path: Path, stream: str) -> Producer:
    """Give a producer with an outbox of its own."""
    return Producer(tmp_path / "tasks.db", stream)
