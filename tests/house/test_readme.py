"""The README's code runs as printed, and what it says about tests, exit codes and options is so."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from owm_outbox.cli.outcome import EXIT_CODES

from support.commands import environment, run

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines() if line.strip()]
COMMANDS = [line.partition("#")[0].strip() for line in SHELL if line.startswith(("owm-outbox", "owm-producer"))]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _table(head: str) -> str:
    """Return the table whose first cell begins with ``head``."""
    found = re.search(rf"^\| {head} .*?\n\n", README, re.MULTILINE | re.DOTALL)
    assert found is not None, head
    return found[0]


def _block(language: str, beginning: str) -> str:
    (code,) = [str(code) for found, code in BLOCKS if found == language and code.startswith(beginning)]
    return code


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.split("class ", 1)[-1].split("(")[0].split(":")[0])
def test_python_blocks_run(code: str, tmp_path: Path) -> None:
    """Each Python example runs by itself, and its assertions hold."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist(line: str) -> None:
    """Each command that the README shows is one that we have, with these flags."""
    command, *args = shlex.split(line)
    outcome = run(command, *args, "--help")
    assert outcome.code == 0, outcome.err
    for flag in (arg for arg in args if arg.startswith("--")):
        assert flag in outcome.out


@pytest.mark.slow
def test_the_configuration_file_is_accepted(tmp_path: Path) -> None:
    """The TOML example has only keys that we know: the run fails at its API, which nobody serves here."""
    block = _block("toml", "# owm.toml")
    tomllib.loads(block)
    config = tmp_path / "owm.toml"
    config.write_text(block.replace("http://outpost-api-weather:8000", "http://127.0.0.1:9"))
    stores = ("--sink", "jsonl:-", "--outbox", f"sqlite:///{tmp_path}/x.db")
    outcome = run("owm-producer", "--config", str(config), *stores, "--retry-wait", "0.01")
    assert outcome.code == 75, outcome.err
    assert "127.0.0.1:9" in outcome.err


@pytest.mark.slow
def test_options_and_variables_are_those_of_the_help() -> None:
    """Each flag and each variable in the table of options is one of the producer's."""
    text = run("owm-producer", "--help").out
    flags, variables = (re.findall(pattern, _table("flag")) for pattern in (r"`(--[\w-]+)`", r"`(OWM_\w+)`"))
    assert len(flags) > 9
    assert set(flags) <= set(re.findall(r"--[\w-]+", text))
    assert set(variables) <= set(re.findall(r"OWM_\w+", text))


@pytest.mark.parametrize("url", re.findall(r"redis://redis\.internal[^\s'\"]+", README))
def test_sinks_are_complete(url: str) -> None:
    """Each sink's URL in the README can be used as it is printed."""
    from owm_outbox.plugins import open_sink

    open_sink(url).close()


def test_the_second_command_is_what_ci_runs() -> None:
    """.ci/run is the README's test command and nothing else."""
    script = (ROOT / ".ci" / "run").read_text("utf-8").strip().splitlines()
    assert script[-1] in SHELL
    assert script[-1].endswith("/tox")


def test_every_exit_code_is_documented() -> None:
    """README and --help list the same exit codes."""
    code = r"\b(0|6\d|7\d|1[34]\d)\b"
    documented = re.findall(code, "".join(re.findall(r"^\| [^|]+\|", _table("exit code"), re.MULTILINE)))
    assert sorted(documented) == sorted(re.findall(rf"^ +{code}", EXIT_CODES, re.MULTILINE))


def test_each_promise_names_tests_that_exist() -> None:
    """Every row of the guarantees links to the tests that hold it."""
    rows = _table("promise").strip().splitlines()[2:]
    assert len(rows) > 5
    for row in rows:
        links = re.findall(r"\[`(\w+)`\]\(([\w/.]+)\)", row.rpartition(" | ")[2])
        assert links, row
        for name, path in links:
            assert f"def {name}(" in (ROOT / path).read_text("utf-8"), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Each link to a file or a heading of ours leads to one."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        titles = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
        names = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not heading or heading in names, target
