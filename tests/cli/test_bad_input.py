"""Bad input ends with one line that says what, where and what to do; and what was there stays as it was."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import click
import pytest

from support.commands import refused, run

pytestmark = pytest.mark.slow

SECRET = "hunter2"  # noqa: S105 - what must not be shown

NO_SCHEME = "has no scheme; write it as PLUGIN:…, such as sqlite:////tmp/tasks.db or redis://localhost:6379/0"
BAD_HOST = "is not a URL: its host or port is not valid (in a password, write / ? # @ as %2F %3F %23 %40)"
BAD_ADDRESS = "is not an address: write it as http://host:port"
API_URL = "Address of the API: http or https, without blanks or a query"
SINKS = ", ".join(sorted(point.name for point in importlib.metadata.entry_points(group="owm_outbox.sinks")))
API_LIMIT = "api_limit in fleet.toml: Invalid value for '--api-limit'"


@pytest.mark.parametrize(
    ("url", "line"),
    [
        (
            "nowhere://host",
            f"no sink named 'nowhere' is installed: known: {SINKS} (see owm-outbox plugins)",
        ),
        ("reddis://host:6379/0", "no sink named 'reddis' is installed: did you mean 'redis'? (see owm-outbox plugins)"),
        ("localhost", f"'localhost' {NO_SCHEME}"),
        ("redis://host/0?straem=s", "unknown option 'straem' in redis://host/0?straem=s: did you mean 'stream'?"),
        (
            "redis://host/0?maxlen=many",
            "option maxlen='many' in redis://host/0?maxlen=many: Expected `int`, got `str`",
        ),
        (
            "redis://host/0?maxlen=1&maxlen=2",
            "option 'maxlen' is given twice in redis://host/0?maxlen=1&maxlen=2: remove one",
        ),
        ("redis://host:port/0", f"'redis://host:***' {BAD_HOST}"),
        (
            "jsonl:/no/such/folder/tasks.jsonl",
            "jsonl:/no/such/folder/tasks.jsonl cannot be written: give a file in a folder that exists, or -",
        ),
    ],
)
def test_a_bad_sink_url_is_a_configuration_error(url: str, line: str, tmp_path: Path) -> None:
    """A sink URL that is not one, names no plugin, or has a bad option ends with 78 before an outbox is made."""
    refused(tmp_path, 78, line, "owm-producer", "--sink", url)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("sqlit:///tasks.db", "no outbox named 'sqlit' is installed: did you mean 'sqlite'? (see owm-outbox plugins)"),
        ("tasks.db", f"'tasks.db' {NO_SCHEME}"),
        ("sqlite:", "sqlite: has no file: write sqlite:////absolute/path or sqlite:///relative/path"),
        (
            "sqlite:///tasks.db?timeuot=1",
            "unknown option 'timeuot' in sqlite:///tasks.db?timeuot=1: did you mean 'timeout'?",
        ),
    ],
)
def test_a_bad_outbox_url_is_a_configuration_error(url: str, line: str, tmp_path: Path) -> None:
    """An outbox URL that is not one, names no plugin, or has a bad option ends with 78 and makes no file."""
    refused(tmp_path, 78, line, "owm-producer", "--outbox", url)


@pytest.mark.parametrize(
    ("flag", "url", "line"),
    [
        ("--sink", f"redis://user:{SECRET}@host:port/0", f"'redis://user:***@host:***' {BAD_HOST}"),
        (
            "--sink",
            f"redis://host/0?password={SECRET}&straem=s",
            "unknown option 'straem' in redis://host/0?password=***&straem=s: did you mean 'stream'?",
        ),
        ("--api-url", f"user:{SECRET}@host", f"--api-url 'user:***@host' is not valid: {API_URL}"),
        ("--api-url", f"http://user:{SECRET}@[host", f"--api-url 'http://user:***@[host' {BAD_ADDRESS}"),
    ],
    ids=lambda value: value.replace(SECRET, "SECRET"),
)
def test_a_password_in_a_bad_url_is_not_shown(flag: str, url: str, line: str, tmp_path: Path) -> None:
    """However a URL with a password is wrong, the line about it does not show the password."""
    refused(tmp_path, 78, line, "owm-producer", flag, url, "--log-level", "debug")


@pytest.mark.parametrize(
    ("url", "shown", "problem"),
    [
        ("nowhere", "nowhere", f"is not valid: {API_URL}"),
        ("http://", "http://", f"is not valid: {API_URL}"),
        ("http://[::1", "http://[::1", BAD_ADDRESS),
        ("http://host:port", "http://host:***", BAD_ADDRESS),
        ("http://host/?key=1", "http://host/?key=1", f"is not valid: {API_URL}"),
        ("http://host/api#cities", "http://host/api#cities", f"is not valid: {API_URL}"),
    ],
)
def test_a_bad_api_url_is_a_configuration_error(url: str, shown: str, problem: str, tmp_path: Path) -> None:
    """An API address that no request could be sent to ends with 78 and makes no outbox."""
    refused(tmp_path, 78, f"--api-url {shown!r} {problem}", "owm-producer", "--api-url", url)


@pytest.mark.parametrize(
    ("path", "args", "line"),
    [
        ("owm-producer", "--batch-size 0", "Invalid value for '--batch-size': 0 is not in the range 1<=x<=100000."),
        ("owm-producer", "--batch-size many", "Invalid value for '--batch-size': 'many' is not a valid integer range."),
        ("owm-producer", "--wait-for-room nan", "Invalid value for '--wait-for-room': nan is not a finite number."),
        (
            "owm-producer",
            "--log-level noisy",
            "Invalid value for '--log-level': 'noisy' is not one of 'debug', 'info', 'warning', 'error'.",
        ),
        ("owm-producer", "cities", "Got unexpected extra argument (cities)."),
        ("owm-producer", "--config .", "Invalid value for '--config': File '.' is a directory."),
        ("owm-outbox run", "", "Missing argument JOB: name one of owm."),
        ("owm-outbox status", "tasks.db", "Got unexpected extra argument (tasks.db)."),
        ("owm-outbox dead retry", "", "Give positions as owm-outbox dead list shows them, or --all."),
        ("owm-outbox dead drop", "one", "Invalid value for '[POSITIONS]...': 'one' is not a valid integer."),
    ],
)
def test_wrong_usage_ends_with_64(path: str, args: str, line: str, tmp_path: Path) -> None:
    """A flag that does not exist or is out of range, or an argument too many or too few, ends with 64."""
    program, *rest = path.split()
    refused(tmp_path, 64, f"{line} Try {path} --help.", program, *rest, *args.split())


def test_an_unknown_flag_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    """A misspelt flag ends with 64, with what click says of it, and where the help is."""
    said = click.NoSuchOption("--batch-sise", possibilities=["--batch-size"]).format_message()
    line = f"{' '.join(said.split())} Try owm-producer --help."
    refused(tmp_path, 64, line, "owm-producer", "--batch-sise", "3")


def test_a_secret_is_not_a_flag(tmp_path: Path) -> None:
    """A secret given as a flag ends with 64, and is not shown: processes, and so their arguments, can be listed."""
    outcome = run("owm-producer", "--api-token", SECRET, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (64, "")
    assert "--api-token" in outcome.line
    assert SECRET not in outcome.line


def test_an_unknown_command_is_named(tmp_path: Path) -> None:
    """A misspelt command ends with 64, its name, and where the help is."""
    outcome = run("owm-outbox", "statsu", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (64, "")
    assert outcome.line.startswith("owm-outbox: No such command 'statsu'.")
    assert outcome.line.endswith(" Try owm-outbox --help.")


@pytest.mark.parametrize("args", [("run", "omw"), ("status", "--job", "omw")], ids=" ".join)
def test_an_unknown_job_names_the_nearest_one(args: tuple[str, ...], tmp_path: Path) -> None:
    """A misspelt job ends with 78, wherever it is named, and the line says which one was probably meant."""
    line = "no job named 'omw' is installed: did you mean 'owm'? (see owm-outbox plugins)"
    refused(tmp_path, 78, line, "owm-outbox", *args)


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("OWM_API_LIMIT", "many", "Invalid value for '--api-limit': 'many' is not a valid integer range."),
        ("OWM_BATCH_SIZE", "0", "Invalid value for '--batch-size': 0 is not in the range 1<=x<=100000."),
        ("OWM_RETRY_WAIT", "31", "Invalid value for '--retry-wait': 31.0 is not in the range 0<x<=30."),
        (
            "OWM_LOG_LEVEL",
            "noisy",
            "Invalid value for '--log-level': 'noisy' is not one of 'debug', 'info', 'warning', 'error'.",
        ),
    ],
)
def test_a_bad_variable_is_a_configuration_error(variable: str, value: str, line: str, tmp_path: Path) -> None:
    """A bad value in the environment ends with 78 and a line that names the variable."""
    refused(tmp_path, 78, f"{variable} in the environment: {line}", "owm-producer", env={variable: value})


def test_a_variable_that_only_the_job_can_judge_is_named_too(tmp_path: Path) -> None:
    """So does a value that the job's own options refuse."""
    line = f"OWM_API_URL 'nowhere' is not valid: {API_URL}"
    refused(tmp_path, 78, line, "owm-producer", env={"OWM_API_URL": "nowhere"})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("api_limt = 3", "fleet.toml: unknown key 'api_limt': did you mean 'api_limit'?"),
        (
            "[owm.more]\napi_limit = 3",
            "fleet.toml: unknown key 'more': known: api_limit, api_token, api_url, batch_size, ca_file, "
            "client_cert, client_key, concurrency, first_page, json, log_format, log_level, metrics_file, outbox, "
            "ping, request_timeout, resume_within, retry_wait, second_pass, sink, traces, wait_for_room",
        ),
        ("api_limit =", "fleet.toml is not valid TOML: Invalid value (at end of document)"),
        ("api_token = 'hunter2'", "fleet.toml: 'api_token' is a secret: set OWM_API_TOKEN instead"),
        ("fresh = true", "fleet.toml: 'fresh' is for one call, not for every one: give --fresh instead"),
        ("[owm]\ndemo = true", "fleet.toml: 'demo' is for one call, not for every one: give --demo instead"),
        ("api_limit = 0", f"{API_LIMIT}: 0 is not in the range 1<=x<=100000."),
        ("api_limit = 'many'", f"{API_LIMIT}: 'many' is not a valid integer range."),
        ("api_limit = 2.5", f"{API_LIMIT}: '2.5' is not a valid integer range."),
        ("api_limit = true", f"{API_LIMIT}: 'True' is not a valid integer range."),
        ("api_limit = [1]", "fleet.toml: 'api_limit' takes a single value, not [1]"),
        ("owm = 3", "fleet.toml: 'owm' is the job's table: write [owm] and its options below it"),
        ("api_url = 'ftp://host'", f"api_url in fleet.toml 'ftp://host' is not valid: {API_URL}"),
    ],
)
def test_a_bad_configuration_file_is_a_configuration_error(text: str, line: str, tmp_path: Path) -> None:
    """A file that is not TOML, or has an unknown key, a secret or a bad value, ends with 78 and a line about it."""
    (tmp_path / "fleet.toml").write_text(text)
    env = {"OWM_API_URL": "", "OWM_API_LIMIT": ""}  # which would beat the file
    refused(tmp_path, 78, line, "owm-producer", "--config", "fleet.toml", env=env)


def test_a_configuration_file_must_be_readable_text(tmp_path: Path) -> None:
    """A file that does not exist, or is not UTF-8, ends with 78 and its name."""
    (tmp_path / "latin.toml").write_bytes(b"stream = '\xff'")
    missing = "cannot read no-such.toml (No such file or directory)"
    refused(tmp_path, 78, missing, "owm-producer", "--config", "no-such.toml")
    refused(tmp_path, 78, missing, "owm-producer", env={"OWM_CONFIG": "no-such.toml"})
    latin = "latin.toml is not valid TOML: 'utf-8' codec can't decode byte 0xff in position 10: invalid start byte"
    refused(tmp_path, 78, latin, "owm-producer", "--config", "latin.toml")
