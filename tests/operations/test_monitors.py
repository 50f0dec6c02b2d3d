"""--metrics-file and --ping: what is left behind by calls that succeed, fail, or never begin, and what fails itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.commands import run, start
from support.monitor import Monitor, monitoring
from support.servers import free_port
from support.weather import CountingService, made_up, serving

pytestmark = pytest.mark.slow

COUNT = 1_050  # eleven pages, and one behind the last


def metrics(path: Path) -> dict[str, float]:
    """Return the values of all series without labels of their own, and of others with these."""
    found = {}
    for family in text_string_to_metric_families(path.read_text("utf-8")):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("outbox_job") == "owm"
            shown = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
            found[sample.name.removeprefix("owm_outbox_") + (f"{{{shown}}}" if shown else "")] = sample.value
    return found


@pytest.fixture
def api() -> Iterator[CountingService]:
    """Run a Weather Service."""
    with serving(made_up(COUNT)) as api:
        yield api


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    """Run a monitor."""
    with monitoring() as monitor:
        yield monitor


@pytest.fixture
def args(tmp_path: Path, api: CountingService) -> list[str]:
    """Give the options of a call that works."""
    return [
        *("--api-url", api.url, "--outbox", f"sqlite:///{tmp_path}/tasks.db", "--sink", f"jsonl:{tmp_path}/out"),
        *("--metrics-file", str(tmp_path / "owm.prom"), "--retry-wait", "0.01"),
    ]


def _promtool(path: Path) -> None:
    """Let promtool check the file, where it is installed; the form is also that of prometheus-client's parser."""
    if tool := shutil.which("promtool"):
        with path.open("rb") as file:
            done = subprocess.run([tool, "check", "metrics"], stdin=file, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_run_that_succeeds(args: list[str], tmp_path: Path) -> None:
    """Everything that the report says is there, and what the run took; a second run is added to the first."""
    before = time.time()
    path = tmp_path / "owm.prom"
    done = run("owm-producer", *args, "--json")
    assert (done.code, done.err) == (0, "")
    found = metrics(path)
    assert {name: found[name] for name in found if name.startswith("run_") and "seconds" not in name} == {
        "run_complete": 1,
        "run_expected_tasks": COUNT,
        "run_extracted_tasks": COUNT,
        "run_duplicate_tasks": 0,
        "run_rejected_tasks": 0,
        "run_missing_pages": 0,
    }
    assert found["run_duration_seconds"] == done.report["seconds"]
    assert before <= found["last_end_timestamp_seconds"] == found["last_success_timestamp_seconds"] <= time.time()
    assert (found["up"], found["pending_tasks"], found["dead_letters"], found["breaker_open"]) == (1, 0, 0, 0)
    assert "oldest_pending_timestamp_seconds" not in found
    assert found["delivered_tasks_total"] == found["batch_tasks_sum"] == COUNT
    assert (
        found["batch_tasks_bucket{le=500.0}"] == found["batch_tasks_count"] == found["send_duration_seconds_count"] == 3
    )
    assert found["request_duration_seconds_count"] == 12
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    _promtool(path)

    assert run("owm-producer", *args).code == 0
    again = metrics(path)
    assert again["delivered_tasks_total"] == again["batch_tasks_sum"] == 2 * COUNT
    assert (again["run_extracted_tasks"], again["request_duration_seconds_count"]) == (COUNT, 24)
    assert [file.name for file in tmp_path.glob("*prom*")] == ["owm.prom"]


def test_a_run_that_does_not_succeed_keeps_the_time_of_the_last_success(args: list[str], tmp_path: Path) -> None:
    """With 75, what failed is counted by its reason, and what waits is there with its age."""
    path = tmp_path / "owm.prom"
    assert run("owm-producer", *args).code == 0
    first = metrics(path)
    down = f"redis://127.0.0.1:{free_port()}/0?stream=s&retries=0"
    before = time.time()
    assert run("owm-producer", *args, "--sink", down).code == 75
    found = metrics(path)
    assert found["last_success_timestamp_seconds"] == first["last_success_timestamp_seconds"]
    assert found["last_end_timestamp_seconds"] >= before
    assert (found["last_exit_code"], found["run_complete"], found["pending_tasks"]) == (75, 0, COUNT)
    assert before - 1 <= found["oldest_pending_timestamp_seconds"] <= time.time()
    assert found["delivered_tasks_total"] == COUNT
    _promtool(path)

    broken = [*args, "--api-url", f"http://127.0.0.1:{free_port()}", "--fresh"]
    for failures in (5, 10, 15, 20):
        assert run("owm-producer", *broken).code == 75
        found = metrics(path)
        assert found["request_failures_total{status=none}"] == failures
        assert (found["breaker_open"], found["run_extracted_tasks"]) == (failures == 20, 0)
        _promtool(path)


def test_dead_letters(args: list[str], tmp_path: Path, api: CountingService, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 65 the run is complete, which is a success; the dead letters are told."""
    answer = api.answer
    monkeypatch.setattr(api, "answer", lambda path: (answer(path) or b"").replace(b'"city_id":7,', b'"city_id":null,'))
    assert run("owm-producer", *args).code == 65
    path = tmp_path / "owm.prom"
    found = metrics(path)
    assert (found["last_exit_code"], found["run_complete"], found["dead_letters"], found["run_rejected_tasks"]) == (
        *(65, 1),
        *(1, 1),
    )
    assert found["last_success_timestamp_seconds"] == found["last_end_timestamp_seconds"]
    _promtool(path)


@pytest.mark.parametrize(
    ("wrong", "code", "up"),
    [
        (("--api-url", "http://a..b"), 78, 0),
        (("--outbox", "sqlite:////nowhere/at/all.db"), 73, 0),
        (("--sink", "redis://127.0.0.1:1/99?stream=s&retries=0"), 75, 1),
    ],
)
def test_a_call_that_never_begins_is_told_as_well(
    args: list[str], tmp_path: Path, monitor: Monitor, wrong: tuple[str, str], code: int, up: int
) -> None:
    """A configuration that cannot work leaves its exit code, and a ping with the line that says why."""
    done = run("owm-producer", *args, *wrong, "--ping", monitor.url)
    assert done.code == code
    found = metrics(tmp_path / "owm.prom")
    assert (found["last_exit_code"], found["up"]) == (code, up)
    assert "last_success_timestamp_seconds" not in found
    assert [path for path, _ in monitor.pings] == ["/s3cret/start", f"/s3cret/{code}"]
    if code != 75:
        assert done.err.endswith(f"owm-producer: {monitor.pings[1][1].decode()}\n")


def test_a_file_that_cannot_be_used_changes_nothing(args: list[str], tmp_path: Path) -> None:
    """One in no folder, or that holds something else, is warned of; the outcome is the work's."""
    done = run("owm-producer", *args, "--metrics-file", str(tmp_path / "no" / "owm.prom"))
    assert done.code == 0
    assert f"WARNING --metrics-file {tmp_path}/no/owm.prom cannot be written: No such file or directory" in done.line
    path = tmp_path / "owm.prom"
    path.write_bytes(b"\xff\x00 this { is not")
    done = run("owm-producer", *args)
    assert done.code == 0
    assert "cannot be read, so its counters begin anew" in done.line
    assert metrics(path)["delivered_tasks_total"] == COUNT


# -- pings


def test_pings_with_the_report(args: list[str], monitor: Monitor) -> None:
    """The start, then the exit code, with the report as body; the URL may be in the environment, and is never shown."""
    done = run("owm-producer", *args, "--json", "--log-level", "debug", env={"OWM_PING": f"{monitor.url}?rid=7"})
    assert done.code == 0
    (first, nothing), (last, body) = monitor.pings
    assert (first, nothing, last) == ("/s3cret/start?rid=7", b"", "/s3cret/0?rid=7")
    assert json.loads(body) == done.report
    assert "s3cret" not in done.err + done.out


def test_a_ping_is_tried_again(args: list[str], monitor: Monitor) -> None:
    """A monitor that answers 500 twice is told the third time."""
    monitor.statuses = [200, 500, 502]
    done = run("owm-producer", *args, "--ping", monitor.url)
    assert (done.code, done.err) == (0, "")
    assert [path for path, _ in monitor.pings] == ["/s3cret/start", *["/s3cret/0"] * 3]


@pytest.mark.parametrize("what", ["down", "refuses", "hangs"])
def test_a_monitor_that_fails_changes_nothing(args: list[str], monitor: Monitor, what: str) -> None:
    """One that is down, answers 404 or nothing at all costs a warning for each ping, and no secret."""
    url = monitor.url
    if what == "down":
        url = f"http://127.0.0.1:{free_port()}/s3cret"
    elif what == "refuses":
        monitor.statuses = [404] * 6
    else:
        monitor.release = threading.Event()
    done = run("owm-producer", *args, "--ping", url)
    assert done.code == 0
    says = {
        "down": "was not told of 'start': ConnectionError",
        "refuses": "was not told of 'start': 404 Not Found",
        "hangs": "did not answer in time",
    }
    assert f"WARNING the monitor at 127.0.0.1 {says[what]}" in done.err
    assert "s3cret" not in done.err


def test_a_stopped_run_is_told(args: list[str], monitor: Monitor, api: CountingService) -> None:
    """SIGTERM ends the run, and the ping says 143."""
    reached = threading.Event()
    answer = api.answer

    def slow(path: str) -> bytes | None:
        reached.set()
        time.sleep(0.05)
        return answer(path)

    api.answer = slow  # type: ignore[method-assign]
    process = start("owm-producer", *args, "--ping", monitor.url, "--concurrency", "1")
    assert reached.wait(30)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert [path for path, _ in monitor.pings] == ["/s3cret/start", "/s3cret/143"]


@pytest.mark.parametrize(
    "url", ["monitor.internal/s3cret", "ftp://host/s3cret", "http://", "https://a b/s3cret", "http://h:x/s3cret"]
)
def test_an_address_that_is_none_is_refused(args: list[str], url: str) -> None:
    """With 78, one line, and no secret."""
    done = run("owm-producer", *args, "--ping", url)
    assert done.code == 78
    assert "the ping's URL is not an address: write it as https://host/its-path" in done.line
    assert "s3cret" not in done.err
