"""What people and monitoring systems are told of an outbox: status, runs, and dead letters one by one."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from owm_outbox import InvalidRecord, Mark, RunReport
from owm_outbox.operations.figures import age, duration
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import Outcome, run

pytestmark = pytest.mark.slow

OUTBOX = ("--outbox", "sqlite:///tasks.db")
WRITTEN_AT = 1_790_000_000.0
HOSTILE = "too heavy\n\x1b[31mred \u202egnp.exe <script>alert(1)</script>"


@dataclass
class _Parcel:
    task_id: str
    weight: int


class _Clock:
    def __init__(self) -> None:
        self.now = WRITTEN_AT

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an outbox with a complete run, one that lacks pages, and two dead letters."""
    folder, clock = tmp_path_factory.mktemp("made"), _Clock()
    with SqliteOutbox(folder / "tasks.db", now=clock) as outbox:
        for number, missing in ((0, []), (1, [3, 7])):
            record = outbox.start_run("fleet")
            clock.now += 200
            tasks = [_Parcel(f"{number}-{weight}", weight) for weight in range(10)]
            outbox.append(tasks, key=lambda task: task.weight, headers={"trace": "ab"}, run=record.id, expected=10)
            outbox.append(tasks[:4], key=lambda task: task.weight, run=record.id)
            if number == 0:
                entries = outbox.read(0, 100)
                outbox.reject({entries[-1].position: HOSTILE})
                outbox.acknowledge(Mark.of(entries[-1], "lease"))
            else:
                bad = InvalidRecord(b'{"weight":\n\xff}', "weight: expected a number", key="heavy")
                outbox.append([], run=record.id, invalid=[bad])
            report = RunReport(
                run_id=record.id,
                job="fleet",
                resumed=False,
                complete=not missing,
                expected=10,
                extracted=10,
                duplicates=4,
                delivered=9 - 9 * number,
                redelivered=0,
                rejected=1,
                pending=10 * number,
                missing=missing,
                seconds=1.0,
            )
            outbox.finish_run(record.id, report)
    return folder


@pytest.fixture
def outbox(made: Path, tmp_path: Path) -> Path:
    """Give a folder with a copy of it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def _positions(folder: Path) -> list[int]:
    listed = run("owm-outbox", "dead", "list", "--json", *OUTBOX, cwd=folder)
    return [json.loads(line)["position"] for line in listed.out.splitlines()]


# -- ages


@pytest.mark.parametrize(
    ("seconds", "text", "took"),
    [
        (0, "0 s", "0.0 s"),
        (9.96, "9 s", "10.0 s"),
        (59.9, "59 s", "59 s"),
        (200, "3 m", "3 m 20 s"),
        (3600, "1 h 0 m", "1 h 0 m"),
        (7500, "2 h 5 m", "2 h 5 m"),
        (86_399, "23 h 59 m", "23 h 59 m"),
        (90_000, "1 d 1 h", "1 d 1 h"),
    ],
)
def test_ages_have_two_units_at_most(seconds: float, text: str, took: str) -> None:
    """An age never claims more than has passed."""
    assert (age(seconds), duration(seconds)) == (text, took)


# -- status


def test_status_is_a_table(outbox: Path) -> None:
    """Pending tasks with their age, dead letters, and each run with its age, duration, count and outcome."""
    outcome = run("owm-outbox", "status", *OUTBOX, cwd=outbox)
    assert (outcome.code, outcome.err) == (0, "")
    first, pending, dead, title, header, newest, oldest = outcome.out.splitlines()
    assert first == "outbox   sqlite:///tasks.db"
    assert re.fullmatch(r"pending  10, the oldest for \d+ d \d+ h", pending)
    assert (dead, title) == ("dead     2", "runs")
    assert re.split(r"  +", header.strip()) == ["started", "took", "job", "tasks", "outcome", "run"]
    ago, *cells, _ = re.split(r"  +", newest.strip())
    assert re.fullmatch(r"\d+ d \d+ h ago", ago)
    assert cells == ["3 m 20 s", "fleet", "10", "unfinished, 2 pages missing, 1 rejected"]
    assert re.split(r"  +", oldest.strip())[1:5] == ["3 m 20 s", "fleet", "10", "complete, 1 rejected"]


def test_status_of_an_outbox_that_is_empty(tmp_path: Path) -> None:
    """It says that there were no runs."""
    SqliteOutbox(tmp_path / "tasks.db").close()
    assert run("owm-outbox", "status", *OUTBOX, cwd=tmp_path).out == (
        "outbox   sqlite:///tasks.db\npending  0\ndead     0\nruns     none yet\n"
    )


# -- for a monitoring system


def _watch(folder: Path, *args: str) -> Outcome:
    outcome = run("owm-outbox", "status", *OUTBOX, *args, cwd=folder)
    assert outcome.err == ""
    assert outcome.out.count("\n") == 1
    return outcome


def test_a_monitoring_system_is_told_in_one_line(outbox: Path) -> None:
    """0 and OK within the limits, 2 and CRITICAL beyond one of them, with figures in the form that Nagios reads."""
    figures = re.compile(r" \| pending=10;;(\d*) oldest=\d+s;;(\d*) dead=2\n")
    for args, code, line, limits in (
        (("--max-pending", "10"), 0, r"OK: 10 pending, the oldest for \d+ d \d+ h", ("10", "")),
        (("--max-pending", "9"), 2, "CRITICAL: 10 pending, more than 9", ("9", "")),
        (("--max-age", "9999d"), 0, r"OK: 10 pending, the oldest for \d+ d \d+ h", ("", "863913600")),
        (
            ("--max-age", "10m", "--max-pending", "1000"),
            2,
            r"CRITICAL: the oldest task is pending for \d+ d \d+ h, longer than 10 m",
            ("1000", "600"),
        ),
        (("--max-age", "1.5h", "--max-pending", "0"), 2, r"CRITICAL: 10 pending, more than 0; the .*", ("0", "5400")),
    ):
        outcome = _watch(outbox, *args)
        assert outcome.code == code, args
        found = figures.search(outcome.out)
        assert found is not None, outcome.out
        assert found.groups() == limits
        assert re.fullmatch(line, outcome.out[: found.start()]), outcome.out


def test_nothing_pending_has_no_age(tmp_path: Path) -> None:
    """An empty outbox is fine, with any limits."""
    SqliteOutbox(tmp_path / "tasks.db").close()
    outcome = _watch(tmp_path, "--max-age", "0s", "--max-pending", "0")
    assert (outcome.code, outcome.out) == (0, "OK: 0 pending | pending=0;;0 oldest=0s;;0 dead=0\n")


def test_what_cannot_be_looked_at_is_unknown(tmp_path: Path) -> None:
    """3, and why, on stdout; a | in it does not begin figures."""
    for url, words in (
        ("sqlite:///a|b.db", "cannot open the outbox"),
        ("sqlit:///tasks.db", "did you mean 'sqlite'"),
        ("postgresql://owm:s3cret@127.0.0.1:9/jobs", "127.0.0.1:9"),
    ):
        outcome = run("owm-outbox", "status", "--outbox", url, "--max-age", "10m", cwd=tmp_path)
        assert (outcome.code, outcome.err) == (3, "")
        assert outcome.out.startswith("UNKNOWN: ")
        assert words in outcome.out
        assert "|" not in outcome.out
        assert "s3cret" not in outcome.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [
        *(("--max-age", value) for value in ("10", "m", "-1m", "1w", "1e3s", "\u0661m", "10 m", "")),
        *(("--max-pending", value) for value in ("-1", "many", "1.5")),
        ("--max-age", "1m", "--json"),
    ],
    ids=" ".join,
)
def test_bad_limits_are_usage_errors(args: tuple[str, ...], outbox: Path) -> None:
    """64 and one line, not a state of the outbox."""
    outcome = run("owm-outbox", "status", *OUTBOX, *args, cwd=outbox)
    assert (outcome.code, outcome.out) == (64, "")
    assert "--max-" in outcome.line


# -- runs


def test_runs_shows_the_newest_first(outbox: Path) -> None:
    """Each with its figures; ``--limit`` shows fewer, ``--json`` all that is known."""
    outcome = run("owm-outbox", "runs", *OUTBOX, cwd=outbox)
    assert (outcome.code, outcome.err) == (0, "")
    header, newest, oldest = (re.split(r"  +", line) for line in outcome.out.splitlines())
    assert header[1:] == [
        *("took", "job", "state", "expected", "extracted", "duplicates", "delivered", "rejected", "missing", "run")
    ]
    assert newest[:-1] == ["2026-09-21 14:16:40", "3 m 20 s", "fleet", "open", "10", "10", "4", "0", "1", "2"]
    assert oldest[1:-1] == ["3 m 20 s", "fleet", "complete", "10", "10", "4", "9", "1", "0"]
    outcome = run("owm-outbox", "runs", "--json", "--limit", "1", *OUTBOX, cwd=outbox)
    assert outcome.out.count("\n") == 1
    assert outcome.report == {
        "run_id": newest[-1],
        "job": "fleet",
        "state": "open",
        "started_at": "2026-09-21T14:16:40+00:00",
        "finished_at": None,
        "seconds": 200.0,
        "expected": 10,
        "extracted": 10,
        "duplicates": 4,
        "delivered": 0,
        "rejected": 1,
        "missing": [3, 7],
    }


def test_runs_knows_more_than_status(tmp_path: Path) -> None:
    """Status shows ten; an outbox keeps a hundred. One that has none shows nothing."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox:
        assert run("owm-outbox", "runs", *OUTBOX, cwd=tmp_path).out == "no runs yet\n"
        assert run("owm-outbox", "runs", "--json", *OUTBOX, cwd=tmp_path).out == ""
        for number in range(15):
            outbox.start_run(f"job-{number}")
    lines = run("owm-outbox", "runs", "--json", *OUTBOX, cwd=tmp_path).out.splitlines()
    jobs = [json.loads(line)["job"] for line in lines]
    assert jobs == [f"job-{number}" for number in reversed(range(15))]
    assert len(run("owm-outbox", "status", "--json", *OUTBOX, cwd=tmp_path).report["runs"]) == 10
    assert run("owm-outbox", "runs", "--limit", "0", *OUTBOX, cwd=tmp_path).code == 64


# -- dead show


def test_a_dead_letter_is_shown_whole(outbox: Path) -> None:
    """Reason, times, run, key, headers and payload; nothing of it reaches the terminal as a command."""
    position = _positions(outbox)[0]
    outcome = run("owm-outbox", "dead", "show", str(position), *OUTBOX, cwd=outbox)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == f"position  {position}"
    assert lines[1] == "task      0-9"
    assert lines[2:4] == [
        "reason    too heavy",
        r"          \x1b[31mred \u202egnp.exe <script>alert(1)</script>",
    ]
    assert re.fullmatch(r"rejected  2026-09-21 14:16:40 UTC, \d+ d \d+ h ago", lines[4])
    assert lines[5] == "times     1"
    assert re.fullmatch(r"run       [0-9a-f-]{36}", lines[6])
    assert lines[7:] == [
        "key       9",
        "headers",
        "          trace: ab",
        "payload   28 bytes",
        '{"task_id":"0-9","weight":9}',
    ]
    known = run("owm-outbox", "dead", "show", str(position), "--json", *OUTBOX, cwd=outbox).report
    assert (known["key"], known["headers"], known["times"]) == (9, {"trace": "ab"}, 1)
    assert known["run_id"] == lines[6].split()[1]


def test_a_record_that_never_was_a_task_is_shown_too(outbox: Path) -> None:
    """Its bytes need not be text; ``--raw`` gives just these."""
    position = str(_positions(outbox)[1])
    outcome = run("owm-outbox", "dead", "show", position, *OUTBOX, cwd=outbox)
    assert (outcome.code, outcome.err) == (0, "")
    assert "task      none: this record never became one, so it can be dropped, not retried\n" in outcome.out
    assert 'key       "heavy"\nheaders   none\npayload   13 bytes\n{"weight":\n\\xff}\n' in outcome.out
    raw = run("owm-outbox", "dead", "show", position, "--raw", *OUTBOX, cwd=outbox, encoding="latin-1")
    assert raw.out == '{"weight":\n\xff}'


def test_an_unknown_dead_letter_ends_as_with_retry(outbox: Path) -> None:
    """65 and a line; nothing on stdout."""
    for args in ((), ("--raw",), ("--json",)):
        outcome = run("owm-outbox", "dead", "show", "999", *args, *OUTBOX, cwd=outbox)
        assert (outcome.code, outcome.out) == (65, "")
        assert outcome.line == "owm-outbox: 999 is not a dead letter: see owm-outbox dead list"
    assert run("owm-outbox", "dead", "retry", "999", *OUTBOX, cwd=outbox).code == 65
    assert run("owm-outbox", "dead", "show", "1", "--raw", "--json", *OUTBOX, cwd=outbox).code == 64


def test_an_application_s_letter_has_no_run_and_no_key(tmp_path: Path) -> None:
    """It says so."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox:
        outbox.append([_Parcel(str(uuid.uuid4()), 1)])
        outbox.reject({1: "no"})
    shown = run("owm-outbox", "dead", "show", "1", *OUTBOX, cwd=tmp_path).out
    assert "run       none\nkey       none\nheaders   none\n" in shown
    assert msgspec.json.decode(shown.splitlines()[-1])["weight"] == 1
