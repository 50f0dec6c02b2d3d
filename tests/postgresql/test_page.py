"""The examples in docs/postgresql.md, run as they stand there."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.commands import environment
from support.postgres import PostgresServer, postgres_binaries, postgres_running
from support.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PAGE = (Path(__file__).parent.parent.parent / "docs" / "postgresql.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def _block(word: str) -> str:
    (found,) = (block for block in BLOCKS if word in block)
    return str(found)


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    """Give a server whose tables have the names that the examples use."""
    with postgres_running(postgres_binaries()["postgres-18"], fsync="on") as server:
        yield server


def _shipped(server: PostgresServer) -> list[int]:
    with server.client() as client:
        rows = client.execute("SELECT (convert_from(payload, 'UTF8')::json->>'order')::int FROM outbox_entries")
        return sorted(number for (number,) in rows)


def _orders(server: PostgresServer) -> list[int]:
    with server.client() as client:
        return sorted(number for (number,) in client.execute("SELECT number FROM orders"))


class Site:
    """The application under uvicorn, with two workers."""

    def __init__(self, folder: Path, database: str) -> None:
        self.port = free_port()
        (folder / "app.py").write_text(_block("FastAPI"))
        command = [sys.executable, "-m", "uvicorn", "app:app", "--workers", "2", "--port", str(self.port)]
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--log-level", "warning"],
                cwd=folder,
                env=environment(DATABASE=database, PYTHONPATH=str(folder)),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.until(lambda: self.post("/nothing") == 404)

    def post(self, path: str) -> int | None:
        """Return the status of the answer, ``None`` if nobody answers."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as client:
            try:
                client.request("POST", path)
                return client.getresponse().status
            except (OSError, http.client.HTTPException):
                return None

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something."""
        deadline = time.monotonic() + 100
        while not happened():
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.02)

    def kill(self) -> None:
        """End it with all its workers, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def test_the_application_with_fastapi(database: PostgresServer, tmp_path: Path) -> None:
    """Each order has its task, one that was refused has none; so it is after the workers were killed in the middle."""
    with database.client() as client:
        client.execute("CREATE TABLE orders (number int GENERATED ALWAYS AS IDENTITY, customer text)")
    for customers in (["ada", "mallory"] * 5, ["ada"] * 40):
        site = Site(tmp_path, database.url())
        try:
            codes = [site.post(f"/orders/{customer}") for customer in customers[:10]]
            assert codes == [402 if customer == "mallory" else 201 for customer in customers[:10]]
            if len(customers) > 10:
                client_process = subprocess.Popen(
                    [
                        *(sys.executable, "-c"),
                        "import sys, http.client\n"
                        "while True:\n"
                        "    client = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]))\n"
                        "    client.request('POST', '/orders/ada')\n"
                        "    client.getresponse().read()\n",
                        str(site.port),
                    ],
                    stderr=subprocess.DEVNULL,
                )
                before = len(_orders(database))
                site.until(lambda before=before: len(_orders(database)) > before + 20)  # type: ignore[misc]  # bound now
        finally:
            site.kill()
    assert client_process.wait(60) != 0
    orders = _orders(database)
    assert len(orders) > 30
    assert _shipped(database) == orders


DJANGO = """
import os, sys
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import UUID, uuid4
from django.conf import settings
url = urlsplit(os.environ["DATABASE"])
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": url.path[1:], "USER": url.username, "PASSWORD": url.password,
    "HOST": url.hostname, "PORT": url.port,
}})
import django
django.setup()
from django.db import connection, models
from owm_outbox_backends.postgresql import PostgresqlOutbox
@dataclass
class ShipOrder:
    task_id: UUID
    order: int
class Order(models.Model):
    number = models.AutoField(primary_key=True)
    customer = models.TextField()
    class Meta:
        app_label = "shop"
        db_table = "orders"
with connection.schema_editor() as editor:
    editor.create_model(Order)
exec(sys.stdin.read())
take("ada")
append = outbox.append
def refuse(*args, **options):
    append(*args, **options)
    raise ValueError("the card was refused")
outbox.append = refuse
try:
    take("mallory")
except ValueError as error:
    print(error)
outbox.append = append
take("ada")
outbox.close()
"""


def test_the_example_with_django(database: PostgresServer) -> None:
    """Order and task are one transaction: both or neither."""
    done = subprocess.run(
        [sys.executable, "-c", DJANGO],
        input=_block("django.db"),
        env=environment(DATABASE=database.url()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the card was refused\n", "")
    assert _shipped(database) == _orders(database) == [1, 3]
