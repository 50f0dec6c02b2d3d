"""Replies are lost, the server and the producer are killed: each city is in the stream exactly once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import MarkConflict
from owm_outbox.cli.weather import City, read_cities
from owm_outbox.plugins import open_sink
from owm_outbox.testing import parcel_batch

from support.commands import start
from support.nats import NatsServer, running_cluster
from support.ordeal import is_complete
from support.proxy import FaultProxy, messages
from support.weather import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CITIES = int(os.environ.get("JETSTREAM_CITIES", "3000"))  # of 34,006
SEED = os.environ.get("CHAOS_SEED", str(random.randrange(10**9)))  # noqa: S311 - no secret
FAST: dict[str, Any] = {"backoff_base": 0.05, "backoff_cap": 0.2, "retries": 40}
BATCH = int(os.environ.get("JETSTREAM_BATCH", "100"))
WHOLE = float(os.environ.get("JETSTREAM_SECONDS", "5"))


@pytest.fixture(scope="module")
def cities() -> list[City]:
    """Read real cities."""
    return list(read_cities()[:CITIES])


@pytest.fixture
def api(cities: list[City]) -> Iterator[str]:
    """Serve them."""
    with serving(cities) as service:
        yield f"http://127.0.0.1:{service.server_address[1]}"


class Producer:
    """``owm-producer`` in processes of its own, on one outbox."""

    def __init__(self, folder: Path, api: str, sink: str) -> None:
        self._args = ("--outbox", f"sqlite:///{folder}/tasks.db", "--api-url", api, "--sink", sink, "--json")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start one."""
        self.process = start("owm-producer", *self._args, "--batch-size", str(BATCH))
        return self.process

    def completes(self) -> None:
        """Wait for its end; all must be well."""
        assert self.process is not None
        _, err = self.process.communicate(timeout=600)
        assert self.process.returncode == 0, err.decode()


def _check(server: NatsServer, cities: list[City]) -> None:
    """Each city is there exactly once."""
    arrived = [json.loads(payload)["city_id"] for payload in server.payloads("TASKS", "tasks")]
    assert len(arrived) == len(set(arrived)), f"{len(arrived) - len(set(arrived))} tasks arrived twice"
    assert set(arrived) == {city.city_id for city in cities}


def _wait_for(server: NatsServer, count: int) -> None:
    """Wait until this many messages are in the stream."""
    deadline = time.monotonic() + 60
    while server.api("STREAM.INFO.TASKS")["state"]["messages"] < count:
        assert time.monotonic() < deadline, "nothing is delivered"
        threading.Event().wait(0.01)


def test_replies_are_lost(own_nats: NatsServer, cities: list[City], api: str, tmp_path: Path) -> None:
    """Of all that the server says, every 13th message is lost with its connection; of its commits, every third."""
    with FaultProxy("127.0.0.1", own_nats.port, framing=messages) as proxy:
        some = proxy.lose_reply(range(13, 10**9, 13))
        commits = proxy.lose_reply(range(3, 10**9, 3), containing=b'"batch":')
        url = own_nats.url("TASKS", "tasks", **FAST).replace(own_nats.address, proxy.address)
        producer = Producer(tmp_path, api, url)
        producer.start()
        producer.completes()
    assert commits.count > 3
    assert some.count > 5
    _check(own_nats, cities)


def test_the_server_is_killed(own_nats: NatsServer, cities: list[City], api: str, tmp_path: Path) -> None:
    """Killed twice in the middle of the delivery, and started again on its folder, the server has all of it once."""
    producer = Producer(tmp_path, api, own_nats.url("TASKS", "tasks", **FAST))
    producer.start()
    for part in (5, 2):
        _wait_for(own_nats, CITIES // part)
        own_nats.restart()
    producer.completes()
    _check(own_nats, cities)


def test_the_producer_is_killed(own_nats: NatsServer, cities: list[City], api: str, tmp_path: Path) -> None:
    """Killed ten times at moments of chance, the producer resumes: the stream has each city once."""
    print(f"CHAOS_SEED={SEED}")
    chance = random.Random(SEED)  # noqa: S311 - no secret
    producer = Producer(tmp_path, api, own_nats.url("TASKS", "tasks", **FAST))
    for kill in range(10):
        process = producer.start()
        _wait_for(own_nats, CITIES * kill // 12 + chance.randrange(1, BATCH))
        process.kill()
        process.communicate()
        if is_complete(tmp_path / "tasks.db"):
            break
    else:
        producer.start()
        producer.completes()
    _check(own_nats, cities)


def test_a_batch_is_whole_after_a_server_was_killed(own_nats: NatsServer) -> None:
    """Killed while it takes batch after batch, the server has whole batches, and the mark of the last one."""
    print(f"CHAOS_SEED={SEED}")
    chance = random.Random(SEED)  # noqa: S311 - no secret
    url = own_nats.url("TASKS", "tasks", retries=100, backoff_base=0.02, backoff_cap=0.02)
    position, done = 0, threading.Event()

    def strike() -> None:
        while not done.wait(chance.uniform(0.1, 0.5)):
            own_nats.restart()

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        with open_sink(url) as sink:
            deadline = time.monotonic() + WHOLE
            while time.monotonic() < deadline:
                batch = parcel_batch("box", position, 900)
                try:
                    sink.send(batch)
                except MarkConflict as error:
                    if error.held != batch.mark:  # else only the reply was lost
                        raise
                position += 900
    finally:
        done.set()
        striker.join()
    held = own_nats.payloads("TASKS", "tasks")
    assert len(held) == len(set(held)) == position


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[NatsServer]]:
    """Run a cluster of three."""
    with running_cluster(tmp_path / "cluster", "TASKS", "tasks") as servers:
        yield servers


def test_the_leader_of_a_cluster_is_killed(
    cluster: list[NatsServer], cities: list[City], api: str, tmp_path: Path
) -> None:
    """Killed in the middle of the delivery, the leader is replaced by another server, which has all of it once."""
    hosts = ",".join(server.address for server in cluster)
    producer = Producer(tmp_path, api, cluster[0].url("TASKS", "tasks", **FAST).replace(cluster[0].address, hosts))
    producer.start()
    _wait_for(cluster[0], CITIES // 3)
    leader = cluster[0].api("STREAM.INFO.TASKS")["cluster"]["leader"]
    (killed,) = [server for server in cluster if server.folder.name == leader]
    killed.kill()
    producer.completes()
    _check(next(server for server in cluster if server is not killed), cities)
