"""Alerts, the dashboard and Prometheus's configuration in docs/deploy name what is exported, and are accepted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from owm_outbox import Batch, Entry, Mark, OutboxStats, RunReport, SinkUnavailable
from owm_outbox.operations.metrics import Metrics
from owm_outbox.operations.textfile import write_textfile

from support.prometheus import Query, queries

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
GROUPS: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))["groups"]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
TESTS: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "alerts.test.yml").read_text("utf-8"))["tests"]
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PAGE = (DEPLOY.parent / "operations.md").read_text("utf-8")

with_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Return the names of all series that can be exported, each with its labels."""
    stats = OutboxStats(pending=1, oldest=datetime.now(UTC), dead=0, acknowledged=Mark(""), last_position=1)
    metrics = Metrics(lambda: stats, relays=True)
    entry = Entry(position=1, task_id="t", key="k", headers={}, payload=b"")
    metrics.batch_sent(Batch("o", Mark(""), [entry], Mark("1 -")), 0.1, SinkUnavailable("down"))
    metrics.request_finished(0.1, 503, True)
    metrics.breaker_changed(False)
    names = ("expected", "extracted", "duplicates", "delivered", "redelivered", "rejected", "pending", "seconds")
    figures = dict.fromkeys(names, 0)
    words = {
        "run_id": "r",
        "job": "owm",
        "resumed": False,
        "complete": True,
        "pending": 0,
        "missing": [],
        "seconds": 0.1,
    }
    report = msgspec.convert(figures | words, RunReport)
    metrics.run_finished(report)
    metrics.ended(0, 1.0)
    path = tmp_path_factory.mktemp("textfile") / "owm.prom"
    write_textfile(path, metrics, "owm")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(path.read_text("utf-8")):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _in_alerts(name: str) -> list[str]:
    return re.findall(r"owm_outbox_\w+", ALERTS[name]["expr"])


# -- what is named is exported


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_names_metrics_that_are_exported(alert: str, exported: dict[str, set[str]]) -> None:
    """A name that nothing exports would never fire."""
    names = _in_alerts(alert)
    assert set(names) <= set(exported)
    assert names or "up{" in ALERTS[alert]["expr"]


@pytest.mark.parametrize("query", queries(DASHBOARD), ids=str)
def test_the_dashboard_names_metrics_that_are_exported(query: Query, exported: dict[str, set[str]]) -> None:
    """As do its queries; and its legends name labels that its series have."""
    names = re.findall(r"owm_outbox_\w+", query.expr)
    assert names
    assert set(names) <= set(exported)
    for label in re.findall(r"\{\{(\w+)\}\}", query.legend):
        assert label in {"job", "instance"} | set.union(*(exported[name] for name in names)), query


def test_the_tests_of_the_alerts_name_metrics_that_are_exported(exported: dict[str, set[str]]) -> None:
    """A test with a misspelt series would prove nothing."""
    series = " ".join(given["series"] for test in TESTS for given in test["input_series"])
    assert set(re.findall(r"owm_outbox_\w+", series)) <= set(exported)


# -- Alerts


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_to_do(alert: str) -> None:
    """It has a severity, a summary, a description, and a section of the runbook."""
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert all(len(text) > 20 and text[-1] == "." for text in (notes["summary"], notes["description"]))
    assert notes["runbook_url"] == f"docs/operations.md#{alert.lower()}"
    assert f"\n### {alert}\n" in PAGE


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tested_both_ways(alert: str) -> None:
    """It is seen to fire, and seen not to."""
    fires = silent = False
    for test in TESTS:
        for query in test["promql_expr_test"]:
            if f'alertname="{alert}"' in query["expr"]:
                fires |= bool(query["exp_samples"])
                silent |= not query["exp_samples"] or len(query["exp_samples"]) < len(test["input_series"])
        fires |= any(rule["alertname"] == alert for rule in test.get("alert_rule_test", ()))
    assert (fires, silent) == (True, True)


@with_promtool
@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ("check", "rules", "--lint-fatal", "alerts.yml"),
        ("test", "rules", "alerts.test.yml"),
        ("check", "config", "prometheus.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts_them(args: tuple[str, ...]) -> None:
    """Rules and configuration are valid, and each alert fires as its test says."""
    done = subprocess.run(["promtool", *args], cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# -- the dashboard


def test_the_dashboard_has_a_datasource_to_choose() -> None:
    """Every panel and query takes the one that is chosen; ids are unique, and no panel lies on another."""
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert (
        DASHBOARD["templating"]["list"][0] | {"name": "datasource", "type": "datasource"}
        == (DASHBOARD["templating"]["list"][0])
    )
    cells: set[tuple[int, int]] = set()
    for panel in PANELS:
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])
        place = panel["gridPos"]
        taken = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, panel["title"]
        cells |= taken
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
