"""What servers and records say reaches a terminal as text, never as an order; in an 8-bit locale, too."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from uuid import uuid4

import pytest

from owm_outbox.cli.logs import set_up_logging
from owm_outbox.errors import printable
from owm_outbox.testing import Parcel
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import run

NASTY = "\x1b[2J\x9b31m\x7f\u202egnp.exe\u2066\u200b\ufeff\x08"
SHOWN = r"\x1b[2J\x9b31m\x7f\u202egnp.exe\u2066\u200b\ufeff\x08"


def test_text_stays_text() -> None:
    """Letters of all scripts, signs and emoji are shown as they are; halves of characters are not."""
    for text in ("Zürich, 東京 … €", "🌍 👩‍🌾 العربية", "می‌خواهم"):
        assert printable(text) == text
    assert printable(NASTY + "\udcff") == SHOWN + r"\udcff"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make an outbox with a dead letter whose record and reason say nasty things."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox:
        outbox.append([Parcel(uuid4(), 1, f"Zürich {NASTY}")])
        outbox.reject({1: f"東京 {NASTY}"})
    return tmp_path


@pytest.mark.slow
def test_dead_letters_give_a_terminal_no_orders(folder: Path) -> None:
    """``dead list`` shows control characters and marks of direction as escapes; with --json they are as they were."""
    listed = run("owm-outbox", "dead", "list", "--outbox", "sqlite:///tasks.db", cwd=folder)
    assert (listed.code, listed.err) == (0, "")
    assert f"東京 {SHOWN}" in listed.out
    assert not set(listed.out) & set(NASTY) - set(SHOWN)
    letter = json.loads(run("owm-outbox", "dead", "list", "--json", "--outbox", "sqlite:///tasks.db", cwd=folder).out)
    assert letter["reason"] == f"東京 {NASTY}"


@pytest.mark.slow
def test_the_last_line_gives_a_terminal_no_orders(tmp_path: Path) -> None:
    """What the user typed, or a server said, is escaped in the line that a command ends with."""
    outcome = run("owm-producer", "--sink", f"jsonl:/no/{NASTY}/x", cwd=tmp_path)
    assert outcome.code == 78
    assert SHOWN in outcome.line
    assert not set(outcome.err) & set(NASTY) - set(SHOWN)


def test_logs_give_a_terminal_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    """A log record is escaped, and so is a traceback, whose lines stay lines."""
    handlers = logging.getLogger().handlers[:]
    set_up_logging()
    try:
        raise ValueError(NASTY)
    except ValueError:
        logging.getLogger("owm_outbox").warning("%s", NASTY, exc_info=True)
    finally:
        logging.getLogger().handlers[:] = handlers
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(f"WARNING {SHOWN}")
    assert lines[-1] == f"ValueError: {SHOWN}"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1", "koi8-r"])
@pytest.mark.parametrize("command", ["owm-producer --help", "owm-outbox --help", "owm-outbox dead list"])
def test_a_narrow_encoding_is_enough(command: str, encoding: str, folder: Path) -> None:
    """What an encoding lacks is written as an escape."""
    program, *args = command.split()
    env = {"PYTHONIOENCODING": encoding, "OWM_OUTBOX": "sqlite:///tasks.db"}
    outcome = run(program, *args, cwd=folder, env=env, encoding=encoding)
    assert (outcome.code, outcome.err) == (0, "")
    plain = run(program, *args, cwd=folder, env={"OWM_OUTBOX": "sqlite:///tasks.db"})
    assert outcome.out == plain.out.encode(encoding, errors="backslashreplace").decode(encoding)


@pytest.mark.slow
def test_json_is_utf_8_in_any_locale(folder: Path) -> None:
    """Data for programs does not depend on the locale."""
    args = ("dead", "list", "--json", "--outbox", "sqlite:///tasks.db")
    plain = run("owm-outbox", *args, cwd=folder)
    assert "Zürich" in plain.out
    assert run("owm-outbox", *args, cwd=folder, env={"PYTHONIOENCODING": "latin-1"}) == plain
