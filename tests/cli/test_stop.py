"""Signals end a command soon, with one line and the code of the signal; a relay ends between two commits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from support.commands import SCRIPTS, environment, run, start

pytestmark = pytest.mark.slow

SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]

# A job that makes pages until somebody stops it, and sinks that do not take part in a stop.
PLUGINS = '''
    import os, sys, time, uuid
    from dataclasses import dataclass
    from owm_outbox import Job, Page, Sink, SinkUnavailable

    @dataclass
    class Tick:
        task_id: uuid.UUID

    class ClockJob(Job):
        """Make a task every 10 ms."""

        name = "clock"
        default_outbox = "sqlite:///tasks.db"

        def pages(self, run):
            number = int(run.checkpoint or 0)
            while True:
                number += 1
                yield Page([Tick(run.task_id(number))], checkpoint=str(number).encode())
                if number == 3:
                    print("three", file=sys.stderr, flush=True)
                time.sleep(0.01)

    class SwallowingSink(Sink):
        """Take every exception for an outage."""

        def mark(self, outbox_id):
            return None

        def send(self, batch):
            try:
                time.sleep(0.2)
            except Exception as error:
                raise SinkUnavailable(str(error)) from error

    class HangingSink(Sink):
        """Never return."""

        def mark(self, outbox_id):
            return None

        def send(self, batch):
            print("hanging", file=sys.stderr, flush=True)
            while True:
                time.sleep(60)
'''
ENTRY_POINTS = """
    [owm_outbox.jobs]
    clock = ticking:ClockJob
    [owm_outbox.sinks]
    swallowing = ticking:SwallowingSink
    hanging = ticking:HangingSink
"""


@pytest.fixture
def plugins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the plugins; give the environment in which they are found."""
    site = tmp_path_factory.mktemp("site")
    (site / "ticking.py").write_text(dedent(PLUGINS))
    info = site / "ticking-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ticking\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(dedent(ENTRY_POINTS))
    before = environment().get("PYTHONPATH")
    return {"PYTHONPATH": f"{site}:{before}" if before else str(site)}


def _interrupted_within(function: str, sent: signal.Signals, *argv: str, cwd: Path) -> tuple[int, str, str]:
    """Run a command that gets a signal when it calls a function of `owm_outbox.plugins`."""
    code = f"""
        import os, sys
        from owm_outbox import cli, plugins
        function = plugins.{function}
        def interrupted(*args, **kwargs):
            os.kill(os.getpid(), {int(sent)})
            return function(*args, **kwargs)
        plugins.{function} = interrupted
        sys.argv = {list(argv)!r}
        cli.{"producer" if argv[0] == "owm-producer" else "main"}()
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)], env=environment(), cwd=cwd, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


# -- while a command starts


@pytest.mark.parametrize(("sent", "code"), SIGNALS)
@pytest.mark.parametrize(
    "argv",
    [
        ("owm-producer", "--outbox", "sqlite:///tasks.db"),
        ("owm-outbox", "run", "owm", "--outbox", "sqlite:///tasks.db"),
        ("owm-outbox", "drain", "--outbox", "sqlite:///tasks.db"),
        ("owm-outbox", "relay", "--outbox", "sqlite:///tasks.db"),
        ("owm-producer", "--demo", "--outbox", "sqlite:///tasks.db"),
    ],
    ids=" ".join,
)
def test_a_stop_while_plugins_load_ends_before_anything_is_made(
    argv: tuple[str, ...], sent: signal.Signals, code: int, tmp_path: Path
) -> None:
    """A signal while a relaying command still starts is its line and its code, and no plugin is to blame."""
    outcome = _interrupted_within("load_job", sent, *argv, cwd=tmp_path)
    assert outcome == (code, "", f"{argv[0]}: stopped by {sent.name}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sent", "code"), SIGNALS)
def test_a_command_that_only_looks_ends_at_once(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    """A signal ends a command that has nothing to finish where it is, with its line and its code."""
    outcome = _interrupted_within("plugins", sent, "owm-outbox", "plugins", cwd=tmp_path)
    assert outcome == (code, "", f"owm-outbox: stopped by {sent.name}\n")


def test_sigterm_at_any_moment_of_the_start_is_the_end(plugins: dict[str, str], tmp_path: Path) -> None:
    """Whenever SIGTERM comes, the command ends with it: by the system's hand, or with 143 and one line."""
    args = ("run", "clock", "--sink", "swallowing:", "--outbox", "memory:")
    for hundredths in range(0, 60, 4):
        process = start("owm-outbox", *args, cwd=tmp_path, env=plugins)
        time.sleep(hundredths / 100)  # any moment will do
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
        lines = [line for line in err.decode().splitlines() if line != "three"]
        if process.returncode == -signal.SIGTERM:  # Python itself was still starting
            assert (out, lines) == (b"", [])
        else:
            assert (process.returncode, out, len(lines)) == (143, b"", 1), err
            assert lines[0].startswith("owm-outbox: stopped by SIGTERM")


# -- in the middle


def _wait_for(process: subprocess.Popen[bytes], word: bytes) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.strip() == word:
            return
    raise AssertionError(f"ended before {word!r} was seen")


@pytest.fixture(params=SIGNALS, ids=lambda param: param[0].name)
def sent(request: pytest.FixtureRequest) -> tuple[signal.Signals, int]:
    """Give a signal and its exit code."""
    signum, code = request.param
    return signum, code


@pytest.mark.parametrize("sink", ["jsonl:lines", "swallowing:"])
def test_a_run_ends_with_its_report(
    sink: str, sent: tuple[signal.Signals, int], plugins: dict[str, str], tmp_path: Path
) -> None:
    """A signal in mid-run ends with its code, one line and the report, whatever exceptions the sink swallows."""
    signum, code = sent
    process = start("owm-outbox", "run", "clock", "--sink", sink, "--json", cwd=tmp_path, env=plugins)
    _wait_for(process, b"three")
    process.send_signal(signum)
    out, err = process.communicate()
    report = json.loads(out)
    waiting = f"[{report['extracted']} tasks extracted, {report['pending']} waiting in the outbox]"
    assert (process.returncode, err.decode()) == (code, f"owm-outbox: stopped by {signum.name} {waiting}\n")
    assert (report["complete"], report["extracted"] >= 3) == (False, True)
    status = run("owm-outbox", "status", "--job", "clock", "--json", cwd=tmp_path, env=plugins).report
    assert (status["pending"], status["runs"][0]["report"]) == (report["pending"], report)


def test_an_ignored_sigint_stays_ignored(plugins: dict[str, str], tmp_path: Path) -> None:
    """What a script starts with ``&`` ignores SIGINT, as the shell asked; SIGTERM ends it all the same."""
    script = 'trap "" INT; trap "" TERM; exec "$@"'
    process = subprocess.Popen(
        ["sh", "-c", script, "sh", str(SCRIPTS / "owm-outbox"), "run", "clock", "--sink", "swallowing:"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(**plugins),
        cwd=tmp_path,
    )
    _wait_for(process, b"three")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143
    # Had SIGINT been the first stop, SIGTERM would be the second one, which ends at once and without figures.
    assert err.startswith(b"owm-outbox: stopped by SIGTERM [")


def test_a_second_signal_ends_what_hangs(plugins: dict[str, str], tmp_path: Path) -> None:
    """Where a sink never returns, the first SIGTERM is noted, and the second one ends the process at once."""
    process = start("owm-outbox", "run", "clock", "--sink", "hanging:", cwd=tmp_path, env=plugins)
    _wait_for(process, b"hanging")
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143
    assert err.decode().splitlines()[-1] == "owm-outbox: stopped by SIGTERM"


# -- the demo


@pytest.mark.parametrize("to_the_group", [False, True], ids=["kill", "Ctrl-C"])
def test_a_stopped_demo_leaves_nothing_behind(
    to_the_group: bool, sent: tuple[signal.Signals, int], tmp_path: Path
) -> None:
    """A signal while the demo works ends it with its code; its servers and its folders are gone."""
    signum, code = sent
    folder = tmp_path / "tmp"
    folder.mkdir()
    arguments = ("--demo", "--log-level", "info", "--api-limit", "1")  # a city per page: it takes a minute
    process = subprocess.Popen(
        [sys.executable, "-c", "from owm_outbox.cli import producer; producer()", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(TMPDIR=str(folder)),
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if b" starts" in line:
            break
    children = _children(process.pid)  # the stand-ins
    assert len(children) == 1
    children += _children(children[0])  # the server
    assert len(children) == 2
    (os.killpg if to_the_group else os.kill)(process.pid, signum)
    out, err = process.communicate()
    assert process.returncode == code, err
    assert f"owm-producer: stopped by {signum.name} [" in err.decode().splitlines()[-1]
    assert b"NOT complete" in out
    assert list(folder.iterdir()) == []
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in listed.stdout.split()]
