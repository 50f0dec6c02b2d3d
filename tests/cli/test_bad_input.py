"""Bad input ends with one line that says what, where and what to do; and what was there stays as it was."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import Outcome, run
from support.servers import Server, free_port
from support.weather import made_up, serving

SECRET = "hunter2"  # noqa: S105 - what must not be shown
OUTBOX = "sqlite:///tasks.db"  # in the folder that the command runs in

# Should bad input be taken for good, the command still ends soon, and has no server to do harm to.
HARMLESS = {
    "OWM_API_URL": "http://127.0.0.1:9",
    "OWM_RETRY_WAIT": "0.01",
    "OWM_OUTBOX": OUTBOX,
    "OWM_SINK": "redis://127.0.0.1:9/0?retries=0",
}

Prepare = Callable[[Path], Path]


def contents(folder: Path) -> dict[str, tuple[str, int, bytes]]:
    """Return type and mode, owner and content of all that is in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            data = path.read_bytes()
        else:
            data = os.fsencode(path.readlink()) if stat.S_ISLNK(status.st_mode) else b""
        found[str(path.relative_to(folder))] = (stat.filemode(status.st_mode), status.st_uid, data)
    return found


def refused(
    folder: Path, code: int, words: str, command: str, *args: str, env: Mapping[str, str] | None = None
) -> Outcome:
    """Run a command in a folder; check code and line, that all words are in it, and that the folder is untouched."""
    before = contents(folder)
    outcome = run(command, *args, cwd=folder, env=HARMLESS | dict(env or {}))
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert outcome.line.startswith(f"{command}: ")
    assert "Traceback" not in outcome.err
    for word in words.split():
        assert word in outcome.line
    assert contents(folder) == before
    return outcome


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nowhere://host", "sink 'nowhere' known: jsonl, redis, rediss plugins"),
        ("reddis://host:6379/0", "sink 'reddis' did you mean 'redis'?"),
        ("localhost", "'localhost' no scheme redis://"),
        ("redis://host/0?straem=s", "option 'straem' redis://host/0?straem=s did you mean 'stream'?"),
        ("redis://host/0?maxlen=many", "maxlen='many' int"),
        ("redis://host/0?maxlen=1&maxlen=2", "'maxlen' twice"),
        ("redis://host:port/0", "redis://host port"),
        ("jsonl:/no/such/folder/tasks.jsonl", "/no/such/folder/tasks.jsonl folder"),
    ],
)
def test_a_bad_sink_url_is_a_configuration_error(url: str, words: str, tmp_path: Path) -> None:
    """A sink URL that is none, names no plugin, or has a bad option ends with 78 before an outbox is made."""
    refused(tmp_path, 78, words, "owm-producer", "--sink", url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlit:///tasks.db", "outbox 'sqlit' did you mean 'sqlite'?"),
        ("tasks.db", "'tasks.db' no scheme sqlite:"),
        ("sqlite:", "sqlite: file sqlite:////absolute/path"),
        ("sqlite:///tasks.db?timeuot=1", "option 'timeuot' did you mean 'timeout'?"),
    ],
)
def test_a_bad_outbox_url_is_a_configuration_error(url: str, words: str, tmp_path: Path) -> None:
    """An outbox URL that is none, names no plugin, or has a bad option ends with 78 and makes no file."""
    refused(tmp_path, 78, words, "owm-producer", "--outbox", url)


@pytest.mark.parametrize(
    "args",
    [
        ("--sink", f"redis://user:{SECRET}@host:port/0"),
        ("--sink", f"redis://host/0?password={SECRET}&straem=s"),
        ("--api-url", f"user:{SECRET}@host"),
        ("--api-url", f"http://user:{SECRET}@[host"),
    ],
    ids=lambda args: args[1].replace(SECRET, "SECRET"),
)
def test_a_password_in_a_bad_url_is_not_shown(args: tuple[str, str], tmp_path: Path) -> None:
    """However a URL with a password is wrong, the line about it does not show the password."""
    outcome = refused(tmp_path, 78, "", "owm-producer", *args, "--log-level", "debug")
    assert SECRET not in outcome.err


@pytest.mark.parametrize(
    "url", ["nowhere", "http://", "http://[::1", "http://host:port", "http://host/?key=1", "http://host/api#cities"]
)
def test_a_bad_api_url_is_a_configuration_error(url: str, tmp_path: Path) -> None:
    """An API address that no request could be sent to ends with 78 and makes no outbox."""
    refused(tmp_path, 78, "--api-url http", "owm-producer", "--api-url", url)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("owm-producer --batch-size 0", "--batch-size 0 1<=x<=100000 --help"),
        ("owm-producer --batch-size many", "--batch-size 'many' --help"),
        ("owm-producer --hold-for nan", "--hold-for nan --help"),
        ("owm-producer --log-level noisy", "--log-level 'noisy' 'warning' --help"),
        ("owm-producer --batch-sise 3", "--batch-sise '--batch-size'? --help"),
        ("owm-producer --api-token hunter2", "--api-token --help"),
        ("owm-producer cities", "(cities) --help"),
        ("owm-producer --config .", "--config '.' directory --help"),
        ("owm-outbox statsu", "'statsu' 'status'? --help"),
        ("owm-outbox run", "JOB owm-outbox run --help"),
        ("owm-outbox status tasks.db", "(tasks.db) --help"),
        ("owm-outbox dead retry", "positions --all --help"),
        ("owm-outbox dead drop one", "'one' integer --help"),
    ],
)
def test_wrong_usage_ends_with_64(command: str, words: str, tmp_path: Path) -> None:
    """A flag that does not exist or is out of range, or an argument too many or too few, ends with 64."""
    refused(tmp_path, 64, words, *command.split())


def test_an_unknown_job_names_the_nearest_one(tmp_path: Path) -> None:
    """A misspelt job ends with 78, wherever it is named, and the line says which one was meant."""
    refused(tmp_path, 78, "job 'omw' did you mean 'owm'? plugins", "owm-outbox", "run", "omw")
    refused(tmp_path, 78, "job 'omw' did you mean 'owm'? plugins", "owm-outbox", "status", "--job", "omw")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("OWM_API_LIMIT", "many", "'many'"),
        ("OWM_API_URL", "nowhere", "'nowhere' http"),
        ("OWM_BATCH_SIZE", "0", "0 1<=x<=100000"),
        ("OWM_RETRY_WAIT", "31", "31"),
        ("OWM_LOG_LEVEL", "noisy", "'noisy' 'warning'"),
        ("OWM_CONFIG", "no-such.toml", "no-such.toml"),
    ],
)
def test_a_bad_variable_is_a_configuration_error(variable: str, value: str, words: str, tmp_path: Path) -> None:
    """A bad value in the environment ends with 78 and a line that names the variable."""
    name = "" if words == value else variable  # of a file that is not there its name is enough
    refused(tmp_path, 78, f"{name} {words}", "owm-producer", env={variable: value})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("api_limt = 3", "unknown 'api_limt' did you mean 'api_limit'?"),
        ("[owm.more]\napi_limit = 3", "unknown 'more'"),
        ("api_limit =", "no TOML"),
        ("api_token = 'hunter2'", "'api_token' secret OWM_API_TOKEN"),
        ("api_limit = 0", "api_limit 0 1<=x<=100000"),
        ("api_limit = 'many'", "api_limit 'many'"),
        ("api_limit = 2.5", "api_limit 2.5"),
        ("api_limit = true", "api_limit"),
        ("api_limit = [1]", "api_limit"),
        ("owm = 3", "owm"),
        ("api_url = 'ftp://host'", "api_url ftp://host http"),
    ],
)
def test_a_bad_configuration_file_is_a_configuration_error(text: str, words: str, tmp_path: Path) -> None:
    """A file that is no TOML, or has an unknown key, a secret or a bad value, ends with 78 and a line that names it."""
    (tmp_path / "fleet.toml").write_text(text)
    outcome = refused(
        tmp_path,
        78,
        f"fleet.toml {words}",
        *("owm-producer", "--config", "fleet.toml"),
        env={"OWM_API_URL": "", "OWM_API_LIMIT": ""},  # which would beat the file
    )
    assert SECRET not in outcome.err


def test_a_configuration_file_must_be_readable_text(tmp_path: Path) -> None:
    """A file that does not exist, or is no UTF-8, ends with 78 and its name."""
    (tmp_path / "latin.toml").write_bytes(b"stream = '\xff'")
    refused(tmp_path, 78, "no-such.toml No such file", "owm-producer", "--config", "no-such.toml")
    refused(tmp_path, 78, "latin.toml no TOML", "owm-producer", "--config", "latin.toml")


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


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (_no_folder, "cannot create No such file --outbox"),
        (_a_folder, "no regular file name another path"),
        (_a_pipe, "no regular file name another path"),
        (_a_text, "not an SQLite file name another path"),
        (_of_another_program, "another program name another path"),
        (_of_a_newer_version, "newer version m999_future upgrade"),
        (_a_link, "link.db symbolic link name its target"),
        (_a_dangling_link, "link.db symbolic link name its target"),
        (_with_a_link_as_wal, "tasks.db-wal symbolic link"),
        (_with_a_link_as_lock, "tasks.db.lock"),
        (_of_another_user, "belongs to user not to you name another path"),
    ],
)
def test_a_file_that_is_not_ours_is_left_alone(prepare: Prepare, words: str, tmp_path: Path) -> None:
    """Whatever else is where the outbox should be ends with 73, and is not touched, and nothing is made beside it."""
    path = prepare(tmp_path)
    url = f"sqlite:///{path}"
    with serving(made_up(1)) as api:
        args = ("--outbox", url, "--sink", "jsonl:-", "--api-url", api.url)
        outcome = refused(tmp_path, 73, words, "owm-producer", *args)
        assert api.requests == []
    assert str(path) in outcome.line


@pytest.mark.parametrize("command", ["status", "drain", "dead list", "dead drop --all"])
def test_commands_on_an_outbox_make_none(command: str, tmp_path: Path) -> None:
    """A command that works on an existing outbox ends with 73 if there is none, and makes no file."""
    refused(tmp_path, 73, "cannot open tasks.db No such file --outbox", "owm-outbox", *command.split())


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("owm-producer", ()),
        ("owm-outbox", ("drain",)),
        ("owm-outbox", ("dead", "drop", "--all")),
    ],
)
def test_an_outbox_in_use_names_its_user(command: str, args: tuple[str, ...], tmp_path: Path) -> None:
    """A second relay on the same outbox ends at once with 75, and the line names the first one's process."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox, outbox.lock(), serving(made_up(1)) as api:
        outbox.append([])
        env = HARMLESS | {"OWM_API_URL": api.url, "OWM_SINK": "jsonl:-"}
        outcome = run(command, *args, cwd=tmp_path, env=env)
        assert (outcome.code, outcome.out, api.requests) == (75, "", [])
    for words in ("tasks.db is in use", f"process {os.getpid()} ", "call again"):
        assert words in outcome.line


# -- what is at the other ends


def test_an_api_that_nobody_serves_is_tried_again_later(tmp_path: Path) -> None:
    """An API that cannot be reached ends with 75, its address, the reason, and that one should call again."""
    address = f"http://127.0.0.1:{free_port()}"
    args = ("--api-url", address, "--retry-wait", "0.01", "--sink", "jsonl:-", "--outbox", OUTBOX)
    outcome = run("owm-producer", *args, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (75, "")
    for words in (f"{address}/cities/?page=0", "Connection refused", "call again later"):
        assert words in outcome.line


def test_a_sink_that_is_down_keeps_the_tasks(tmp_path: Path) -> None:
    """A sink that cannot be reached ends with 75, its address and what to do; every task waits in the outbox."""
    sink = f"redis://127.0.0.1:{free_port()}/0"
    with serving(made_up(250)) as api:
        args = ("--api-url", api.url, "--sink", f"{sink}?stream=s&retries=1&backoff_base=0.01", "--outbox", OUTBOX)
        outcome = run("owm-producer", *args, "--log-level", "error", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (75, "")
    for words in (sink, "'s'", "250 waiting in the outbox", "call again"):
        assert words in outcome.line
    status = json.loads(run("owm-outbox", "status", "--json", "--outbox", OUTBOX, cwd=tmp_path).out)
    assert (status["pending"], status["dead"]) == (250, 0)


def test_each_warning_about_a_sink_says_which_and_why(tmp_path: Path) -> None:
    """What is logged about a sink that is down names its address and the reason, also the first time."""
    port = free_port()
    with serving(made_up(1)) as api:
        sink = f"redis://127.0.0.1:{port}/0?retries=1&backoff_base=0.01"
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
