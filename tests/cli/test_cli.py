"""The commands as people and schedulers use them: stdout is for data, stderr for the rest, the exit code tells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from owm_outbox import __version__
from owm_outbox.demo import City
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import SCRIPTS, environment, run, start
from support.servers import Server, free_port
from support.streams import city_ids
from support.weather import made_up, serving

OUTBOX = ("--outbox", "sqlite:///tasks.db")  # in the folder that the command runs in
COUNT = 250


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run whose sink is down, so that all its tasks wait in its outbox."""
    folder = tmp_path_factory.mktemp("left")
    sink = f"redis://127.0.0.1:{free_port()}/0?retries=0"
    with serving(made_up(COUNT)) as api:
        outcome = run("owm-producer", *OUTBOX, "--sink", sink, "--api-url", api.url, cwd=folder)
    assert outcome.code == 75
    return folder


@pytest.fixture
def waiting(left: Path, tmp_path: Path) -> Path:
    """Give a folder with an outbox in which all tasks of a run wait."""
    shutil.copytree(left, tmp_path, dirs_exist_ok=True)
    return tmp_path


# -- what each command tells about itself


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("owm-producer", "--api-url --outbox --sink --demo OWM_API_TOKEN Exit codes: 143"),
        ("owm-outbox", "run drain status dead plugins Exit codes: 143"),
        ("owm-outbox run", "owm Page the Weather Service"),
        ("owm-outbox run owm", "--api-url --outbox --sink OWM_SINK Exit codes: 143"),
        ("owm-outbox status", "--outbox --json --job OWM_OUTBOX"),
        ("owm-outbox drain", "--outbox --sink --batch-size --json --job OWM_SINK"),
        ("owm-outbox plugins", "--json"),
        ("owm-outbox dead", "list retry drop"),
        ("owm-outbox dead list", "--outbox --json --job"),
        ("owm-outbox dead retry", "[POSITIONS] --all --outbox"),
        ("owm-outbox dead drop", "[POSITIONS] --all --outbox"),
    ],
)
def test_each_command_has_help(command: str, words: str, tmp_path: Path) -> None:
    """``--help`` goes to stdout, shows what there is, and does nothing else."""
    outcome = run(*command.split(), "--help", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"Usage: {command} [OPTIONS]")
    for word in words.split():
        assert word in outcome.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["owm-producer", "owm-outbox", "owm-outbox run owm"])
def test_each_program_tells_its_version(command: str) -> None:
    """``--version`` gives name and version, on stdout."""
    outcome = run(*command.split(), "--version")
    assert (outcome.code, outcome.err) == (0, "")
    name, _, version = outcome.out.rpartition(" ")
    assert name in command
    assert version == f"{__version__}\n"


@pytest.mark.parametrize("command", ["owm-outbox", "owm-outbox dead"])
def test_a_group_of_commands_alone_is_wrong_usage(command: str) -> None:
    """Without a command there is nothing to do: help on stderr, nothing on stdout, exit code 64."""
    outcome = run(*command.split())
    assert (outcome.code, outcome.out) == (64, "")
    assert outcome.err.startswith(f"Usage: {command}")


# -- stdout


def test_success_is_silent(server: Server, stream: str, tmp_path: Path) -> None:
    """A complete run says nothing, neither on stdout nor on stderr."""
    with serving(made_up(3)) as api:
        outcome = run("owm-producer", *OUTBOX, "--sink", server.url(stream), "--api-url", api.url, cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert city_ids(server, stream) == [1, 2, 3]


def test_both_names_of_the_producer_do_the_same(tmp_path: Path) -> None:
    """``owm-outbox run owm`` is ``owm-producer``: with --json, one JSON object on one line, the report."""
    with serving(made_up(3)) as api:
        args = (*OUTBOX, "--sink", "jsonl:tasks.jsonl", "--api-url", api.url, "--json")
        outcomes = [run("owm-producer", *args, cwd=tmp_path), run("owm-outbox", "run", "owm", *args, cwd=tmp_path)]
    for outcome in outcomes:
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.count("\n") == 1
        assert list(outcome.report) == [
            "run_id",
            "job",
            "resumed",
            "complete",
            "expected",
            "extracted",
            "duplicates",
            "delivered",
            "redelivered",
            "rejected",
            "pending",
            "missing",
            "seconds",
        ]
        assert (outcome.report["complete"], outcome.report["delivered"]) == (True, 3)


def test_an_incomplete_run_has_a_report_too(tmp_path: Path) -> None:
    """With --json, stdout has the report also when the sink is down, and stderr what to do."""
    sink = f"redis://127.0.0.1:{free_port()}/0?retries=0"
    with serving(made_up(3)) as api:
        outcome = run("owm-producer", *OUTBOX, "--sink", sink, "--api-url", api.url, "--json", cwd=tmp_path)
    assert outcome.code == 75
    assert (outcome.report["complete"], outcome.report["pending"], outcome.report["delivered"]) == (False, 3, 0)


def test_tasks_can_go_to_stdout(tmp_path: Path) -> None:
    """``jsonl:-`` writes one line a task, each a JSON object as it would be in a stream."""
    with serving(made_up(COUNT)) as api:
        outcome = run("owm-producer", *OUTBOX, "--sink", "jsonl:-", "--api-url", api.url, cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    written = [json.loads(line) for line in outcome.out.splitlines()]
    assert [task["city_id"] for task in written] == list(range(1, COUNT + 1))
    assert all(list(task) == ["task_id", "latitude_deg", "longitude_deg", "city_id"] for task in written)


def test_tasks_can_go_to_a_file(tmp_path: Path) -> None:
    """``jsonl:PATH`` appends one line a task, and leaves what was there."""
    (tmp_path / "tasks.jsonl").write_text("what was there\n")
    with serving(made_up(COUNT)) as api:
        outcome = run("owm-producer", *OUTBOX, "--sink", "jsonl:tasks.jsonl", "--api-url", api.url, cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    first, *lines = (tmp_path / "tasks.jsonl").read_text().splitlines()
    assert first == "what was there"
    assert [json.loads(line)["city_id"] for line in lines] == list(range(1, COUNT + 1))


def test_a_reader_that_leaves_early_is_an_outage(tmp_path: Path) -> None:
    """If what reads our stdout ends, as ``head`` does, the code is 75, the line says so, and the rest is kept."""
    count = 5_000  # far more than a pipe holds, so that the command cannot be done before the reader leaves
    with serving(made_up(count)) as api:
        args = (*OUTBOX, "--sink", "jsonl:-", "--api-url", api.url, "--api-limit", "1000", "--log-level", "error")
        process = start("owm-producer", *args, cwd=tmp_path)
        assert process.stdout is not None
        assert process.stderr is not None
        first = json.loads(process.stdout.readline())
        process.stdout.close()
        err = process.stderr.read().decode()
        process.stderr.close()
        assert (first["city_id"], process.wait(timeout=60)) == (1, 75)
    assert len(err.splitlines()) == 1, err
    assert "stdout takes no more lines" in err
    status = json.loads(run("owm-outbox", "status", "--json", *OUTBOX, cwd=tmp_path).out)
    assert 0 < status["pending"] <= count


@pytest.mark.parametrize("command", ["owm-producer --help", "owm-outbox plugins", "owm-outbox status"])
def test_a_closed_stdout_makes_no_traceback(command: str, tmp_path: Path) -> None:
    """A command whose reader is gone before it writes ends with 75 and one line."""
    SqliteOutbox(tmp_path / "tasks.db").close()
    program, *args = command.split()
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [SCRIPTS / program, *args],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=environment(OWM_OUTBOX="sqlite:///tasks.db"),
            check=False,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert done.returncode == 75
    assert len(done.stderr.splitlines()) == 1, done.stderr.decode()
    assert b"Traceback" not in done.stderr


# -- logs as JSON


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--api-url", "http://127.0.0.1:9", "--sink", "jsonl:-", "--retry-wait", "0.01"), 75),
        (("--sink", "nowhere:"), 78),
        (("--api-url", "ftp://host"), 78),
        (("--config", "no-such.toml"), 78),
        (("--batch-size", "0"), 64),
        (("--no-such-flag",), 64),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else None,
)
def test_json_logs_are_json_to_the_last_line(args: tuple[str, ...], code: int, tmp_path: Path) -> None:
    """With --log-format json all of stderr is one JSON object a line, the last with the exit code."""
    outcome = run("owm-producer", "--log-format", "json", *OUTBOX, *args, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (code, "")
    records = [json.loads(line) for line in outcome.err.splitlines()]
    assert (records[-1]["exit_code"], records[-1]["levelname"]) == (code, "ERROR")
    assert records[-1]["message"].startswith("owm-producer: ")


def test_json_logs_can_be_asked_for_in_the_environment(tmp_path: Path) -> None:
    """``OWM_LOG_FORMAT`` and ``OWM_LOG_LEVEL`` do what their flags do, for every command."""
    with serving(made_up(3)) as api:
        env = {"OWM_LOG_FORMAT": "json", "OWM_LOG_LEVEL": "info", "OWM_API_URL": api.url}
        outcome = run("owm-producer", *OUTBOX, "--sink", "jsonl:-", env=env, cwd=tmp_path)
    assert outcome.code == 0
    records = [json.loads(line) for line in outcome.err.splitlines()]
    assert records
    assert all({"asctime", "levelname", "name", "message"} <= set(record) for record in records)
    missing = run("owm-outbox", "status", "--outbox", "sqlite:///none.db", env=env, cwd=tmp_path)
    assert json.loads(missing.line)["exit_code"] == missing.code == 73


def test_json_logs_can_be_asked_for_in_the_file(tmp_path: Path) -> None:
    """``log_format`` in the file does what the flag does, to the last line, and the flag beats it."""
    (tmp_path / "owm.toml").write_text('log_format = "json"\n')
    args = ("--config", "owm.toml", "--sink", "nowhere:", *OUTBOX)
    outcome = run("owm-producer", *args, cwd=tmp_path)
    assert json.loads(outcome.line)["exit_code"] == outcome.code == 78
    assert run("owm-producer", *args, "--log-format", "text", cwd=tmp_path).line.startswith("owm-producer: no sink")


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
        f"{COUNT} tasks, 0 rejected",
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
    sink = f"redis://127.0.0.1:{free_port()}/0?retries=0"
    outcome = run("owm-outbox", "drain", *OUTBOX, "--sink", sink, cwd=waiting)
    assert (outcome.code, outcome.out) == (75, "")
    assert sink.partition("?")[0] in outcome.line
    assert run("owm-outbox", "status", "--json", *OUTBOX, cwd=waiting).report["pending"] == COUNT


# -- dead letters


NO_TASKS = [City(901, 91.0, 0.0, "beyond the pole"), City(902, 0.0, -180.5, "beyond the date line")]


def _letters(folder: Path) -> list[dict[str, object]]:
    outcome = run("owm-outbox", "dead", "list", "--json", *OUTBOX, cwd=folder)
    assert (outcome.code, outcome.err) == (0, "")
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_records_that_are_no_tasks_become_dead_letters(tmp_path: Path) -> None:
    """Latitude 91 ends with 65: the record is kept with its reason, the rest is delivered, the run is complete."""
    cities = [*made_up(3), *NO_TASKS, *made_up(2, first=4)]
    with serving(cities) as api:
        args = (*OUTBOX, "--sink", "jsonl:tasks.jsonl", "--api-url", api.url, "--json", "--log-level", "error")
        outcome = run("owm-producer", *args, cwd=tmp_path)
    assert outcome.code == 65
    assert "2 tasks became dead letters" in outcome.line
    assert "dead list" in outcome.line
    report = outcome.report
    assert (report["complete"], report["delivered"], report["rejected"], report["pending"]) == (True, 5, 2, 0)
    delivered = [json.loads(line)["city_id"] for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    assert delivered == [1, 2, 3, 4, 5]

    first, second = _letters(tmp_path)
    assert list(first) == ["position", "task_id", "rejected_at", "reason", "payload"]
    assert first["task_id"] is second["task_id"] is None
    assert "latitude_deg" in str(first["reason"])
    assert "longitude_deg" in str(second["reason"])
    assert json.loads(str(first["payload"]))["name"] == "beyond the pole"
    text = run("owm-outbox", "dead", "list", *OUTBOX, cwd=tmp_path)
    for words in (f"{first['position']}  ", "no task", "latitude_deg", "beyond the date line"):
        assert words in text.out


def test_what_never_was_a_task_can_be_dropped_but_not_retried(tmp_path: Path) -> None:
    """``dead retry`` leaves such a record where it is, with 65 and a line; ``dead drop`` deletes what it is told."""
    with serving(NO_TASKS) as api:
        args = (*OUTBOX, "--sink", "jsonl:-", "--api-url", api.url)
        assert run("owm-producer", *args, cwd=tmp_path).code == 65
    first, second = (str(letter["position"]) for letter in _letters(tmp_path))
    outcome = run("owm-outbox", "dead", "retry", "--all", *OUTBOX, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (65, "0 will be sent again\n")
    assert "never became a task" in outcome.line
    outcome = run("owm-outbox", "dead", "drop", first, *OUTBOX, cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.err) == (0, "1 dropped\n", "")
    assert [str(letter["position"]) for letter in _letters(tmp_path)] == [second]
    assert run("owm-outbox", "dead", "drop", first, *OUTBOX, cwd=tmp_path).code == 65
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


def test_a_stop_while_still_starting_is_no_plugin_s_fault() -> None:
    """SIGTERM while plugins are loaded ends with 143 and its one line, and blames nobody."""
    code = (
        "import os, signal, sys\n"
        "from owm_outbox import cli, plugins\n"
        "load = plugins.load_job\n"
        "def stopped(name):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return load(name)\n"
        "plugins.load_job = stopped\n"
        "sys.argv = ['owm-producer']\n"
        "cli.producer()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "owm-producer: stopped by SIGTERM\n")
