"""docs/service.md does what it says: run twice, by two workers, with a wrong password, and with other libraries."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import pytest
import redis
import sqlalchemy
from django.conf import settings
from django.db import connection, models

from owm_outbox import OutboxInvalid
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import environment
from support.servers import Server, free_port
from support.streams import tasks

PAGE = (Path(__file__).parent.parent.parent / "docs" / "service.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TASK = """
from dataclasses import dataclass
from uuid import UUID, uuid4

@dataclass
class ShipOrder:
    task_id: UUID
    order: int
"""


def _block(word: str) -> str:
    """Return the one example that has this word."""
    (code,) = [str(block) for block in BLOCKS if word in block]
    return code


def _start(code: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err.decode()


def _shipments(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "shipments.jsonl").read_text().splitlines()]


@pytest.fixture
def guarded(own_server: Server) -> Server:
    """Give a server with a password."""
    with own_server.client() as client:
        client.config_set("requirepass", "right")
    return own_server


def _url(server: Server, password: str) -> str:
    return f"redis://:{password}@{server.address}/0?stream=s"


def _shipped(server: Server) -> list[int]:
    with redis.Redis(port=server.port, password="right", protocol=2) as client:  # noqa: S106 - of a test
        return [json.loads(fields[b"data"])["order"] for _, fields in client.xrange("s")]


# -- the first example


EXAMPLE = _block("the card was refused")


@pytest.mark.slow
def test_the_example_runs_twice(tmp_path: Path) -> None:
    """A second run in the same folder takes seven more orders, and ships them."""
    for shipments in (7, 14):
        assert _end(_start(EXAMPLE, tmp_path)) == (0, "")
        assert len(_shipments(tmp_path)) == shipments


@pytest.mark.slow
def test_two_workers_run_the_example_at_once(tmp_path: Path) -> None:
    """One of them delivers at a time; each order is shipped once, whoever took it, and both end."""
    workers = [_start(EXAMPLE, tmp_path) for _ in range(2)]
    assert [_end(worker) for worker in workers] == [(0, "")] * 2
    assert sorted(shipment["order"] for shipment in _shipments(tmp_path)) == list(range(1, 15))


@pytest.mark.slow
def test_the_example_with_a_wrong_password(guarded: Server, tmp_path: Path) -> None:
    """The application is told and ends, the orders stay; with the right password they are delivered, once each."""
    assert "jsonl:shipments.jsonl" in EXAMPLE
    example = EXAMPLE.replace("jsonl:shipments.jsonl", _url(guarded, "PASSWORD"))
    code, err = _end(_start(example.replace("PASSWORD", "wrong"), tmp_path))
    last = err.strip().splitlines()[-1]
    assert (code, last.partition(":")[0]) == (1, "owm_outbox.errors.ConfigurationError")
    assert "password" in last
    assert "wrong@" not in last
    with SqliteOutbox(tmp_path / "orders.db") as outbox:
        assert outbox.stats().pending == 7
    assert _end(_start(example.replace("PASSWORD", "right"), tmp_path)) == (0, "")
    assert _shipped(guarded) == list(range(1, 15))


# -- the web application


# A request goes to whichever worker takes it first; this tells which one did.
SIGNED = """
import os

async def signed(scope, receive, send):
    async def signing(message):
        if message["type"] == "http.response.start":
            message["headers"].append((b"worker", str(os.getpid()).encode()))
        await send(message)
    await app(scope, receive, signing)
"""


class Site:
    """The application under uvicorn, with two workers."""

    def __init__(self, folder: Path, sink: str) -> None:
        self.folder = folder
        self.port = free_port()
        (folder / "app.py").write_text(_block("Starlette") + SIGNED)
        self.worker = ""  # its pid, of the last answer
        command = [sys.executable, "-m", "uvicorn", "app:signed", "--workers", "2", "--port", str(self.port)]
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--log-level", "warning"],
                cwd=folder,
                env=environment(SINK=sink, PYTHONPATH=str(folder)),
                stdout=log,
                stderr=log,
            )
        self.until(lambda: self.get("/health") is not None)

    def get(self, path: str, method: str = "GET") -> tuple[int, str] | None:
        """Return status and text, ``None`` if nobody answers."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as client:
            try:
                client.request(method, path)
                answer = client.getresponse()
                self.worker = answer.headers["worker"]
                return answer.status, answer.read().decode()
            except OSError:
                return None

    def order(self) -> None:
        """Order something, again if the worker that had the request died with it."""
        self.until(lambda: (self.get("/orders/ada", "POST") or (0, ""))[0] == 201)

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something."""
        deadline = time.monotonic() + 100
        while not happened():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.02)

    def end(self) -> int:
        """Stop it as a supervisor does."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(100)

    def kill(self) -> None:
        """End what is left of it."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def _serving(folder: Path, sink: str) -> Iterator[Site]:
    site = Site(folder, sink)
    try:
        yield site
    finally:
        site.kill()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_worker_delivers_and_another_takes_over(server: Server, stream: str, tmp_path: Path) -> None:
    """Two workers take orders; the one that delivers is killed, and another one delivers the rest. Each order once."""
    with _serving(tmp_path, server.url(stream)) as site:
        for _ in range(10):
            site.order()
        site.until(lambda: len(tasks(server, stream)) == 10)
        holder = int((tmp_path / "orders.db.lock").read_text().split()[1])
        os.kill(holder, signal.SIGKILL)
        for _ in range(10):
            site.order()
        with SqliteOutbox(tmp_path / "orders.db") as outbox:
            site.until(lambda: outbox.stats().pending == 0)
        assert int((tmp_path / "orders.db.lock").read_text().split()[1]) != holder
        assert site.get("/health") == (200, "delivering")
        assert site.end() == 0
    shipped = sorted(task["order"] for task in tasks(server, stream))
    assert shipped == list(range(1, max(shipped) + 1))
    assert len(shipped) >= 20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_health_check_says_why_nothing_is_delivered(guarded: Server, tmp_path: Path) -> None:
    """With a wrong password every worker says so, takes orders all the same, and ends when it is told to."""
    with _serving(tmp_path, _url(guarded, "wrong")) as site:
        for _ in range(5):
            site.order()
        said: dict[str, str] = {}

        def both_say_why() -> bool:  # the second one gets the lock, and fails too, once the first one has
            status, text = site.get("/health") or (0, "")
            if status == 503:
                said[site.worker] = text
            return len(said) == 2

        site.until(both_say_why)
        for text in said.values():
            assert "password" in text
            assert "wrong@" not in text
        assert site.end() == 0
    with _serving(tmp_path, _url(guarded, "right")) as site:
        site.until(lambda: len(_shipped(guarded)) == 5)
        assert site.end() == 0


# -- other libraries


@pytest.fixture
def outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteOutbox]:
    """Open an outbox where the examples expect it."""
    monkeypatch.chdir(tmp_path)
    with SqliteOutbox("orders.db", shared=True) as outbox:
        yield outbox


def _example(word: str, **names: Any) -> dict[str, Any]:
    """Run an example, and return its names."""
    code = compile(TASK + _block(word), "docs/service.md", "exec", dont_inherit=True)
    exec(code, names)  # noqa: S102 - that is what it is for
    return names


def _is_both_or_neither(outbox: SqliteOutbox, take: Callable[[int], Any], orders: Callable[[], int]) -> None:
    """Take two orders, one of which fails after its task was appended."""
    take(7)
    assert (orders(), outbox.stats().pending) == (1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox, "append", _refusing(outbox))
        patch.setattr(outbox, "append_async", _refusing_async(outbox))
        with pytest.raises(ValueError, match="the card was refused"):
            take(8)
    assert (orders(), outbox.stats().pending) == (1, 1)


def _refusing(outbox: SqliteOutbox) -> Any:
    append = outbox.append

    def refuse(*args: Any, **options: Any) -> None:
        append(*args, **options)
        raise ValueError("the card was refused")

    return refuse


def _refusing_async(outbox: SqliteOutbox) -> Any:
    append = outbox.append_async

    async def refuse(*args: Any, **options: Any) -> None:
        await append(*args, **options)
        raise ValueError("the card was refused")

    return refuse


def _orders(outbox: SqliteOutbox) -> int:
    with contextlib.closing(outbox.connect()) as own:
        return int(own.execute("SELECT count(*) FROM orders").fetchone()[0])


def test_the_example_with_sqlalchemy(outbox: SqliteOutbox) -> None:
    """Order and task are one transaction, with the default pool, also on several threads."""
    names = _example("sqlalchemy", outbox=outbox)
    _is_both_or_neither(outbox, names["take"], lambda: _orders(outbox))
    assert isinstance(names["engine"].pool, sqlalchemy.QueuePool)
    threads = [threading.Thread(target=lambda: [names["take"](n) for n in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (_orders(outbox), outbox.stats().pending) == (21, 21)
    names["engine"].dispose()


def test_the_example_with_aiosqlite(outbox: SqliteOutbox) -> None:
    """Order and task are one transaction."""
    with contextlib.closing(outbox.connect()) as own:
        own.execute("CREATE TABLE orders (number INTEGER PRIMARY KEY, customer INTEGER)")
    take = _example("aiosqlite", outbox=outbox)["take"]
    _is_both_or_neither(outbox, lambda customer: asyncio.run(take(customer)), lambda: _orders(outbox))


@pytest.fixture(scope="module")
def _django(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set Django up, which can be done once per process."""
    default = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": tmp_path_factory.mktemp("django") / "app.db",
        "OPTIONS": {"init_command": "PRAGMA wal_autocheckpoint = 0"},
    }
    settings.configure(DATABASES={"default": default})
    django.setup()
    yield
    connection.close()


@pytest.mark.usefixtures("_django")
def test_the_example_with_django() -> None:
    """Order and task are one transaction; outside of one, the error says what is missing."""

    class Order(models.Model):  # type: ignore[misc]  # Django has no types
        customer = models.IntegerField()

        class Meta:
            app_label = "shop"
            db_table = "orders"

    with connection.schema_editor() as editor:
        editor.create_model(Order)
    names = _example("django", Order=Order, SqliteOutbox=SqliteOutbox)
    with names["outbox"] as outbox:
        _is_both_or_neither(outbox, names["take"], Order.objects.count)
        with pytest.raises(OutboxInvalid, match="BEGIN a transaction first"):
            outbox.append([names["ShipOrder"](uuid.uuid4(), 9)], connection=connection.connection)
        with pytest.raises(TypeError, match="append within transaction"):
            outbox.append([names["ShipOrder"](uuid.uuid4(), 9)], connection=connection)
        assert outbox.stats().pending == 1
