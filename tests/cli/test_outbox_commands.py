"""The commands on an outbox: status, drain and dead."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from owm_outbox.cli.weather import City
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import run
from support.plugins import install_jobs
from support.servers import Server, free_port
from support.streams import city_ids
from support.weather import made_up, serving

pytestmark = pytest.mark.slow

OUTBOX = ("--outbox", "sqlite:///tasks.db")  # in the folder that the command runs in
COUNT = 250


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run whose sink is down, so that all its tasks wait in its outbox."""
    folder = tmp_path_factory.mktemp("left")
    sink = f"redis://127.0.0.1:{free_port()}/0?stream=s&retries=0"
    with serving(made_up(COUNT)) as api:
        outcome = run("owm-producer", *OUTBOX, "--sink", sink, "--api-url", api.url, cwd=folder)
    assert outcome.code == 75
    return folder


@pytest.fixture
def waiting(left: Path, tmp_path: Path) -> Path:
    """Give a folder with an outbox in which all tasks of a run wait."""
    shutil.copytree(left, tmp_path, dirs_exist_ok=True)
    return tmp_path


# -- status and drain


def test_status_tells_what_waits(waiting: Path) -> None:
    """``status`` shows pending tasks, the oldest one's age, dead letters and the last runs; it changes nothing."""
    before = (waiting / "tasks.db").read_bytes()
    text = run("owm-outbox", "status", *OUTBOX, cwd=waiting)
    assert (text.code, text.err) == (0, "")
    for words in (
        "sqlite:///tasks.db",
        f"pending  {COUNT}, the oldest for ",
        "dead     0",
        f"  owm    {COUNT}  unfinished  ",
    ):
        assert words in text.out
    outcome = run("owm-outbox", "status", "--json", *OUTBOX, cwd=waiting)
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    status = outcome.report
    assert status.pop("oldest_seconds") >= 0
    (known,) = status.pop("runs")
    assert (status["pending"], status["dead"], status["acknowledged"]) == (COUNT, 0, 0)
    assert status["last_position"] >= COUNT  # positions may have gaps
    assert (known["job"], known["state"], known["extracted"], known["finished_at"]) == ("owm", "open", COUNT, None)
    assert known["report"]["pending"] == COUNT
    assert known["run_id"] in text.out
    assert (waiting / "tasks.db").read_bytes() == before


def test_status_works_while_a_relay_runs(waiting: Path) -> None:
    """Looking does not need the lock."""
    with SqliteOutbox(waiting / "tasks.db") as outbox, outbox.lock():
        assert run("owm-outbox", "status", "--json", *OUTBOX, cwd=waiting).report["pending"] == COUNT


def test_drain_delivers_what_waits_and_fetches_nothing(waiting: Path, server: Server, stream: str) -> None:
    """``drain`` sends all that an earlier run left, in order; the next run finds its tasks delivered, none twice."""
    sink = ("--sink", server.url(stream))
    outcome = run("owm-outbox", "drain", *OUTBOX, *sink, "--json", "--batch-size", "100", cwd=waiting)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.report == {"delivered": COUNT, "pending": 0}
    assert city_ids(server, stream) == list(range(1, COUNT + 1))
    again = run("owm-outbox", "drain", *OUTBOX, *sink, cwd=waiting)
    assert (again.code, again.out, again.err) == (0, "", "")
    with serving(made_up(COUNT)) as api:
        resumed = run("owm-producer", *OUTBOX, *sink, "--api-url", api.url, "--json", cwd=waiting)
    assert resumed.code == 0
    assert (resumed.report["resumed"], resumed.report["extracted"], resumed.report["delivered"]) == (True, COUNT, 0)
    assert len(city_ids(server, stream)) == COUNT


def test_drain_to_a_sink_that_is_down_keeps_all(waiting: Path) -> None:
    """``drain`` ends with 75 and what waited still waits."""
    sink = f"redis://127.0.0.1:{free_port()}/0?stream=s&retries=0"
    outcome = run("owm-outbox", "drain", *OUTBOX, "--sink", sink, cwd=waiting)
    assert (outcome.code, outcome.out) == (75, "")
    assert sink.partition("?")[0] in outcome.line
    assert run("owm-outbox", "status", "--json", *OUTBOX, cwd=waiting).report["pending"] == COUNT


# -- dead letters


NOT_TASKS = [City(901, 91.0, 0.0, "beyond the pole"), City(902, 0.0, -180.5, "beyond the date line")]


def _letters(folder: Path) -> list[dict[str, object]]:
    outcome = run("owm-outbox", "dead", "list", "--json", *OUTBOX, cwd=folder)
    assert (outcome.code, outcome.err) == (0, "")
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_records_that_are_not_tasks_become_dead_letters(tmp_path: Path) -> None:
    """Latitude 91 ends with 65: the record is kept with its reason, the rest is delivered, the run is complete."""
    cities = [*made_up(3), *NOT_TASKS, *made_up(2, first=4)]
    with serving(cities) as api:
        args = (*OUTBOX, "--sink", "jsonl:tasks.jsonl", "--api-url", api.url, "--json", "--log-level", "error")
        outcome = run("owm-producer", *args, cwd=tmp_path)
    assert outcome.code == 65
    assert outcome.line == "owm-producer: complete, but 2 tasks became dead letters: see owm-outbox dead list"
    report = outcome.report
    assert (report["complete"], report["delivered"], report["rejected"], report["pending"]) == (True, 5, 2, 0)
    delivered = [json.loads(line)["city_id"] for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    assert delivered == [1, 2, 3, 4, 5]

    first, second = _letters(tmp_path)
    assert list(first) == [*("position", "task_id", "rejected_at", "first_rejected_at", "times", "reason", "payload")]
    assert first["task_id"] is second["task_id"] is None
    assert "latitude_deg" in str(first["reason"])
    assert "longitude_deg" in str(second["reason"])
    assert json.loads(str(first["payload"]))["name"] == "beyond the pole"
    text = run("owm-outbox", "dead", "list", *OUTBOX, cwd=tmp_path)
    for words in (f"{first['position']}  ", "not a task", "latitude_deg", "beyond the date line"):
        assert words in text.out


def test_a_record_that_is_bad_every_day_is_one_letter(tmp_path: Path) -> None:
    """Each run ends with 65, and the list shows how often the record was rejected, and since when; it does not grow."""
    args = (*OUTBOX, "--sink", "jsonl:tasks.jsonl", "--log-level", "error")
    with serving([*made_up(3), *NOT_TASKS]) as api:
        for _ in range(3):
            outcome = run("owm-producer", "--api-url", api.url, *args, cwd=tmp_path)
            assert (outcome.code, outcome.line.partition(": see")[0]) == (
                65,
                "owm-producer: complete, but 2 tasks became dead letters",
            )
    assert [letter["times"] for letter in _letters(tmp_path)] == [3, 3]
    assert run("owm-outbox", "status", "--json", *OUTBOX, cwd=tmp_path).report["dead"] == 2
    text = run("owm-outbox", "dead", "list", *OUTBOX, cwd=tmp_path).out
    assert len(re.findall(r"^\d+  .*  \(3 times since \d{4}-\d\d-\d\d\)$", text, re.MULTILINE)) == 2


def test_what_never_was_a_task_can_be_dropped_but_not_retried(tmp_path: Path) -> None:
    """``dead retry`` leaves such a record where it is, with 65 and a line; ``dead drop`` deletes what it is told."""
    with serving(NOT_TASKS) as api:
        args = (*OUTBOX, "--sink", "jsonl:-", "--api-url", api.url)
        assert run("owm-producer", *args, cwd=tmp_path).code == 65
    first, second = (str(letter["position"]) for letter in _letters(tmp_path))
    outcome = run("owm-outbox", "dead", "retry", "--all", *OUTBOX, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (65, "0 will be sent again\n")
    assert outcome.line == (
        "owm-outbox: 2 of them are not dead letters, or never became a task: see owm-outbox dead list"
    )
    outcome = run("owm-outbox", "dead", "drop", first, *OUTBOX, cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.err) == (0, "1 dropped\n", "")
    assert [str(letter["position"]) for letter in _letters(tmp_path)] == [second]
    outcome = run("owm-outbox", "dead", "drop", first, *OUTBOX, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (65, "0 dropped\n")
    assert outcome.line == (
        "owm-outbox: 1 of them is not a dead letter, or never became a task: see owm-outbox dead list"
    )
    assert run("owm-outbox", "dead", "drop", "--all", *OUTBOX, cwd=tmp_path).out == "1 dropped\n"
    assert run("owm-outbox", "status", "--json", *OUTBOX, cwd=tmp_path).report["dead"] == 0


@dataclass
class _Parcel:
    task_id: str
    weight: int


def test_a_dead_letter_that_is_a_task_can_be_sent_again(tmp_path: Path) -> None:
    """``dead retry`` makes just these tasks pending again, and a drain delivers them as they were."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox:
        outbox.append([_Parcel("a", 1), _Parcel("b", 2), _Parcel("c", 3)])
        outbox.reject(dict.fromkeys((1, 2, 3), "too heavy"))
    assert [(letter["position"], letter["task_id"], letter["reason"]) for letter in _letters(tmp_path)] == [
        (1, "a", "too heavy"),
        (2, "b", "too heavy"),
        (3, "c", "too heavy"),
    ]
    outcome = run("owm-outbox", "dead", "retry", "1", "3", *OUTBOX, cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.err) == (0, "2 will be sent again\n", "")
    assert [letter["position"] for letter in _letters(tmp_path)] == [2]
    drained = run("owm-outbox", "drain", *OUTBOX, "--sink", "jsonl:-", cwd=tmp_path)
    assert (drained.code, drained.err) == (0, "")
    assert drained.out == '{"task_id":"a","weight":1}\n{"task_id":"c","weight":3}\n'
    assert run("owm-outbox", "dead", "retry", "--all", *OUTBOX, cwd=tmp_path).out == "1 will be sent again\n"
    assert run("owm-outbox", "dead", "list", *OUTBOX, cwd=tmp_path).out == ""


# -- where they are told which outbox


@pytest.mark.parametrize("args", [("--config", "owm.toml"), ()], ids=["flag", "variable"])
def test_commands_on_an_outbox_read_the_configuration_file(args: tuple[str, ...], waiting: Path) -> None:
    """``--config`` and ``OWM_CONFIG`` name the same file as for a run, with all that a run's may hold."""
    (waiting / "owm.toml").write_text(
        "outbox = 'sqlite:///no-such.db'\njson = true\n"
        "[owm]\noutbox = 'sqlite:///tasks.db'\nsink = 'jsonl:tasks.jsonl'\napi_limit = 10\nbatch_size = 7\n"
    )
    env = {} if args else {"OWM_CONFIG": "owm.toml"}
    status = run("owm-outbox", "status", *args, cwd=waiting, env=env)
    assert (status.code, status.err) == (0, "")
    assert f"pending  {COUNT}," in status.out, "json = true is of a run's report"
    for command in (("dead", "list"), ("dead", "retry", "--all"), ("dead", "drop", "--all"), ("drain",)):
        outcome = run("owm-outbox", *command, *args, cwd=waiting, env=env)
        assert (outcome.code, outcome.err) == (0, ""), command
    assert len((waiting / "tasks.jsonl").read_text().splitlines()) == COUNT
    assert not (waiting / "no-such.db").exists()


def test_the_layers_of_a_command_on_an_outbox_are_those_of_a_run(waiting: Path) -> None:
    """A flag beats the environment, which beats the file; the job may be named before the file or after it."""
    env = install_jobs(waiting, FLEET, fleet="Fleet")
    (waiting / "fleet.toml").write_text("[fleet]\noutbox = 'sqlite:///tasks.db'\n")
    file, job = ("--config", "fleet.toml"), ("--job", "fleet")
    for args in ((*file, *job), (*job, *file)):
        outcome = run("owm-outbox", "status", "--json", *args, cwd=waiting, env=env)
        assert (outcome.code, outcome.report["pending"]) == (0, COUNT)
    beaten = {"FLEET_OUTBOX": "sqlite:///variable.db", "FLEET_CONFIG": "fleet.toml"}
    outcome = run("owm-outbox", "status", *job, cwd=waiting, env=env | beaten)
    assert (outcome.code, "variable.db" in outcome.line) == (73, True)
    outcome = run("owm-outbox", "status", *job, "--outbox", "sqlite:///flag.db", cwd=waiting, env=env | beaten)
    assert (outcome.code, "flag.db" in outcome.line) == (73, True)


@pytest.mark.parametrize("args", [("status",), ("drain",), ("dead", "list")], ids=" ".join)
def test_a_bad_configuration_file_ends_a_command_on_an_outbox(args: tuple[str, ...], waiting: Path) -> None:
    """What is an error for a run is one for every command that reads the file."""
    (waiting / "owm.toml").write_text("[owm]\nsnik = 'jsonl:-'\n")
    outcome = run("owm-outbox", *args, "--config", "owm.toml", cwd=waiting)
    assert (outcome.code, outcome.line) == (78, "owm-outbox: owm.toml: unknown key 'snik': did you mean 'sink'?")


FLEET = """
    from owm_outbox import Job, Page

    class Fleet(Job):
        name = "fleet"

        def pages(self, run):
            yield Page([])
    """
