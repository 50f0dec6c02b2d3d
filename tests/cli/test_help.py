"""What each command tells about itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from owm_outbox import __version__

from support.commands import run

pytestmark = pytest.mark.slow

STORE = "--outbox"
DELIVER = "--sink --batch-size --wait-for-room"
LOG = "--log-level --log-format"
JOB = (
    "--api-url --api-limit --ca-file --client-cert --client-key --concurrency "
    "--second-pass --retry-wait --request-timeout --first-page "
    f"{STORE} {DELIVER} --resume-within --fresh --json --metrics-file --ping --traces --config {LOG}"
)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("owm-producer", f"{JOB} --demo --cities --version --help"),
        ("owm-outbox", f"{LOG} --version --help"),
        ("owm-outbox run", "--help"),
        ("owm-outbox run owm", f"{JOB} --version --help"),
        ("owm-outbox status", f"--json --max-age --max-pending --html {STORE} --sink --job --config {LOG} --help"),
        ("owm-outbox runs", f"--limit --json {STORE} --job --config {LOG} --help"),
        ("owm-outbox drain", f"--json {STORE} {DELIVER} --job --config {LOG} --help"),
        ("owm-outbox relay", f"--poll --http --http-token {STORE} {DELIVER} --traces --job --config {LOG} --help"),
        ("owm-outbox plugins", "--json --help"),
        ("owm-outbox check", "--help"),
        ("owm-outbox new", "--help"),
        ("owm-outbox dead", "--help"),
        ("owm-outbox dead list", f"--json {STORE} --job --config {LOG} --help"),
        ("owm-outbox dead show", f"--raw --json {STORE} --job --config {LOG} --help"),
        ("owm-outbox dead retry", f"--all {STORE} --job --config {LOG} --help"),
        ("owm-outbox dead drop", f"--all {STORE} --job --config {LOG} --help"),
    ],
)
def test_each_command_has_help(command: str, flags: str, tmp_path: Path) -> None:
    """``--help`` goes to stdout, shows every option and no other, and does nothing else."""
    outcome = run(*command.split(), "--help", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"Usage: {command} [OPTIONS]")
    assert re.findall(r"^  (--[\w-]+)", outcome.out, re.MULTILINE) == flags.split()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("owm-outbox", "check dead drain new plugins relay run runs schema status"),
        ("owm-outbox run", "owm"),
        ("owm-outbox dead", "drop list retry show"),
    ],
)
def test_a_group_lists_its_commands(command: str, names: str) -> None:
    """The help of a group of commands names each of them, with what it does."""
    listed = re.split(r"\n(?:Commands|Jobs):\n", run(*command.split(), "--help").out)[1].partition("\n\n")[0]
    assert re.findall(r"^  ([\w-]+)  +\S", listed, re.MULTILINE) == names.split()


@pytest.mark.parametrize("command", ["owm-producer", "owm-outbox", "owm-outbox run owm", "owm-outbox relay"])
def test_programs_list_their_exit_codes(command: str) -> None:
    """The help of whatever relays ends with what each exit code means."""
    codes = run(*command.split(), "--help").out.partition("Exit codes:\n")[2]
    assert re.findall(r"^ +(\d+)  +\S", codes, re.MULTILINE) == ["0", "64", "65", "70", "73", "75", "78", "130", "143"]


def test_variables_are_those_of_the_job() -> None:
    """Commands on an outbox show the variables of the job that ``--job`` names, and owm's without it."""
    variables = re.findall(r"env var:\s+(\w+)", run("owm-outbox", "drain", "--help").out)
    names = ["OUTBOX", "SINK", "BATCH_SIZE", "WAIT_FOR_ROOM", "LOG_LEVEL", "LOG_FORMAT"]
    assert variables == [f"OWM_{name}" for name in names]


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
