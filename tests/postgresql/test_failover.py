"""A standby that takes the place of its primary, under an application and a relay."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import requests

from owm_outbox.plugins import open_outbox
from owm_outbox_backends.postgresql import PostgresqlOutbox

from support.commands import run
from support.postgres import PostgresServer, postgres_folder
from support.postgres_outbox import Note
from support.relays import relay, wait_for_entries
from support.servers import Server
from support.streams import tasks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BEFORE, AFTER = 200, 200  # tasks that are committed before the primary dies, and in all after it


@pytest.fixture
def standby(own_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """Run a standby that has each commit before the primary confirms it."""
    with postgres_folder() as folder:
        standby = own_postgres.standby(folder)
        standby.start()
        with own_postgres.client() as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            admin.execute("SELECT pg_reload_conf()")
        yield standby
        standby.kill()


class Application(threading.Thread):
    """Commits tasks one by one, wherever the database is."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.committed: list[str] = []
        self.unknown: list[str] = []
        self.half_way, self.enough = threading.Event(), threading.Event()

    def run(self) -> None:
        """Take the task as lost where the commit failed; it may be there all the same."""
        while not self.enough.is_set():
            try:
                with open_outbox(self.url) as outbox, psycopg.connect(self.url) as connection:
                    assert isinstance(outbox, PostgresqlOutbox)
                    while not self.enough.is_set():
                        self._commit(outbox, connection)
            except Exception:  # of either library, with whatever they say when a server dies
                self.enough.wait(0.1)

    def _commit(self, outbox: PostgresqlOutbox, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        task = Note(uuid.uuid4(), str(len(self.committed)))
        outbox.append([task], connection=connection)
        self.unknown.append(str(task.task_id))
        connection.commit()
        self.committed.append(self.unknown.pop())
        if len(self.committed) == BEFORE:
            self.half_way.set()
        if len(self.committed) == BEFORE + AFTER:
            self.enough.set()


def test_a_standby_takes_over(
    own_postgres: PostgresServer, standby: PostgresServer, valkey: Server, stream: str, tmp_path: Path
) -> None:
    """The same relay goes on with the new primary: each committed task arrives once."""
    hosts = f"127.0.0.1:{own_postgres.port},127.0.0.1:{standby.port}"
    url = f"postgresql://postgres:{own_postgres.password}@{hosts}/postgres?target_session_attrs=read-write"
    open_outbox(url).close()
    application = Application(url)
    with relay("--outbox", url, "--sink", valkey.url(stream), cwd=tmp_path) as working:
        working.says("relaying from")
        application.start()
        assert application.half_way.wait(60)
        own_postgres.kill()
        with standby.client() as admin:
            admin.execute("SELECT pg_promote()")
        assert application.enough.wait(120)
        application.join(60)
        wait_for_entries(valkey, stream, len(application.committed))
        working.process.terminate()
        assert working.ends() == 143
    arrived = [task["task_id"] for task in tasks(valkey, stream)]
    assert len(arrived) == len(set(arrived))
    assert set(application.committed) <= set(arrived) <= {*application.committed, *application.unknown}


def test_a_relay_that_starts_before_its_database_waits_for_it(
    own_postgres: PostgresServer, valkey: Server, stream: str, tmp_path: Path
) -> None:
    """It says so, in its log and to a probe, and delivers as soon as the database is there."""
    with open_outbox(own_postgres.url()) as outbox:
        outbox.append([Note(uuid.uuid4(), "waits")])
    own_postgres.kill()
    args = ("--outbox", own_postgres.url(), "--sink", valkey.url(stream), "--http", "127.0.0.1:0")
    with relay(*args, cwd=tmp_path) as working:
        address = working.says(r"serving (http://\S+)")[1]
        working.says("trying again in 1 s: .* cannot be reached")
        answer = requests.get(f"{address}/readyz", timeout=10)
        assert (answer.status_code, answer.text.partition(": ")[0]) == (503, "waiting for the outbox")
        assert requests.get(f"{address}/healthz", timeout=10).status_code == 200
        own_postgres.start()
        wait_for_entries(valkey, stream, 1)
        assert requests.get(f"{address}/readyz", timeout=10).status_code == 200
        own_postgres.kill()
        answer = requests.get(f"{address}/readyz", timeout=10)
        assert (answer.status_code, answer.text.partition(": ")[0]) == (503, "waiting for the outbox")
        assert "cannot be reached" in answer.text
        working.process.terminate()
        assert working.ends() == 143


def test_a_relay_that_waits_for_its_database_can_be_stopped(
    own_postgres: PostgresServer, valkey: Server, stream: str, tmp_path: Path
) -> None:
    """Between two attempts, at once."""
    own_postgres.kill()
    with relay("--outbox", own_postgres.url(), "--sink", valkey.url(stream), cwd=tmp_path) as working:
        working.says("trying again in 16 s: ")
        working.process.terminate()
        assert working.ends(within=12) == 143


def test_a_standby_takes_no_writes(own_postgres: PostgresServer, standby: PostgresServer, tmp_path: Path) -> None:
    """Opened on the standby alone, it is an outage with what to do; what is pending stays, and may be looked at."""
    with open_outbox(own_postgres.url(options="-csynchronous_commit%3Dremote_apply")) as outbox:
        outbox.append([Note(uuid.uuid4(), "waits")])
    for command in (
        ("drain", "--outbox", standby.url(), "--sink", f"jsonl:{tmp_path}/out"),
        ("check", "outbox", standby.url()),
    ):
        done = run("owm-outbox", *command)
        assert (done.code, done.out) == (75, "")
        assert "takes no writes now" in done.line
        assert "add target_session_attrs=read-write to the URL" in done.line
    for server in (standby, own_postgres):
        status = run("owm-outbox", "status", "--json", "--outbox", server.url())
        assert (status.code, status.err) == (0, "")
        assert json.loads(status.out)["pending"] == 1


def test_a_standby_that_takes_no_connections_yet(
    own_postgres: PostgresServer, standby: PostgresServer, valkey: Server, stream: str, tmp_path: Path
) -> None:
    """It is an outage like a server that is down; once it was promoted, what was pending arrives once."""
    sink = ("--sink", valkey.url(stream))
    with open_outbox(own_postgres.url()) as outbox:
        outbox.append([Note(uuid.uuid4(), text) for text in "ab"])
        assert run("owm-outbox", "drain", "--outbox", own_postgres.url(), *sink).code == 0
        outbox.append([Note(uuid.uuid4(), text) for text in "cde"])
    standby.stop()
    standby.settings["hot_standby"] = "off"
    standby.start(refusing="Hot standby mode is disabled")
    own_postgres.kill()
    done = run("owm-outbox", "drain", "--outbox", standby.url(), *sink)
    assert (done.code, done.out) == (75, "")
    assert "cannot be reached (" in done.line
    assert "the database system is not accepting connections" in done.line
    with relay("--outbox", standby.url(), *sink, cwd=tmp_path) as working:
        working.says("trying again in 1 s: .* the database system is not accepting connections")
        standby.promote()
        wait_for_entries(valkey, stream, 5)
        working.process.terminate()
        assert working.ends() == 143
    assert [task["text"] for task in tasks(valkey, stream)] == list("abcde")
