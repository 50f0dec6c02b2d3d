"""docs/jetstream.md does what it says: its stream, its rights, and its worker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from owm_outbox.entry import Batch
from owm_outbox.plugins import open_sink
from owm_outbox.testing import parcel_batch
from owm_outbox_backends.jetstream.stream import proposal

from support.commands import environment
from support.nats import NatsServer, running

pytestmark = [pytest.mark.slow]

PAGE = (Path(__file__).parent.parent.parent / "docs" / "jetstream.md").read_text("utf-8")
ADMIN = "{ user: admin, password: secret }"
COUNT = 900


def _block(language: str, word: str) -> str:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [str(block) for of, block in blocks if of == language and word in block]
    return found


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NatsServer]:
    """Run a server with the users, the rights and the stream of the page."""
    with running(tmp_path, _block("", "permissions").replace("users: [", f"users: [ {ADMIN}", 1)) as server:
        server.admin = {"user": "admin", "password": "secret"}
        config = json.loads(_block("json", "workqueue"))
        server.make("TASKS", "tasks", **config)
        yield server


def test_the_stream_of_the_page_is_the_one_that_the_sink_proposes() -> None:
    """The page and the message of the sink have one answer."""
    assert json.loads(_block("json", "workqueue")) == json.loads(proposal("TASKS", "tasks"))


def _batch() -> Batch:
    batch = parcel_batch("box", 0, COUNT)
    entries = tuple(entry._replace(payload=b'{"city_id": %d}' % entry.position) for entry in batch.entries)
    return Batch(batch.outbox_id, batch.after, entries, batch.mark)


def _worker(server: NatsServer, output: Path) -> subprocess.Popen[bytes]:
    url = f"nats://worker:secret@{server.address}"
    with output.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-c", _block("python", "pull_subscribe")], env=environment(NATS_URL=url), stdout=out
        )


def test_workers_do_each_task(guarded: NatsServer, tmp_path: Path) -> None:
    """Two workers share the tasks, and end up with all of them; no mark is among them, and the mark is still held."""
    outputs = [tmp_path / "one", tmp_path / "two"]
    workers = [_worker(guarded, output) for output in outputs]
    try:
        with open_sink(guarded.url("TASKS", "tasks", "producer:secret@", retries=0)) as sink:
            sink.send(batch := _batch())
            deadline = time.monotonic() + 60
            while guarded.api("STREAM.INFO.TASKS")["state"]["messages"] > 1:
                assert time.monotonic() < deadline, "the workers do not get on"
                time.sleep(0.05)
            assert sink.mark("box") == batch.mark
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    done = [int(line) for output in outputs for line in output.read_text().splitlines()]
    assert sorted(done) == list(range(1, COUNT + 1))
