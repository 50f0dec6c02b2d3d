"""An outbox on a file system that maps no shared memory, such as 9p or virtiofs: one program at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from owm_outbox_backends.sqlite import SqliteOutbox

from support import seccomp
from support.commands import SCRIPTS, environment
from support.weather import made_up, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not seccomp.possible(), reason="this kernel cannot be told to refuse"),
]


def _without_maps(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(Path(seccomp.__file__)), "maps", str(SCRIPTS / command[0]), *command[1:]],
        cwd=folder,
        env=environment(OWM_OUTBOX="sqlite:///tasks.db"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("made", ["there", "elsewhere"])
def test_a_run_completes(made: str, tmp_path: Path) -> None:
    """A run stores, delivers and clears as anywhere else, also with a file that was made on another file system."""
    if made == "elsewhere":
        SqliteOutbox(tmp_path / "tasks.db").close()
    with serving(made_up(250)) as api:
        args = ("--sink", "jsonl:tasks.jsonl", "--api-url", api.url)
        done = _without_maps(tmp_path, "owm-producer", *args)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len((tmp_path / "tasks.jsonl").read_text().splitlines()) == 250
    status = _without_maps(tmp_path, "owm-outbox", "status", "--json")
    assert json.loads(status.stdout)["runs"][0]["state"] == "complete"


def test_what_is_kept_there_is_delivered_anywhere(tmp_path: Path) -> None:
    """Tasks that wait in such a file are still there, and the file works as before on another file system."""
    with serving(made_up(3)) as api:
        args = ("--sink", "redis://127.0.0.1:1/0?stream=s&retries=0", "--api-url", api.url, "--log-level", "error")
        assert _without_maps(tmp_path, "owm-producer", *args).returncode == 75
    with SqliteOutbox(tmp_path / "tasks.db") as first, SqliteOutbox(tmp_path / "tasks.db") as second:
        assert first.stats().pending == second.stats().pending == 3


def test_a_second_program_waits_for_the_first(tmp_path: Path) -> None:
    """While one program has the file, another one there ends with 75 and says why."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox, outbox._db.transaction():
        done = _without_maps(tmp_path, "owm-outbox", "dead", "drop", "1", "--outbox", "sqlite:///tasks.db?timeout=0.1")
    line = f"another program is using {tmp_path}/tasks.db (database is locked): run again"
    assert (done.returncode, done.stderr) == (75, f"owm-outbox: {line}\n")


def test_a_look_does_not_wait(tmp_path: Path) -> None:
    """What only looks shows what is committed, in a copy, also while a program has the file for itself."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox, outbox._db.transaction():
        done = _without_maps(tmp_path, "owm-outbox", "status", "--max-pending", "0")
    assert (done.returncode, done.stdout.partition(" |")[0], done.stderr) == (0, "OK: 0 pending", "")


def test_an_application_s_database_is_refused(tmp_path: Path) -> None:
    """An application's own database has to be shared: 73, and where to move it."""
    SqliteOutbox(tmp_path / "app.db", shared=True).close()
    done = _without_maps(tmp_path, "owm-outbox", "dead", "drop", "1", "--outbox", "sqlite:///app.db?shared=true")
    line = (
        f"{tmp_path}/app.db is on a file system that cannot map shared memory, so programs cannot share it: "
        "move it to a local disk"
    )
    assert (done.returncode, done.stderr) == (73, f"owm-outbox: {line}\n")
