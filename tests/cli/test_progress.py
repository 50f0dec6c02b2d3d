"""How far a run has got: a bar at a terminal, lines in the log elsewhere, and nothing where nobody asked."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import termios
from pathlib import Path

import pytest

from owm_outbox import OutboxRelay
from owm_outbox.cli.progress import ProgressLog
from owm_outbox.jobs.owm import OwmJob
from owm_outbox_backends.jsonl import JsonLinesSink
from owm_outbox_backends.memory import MemoryOutbox

from support.commands import SCRIPTS, environment, run
from support.misbehaving import Misbehaving, misbehaving, slow
from support.weather import made_up


def _args(service: Misbehaving, tmp_path: Path) -> list[str]:
    return [
        *("--api-url", service.url, "--api-limit", "10", "--concurrency", "1", "--batch-size", "10"),
        *("--outbox", f"sqlite:///{tmp_path}/tasks.db", "--sink", f"jsonl:{tmp_path}/out"),
    ]


def _on_a_terminal(*command: str) -> tuple[int, str]:
    """Run a command whose stderr is a terminal; return its exit code and what that showed."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 160))
    process = subprocess.Popen([SCRIPTS / command[0], *command[1:]], env=environment(), stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while some := os.read(ours, 4096):
            shown += some
    except OSError:  # how Linux says that the other end was closed
        pass
    finally:
        os.close(ours)
    return process.wait(20), shown.decode()


@pytest.mark.slow
def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    """It shows tasks of how many, the rate, the time left, pages and what is delivered, and is removed at the end."""
    with misbehaving(made_up(100)) as service:
        service.misbehave(slow(0.3))
        code, shown = _on_a_terminal("owm-producer", *_args(service, tmp_path))
    assert code == 0
    frames = shown.split("\r")
    assert any(
        re.fullmatch(
            r"owm: +\d+%\|.*\| \d+/100 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ tasks/s, delivered=\d+, pages=\d\] *", one
        )
        for one in frames
    ), frames
    assert frames[-1].strip() == "", "the bar is left on the screen"


@pytest.mark.slow
def test_elsewhere_there_are_lines_if_wanted(tmp_path: Path) -> None:
    """Without a terminal there is no bar; at level info there is a line at the start and one at the end."""
    with misbehaving(made_up(100)) as service:
        outcome = run("owm-producer", *_args(service, tmp_path), "--log-level", "info")
        quiet = run("owm-producer", *_args(service, tmp_path))
    first, last = outcome.err.splitlines()
    assert re.search(r"INFO run \S+ of job owm starts$", first)
    assert re.search(r"INFO run \S+ is complete: 100 tasks, 100 delivered, 0 rejected, 0 waiting, \d+\.\d s$", last)
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_a_long_run_logs_a_line_at_intervals(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long run says how far it has got each time an interval has passed: 10 s here, at 3 s per commit."""
    # A slow machine commits what it has after a while: the size of a commit is to depend on the pages alone.
    monkeypatch.setattr("owm_outbox.paging.api._MAX_SECONDS_PER_COMMIT", 3600.0)
    caplog.set_level(logging.INFO, "owm_outbox.progress")
    seconds = iter(range(0, 1000, 3))
    with misbehaving(made_up(4000)) as service:
        job = OwmJob(OwmJob.Options(api_url=service.url, concurrency=1))
        progress = ProgressLog(every=10.0, clock=lambda: next(seconds))
        OutboxRelay(MemoryOutbox(), JsonLinesSink(tmp_path / "out"), observers=[progress]).run(job)
    lines = [record.message for record in caplog.records]
    # 500 tasks per commit; the clock is asked once when it is made, once at the start, and once per commit.
    assert lines[1:-1] == [
        "20 pages fetched, 2000 of 4000 tasks stored, 1500 delivered, 167 per second, 12 s left",
        "40 pages fetched, 4000 of 4000 tasks stored, 3500 delivered, 167 per second, 0 s left",
    ]
