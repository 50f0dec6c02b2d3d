"""The commands, run as users run them: in a process of their own, measured by the operating system."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(sysconfig.get_path("scripts"))


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str
    peak_mib: float

    @property
    def report(self) -> dict[str, Any]:
        """The run report on stdout."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def line(self) -> str:
        """The one line on stderr; fails if there is another number of them."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, f"not one line on stderr: {self.err!r}"
        return lines[0]


def environment(**extra: str) -> dict[str, str]:
    """Return this process's environment without variables of the commands, and with these."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OWM_")} | extra


def start(
    command: str, *args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a command and return at once."""
    return subprocess.Popen(
        [str(SCRIPTS / command), *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**(env or {})),
        cwd=cwd,
    )


def run(
    command: str,
    *args: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 60,
    encoding: str = "utf-8",
) -> Outcome:
    """Run a command to its end.

    :param encoding: in which it writes.
    """
    process = start(command, *args, env=env, cwd=cwd)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{command} hangs; stderr: {err.decode()!r}") from None
    return Outcome(process.returncode, out.decode(encoding), err.decode(encoding), 0.0)


# Should bad input be accepted, the command still ends soon, and has no server to harm.
HARMLESS = {
    "OWM_API_URL": "http://127.0.0.1:9",
    "OWM_RETRY_WAIT": "0.01",
    "OWM_OUTBOX": "sqlite:///tasks.db",
    "OWM_SINK": "redis://127.0.0.1:9/0?stream=s&retries=0",
}


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
    folder: Path, code: int, line: str, command: str, *args: str, env: Mapping[str, str] | None = None
) -> Outcome:
    """Run a command in a folder; check its code and its whole line, and that the folder is untouched.

    :param line: what follows the name of the command.
    """
    before = contents(folder)
    outcome = run(command, *args, cwd=folder, env=HARMLESS | dict(env or {}))
    assert (outcome.out, outcome.err) == ("", f"{command}: {line}\n")
    assert outcome.code == code
    assert contents(folder) == before
    return outcome


def run_measured(command: str, *args: str) -> Outcome:
    """Run a command to its end, and ask the kernel for its peak memory.

    Through a small process in between: a child's peak starts with the size of what it was forked from.
    """
    between = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
        "sys.stderr.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", between, str(SCRIPTS / command), *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        check=False,
    )
    err, _, peak = done.stderr.decode().rpartition("\n")
    per_mib = 1024 * 1024 if sys.platform == "darwin" else 1024
    return Outcome(done.returncode, done.stdout.decode(), err, int(peak) / per_mib)
