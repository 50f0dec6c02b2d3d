"""docs/sinks.md: the worker of PostgreSQL does each task once, also where one of several is killed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from owm_outbox.plugins import open_sink

from support.commands import environment
from support.postgres import PostgresServer
from support.postgres_table import Table, batch

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parent.parent.parent / "docs" / "sinks.md").read_text("utf-8")
COUNT = 3_000


def _worker(server: PostgresServer) -> subprocess.Popen[bytes]:
    (code,) = re.findall(r"^```python\n(import os\n.*?SKIP LOCKED.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return subprocess.Popen([sys.executable, "-c", code], env=environment(DATABASE_URL=server.url()))


def test_each_task_is_done_once(own_postgres: PostgresServer) -> None:
    """Two workers share the tasks; one is killed in the middle, and a third one takes over."""
    table = Table(own_postgres, "tasks")
    table.make()
    table.rows("CREATE TABLE weather (city_id integer)")
    with open_sink(table.url()) as sink:
        sink.send(batch(*(b'{"city_id":%d}' % n for n in range(COUNT))))

    def until(done: int) -> None:
        deadline = time.monotonic() + 60
        while table.rows("SELECT count(*) FROM weather")[0][0] < done:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    workers = [_worker(own_postgres) for _ in range(2)]
    try:
        until(COUNT // 10)
        workers[0].kill()
        workers.append(_worker(own_postgres))
        until(COUNT)
        assert table.rows("SELECT count(*) FROM tasks") == [(0,)]
        assert table.rows("SELECT city_id FROM weather ORDER BY 1") == [(n,) for n in range(COUNT)]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
