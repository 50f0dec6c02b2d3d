"""stdout is for data, stderr for logs and one line: as text or, to the last line, as JSON."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from owm_outbox.cli.log_records import RateLimit
from owm_outbox.cli.weather import City

from support.commands import environment, run, start
from support.servers import Server, free_port
from support.streams import city_ids
from support.weather import made_up, serving

pytestmark = pytest.mark.slow

OUTBOX = ("--outbox", "sqlite:///tasks.db")  # in the folder that the command runs in
COUNT = 250

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
            "trimmed",
            "forked",
        ]
        assert (outcome.report["complete"], outcome.report["delivered"]) == (True, 3)


def test_an_incomplete_run_has_a_report_too(tmp_path: Path) -> None:
    """With --json, stdout has the report also when the sink is down, and stderr what to do."""
    sink = f"redis://127.0.0.1:{free_port()}/0?stream=s&retries=0"
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
    """If the reader of stdout ends, as ``head`` does, the code is 75, the line says so, and the rest is kept."""
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
    assert err.startswith("owm-producer: stdout was closed by the reader [")
    status = json.loads(run("owm-outbox", "status", "--json", *OUTBOX, cwd=tmp_path).out)
    assert 0 < status["pending"] <= count


def test_a_dead_letter_is_counted_in_the_singular(tmp_path: Path) -> None:
    """One record that is not a task ends with 65, and the line says so of one."""
    with serving([*made_up(2), City(901, 91.0, 0.0, "beyond the pole")]) as api:
        args = (*OUTBOX, "--sink", "jsonl:lines", "--api-url", api.url, "--log-level", "error")
        outcome = run("owm-producer", *args, cwd=tmp_path)
    line = "owm-producer: complete, but 1 task became a dead letter: see owm-outbox dead list"
    assert (outcome.code, outcome.out, outcome.line) == (65, "", line)


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


def test_json_logs_have_fields(tmp_path: Path) -> None:
    """From the start of a run on, every line has its id; what a line counts is there as numbers of stable names."""
    with serving(made_up(250)) as api:
        args = ("--api-url", api.url, "--sink", f"jsonl:{tmp_path}/out", "--json", *OUTBOX)
        done = run("owm-producer", *args, "--log-format", "json", "--log-level", "info", cwd=tmp_path)
    assert done.code == 0
    records = [json.loads(line) for line in done.err.splitlines()]
    assert {record["run_id"] for record in records if "run" in record["message"]} == {done.report["run_id"]}
    (last,) = [record for record in records if "is complete" in record["message"]]
    assert {name: last[name] for name in done.report} == done.report


def test_what_repeats_is_written_so_often_and_then_counted(tmp_path: Path) -> None:
    """Of 300 lines of a kind, 50 are written, and one that says how many more there were; nothing else is left out."""
    job = (
        "import logging\n"
        "from owm_outbox.cli import logs\n"
        "logs.set_up_logging()\n"
        "log = logging.getLogger('owm_outbox.delivery')\n"
        "for n in range(300):\n"
        "    log.error('entry %d became a dead letter: %s', n, 'why')\n"
        "log.error('something else')\n"
        "logs.write_left_out()\n"
    )
    done = subprocess.run([sys.executable, "-c", job], capture_output=True, text=True, check=True, env=environment())
    lines = [line.split(" ERROR ")[1] for line in done.stderr.splitlines()]
    assert lines[:50] == [f"entry {n} became a dead letter: why" for n in range(50)]
    assert lines[50:] == ["something else", "entry %d became a dead letter: %s: 250 more of this kind were left out"]


def test_a_new_window_begins_anew() -> None:
    """In the next minute the first record of a kind tells what was left out in the one before."""
    now = 0.0
    limit = RateLimit(most=2, seconds=60, clock=lambda: now)

    def written(number: int) -> str | None:
        record = logging.LogRecord("owm_outbox", logging.INFO, "", 0, "page %d", (number,), None)
        return record.getMessage() if limit.filter(record) else None

    assert [written(n) for n in range(5)] == ["page 0", "page 1", None, None, None]
    now = 60.0
    assert [written(5), written(6), written(7)] == ["page 5 (3 more of this kind were left out)", "page 6", None]
    assert limit.left_out() == [("owm_outbox", logging.INFO, "page %d: 1 more of this kind were left out")]
    assert limit.left_out() == []


def test_json_logs_can_be_asked_for_in_the_environment(tmp_path: Path) -> None:
    """``OWM_LOG_FORMAT`` and ``OWM_LOG_LEVEL`` do what their flags do, for every command of the job owm."""
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
