"""Our own job, and those that the docs show, keep the contract of a job."""

from __future__ import annotations

import itertools
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from owm_outbox.jobs.owm import OwmJob
from owm_outbox.paging import api
from owm_outbox.testing import JobContract, Source

from support.misbehaving import Exchange, Misbehaving, good, misbehaving, record, status
from support.weather import made_up

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parent.parent.parent / "docs"


class TestOwmJob(JobContract):
    """The producer, which reads six pages of an API, two at once."""

    @pytest.fixture
    def service(self) -> Iterator[Misbehaving]:
        """Serve 18 cities, of which one is off the map."""
        with misbehaving(made_up(18)) as service:
            service.records[7] = record(8, latitude=91)
            yield service

    @pytest.fixture
    def source(self, service: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> Source:
        """Read from it, in commits of two pages."""
        monkeypatch.setattr(api, "_MAX_PAGES_PER_COMMIT", 2)

        @contextmanager
        def failing(number: int) -> Iterator[None]:
            requests = itertools.count(1)

            def reply(exchange: Exchange) -> None:
                (good if next(requests) < number else status(503))(exchange)

            service.misbehave(reply)
            yield
            service.heal()

        options = OwmJob.Options(api_url=service.url, api_limit=3, concurrency=2, retry_wait=0.001)
        cities = [number for number in range(1, 19) if number != 8]
        return Source(lambda: OwmJob(options), cities, invalid=1, failing=failing)


def _example(name: str) -> Any:
    """Import a module that docs/job.md shows, from now on for the others as well."""
    text = (DOCS / "job.md").read_text("utf-8")
    (code,) = re.findall(rf"^```python\n# {name}\.py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    module = sys.modules[name] = ModuleType(name)
    exec(compile(code, f"{name}.py", "exec"), vars(module))  # noqa: S102 - ours
    return module


_example("fleet")
TestFleetJob = _example("test_fleet").TestFleetJob


class TestOrdersJob(JobContract):
    """The example that reads a table."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        """Read 1,200 orders, the ids of which have gaps."""
        path = tmp_path / "orders.db"
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, total REAL)")
            db.executemany("INSERT INTO orders VALUES (?, 1.5)", ((3 * n,) for n in range(1, 1201)))
        job = _example("orders").OrdersJob

        @contextmanager
        def failing(number: int) -> Iterator[None]:
            reads = itertools.count(1)
            connect: Any = sqlite3.connect

            class Connection(sqlite3.Connection):
                def execute(self, *args: Any) -> sqlite3.Cursor:
                    if args[0].startswith("SELECT id") and next(reads) >= number:
                        raise sqlite3.OperationalError("database is locked")
                    return super().execute(*args)

            def connect_failing(name: str, **options: Any) -> sqlite3.Connection:
                found: sqlite3.Connection = connect(name, **options, factory=Connection)
                return found

            with mock.patch.object(sqlite3, "connect", connect_failing):
                yield

        return Source(lambda: job(job.Options(database=str(path))), range(3, 3601, 3), failing=failing)
