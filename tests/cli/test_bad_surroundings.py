"""An outbox that cannot be used, an API or a sink that is down or refuses: one line, and nothing is lost or harmed."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import HARMLESS, refused, run
from support.servers import Server, free_port
from support.weather import made_up, serving

pytestmark = pytest.mark.slow

SECRET = "hunter2"  # noqa: S105 - what must not be shown
OUTBOX = "sqlite:///tasks.db"  # in the folder that the command runs in

Prepare = Callable[[Path], Path]

# -- what is at the outbox's path


def _no_folder(folder: Path) -> Path:
    return folder / "no-such-folder" / "tasks.db"


def _a_folder(folder: Path) -> Path:
    path = folder / "tasks.db"
    path.mkdir()
    return path


def _a_pipe(folder: Path) -> Path:
    path = folder / "tasks.db"
    os.mkfifo(path)
    return path


def _a_text(folder: Path) -> Path:
    path = folder / "tasks.db"
    path.write_text("what somebody wrote down\n")
    return path


def _of_another_program(folder: Path) -> Path:
    path = folder / "tasks.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE outbox (id TEXT)")
    db.close()
    return path


def _an_outbox(folder: Path) -> Path:
    path = folder / "tasks.db"
    SqliteOutbox(path).close()
    return path


def _of_a_newer_version(folder: Path) -> Path:
    path = _an_outbox(folder)
    with sqlite3.connect(path) as db:
        db.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('owm_outbox', 'm999_future', '')"
        )
    db.close()
    return path


def _a_link(folder: Path) -> Path:
    path = folder / "link.db"
    path.symlink_to(_an_outbox(folder))
    return path


def _a_dangling_link(folder: Path) -> Path:
    path = folder / "link.db"
    path.symlink_to(folder / "planted.db")
    return path


def _with_a_link_as_wal(folder: Path) -> Path:
    path = _an_outbox(folder)
    (folder / "victim").write_text("what somebody else needs\n")
    (folder / "tasks.db-wal").symlink_to(folder / "victim")
    return path


def _with_a_link_as_lock(folder: Path) -> Path:
    path = _an_outbox(folder)
    (folder / "victim").write_text("what somebody else needs\n")
    (folder / "tasks.db.lock").symlink_to(folder / "victim")
    return path


def _of_another_user(folder: Path) -> Path:
    if os.geteuid() != 0:
        return Path("/etc/passwd")  # root's; only root can give a file away
    path = _an_outbox(folder)
    os.chown(path, 12345, -1)
    return path


LINK = "is a symbolic link; an outbox is never opened through one: name its target"


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (_no_folder, "cannot create the outbox {path} (No such file or directory): name another path with --outbox"),
        (_a_folder, "{path} is not a regular file: name another path"),
        (_a_pipe, "{path} is not a regular file: name another path"),
        (_a_text, "{path} is not an SQLite file, so it is not an outbox: name another path"),
        (
            _of_another_program,
            "{path} is an SQLite file of another program: name another path, or say shared=true if it is the database "
            "of an application that appends within its own transactions",
        ),
        (
            _of_a_newer_version,
            "{path} was written by a newer version of owm_outbox (m999_future): upgrade, or name another file",
        ),
        (_a_link, f"{{path}} {LINK}"),
        (_a_dangling_link, f"{{path}} {LINK}"),
        (_with_a_link_as_wal, f"{{path}}-wal {LINK}"),
        (
            _with_a_link_as_lock,
            "cannot open the lock file {path}.lock (Too many levels of symbolic links): check its folder and its owner",
        ),
        (_of_another_user, "{path} belongs to user {owner}, not to you: name another path"),
    ],
)
def test_a_file_that_is_not_an_outbox_of_this_user_is_left_alone(prepare: Prepare, line: str, tmp_path: Path) -> None:
    """Anything else where the outbox should be ends with 73, is not touched, and nothing is made next to it."""
    path = prepare(tmp_path)
    owner = path.stat().st_uid if path.exists() else None
    with serving(made_up(1)) as api:
        args = ("--outbox", f"sqlite:///{path}", "--sink", "jsonl:-", "--api-url", api.url)
        refused(tmp_path, 73, line.format(path=path, owner=owner), "owm-producer", *args)
        assert api.requests == []


@pytest.mark.parametrize("command", ["status", "drain", "dead list", "dead drop --all"])
def test_commands_on_an_outbox_make_none(command: str, tmp_path: Path) -> None:
    """A command that works on an existing outbox ends with 73 if there is none, and makes no file."""
    line = f"cannot open the outbox {tmp_path}/tasks.db (No such file or directory): name another path with --outbox"
    refused(tmp_path, 73, line, "owm-outbox", *command.split())


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("owm-producer", ()),
        ("owm-outbox", ("drain",)),
    ],
)
def test_an_outbox_in_use_names_its_user(command: str, args: tuple[str, ...], tmp_path: Path) -> None:
    """A second relay on the same outbox ends at once with 75, and the line names the first one's process."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox, outbox.lock(), serving(made_up(1)) as api:
        outbox.append([])
        env = HARMLESS | {"OWM_API_URL": api.url, "OWM_SINK": "jsonl:-"}
        outcome = run(command, *args, cwd=tmp_path, env=env)
        assert (outcome.code, outcome.out, api.requests) == (75, "", [])
    line, times = re.subn(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "(time)", outcome.line)
    assert times == 1
    user = f"process {os.getpid()} since (time)"
    assert line == f"{command}: {tmp_path}/tasks.db is in use by {user}: run again once that has ended"


# -- what is at the other ends


def test_an_api_that_nobody_serves_is_tried_again_later(tmp_path: Path) -> None:
    """An API that cannot be reached ends with 75, its address, the reason, and that one should run it again."""
    address = f"http://127.0.0.1:{free_port()}"
    args = ("--api-url", address, "--retry-wait", "0.01", "--sink", "jsonl:-", "--outbox", OUTBOX)
    outcome = run("owm-producer", *args, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (75, "")
    assert outcome.line == (
        f"owm-producer: {address}/cities/?page=0&limit=100 cannot be read (Failed to establish a new connection: "
        "[Errno 111] Connection refused): nothing could be read; run again later "
        "[0 tasks extracted, 0 waiting in the outbox]"
    )


def test_a_sink_that_is_down_keeps_the_tasks(tmp_path: Path) -> None:
    """A sink that cannot be reached ends with 75, its address and what to do; every task waits in the outbox."""
    sink = f"redis://127.0.0.1:{free_port()}/0"
    with serving(made_up(250)) as api:
        args = ("--api-url", api.url, "--sink", f"{sink}?stream=s&retries=1&backoff_base=0.01", "--outbox", OUTBOX)
        outcome = run("owm-producer", *args, "--log-level", "error", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (75, "")
    assert outcome.line == (
        f"owm-producer: {sink}, stream 's' cannot be used now (Error 111 connecting to {sink[8:-2]}. "
        "Connection refused.); try again later [250 tasks extracted, 250 waiting in the outbox]"
    )
    status = json.loads(run("owm-outbox", "status", "--json", "--outbox", OUTBOX, cwd=tmp_path).out)
    assert (status["pending"], status["dead"]) == (250, 0)


def test_each_warning_about_a_sink_says_which_and_why(tmp_path: Path) -> None:
    """What is logged about a sink that is down names its address and the reason, also the first time."""
    port = free_port()
    with serving(made_up(1)) as api:
        sink = f"redis://127.0.0.1:{port}/0?stream=s&retries=1&backoff_base=0.01"
        args = ("--api-url", api.url, "--sink", sink, "--outbox", OUTBOX)
        outcome = run("owm-producer", *args, cwd=tmp_path)
    assert outcome.code == 75
    lines = outcome.err.splitlines()
    assert len(lines) > 1
    for line in lines:
        assert f"127.0.0.1:{port}" in line
        assert "Connection refused" in line


@pytest.mark.parametrize("key", ["{stream}", "{{{stream}}}:positions"], ids=["stream", "positions"])
def test_a_key_of_another_type_is_left_alone(key: str, server: Server, stream: str, tmp_path: Path) -> None:
    """If the stream's key or the positions' is a string, the code is 78, and that string stays."""
    key = key.format(stream=stream)
    with server.client() as client, serving(made_up(3)) as api:
        client.set(key, "what somebody else needs")
        args = ("--api-url", api.url, "--sink", server.url(stream), "--outbox", OUTBOX)
        outcome = run("owm-producer", *args, cwd=tmp_path)
        assert (outcome.code, outcome.out, api.requests) == (78, "", [])
        for words in (server.address, stream, "another type", "name another stream"):
            assert words in outcome.line
        assert client.get(key) == b"what somebody else needs"
        assert client.keys() == [key.encode()]


def test_a_server_that_refuses_us_is_a_configuration_error(own_server: Server, stream: str, tmp_path: Path) -> None:
    """No password, a wrong one or an unknown user ends with 78, at once, and no log shows the password."""
    with own_server.client() as client, serving(made_up(3)) as api:
        client.config_set("requirepass", "correct horse")
        for userinfo in ("", f":{SECRET}@", f"nobody:{SECRET}@"):
            sink = f"redis://{userinfo}{own_server.address}/0?stream={stream}"
            args = ("--api-url", api.url, "--sink", sink, "--outbox", OUTBOX, "--log-level", "debug")
            outcome = run("owm-producer", *args, cwd=tmp_path)
            assert (outcome.code, outcome.out, api.requests) == (78, "", [])
            for words in (own_server.address, "refuses us", "password in the URL"):
                assert words in outcome.line
            assert SECRET not in outcome.err


def test_the_right_password_is_taken_from_the_url(own_server: Server, stream: str, tmp_path: Path) -> None:
    """A password with special characters, percent-encoded or as an option, is the one that the server gets."""
    with own_server.client() as client, serving(made_up(3)) as api:
        client.config_set("requirepass", "p@s/s#w?rd")
        for sink in (
            f"redis://:p%40s%2Fs%23w%3Frd@{own_server.address}/0?stream={stream}",
            f"redis://{own_server.address}/0?stream={stream}&password=p%40s%2Fs%23w%3Frd",
        ):
            outcome = run("owm-producer", "--api-url", api.url, "--sink", sink, "--outbox", OUTBOX, cwd=tmp_path)
            assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
        assert client.xlen(stream) == 6
