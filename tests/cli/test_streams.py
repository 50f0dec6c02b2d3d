"""Standard streams that are closed, full or without a reader: the work's own result is the exit code."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from owm_outbox.testing import Parcel
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import SCRIPTS, environment
from support.weather import made_up, serving

pytestmark = pytest.mark.slow

STREAMS = ("stdin", "stdout", "stderr")
STATES = ("closed", "full", "left")  # left: whoever read it, or wrote to it
LOST = {
    "closed": "stdout is closed",
    "full": "stdout cannot be written (No space left on device)",
    "left": "stdout was closed by the reader",
}
COUNT = 3
OUTBOX = "sqlite:///tasks.db"  # in the folder that the command runs in
SHOWING = [f"owm-outbox {command}{json}" for command in ("dead list", "status", "plugins") for json in ("", " --json")]
SHOWING += ["owm-outbox runs", "owm-outbox dead show 1", "owm-outbox dead show 1 --raw"]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote to the streams that took it."""

    code: int
    out: str
    err: str


def _run(program: str, args: Sequence[str], cwd: Path, broken: Mapping[str, str]) -> Ended:
    """Run a command with some of its streams in another state than usual."""
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    closed = ""
    with contextlib.ExitStack() as stack:
        for name, state in broken.items():
            if state == "closed":
                closed += " " + {"stdin": "0<&-", "stdout": "1>&-", "stderr": "2>&-"}[name]
                continue
            if state == "full":
                given[name] = os.open("/dev/full", os.O_RDWR)
            else:
                reader, writer = os.pipe()
                ours, given[name] = (writer, reader) if name == "stdin" else (reader, writer)
                os.close(ours)
            stack.callback(os.close, given[name])
        command = ["sh", "-c", f'exec "$@"{closed}', "sh", str(SCRIPTS / program), *args]
        done = subprocess.run(
            command, cwd=cwd, env=environment(OWM_OUTBOX=OUTBOX), text=True, check=False, timeout=100, **given
        )
    return Ended(done.returncode, done.stdout or "", done.stderr or "")


@pytest.fixture
def api() -> Iterator[str]:
    """Serve three cities."""
    with serving(made_up(COUNT)) as service:
        yield service.url


@pytest.fixture
def down() -> Iterator[str]:
    """Give an address where nobody listens, and nobody else can."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def _args(outcome: str, api: str, down: str, *, as_json: bool) -> list[str]:
    sink = f"redis://{down}/0?stream=s&retries=0" if outcome == "sink down" else "jsonl:tasks.jsonl"
    args = ["--sink", sink, "--retry-wait", "0.01", "--log-level", "info"]
    args += ["--api-url", f"http://{down}" if outcome == "api down" else api]
    return [*args, "--json"] if as_json else args


@pytest.mark.parametrize("as_json", [False, True], ids=["", "json"])
@pytest.mark.parametrize(("outcome", "code"), [("complete", 0), ("sink down", 75), ("api down", 75)])
def test_streams_do_not_decide_the_outcome(
    outcome: str, code: int, as_json: bool, api: str, down: str, tmp_path: Path
) -> None:
    """Whichever stream is closed, full or without anybody at its other end, a run does and ends as the plain one."""
    cases: list[dict[str, str]] = [{}, *({name: state} for name in STREAMS for state in STATES)]
    cases += [{"stdout": state, "stderr": state} for state in STATES]
    cases += [{"stdin": "closed", "stdout": "closed", "stderr": "closed"}]
    for case in cases:
        folder = tmp_path / "-".join([outcome, *(f"{name} {state}" for name, state in case.items())])
        folder.mkdir()
        ended = _run("owm-producer", _args(outcome, api, down, as_json=as_json), folder, case)
        assert ended.code == code, (case, ended)
        assert "Traceback" not in ended.err, case
        _check_work(outcome, folder)
        if as_json and "stdout" not in case:
            assert json.loads(ended.out)["complete"] == (code == 0), case
        if as_json and "stdout" in case and "stderr" not in case:
            assert f" WARNING the report is lost: {LOST[case['stdout']]}; owm-outbox status --json has it" in ended.err
        if "stderr" not in case and code:
            assert ended.err.splitlines()[-1].startswith("owm-producer: "), case


def _check_work(outcome: str, folder: Path) -> None:
    with SqliteOutbox(folder / "tasks.db") as outbox:
        pending = outbox.stats().pending
    assert pending == (COUNT if outcome == "sink down" else 0)
    lines = (folder / "tasks.jsonl").read_text().splitlines() if (folder / "tasks.jsonl").exists() else []
    assert len(lines) == (COUNT if outcome == "complete" else 0)


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    """Make an outbox with a dead letter; give the folder of the command that looks at it."""
    with SqliteOutbox(tmp_path / "tasks.db") as made:
        made.append([Parcel(uuid4(), 1)])
        made.reject({1: "nobody wants it"})
    return tmp_path


@pytest.mark.parametrize("command", SHOWING)
def test_what_nobody_can_read_has_to_be_asked_for_again(command: str, outbox: Path) -> None:
    """A command that only shows something ends with 75 and one line if stdout takes nothing."""
    program, *args = command.split()
    plain = _run(program, args, outbox, {})
    assert (plain.code, plain.err) == (0, "")
    assert plain.out
    for state in STATES:
        assert _run(program, args, outbox, {"stdout": state}) == Ended(75, "", f"owm-outbox: {LOST[state]}\n")


@pytest.mark.parametrize("state", STATES)
def test_what_is_shown_needs_stdout_alone(state: str, outbox: Path) -> None:
    """Whatever the other streams are, what a command shows is the same, and so is its code."""
    plain = _run("owm-outbox", ["dead", "list"], outbox, {})
    for name in ("stdin", "stderr"):
        assert _run("owm-outbox", ["dead", "list"], outbox, {name: state}) == plain
    assert _run("owm-outbox", ["dead", "list"], outbox, {"stdout": state, "stderr": state}).code == 75


@pytest.mark.parametrize("state", ["full", "left"])
@pytest.mark.parametrize("command", ["owm-producer --help", "owm-outbox --version", "owm-outbox dead list --help"])
def test_help_that_nobody_can_read(command: str, state: str, tmp_path: Path) -> None:
    """``--help`` and ``--version`` end with 75 and one line if stdout takes nothing."""
    program, *args = command.split()
    assert _run(program, args, tmp_path, {"stdout": state}) == Ended(75, "", f"{program}: {LOST[state]}\n")


@pytest.mark.parametrize("state", STATES)
def test_what_is_done_counts_though_nobody_reads_it(state: str, outbox: Path) -> None:
    """A command that does something ends as what it did, and warns that its report is lost."""
    ended = _run("owm-outbox", ["dead", "drop", "--all"], outbox, {"stdout": state})
    assert (ended.code, ended.err.count("\n")) == (0, 1)
    assert f"WARNING the report is lost: {LOST[state]}" in ended.err
    with SqliteOutbox(outbox / "tasks.db") as made:
        assert made.stats().dead == 0


@pytest.mark.parametrize("state", STATES)
def test_wrong_usage_stays_wrong_usage(state: str, tmp_path: Path) -> None:
    """The line that says what is wrong may be lost, not the code."""
    for args in ([], ["--no-such-flag"], ["run"]):
        assert _run("owm-outbox", args, tmp_path, {"stderr": state}).code == 64


def test_no_file_gets_the_number_of_a_closed_stream(api: str, tmp_path: Path) -> None:
    """With all streams closed, what others write to descriptor 2 reaches no file of ours."""
    # Python opens it at its start, and writes to it when it ends.
    (tmp_path / "sitecustomize.py").write_text("import atexit, os\natexit.register(lambda: os.write(2, b'stray'))\n")
    args = ["--outbox", OUTBOX, "--sink", "jsonl:tasks.jsonl", "--api-url", api]
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", str(SCRIPTS / "owm-producer"), *args]
    before = environment().get("PYTHONPATH")
    path = f"{tmp_path}:{before}" if before else str(tmp_path)
    assert subprocess.run(command, cwd=tmp_path, env=environment(PYTHONPATH=path), check=False).returncode == 0
    assert not [file for file in tmp_path.glob("tasks*") if b"stray" in file.read_bytes()]
