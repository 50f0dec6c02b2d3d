"""The runbook in docs/operations.md is whole, its links lead somewhere, and its commands are accepted."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from owm_outbox import ExitCode
from owm_outbox.cli.commands import cli
from owm_outbox.cli.run import JobCommand, demo_params

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / name).read_text("utf-8") for name in ("operations.md", "deploy/README.md")}
PAGE = PAGES["operations.md"]


def _anchors(page: str) -> set[str]:
    """Return the anchors that a page's headings have on GitHub and GitLab."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _commands() -> Iterator[tuple[str, ...]]:
    """Yield the words of each command of ours in the code blocks, whatever stands before it in its line."""
    for page in PAGES.values():
        for block in re.findall(r"^```(?:sh|console)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                yield from _commands_in(re.sub(r"^[$#] ", "", line))


def _commands_in(line: str) -> Iterator[tuple[str, ...]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    if words[:1] == ["kubectl"]:  # what it runs in a pod; other words that look like ours are names of objects
        words = words[words.index("--") + 1 :] if "--" in words else []
    ours: list[str] | None = None
    for word in [*words, ";"]:
        if ours is not None and set(word) <= set("|;&<>()"):
            yield tuple(word for word in ours if word != "…")
            ours = None
        elif ours is not None:
            ours.append(word)
        elif re.fullmatch(r"(?:/\S+/)?owm-(?:outbox|producer)", word):
            ours = [word.rpartition("/")[2]]


def _parse(command: click.Command, name: str, args: list[str], parent: click.Context | None = None) -> None:
    with command.make_context(name, args, parent=parent) as ctx:
        if isinstance(command, click.Group):
            _, found, rest = command.resolve_command(ctx, [*ctx._protected_args, *ctx.args])
            assert found is not None
            _parse(found, str(found.name), rest, ctx)


def test_there_are_commands() -> None:
    """Those of the runbook are found, wherever they stand in their line."""
    found = list(_commands())
    assert ("owm-outbox", "dead", "drop", "17", "18") in found
    assert found.count(("owm-outbox", "status")) > 5


@pytest.mark.parametrize("words", sorted(set(_commands())), ids=" ".join)
def test_a_command_of_the_page_is_accepted(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command, its flags and its arguments are understood."""
    monkeypatch.setenv("OWM_SINK", "jsonl:-")
    name, *args = words
    with contextlib.suppress(click.exceptions.Exit):  # what --help ends with
        _parse(cli if name == "owm-outbox" else JobCommand("owm", extra=demo_params()), name, args)


def test_a_command_that_is_wrong_is_not_accepted() -> None:
    """Or the test above would prove nothing."""
    for line in ("owm-outbox stat", "owm-outbox status --jsn", "owm-outbox dead drop x", "owm-outbox dead list 17"):
        with pytest.raises(click.UsageError):
            _parse(cli, "owm-outbox", line.split()[1:])


@pytest.mark.parametrize("code", sorted(set(ExitCode)))
def test_an_exit_code_has_its_section(code: ExitCode) -> None:
    """It says what the code means, and what is safe."""
    (section,) = re.findall(rf"^### {code:d}: [^\n]+\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert "*Means.*" in section
    assert "*Safe.*" in section


def test_an_alert_s_section_is_whole() -> None:
    """It says what the alert means, what to look at, what to type, and what is safe."""
    sections = re.findall(r"^### (Outbox\w+)\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
    assert sections
    for name, section in sections:
        for word in ("Means.", "Look at", "Type.", "Safe."):
            assert f"*{word}*" in section, (name, word)


def test_links_lead_somewhere() -> None:
    """Files that the pages link to are there, with the headings that are named."""
    for name, page in PAGES.items():
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page):
            target = ((DOCS / name).parent / path).resolve() if path else DOCS / name
            assert target.exists(), (name, path)
            if anchor:
                assert anchor in _anchors(target.read_text("utf-8")), (name, path, anchor)
