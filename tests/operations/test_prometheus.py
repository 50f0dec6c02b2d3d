"""A Prometheus that scrapes a relay at work and the file of a run: every query and every alert is answered."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import run
from support.prometheus import PROMETHEUS, queries, scraping, until_equal
from support.proxy import FaultProxy
from support.relays import Note, relay
from support.servers import Server
from support.weather import made_up, serving

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROMETHEUS is None, reason="there is no prometheus")]

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))


class _Files(SimpleHTTPRequestHandler):
    """Serves files as node_exporter would its textfiles: as they are."""

    extensions_map = {".prom": "text/plain; version=0.0.4"}  # noqa: RUF012 - as the class it is of declares it

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def textfile(tmp_path: Path) -> Iterator[int]:
    """Run the producer, and serve its metrics; give the port."""
    folder = tmp_path / "textfile"
    folder.mkdir()
    with serving(made_up(1_050)) as api:
        stores = ("--outbox", f"sqlite:///{tmp_path}/owm.db", "--sink", f"jsonl:{tmp_path}/out")
        done = run("owm-producer", "--api-url", api.url, *stores, "--metrics-file", str(folder / "owm.prom"))
    assert done.code == 0, done.err
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def _config(node: int, relays: int) -> dict[str, Any]:
    """Return the configuration of the documentation, with these ports, in a hurry."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
    first, second = config["scrape_configs"]
    first |= {"static_configs": [{"targets": [f"127.0.0.1:{node}"]}], "metrics_path": "/owm.prom"}
    second["static_configs"] = [{"targets": [f"127.0.0.1:{relays}"]}]
    config["rule_files"] = [str(DEPLOY / name) for name in config["rule_files"]]
    return config | {"global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"}}


ALERTS: dict[str, str] = {
    # With a shorter window, as none of this takes minutes here.
    rule["alert"]: rule["expr"].replace("[10m]", "[5s]")
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
}


def test_a_relay_under_load_is_scraped(textfile: int, tmp_path: Path, server: Server, stream: str) -> None:
    """The rate of deliveries is what was delivered; no query and no rule is refused, and no alert fires."""
    args = ("--outbox", f"sqlite:///{tmp_path}/tasks.db?shared=true", "--sink", server.url(stream), "--poll", "0.02")
    with (
        SqliteOutbox(tmp_path / "tasks.db", shared=True) as outbox,
        relay(*args, "--http", "127.0.0.1:0", cwd=tmp_path) as process,
    ):
        port = int(process.says(r"serving http://127\.0\.0\.1:(\d+)")[1])
        with scraping(_config(textfile, port), tmp_path) as prometheus:
            prometheus.until("owm_outbox_lanes_held", lambda value: value == 1)
            count = 0
            while not prometheus.query("rate(owm_outbox_delivered_tasks_total[1m]) > 0"):
                outbox.append([Note(uuid.uuid4(), "note") for _ in range(500)])
                count += 500
            prometheus.until('owm_outbox_delivered_tasks_total{outbox_job=""}', lambda value: value == count)

            until_equal(
                lambda: {query.panel for query in queries(DASHBOARD) if not prometheus.query(query.promql)},
                {"Age of the oldest pending task", "Failures by reason"},  # nothing waits, and nothing failed
            )

            rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
            assert len(rules) == (DEPLOY / "alerts.yml").read_text("utf-8").count("- alert:")
            assert {rule["health"] for rule in rules} == {"ok"}
            assert not [rule["name"] for rule in rules if rule["state"] == "firing"]
            until_equal(lambda: {target["health"] for target in prometheus.get("targets")["activeTargets"]}, {"up"})


def test_a_sink_that_is_down_or_full_is_told_of(textfile: int, tmp_path: Path, server: Server, stream: str) -> None:
    """One that does not answer is sent nothing: what waits tells of it. One that is full refuses each batch."""
    with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        SqliteOutbox(tmp_path / "tasks.db", shared=True) as outbox,
        relay(
            *("--outbox", f"sqlite:///{tmp_path}/tasks.db?shared=true", "--poll", "0.02", "--http", "127.0.0.1:0"),
            *("--sink", f"redis://{proxy.address}/0?stream={stream}&retries=0&maxlen=500&groups=readers"),
            cwd=tmp_path,
        ) as process,
    ):
        port = int(process.says(r"serving http://127\.0\.0\.1:(\d+)")[1])
        with scraping(_config(textfile, port), tmp_path) as prometheus:
            outbox.append([Note(uuid.uuid4(), "note") for _ in range(500)])
            prometheus.until('owm_outbox_delivered_tasks_total{outbox_job=""}', lambda value: value == 500)
            assert not prometheus.query(ALERTS["OutboxNotDelivering"])

            proxy.refuse()
            proxy.cut_all()
            outbox.append([Note(uuid.uuid4(), "note")])
            prometheus.until(ALERTS["OutboxNotDelivering"], lambda pending: pending == 1)
            assert not prometheus.query(ALERTS["OutboxHeldByNobody"])
            assert sum(value for _, value in prometheus.query("owm_outbox_send_failures_total")) <= 1

            proxy.accept()  # nobody has read the first 500, so there is no room
            prometheus.until(ALERTS["OutboxSinkFailing"], lambda failures: failures > 0)
            ((labels, _),) = prometheus.query(ALERTS["OutboxSinkFailing"])
            assert labels == {"job": "owm-outbox-relay-shop", "reason": "SinkFull"}

            with server.client() as client:
                client.xgroup_create(stream, "readers", id="$")
            prometheus.until('owm_outbox_pending_tasks{outbox_job=""}', lambda pending: pending == 0)
            assert not prometheus.query(ALERTS["OutboxNotDelivering"])
            assert not prometheus.query(ALERTS["OutboxSinkFailing"])
