"""Options come from default, file, environment and flag, each beating the one before; secrets are never shown."""

from __future__ import annotations

import enum
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
from msgspec import Meta

from owm_outbox import ConfigurationError, Job, JobOptions, Page, Run, Secret
from owm_outbox.cli.config_file import Key, load_toml
from owm_outbox.cli.options import job_params, make_options, prefix

from support.commands import Outcome, run
from support.weather import CountingService, made_up, serving

SECRET = "hunter2"  # noqa: S105 - what must not be shown
STORES = ("--outbox", "sqlite:///tasks.db", "--sink", "jsonl:tasks.jsonl")


def _produce(folder: Path, *args: str, **env: str) -> Outcome:
    outcome = run("owm-producer", *STORES, *args, cwd=folder, env=env)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    return outcome


def _limits(api: CountingService) -> set[str]:
    """Return the limits that the service was asked for since the last call."""
    found = set(re.findall(r"limit=(\d+)", " ".join(api.requests)))
    api.requests.clear()
    return found


# -- the layers of the main job


@pytest.mark.slow
def test_each_layer_beats_the_one_before(tmp_path: Path) -> None:
    """A file beats the default, the environment the file, and a flag all of them."""
    with serving(made_up(150)) as api:
        (tmp_path / "owm.toml").write_text("api_limit = 10\n")
        seen = []
        file, env = ("--config", "owm.toml"), {"OWM_API_LIMIT": "20"}
        for args, variables in [((), {}), (file, {}), (file, env), ((*file, "--api-limit", "30"), env)]:
            _produce(tmp_path, "--api-url", api.url, *args, **variables)
            seen.append(_limits(api))
    assert seen == [{"100"}, {"10"}, {"20"}, {"30"}]


@pytest.mark.slow
def test_the_table_of_a_job_beats_the_top_of_the_file(tmp_path: Path) -> None:
    """What stands below [owm] is for this job, and beats what stands at the top, for every job."""
    with serving(made_up(1)) as top, serving(made_up(1)) as table:
        (tmp_path / "owm.toml").write_text(f"api_url = '{top.url}'\napi_limit = 10\n[owm]\napi_url = '{table.url}'\n")
        _produce(tmp_path, "--config", "owm.toml")
        assert (top.requests, table.requests[0]) == ([], "/cities/?page=0&limit=10")


@pytest.mark.slow
def test_outbox_and_sink_follow_the_layers_too(tmp_path: Path) -> None:
    """Where tasks are kept and where they go can be named in file, environment and flag alike."""
    (tmp_path / "owm.toml").write_text("outbox = 'sqlite:///file.db'\n[owm]\nsink = 'jsonl:file.jsonl'\n")
    with serving(made_up(1)) as api:
        args = ("--config", "owm.toml", "--api-url", api.url)
        for more, env in [
            ((), {}),
            ((), {"OWM_SINK": "jsonl:variable.jsonl"}),
            (("--outbox", "sqlite:///flag.db"), {"OWM_SINK": "jsonl:variable.jsonl", "OWM_OUTBOX": "sqlite:///x.db"}),
        ]:
            assert run("owm-producer", *args, *more, cwd=tmp_path, env=env).code == 0
    assert len((tmp_path / "file.jsonl").read_text().splitlines()) == 1
    assert len((tmp_path / "variable.jsonl").read_text().splitlines()) == 2
    assert {path.name for path in tmp_path.glob("*.db")} == {"file.db", "flag.db"}


@pytest.mark.slow
def test_a_file_named_by_a_flag_beats_one_named_by_a_variable(tmp_path: Path) -> None:
    """``--config`` and ``OWM_CONFIG`` name the same thing, and the flag wins."""
    (tmp_path / "variable.toml").write_text("api_limit = 10\n")
    (tmp_path / "flag.toml").write_text("api-limit = 20\n")
    with serving(made_up(1)) as api:
        _produce(tmp_path, "--api-url", api.url, OWM_CONFIG="variable.toml")
        assert _limits(api) == {"10"}
        _produce(tmp_path, "--api-url", api.url, "--config", "flag.toml", OWM_CONFIG="variable.toml")
        assert _limits(api) == {"20"}


@pytest.mark.slow
def test_a_byte_order_mark_is_not_part_of_the_file(tmp_path: Path) -> None:
    """A file that an editor on Windows wrote is the same file."""
    (tmp_path / "owm.toml").write_bytes(b"\xef\xbb\xbfapi_limit = 10\r\n[owm]\r\nconcurrency = 2\r\n")
    with serving(made_up(1)) as api:
        _produce(tmp_path, "--api-url", api.url, "--config", "owm.toml")
        assert _limits(api) == {"10"}


@pytest.mark.slow
def test_a_flag_without_a_value_is_true_in_a_file(tmp_path: Path) -> None:
    """``json = true`` in the file is ``--json``, under the name that the help shows."""
    (tmp_path / "owm.toml").write_text("json = true\n")
    with serving(made_up(1)) as api:
        outcome = run("owm-producer", "--api-url", api.url, "--config", "owm.toml", *STORES, cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.report["complete"] is True


@pytest.mark.slow
def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    """A variable set to nothing, as some schedulers do it, leaves the default."""
    with serving(made_up(1)) as api:
        _produce(tmp_path, "--api-url", api.url, OWM_API_LIMIT="", OWM_API_TOKEN="", OWM_CONFIG="", OWM_SINK="")
        assert _limits(api) == {"100"}


@pytest.mark.slow
def test_help_shows_variable_and_default_of_every_option() -> None:
    """Each option that holds a value is shown with its environment variable and what it is if nobody sets it."""
    outcome = run("owm-producer", "--help")
    assert (outcome.code, outcome.err) == (0, "")
    options = re.split(r"\n  (?=--)", outcome.out.partition("Options:\n")[2].partition("\n  Exit codes:")[0])
    text = {re.findall(r"--[\w-]+", option)[0]: " ".join(option.split()) for option in options}
    switches = {"--json", "--fresh", "--demo", "--cities", "--version", "--help"}  # of one call, not of a set-up
    assert set(text) >= {"--api-url", "--api-limit", "--concurrency", "--outbox", "--sink", "--batch-size", "--config"}
    without = {"--config", "--ca-file", "--client-cert", "--client-key", "--metrics-file", "--ping", "--traces"}
    for flag in set(text) - switches:
        assert f"[env var: OWM_{flag[2:].upper().replace('-', '_')}" in text[flag]
        assert ("default: " in text[flag]) == (flag not in without)
    assert "OWM_API_TOKEN" in outcome.out
    assert "--api-token" not in outcome.out


# -- the secret of the main job


class _Guard(ThreadingHTTPServer):
    """A Weather Service with one city for callers that know the token; it remembers what it was shown."""

    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _GuardHandler)
        self.token = token
        self.shown: list[str | None] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _GuardHandler(BaseHTTPRequestHandler):
    server: _Guard

    def do_GET(self) -> None:
        self.server.shown.append(self.headers["Authorization"])
        known = self.headers["Authorization"] == f"Bearer {self.server.token}"
        body = json.dumps([{"city_id": 1, "latitude_deg": 1, "longitude_deg": 2}] if "page=0" in self.path else [])
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the method it replaces
        """Log nothing."""


@pytest.fixture
def guard() -> Iterator[_Guard]:
    """Serve one city to callers that know the secret."""
    server = _Guard(SECRET)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_the_token_is_sent_as_bearer_and_never_shown(guard: _Guard, tmp_path: Path) -> None:
    """``OWM_API_TOKEN`` goes to the API and nowhere else: not into a log, a report or a file."""
    args = ("--api-url", guard.url, *STORES, "--json", "--log-level", "debug")
    outcome = run("owm-producer", *args, cwd=tmp_path, env={"OWM_API_TOKEN": SECRET})
    assert outcome.code == 0, outcome.err
    assert outcome.report["delivered"] == 1
    assert set(guard.shown) == {f"Bearer {SECRET}"}
    assert SECRET not in outcome.out + outcome.err
    assert SECRET.encode() not in _all_bytes(tmp_path)


@pytest.mark.slow
def test_without_a_token_none_is_sent(guard: _Guard, tmp_path: Path) -> None:
    """No token, no header; and if the API wants one, the line says so."""
    args = ("--api-url", guard.url, *STORES, "--retry-wait", "0.01", "--log-level", "error")
    outcome = run("owm-producer", *args, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (78, "")
    assert guard.shown == [None] * 5
    assert "401" in outcome.line
    assert "check the API token" in outcome.line


@pytest.mark.slow
def test_a_refused_token_is_not_shown(guard: _Guard, tmp_path: Path) -> None:
    """A wrong token is not shown either when the API refuses it."""
    args = ("--api-url", guard.url, *STORES, "--retry-wait", "0.01", "--log-level", "debug")
    outcome = run("owm-producer", *args, cwd=tmp_path, env={"OWM_API_TOKEN": "correct horse"})
    assert outcome.code == 78
    assert guard.shown == ["Bearer correct horse"] * 5
    assert "horse" not in outcome.out + outcome.err
    assert b"horse" not in _all_bytes(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("token", [f"{SECRET}\n", f"{SECRET}\r\nX-Admin: 1", f"{SECRET}€"])
def test_a_token_that_no_header_can_carry_is_bad_configuration(token: str, guard: _Guard, tmp_path: Path) -> None:
    """A token with a line break or a character beyond Latin-1 ends with 78, names its variable, and is not shown."""
    args = ("--api-url", guard.url, *STORES, "--retry-wait", "0.01")
    outcome = run("owm-producer", *args, cwd=tmp_path, env={"OWM_API_TOKEN": token})
    assert SECRET not in outcome.out + outcome.err
    assert (outcome.code, outcome.out) == (78, "")
    assert "OWM_API_TOKEN" in outcome.line
    assert guard.shown == []


# -- the options of another team's job


class Load(enum.Enum):
    """What a truck carries."""

    SAND = "sand"
    MILK = "milk"


class FleetJob(Job[Any]):
    """Send every truck on a trip."""

    name = "night-fleet"

    class Options(JobOptions, frozen=True):
        """One of each kind."""

        depot: Annotated[str, Meta(description="Which depot", pattern="^[a-z]+$")] = "north"
        trucks: Annotated[int, Meta(ge=1, le=50, description="How many trucks")] = 3
        speed: Annotated[float, Meta(gt=0, lt=120, description="How fast")] = 62.5
        by_night: Annotated[bool, Meta(description="Whether to drive by night")] = False
        mood: Annotated[Literal["brisk", "calm"], Meta(description="How to drive")] = "calm"
        load: Load = Load.SAND
        axles: Annotated[int, Meta(ge=2)] | None = None
        route: Annotated[str, Meta(pattern="^[A-Z]+$")] | None = None
        toll_key: Annotated[Secret | None, Meta(description="Pays the toll")] = None

    def pages(self, run: Run) -> Iterator[Page[Any]]:
        """Yield nothing."""
        yield Page([])


def _options(*args: str) -> Any:
    command = click.Command("night-fleet", params=[*job_params(FleetJob)])
    with command.make_context("night-fleet", list(args), auto_envvar_prefix=prefix("night-fleet")) as ctx:
        return make_options(FleetJob, ctx)


def test_a_job_has_its_defaults() -> None:
    """Without flags and variables, options are what the class says."""
    assert _options() == FleetJob.Options()


def test_flags_become_options_of_their_types() -> None:
    """Each kind of field takes its flag, and comes in its own type."""
    flags = (
        "--depot south --trucks 50 --speed 80 --by-night --mood brisk --load milk --axles 4 --route XY".split()  # noqa: SIM905 - as one types it
    )
    given = _options(*flags)
    assert given == FleetJob.Options(
        depot="south", trucks=50, speed=80.0, by_night=True, mood="brisk", load=Load.MILK, axles=4, route="XY"
    )
    assert isinstance(given.speed, float)


def test_variables_become_options_of_their_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of field takes its variable, whose name begins with the job's, and a flag beats it."""
    for name, value in {
        "DEPOT": "south",
        "TRUCKS": "7",
        "SPEED": "1e1",
        "BY_NIGHT": "yes",
        "MOOD": "brisk",
        "LOAD": "milk",
        "AXLES": "2",
        "TOLL_KEY": SECRET,
    }.items():
        monkeypatch.setenv(f"NIGHT_FLEET_{name}", value)
    assert _options("--trucks", "8", "--no-by-night") == FleetJob.Options(
        depot="south", trucks=8, speed=10.0, mood="brisk", load=Load.MILK, axles=2, toll_key=SECRET
    )


@pytest.mark.parametrize(
    "args",
    [
        ("--trucks", "0"),
        ("--trucks", "51"),
        ("--trucks", "1.5"),
        ("--speed", "0"),
        ("--speed", "120"),
        ("--mood", "grim"),
        ("--load", "lead"),
        ("--axles", "1"),
        ("--toll-key", SECRET),
    ],
)
def test_a_bad_flag_is_refused_by_name(args: tuple[str, str]) -> None:
    """A value out of range or of another type, and a secret as a flag, are refused with the flag's name."""
    with pytest.raises(click.UsageError) as caught:
        _options(*args)
    assert args[0] in caught.value.format_message()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [("DEPOT", "South 1", "'South 1' Which depot"), ("ROUTE", "x", "'x' [A-Z]")],
    ids=["described", "not described"],
)
def test_a_value_that_does_not_fit_is_refused_by_name(
    variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value against its field's pattern is refused with where it came from and what is wanted."""
    monkeypatch.setenv(f"NIGHT_FLEET_{variable}", value)
    with pytest.raises(ConfigurationError, match=f"NIGHT_FLEET_{variable} .* is not valid: ") as caught:
        _options()
    for word in words.split():
        assert word in str(caught.value)
    with pytest.raises(ConfigurationError, match=f"--{variable.lower()} .* is not valid: "):
        _options(f"--{variable.lower()}", value)


def test_options_do_not_show_their_values() -> None:
    """Options may hold secrets, so printing them shows none of their values."""
    options = FleetJob.Options(depot="south", toll_key=SECRET)
    for text in (repr(options), str(options), f"{options}"):
        assert SECRET not in text
        assert "south" not in text


def test_a_secret_in_a_file_names_the_variable_to_set(tmp_path: Path) -> None:
    """A file must not hold a secret: the error says which variable should, and does not repeat it."""
    path = tmp_path / "fleet.toml"
    path.write_text(f"[night-fleet]\ntoll_key = '{SECRET}'\n")
    with pytest.raises(ConfigurationError, match="NIGHT_FLEET_TOLL_KEY") as caught:
        load_toml(path, "night-fleet", {"depot": Key.VALUE, "toll_key": Key.SECRET})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("job", "begin"), [("owm", "OWM"), ("night-fleet", "NIGHT_FLEET"), ("fleet.night2", "FLEET_NIGHT2")]
)
def test_a_job_gives_its_variables_their_first_part(job: str, begin: str) -> None:
    """Variables are in capitals, and what no variable may hold becomes an underscore."""
    assert prefix(job) == begin


def test_options_that_are_not_a_struct_are_refused() -> None:
    """A job whose Options cannot be read says which class that is, and what it should be."""

    class Odd(FleetJob):
        Options = dict  # type: ignore[assignment]  # the mistake in question

    with pytest.raises(ConfigurationError, match=r"Odd\.Options must be a JobOptions"):
        job_params(Odd)
