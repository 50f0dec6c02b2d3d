"""Fixtures: one cluster for the whole session, with every node up and in step before each test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from owm_outbox_backends.redis_stream.sink import MARK_SCRIPT, SEND_SCRIPT

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
    shared_cluster.suspect_after(30_000)
    shared_cluster.empty()
    return shared_cluster


@pytest.fixture
def producer(tmp_path: Path, stream: str) -> Producer:
    """Give a producer with an outbox of its own."""
    return Producer(tmp_path / "tasks.db", stream)


@pytest.fixture(scope="session")
def scripts() -> dict[str, str]:
    """Name the scripts by their digests, for a proxy."""
    return {
        hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest(): name
        for script, name in ((MARK_SCRIPT, "MARK"), (SEND_SCRIPT, "SEND"))
    }
