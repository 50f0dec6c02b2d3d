"""The README's code runs as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from support.commands import environment, run

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines() if line.strip()]
COMMANDS = [line.partition("#")[0].strip() for line in SHELL if line.startswith(("owm-outbox", "owm-producer"))]


def _part(pattern: str) -> str:
    found = re.search(pattern, README, re.DOTALL)
    assert found is not None, pattern
    return found[0]


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.split("class ", 1)[-1].split("(")[0].split(":")[0])
def test_python_blocks_run(code: str, tmp_path: Path) -> None:
    """Each Python example runs by itself, and its assertions hold."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist(line: str) -> None:
    """Each command that the README shows is one that we have, with these flags."""
    command, *args = shlex.split(line)
    outcome = run(command, *args, "--help")
    assert outcome.code == 0, outcome.err
    for flag in (arg for arg in args if arg.startswith("--")):
        assert flag in outcome.out


def test_the_configuration_file_is_accepted(tmp_path: Path) -> None:
    """The TOML example has only keys that we know; its API does not resolve here, which is the first thing to fail."""
    (block,) = [code for language, code in BLOCKS if language == "toml"]
    tomllib.loads(block)
    config = tmp_path / "owm.toml"
    config.write_text(block.replace("http://outpost-api-weather:8000", "http://127.0.0.1:9"))
    args = (
        "--config",
        str(config),
        "--sink",
        "jsonl:-",
        "--outbox",
        f"sqlite:///{tmp_path}/x.db",
        "--retry-wait",
        "0.01",
    )
    outcome = run("owm-producer", *args)
    assert outcome.code == 75, outcome.err
    assert "127.0.0.1:9" in outcome.err


def test_the_second_command_is_what_ci_runs() -> None:
    """.ci/run is the README's test command and nothing else."""
    script = (ROOT / ".ci" / "run").read_text("utf-8").strip().splitlines()
    assert script[-1] in SHELL
    assert script[-1].endswith("/tox")


def test_every_exit_code_is_documented() -> None:
    """README and --help list the same exit codes."""
    from owm_outbox.cli.outcome import EXIT_CODES

    documented = set(re.findall(r"\b(0|6\d|7\d|1[34]\d)\b", _part(r"\| exit code.*?\n\n")))
    assert documented == set(re.findall(r"\b(0|6\d|7\d|1[34]\d)\b", EXIT_CODES))


def test_each_promise_names_tests_that_exist() -> None:
    """Every row of the guarantees links to the tests that hold it."""
    rows = _part(r"\| promise .*?\n\n").strip().splitlines()[2:]
    for row in rows:
        links = re.findall(r"\[`(\w+)`\]\(([\w/.]+)\)", row.rpartition(" | ")[2])
        assert links, row
        for name, path in links:
            assert f"def {name}(" in (ROOT / path).read_text("utf-8"), name
