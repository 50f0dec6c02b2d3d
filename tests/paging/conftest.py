"""Fixtures: an outbox of each kind, a Weather Service, and a file for the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from owm_outbox import Outbox
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.sqlite import SqliteOutbox

from support.misbehaving import Misbehaving, misbehaving
from support.weather import made_up


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave one variant of each test of whole runs to the inner loop, and none of the breaker's and the command's."""
    seen = set()
    for item in items:
        if isinstance(item, pytest.Function) and item.path.parent == Path(__file__).parent:
            test = item.path, item.originalname
            repeated = "out" in item.fixturenames and test in seen
            if repeated or "file" in item.fixturenames or item.name.startswith("test_the_command_"):
                item.add_marker("slow")
            seen.add(test)


@pytest.fixture(params=["memory", "sqlite"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    """Give an outbox of each kind, whose state keeps the breaker's."""
    with MemoryOutbox() if request.param == "memory" else SqliteOutbox(tmp_path / "tasks.db") as outbox:
        yield outbox


@pytest.fixture
def service() -> Iterator[Misbehaving]:
    """Serve 250 cities."""
    with misbehaving(made_up(250)) as service:
        yield service


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Name the file that the tasks go to."""
    return tmp_path / "out"
