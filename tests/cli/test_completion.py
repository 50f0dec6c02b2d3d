"""Completion, in real shells: what the README says is pasted, and TAB is pressed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from support.commands import SCRIPTS, environment, run

pytestmark = pytest.mark.slow

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
LINES = {
    shell: re.findall(rf"```{shell}\n(.*?)```", README, re.DOTALL)[0].strip().splitlines()[1:]
    for shell in ("bash", "zsh", "fish")
}
START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
PREPARE = {
    "bash": ["bind 'set show-all-if-ambiguous on'", "bind 'set enable-bracketed-paste off'"],
    "zsh": ["autoload -Uz compinit && compinit -u", "unsetopt list_ambiguous"],
    "fish": ["function fish_prompt; printf '> '; end"],
}
PLUGIN = '''
    from owm_outbox import Job

    class CountJob(Job):
        """Count."""

        name = "count"
'''


@pytest.fixture
def site(tmp_path: Path) -> str:
    """Install two jobs, of which one cannot be loaded; give the path on which they are found."""
    folder = tmp_path / "site"
    info = folder / "counting-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "counting.py").write_text(dedent(PLUGIN))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[owm_outbox.jobs]\ncount = counting:CountJob\nlost = counting:Nobody\n")
    before = environment().get("PYTHONPATH")
    return f"{folder}:{before}" if before else str(folder)


class Shell:
    """An interactive shell at a terminal."""

    def __init__(self, name: str, site: str, folder: Path) -> None:
        self._terminal, theirs = pty.openpty()
        self.process = subprocess.Popen(
            START[name],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=environment(
                PATH=f"{SCRIPTS}:{os.environ['PATH']}",
                PYTHONPATH=site,
                HOME=str(folder),
                TERM="xterm" if name == "fish" else "dumb",  # a dumb one gets no list from fish
                PS1="> ",
                COLUMNS="200",
                LINES="60",
            ),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # fish wants it to be the terminal of its session
        )
        os.close(theirs)
        for number, line in enumerate([*PREPARE[name], *LINES[name]]):
            self.enter(f"{line}; echo don''e{number}", f"done{number}")

    def enter(self, line: str, until: str) -> str:
        """Enter a line, and return what is shown up to a pattern."""
        os.write(self._terminal, line.encode() + b"\n")
        return self.read(until)

    def complete(self, typed: str, until: str) -> str:
        """Type, press TAB and return what is shown up to a pattern; then clear the line."""
        os.write(self._terminal, typed.encode() + b"\t")
        shown = self.read(until)
        os.write(self._terminal, b"\x15")
        self.enter("echo clea''red", "cleared")
        return shown

    def read(self, until: str) -> str:
        """Return what is shown up to a pattern."""
        shown = b""
        deadline = time.monotonic() + 30
        while not re.search(until, shown.decode(errors="replace"), re.DOTALL):
            ready = select.select([self._terminal], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, f"{until!r} is never shown, but {shown!r}"
            shown += os.read(self._terminal, 65536)
        return shown.decode(errors="replace")

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


@pytest.fixture(params=["bash", "zsh", "fish"])
def shell(request: pytest.FixtureRequest, site: str, tmp_path: Path) -> Iterator[Shell]:
    """Give a shell into which the README's lines for it were pasted."""
    if shutil.which(request.param) is None:
        pytest.skip(f"there is no {request.param}")
    shell = Shell(request.param, site, tmp_path)
    yield shell
    shell.close()


def test_commands_jobs_and_options_are_offered(shell: Shell) -> None:
    """TAB offers the commands, the jobs that are installed, a job's options, and an option's values."""
    shell.complete("owm-outbox ", r"check.*dead.*drain.*new.*plugins.*relay.*run.*status")
    shell.complete("owm-outbox run ", r"count.*lost.*owm")
    shell.complete("owm-outbox run owm --a", r"--api-limit.*--api-url|--api-url.*--api-limit")
    shell.complete("owm-outbox drain --job c", "--job count")
    shell.complete("owm-outbox relay --p", "--poll")
    shell.complete("owm-outbox relay --job c", "--job count")
    shell.complete("owm-producer --log-level ", r"debug.*error.*info.*warning|debug.*info.*warning.*error")
    shell.complete("owm-producer --dem", "--demo")


def test_a_job_that_cannot_be_loaded_offers_nothing(shell: Shell) -> None:
    """Nothing is written into the line that is being typed, whatever is wrong."""
    shown = shell.complete("owm-outbox run lost --x", "--x")
    assert "owm-outbox:" not in shown
    assert "rror" not in shown


@pytest.mark.parametrize(
    "words", ["owm-outbox run lost --", "owm-outbox nothing ", "owm-outbox run owm --config none --"]
)
def test_a_shell_that_asks_gets_no_word_on_stderr(words: str, site: str) -> None:
    """Whatever was typed, the answer ends with 0 and stderr stays empty."""
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split())), "PYTHONPATH": site}
    outcome = run("owm-outbox", env=asked | {"_OWM_OUTBOX_COMPLETE": "bash_complete"})
    assert (outcome.code, outcome.err) == (0, "")


def test_an_unknown_shell_is_wrong_usage() -> None:
    """A misspelt shell ends with 64, and the line lists those that there are."""
    outcome = run("owm-outbox", env={"_OWM_OUTBOX_COMPLETE": "csh_source"})
    line = "owm-outbox: _OWM_OUTBOX_COMPLETE=csh_source: write bash_source, zsh_source or fish_source"
    assert (outcome.code, outcome.out, outcome.line) == (64, "", line)
