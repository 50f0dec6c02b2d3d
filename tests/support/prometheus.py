"""A Prometheus, where one is installed, and the queries of a dashboard."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests
import yaml

from support.servers import free_port

__all__ = ["PROMETHEUS", "Prometheus", "Query", "queries", "scraping", "until_equal"]

T = TypeVar("T")

PROMETHEUS = shutil.which("prometheus")


@dataclass(frozen=True)
class Query:
    """A query of a panel.

    :param expr: with Grafana's variables, as it stands there.
    """

    panel: str
    expr: str
    legend: str

    @property
    def promql(self) -> str:
        """What Grafana sends, with everything chosen."""
        return self.expr.replace("$__rate_interval", "1m").replace("$job", ".*")

    def __str__(self) -> str:
        return f"{self.panel}: {self.legend}"


def queries(dashboard: Mapping[str, Any]) -> list[Query]:
    """Return all queries of a dashboard."""
    return [
        Query(panel["title"], target["expr"], target["legendFormat"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


class Prometheus:
    """One at work.

    :param url: its address.
    """

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self._process = process

    def get(self, path: str, **params: str) -> Any:
        """Return the data of an answer; fail with what it says if that is an error."""
        answer = requests.get(f"{self.url}/api/v1/{path}", params=params, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """Return the series that a query finds now, with their labels and values."""
        found = self.get("query", query=promql)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def until(self, promql: str, holds: Callable[[float], bool]) -> float:
        """Return the value of a query's first series once this holds."""
        deadline = time.monotonic() + 60
        while not (found := self.query(promql)) or not holds(found[0][1]):
            assert self._process.poll() is None, "Prometheus has ended"
            assert time.monotonic() < deadline, f"{promql}: {found}"
            time.sleep(0.1)
        return found[0][1]


def until_equal(look: Callable[[], T], wanted: T) -> None:
    """Wait until this is what is seen: after a scrape that came too late, nothing is known until the next one."""
    deadline = time.monotonic() + 60
    while (found := look()) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


@contextlib.contextmanager
def scraping(config: Mapping[str, Any], folder: Path) -> Iterator[Prometheus]:
    """Run a Prometheus with this configuration for the length of a block. Its data and its log are in the folder."""
    assert PROMETHEUS is not None
    port = free_port()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(config)))
    args = [
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PROMETHEUS, *args], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while not _is_ready(url):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield Prometheus(url, process)
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/-/ready", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False
