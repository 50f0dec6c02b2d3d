"""The command, with a server that is down or hangs: exit code, report, and how soon it ends when asked to."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from owm_outbox_backends.sqlite import SqliteOutbox

from support import commands
from support.proxy import FaultProxy
from support.servers import Server
from support.streams import city_ids
from support.weather import CountingService, made_up, serving

COUNT = 250


@pytest.fixture
def service() -> Iterator[CountingService]:
    """Serve made-up cities."""
    with serving(made_up(COUNT)) as service:
        yield service


@pytest.mark.slow
def test_a_server_that_refuses_from_the_start(
    service: CountingService, server: Server, proxy: FaultProxy, stream: str, outbox_url: str
) -> None:
    """With no server the command ends with 75 and keeps every task; the next one delivers and fetches nothing."""
    url = f"redis://{proxy.address}/0?stream={stream}&retries=2&backoff_base=0.01"
    args = ["--api-url", service.url, "--outbox", outbox_url, "--sink", url, "--json"]
    proxy.refuse()
    down = commands.run("owm-producer", *args)
    assert down.code == 75
    assert down.report["pending"] == down.report["extracted"] == COUNT
    requests = len(service.requests)
    proxy.accept()
    up = commands.run("owm-producer", *args)
    assert (up.code, up.err) == (0, "")
    assert up.report["run_id"] == down.report["run_id"]
    assert (up.report["pending"], len(service.requests)) == (0, requests)
    assert sorted(city_ids(server, stream)) == list(range(1, COUNT + 1))


@pytest.mark.slow
def test_sigterm_while_the_server_hangs(
    service: CountingService, own_server: Server, stream: str, tmp_path: Path
) -> None:
    """SIGTERM to a producer whose server hangs ends with 143 within 5 s plus a timeout; every task is kept."""
    own_server.pause()
    args = ["--api-url", service.url, "--outbox", f"sqlite:///{tmp_path}/tasks.db"]
    process = commands.start("owm-producer", *args, "--sink", own_server.url(stream, socket_timeout=2))
    pending = 0
    while pending < COUNT:
        time.sleep(0.05)
        if (tmp_path / "tasks.db").exists():
            with SqliteOutbox(tmp_path / "tasks.db") as outbox:
                pending = outbox.stats().pending
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143, err
    assert time.monotonic() - asked < 2 + 5
    assert pending == COUNT
