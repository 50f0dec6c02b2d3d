"""owm-outbox relay --http, and what systemd is told: numbers, health, readiness, a loop that hangs."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from owm_outbox import Batch, Entry, LaneRelay, Mark, OutboxRelay, Sink, Stop
from owm_outbox.operations import service
from owm_outbox.operations.service import Operations
from owm_outbox.operations.throughput import Throughput
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import run, start
from support.laned import LanedMemory
from support.proxy import FaultProxy
from support.servers import Server

pytestmark = pytest.mark.slow


@dataclass
class Note:
    """A task."""

    task_id: uuid.UUID
    number: int


def notes(count: int) -> list[Note]:
    """Make tasks."""
    return [Note(uuid.uuid4(), number) for number in range(count)]


class Relay:
    """A relay's process, and what it serves."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        assert process.stderr is not None
        self._lines = iter(process.stderr.readline, b"")
        self.url = self.says(rb"serving (http://\S+)")[1].decode()

    def says(self, pattern: bytes) -> re.Match[bytes]:
        """Wait for a line in which the pattern is found."""
        return next(match for line in self._lines if (match := re.search(pattern, line)))

    def get(self, path: str, **options: object) -> requests.Response:
        """Ask for a path."""
        return requests.get(self.url + path, timeout=10, **options)  # type: ignore[arg-type]

    def metrics(self) -> dict[str, float]:
        """Return all series by name and labels."""
        found = {}
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
                found[sample.name.removeprefix("owm_outbox_") + (f"{{{labels}}}" if labels else "")] = sample.value
        return found

    def until(self, holds: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """Return the metrics once this holds."""
        deadline = time.monotonic() + 30
        while not holds(found := self.metrics()):
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        return found


@contextlib.contextmanager
def relaying(outbox: str, sink: str, *args: str, env: dict[str, str] | None = None) -> Iterator[Relay]:
    """Run a relay that serves on a free port."""
    process = start(
        "owm-outbox",
        *("relay", "--outbox", outbox, "--sink", sink, "--poll", "0.02", "--http", "127.0.0.1:0", *args),
        env=env,
    )
    try:
        relay = Relay(process)
        relay.says(b"relaying from")
        yield relay
    finally:
        process.terminate()
        _, err = process.communicate(timeout=30)
        assert process.returncode == 128 + signal.SIGTERM, err


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[SqliteOutbox]:
    """Open an application's outbox."""
    with SqliteOutbox(tmp_path / "tasks.db", shared=True) as outbox:
        yield outbox


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Name that outbox."""
    return f"sqlite:///{tmp_path}/tasks.db?shared=true"


def test_what_a_relay_delivers_is_told(outbox: SqliteOutbox, url: str, server: Server, stream: str) -> None:
    """Counters, histograms and gauges agree with what was appended; health and readiness are 200."""
    with relaying(url, server.url(stream)) as relay:
        assert relay.until(lambda found: found["lanes_held"] == 1)["delivered_tasks_total"] == 0
        outbox.append(notes(1_200))
        found = relay.until(lambda found: found["delivered_tasks_total"] == 1_200 and found["pending_tasks"] == 0)
        assert found["batch_tasks_sum"] == 1_200
        assert (
            found["send_duration_seconds_count"] == found["batch_tasks_count"] == found["batch_tasks_bucket{le=+Inf}"]
        )
        assert (found["up"], found["dead_letters"], found["redelivered_tasks_total"]) == (1, 0, 0)
        assert "oldest_pending_timestamp_seconds" not in found
        with server.client() as client:
            client.delete(stream)  # found at the next delivery
        outbox.append(notes(1))
        relay.until(lambda found: found["delivered_tasks_total"] == 1_201)
        assert (relay.get("/healthz").status_code, relay.get("/healthz").text) == (200, "ok\n")
        assert (relay.get("/readyz").status_code, relay.get("/readyz").text) == (200, "delivering: 1 held\n")
        missing = relay.get("/nothing")
        assert (missing.status_code, missing.text) == (404, "/\n/healthz\n/metrics\n/readyz\n")


def test_the_page_shows_what_the_relay_does(outbox: SqliteOutbox, url: str, server: Server, stream: str) -> None:
    """At ``/`` a browser gets what is in the outbox, and what was delivered in the last hour."""
    with relaying(url, server.url(stream)) as relay:
        outbox.append(notes(1_200))
        relay.until(lambda found: found["delivered_tasks_total"] == 1_200 and found["pending_tasks"] == 0)
        shown = relay.get("/")
        assert (shown.status_code, shown.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in shown.headers["Content-Security-Policy"]
        assert "1,200" in shown.text
        assert f"stream={stream}" in shown.text


def test_throughput_is_counted_by_the_minute() -> None:
    """The last 60 minutes, of which those before the start are unknown; what is older is forgotten."""
    now = 6_000.0
    counted = Throughput(lambda: now)
    entries = [Entry(n, f"task-{n}", b"{}") for n in range(1, 4)]
    counted.batch_delivered(Batch("box", Mark(""), entries, Mark.of(entries[-1], "lease")))
    now += 120
    counted.batch_delivered(Batch("box", Mark(""), entries[:1], Mark.of(entries[0], "lease")))
    assert counted.last_hour() == [None] * 57 + [3, 0, 1]
    now += 3_480
    assert counted.last_hour() == [0, 1, *[0] * 58]


def test_a_sink_that_is_down_is_not_ready(outbox: SqliteOutbox, url: str, server: Server, stream: str) -> None:
    """The loop turns, so it is healthy; what waits grows old; and it is ready again once the sink answers."""
    with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        relaying(url, f"redis://{proxy.address}/0?stream={stream}&retries=0") as relay,
    ):
        relay.until(lambda found: found["lanes_held"] == 1)
        proxy.refuse()
        proxy.cut_all()
        before = time.time()
        outbox.append(notes(3))
        while (ready := relay.get("/readyz")).status_code == 200:
            assert relay.process.poll() is None
        assert ready.text.startswith("waiting for the sink: redis://")
        assert relay.get("/healthz").status_code == 200
        found = relay.metrics()
        assert found["pending_tasks"] == 3
        assert before - 1 <= found["oldest_pending_timestamp_seconds"] <= time.time()
        proxy.accept()
        relay.until(lambda found: found["delivered_tasks_total"] == 3)
        assert relay.get("/readyz").status_code == 200


def test_one_that_stands_by_is_ready(outbox: SqliteOutbox, url: str, tmp_path: Path) -> None:
    """It holds nothing, and takes over when the first one ends."""
    sink = f"jsonl:{tmp_path}/out"
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(relaying(url, sink))
        first.until(lambda found: found["lanes_held"] == 1)
        with relaying(url, sink) as second:
            while (ready := second.get("/readyz")).text != "standing by: another relay holds the outbox\n":
                assert second.process.poll() is None
            assert (ready.status_code, second.metrics()["lanes_held"]) == (200, 0)
            stack.close()
            second.until(lambda found: found["lanes_held"] == 1)


def test_nobody_looks_at_an_outbox_that_is_not_open_yet() -> None:
    """A look at a file beside the thread that opens it could drop the locks of this process."""
    shown = Operations("sqlite:///missing.db", "jsonl:-", http="127.0.0.1:0")
    with shown:
        assert shown._server is not None
        said = "waiting for the outbox: it is being opened\n"
        for path, status in (("/readyz", 503), ("/", 503), ("/metrics", 200), ("/healthz", 200)):
            answer = requests.get(shown._server.url + path, timeout=10)
            assert answer.status_code == status
            assert (answer.text == said) == (status == 503)
        assert "\nowm_outbox_up 0.0\n" in requests.get(f"{shown._server.url}/metrics", timeout=10).text
        shown.opened()
        for path in ("/", "/readyz"):
            answer = requests.get(shown._server.url + path, timeout=10)
            assert (answer.status_code, "missing.db" in answer.text) == (503, True)


def test_lanes_are_counted(tmp_path: Path) -> None:
    """Each lane has a pulse of its own, and none once it was given up."""
    outbox, stop = LanedMemory(3), Stop()
    shown = Operations("memory:", "jsonl:-", http="127.0.0.1:0")
    relay = LaneRelay(
        outbox,
        lambda lane: Hanging(),
        observers=lambda lane: shown.observers(f"lane {lane}"),
        alive=shown.health.pulse("lanes").alive,
        balance_every=0.02,
    )
    thread = threading.Thread(target=relay.run_forever, args=(stop,), kwargs={"poll": 0.02})
    with shown:
        shown.opened()
        thread.start()
        while shown.health.line() != "delivering: 3 held":
            assert thread.is_alive()
        assert shown.health.hanging(0) != []
        stop.set()
        thread.join()
        assert shown.health.line() == "standing by: another relay holds the outbox"
        assert shown.health.hanging(0) == ["lanes"]


def test_a_token(url: str, outbox: SqliteOutbox, tmp_path: Path) -> None:
    """Without it nothing is told but health; it comes as bearer token, or as a browser's password."""
    env = {"OWM_HTTP_TOKEN": "t0ken"}
    with relaying(url, f"jsonl:{tmp_path}/out", "--log-level", "debug", env=env) as relay:
        refused = relay.get("/metrics")
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, 'Basic realm="owm_outbox"')
        assert relay.get("/metrics", headers={"Authorization": "Bearer other"}).status_code == 401
        assert relay.get("/metrics", headers={"Authorization": "Basic ???"}).status_code == 401
        assert relay.get("/metrics", headers={"Authorization": "Bearer t0ken"}).status_code == 200
        assert relay.get("/metrics", auth=("anybody", "t0ken")).status_code == 200
        for path in ("/healthz", "/readyz"):
            assert (relay.get(path).status_code, relay.get(path).text) == (200, "")
            assert relay.get(path, auth=("anybody", "t0ken")).text != ""
        assert requests.post(f"{relay.url}/metrics", timeout=10).status_code == 501


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("9108", "--http '9108' is not an address: write HOST:PORT, such as 127.0.0.1:9108"),
        ("127.0.0.1", "is not an address: write HOST:PORT"),
        ("http://127.0.0.1:9108", "is not an address: write HOST:PORT"),
        ("127.0.0.1:99999", "is not an address: write HOST:PORT"),
        ("203.0.113.7:9108", "--http 203.0.113.7:9108: Cannot assign requested address: name another address"),
    ],
)
def test_an_address_that_cannot_be_served_is_refused(url: str, tmp_path: Path, address: str, says: str) -> None:
    """With 78, one line, and no outbox made."""
    done = run("owm-outbox", "relay", "--outbox", url, "--sink", f"jsonl:{tmp_path}/out", "--http", address)
    assert done.code == 78
    assert says in done.err.splitlines()[-1]


# -- a loop that hangs


class Hanging(Sink):
    """Takes batches until it is told to hang."""

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self.released = threading.Event()

    def mark(self, outbox_id: str) -> None:
        """Tell nothing."""

    def send(self, batch: Batch) -> None:
        """Hang, or do nothing."""
        if self.hangs.is_set():
            self.released.wait(60)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """Listen as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        yield sock


def told(sock: socket.socket) -> dict[str, str]:
    """Return the next message."""
    return dict(line.split("=", 1) for line in sock.recv(4096).decode().splitlines())


def test_a_loop_that_hangs_is_not_alive(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systemd is told no longer that it is, and /healthz says 503: both end it, so that another one takes over."""
    monkeypatch.setattr(service, "_HANGS_AFTER", 0.5)
    outbox, sink, stop = MemoryOutbox(), Hanging(), Stop()
    address = str(systemd.getsockname())
    shown = Operations("memory:", "jsonl:-", http="127.0.0.1:0", systemd=(address, "500000"))
    relay = OutboxRelay(outbox, sink, observers=shown.observers("relay"))
    thread = threading.Thread(target=relay.run_forever, args=(stop,), kwargs={"poll": 0.02})
    with shown:
        assert int(told(systemd)["EXTEND_TIMEOUT_USEC"]) > 0
        shown.opened()
        thread.start()
        while "READY" not in told(systemd):
            assert thread.is_alive()
        assert shown._server is not None
        health = f"{shown._server.url}/healthz"
        alive = [told(systemd) for _ in range(5)]
        assert all(message["WATCHDOG"] == "1" for message in alive)
        assert alive[-1]["STATUS"] == "delivering: 1 held"
        assert requests.get(health, timeout=10).status_code == 200
        sink.hangs.set()
        outbox.append(notes(1))
        while "WATCHDOG" in told(systemd):
            assert thread.is_alive()
        answer = requests.get(health, timeout=10)
        assert (answer.status_code, answer.text) == (503, "hangs for over 0 s: relay\n")
        sink.released.set()
        while "WATCHDOG" not in told(systemd):
            assert thread.is_alive()
        stop.set()
        thread.join()
    while (last := told(systemd)).get("STOPPING") != "1":
        assert "STATUS" in last


def test_systemd_is_told(systemd: socket.socket, url: str, outbox: SqliteOutbox, tmp_path: Path) -> None:
    """The command says when it is ready, what it does, and that it stops."""
    env = {"NOTIFY_SOCKET": str(systemd.getsockname()), "WATCHDOG_USEC": "300000"}
    with relaying(url, f"jsonl:{tmp_path}/out", env=env) as relay:
        while (ready := told(systemd)).get("READY") != "1":
            assert ready["STATUS"] == "waiting for the outbox: it is being opened"
        assert ready["MAINPID"] == str(relay.process.pid)
        while told(systemd).get("STATUS") != "delivering: 1 held":
            assert relay.process.poll() is None
    messages = [told(systemd)]
    while messages[-1].get("STOPPING") != "1":
        messages.append(told(systemd))
