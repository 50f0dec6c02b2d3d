"""Fixtures: one server of each version for the whole session, and tables of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.postgres import PostgresServer, postgres_binaries, postgres_running
from support.postgres_outbox import Place, place_on
from support.postgres_table import Table, table_on
from support.servers import Server, binaries, running

BINARIES = postgres_binaries()

# The inner loop has one version.
VERSIONS = [
    version if version == "postgres-18" else pytest.param(version, marks=pytest.mark.slow)
    for version in sorted(BINARIES, reverse=True)
]


@pytest.fixture(scope="session", params=VERSIONS)
def postgres(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """Run each version in turn, for all tests that break nothing of it."""
    with postgres_running(BINARIES[request.param]) as server:
        yield server


@pytest.fixture
def place(postgres: PostgresServer) -> Iterator[Place]:
    """Give tables of the test's own; each test that asks for it runs once on each version."""
    with place_on(postgres) as place:
        yield place


@pytest.fixture
def table(postgres: PostgresServer) -> Iterator[Table]:
    """Give tables of a sink; each test that asks for it runs once on each version."""
    with table_on(postgres) as table:
        yield table


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """Give a server that the test may kill, pause or configure, and that loses nothing when it is killed."""
    with postgres_running(BINARIES["postgres-18"], fsync="on", full_page_writes="on") as server:
        yield server


@pytest.fixture
def own_place(own_postgres: PostgresServer) -> Place:
    """Give tables on a server of the test's own."""
    return Place(own_postgres)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Server]:
    """Run the server of the sink."""
    with running(binaries()["valkey"], tmp_path / "valkey") as server:
        yield server
