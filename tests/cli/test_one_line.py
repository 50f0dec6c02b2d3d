"""What others wrote on several lines is one line where it becomes ours: an error, a log record, a dead letter."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from owm_outbox import ConfigurationError, EntriesRejected, InvalidRecord, OutboxUnavailable, SinkUnavailable
from owm_outbox.errors import one_line
from owm_outbox.testing import Parcel
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import run
from support.plugins import install_jobs

pytestmark = pytest.mark.slow

DRIVER = 'connection to server at "db" failed:\n\tIs the server running?\r\n\n  DETAIL: no route\u2028to host\n'
SHOWN = 'connection to server at "db" failed: Is the server running? DETAIL: no route to host'

JOB = """
    import json
    from owm_outbox import InvalidRecord, Job, Page, SourceUnavailable

    class Fleet(Job):
        name = "fleet"
        default_outbox = "sqlite:///tasks.db"
        default_sink = "jsonl:tasks.jsonl"

        def pages(self, run):
            yield Page([], invalid=[InvalidRecord(b"{}", "two\\nlines")])
            FAILS
    """


@pytest.mark.parametrize("kind", [ConfigurationError, OutboxUnavailable, SinkUnavailable])
def test_an_error_is_one_line(kind: type[Exception]) -> None:
    """Whatever a plugin repeats of its driver's message, without its line breaks and what indents them."""
    assert str(kind(f"the sink is down ({DRIVER})")) == f"the sink is down ({SHOWN} )"
    assert str(EntriesRejected({1: DRIVER})).endswith(SHOWN)


def test_a_line_stays_as_it_is() -> None:
    """Blanks within a line may be part of a name."""
    assert one_line("a  file.db") == "a  file.db"


@pytest.mark.parametrize(
    ("fails", "code", "line"),
    [
        (r"raise SourceUnavailable('the API\n says no')", 75, "the API says no"),
        ("raise KeyError", 70, "job 'fleet' failed at {file}:12: KeyError:"),
        ("json.loads('{')", 70, "job 'fleet' failed at {file}:12: JSONDecodeError: Expecting property name"),
    ],
    ids=["source", "job", "library"],
)
def test_a_job_s_error_is_one_line(fails: str, code: int, line: str, tmp_path: Path) -> None:
    """It names the job's own line, also where a library raised it, and where the job is installed among libraries."""
    installed = tmp_path / "site-packages"
    installed.mkdir()
    env = install_jobs(installed, JOB.replace("FAILS", fails), fleet="Fleet")
    outcome = run("owm-outbox", "run", "fleet", cwd=tmp_path, env=env)
    assert outcome.code == code
    assert outcome.line.startswith("owm-outbox: " + line.format(file=installed / "other_peoples_jobs.py"))


def test_a_dead_letter_s_reason_is_one_line(tmp_path: Path) -> None:
    """The list has two lines per letter; as JSON, the reason is as it was given."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox:
        outbox.append([Parcel(uuid.uuid4(), 1)], run=outbox.start_run("owm").id, invalid=[InvalidRecord(b"{}", DRIVER)])
        outbox.reject({1: DRIVER})
    args = ("owm-outbox", "dead", "list", "--outbox", "sqlite:///tasks.db")
    lines = run(*args, cwd=tmp_path).out.splitlines()
    assert [line.endswith(SHOWN) for line in lines] == [True, False, True, False]
    assert [json.loads(line)["reason"] for line in run(*args, "--json", cwd=tmp_path).out.split("\n")[:2]] == [
        DRIVER
    ] * 2


def test_a_log_record_is_one_line(tmp_path: Path) -> None:
    """Also one of a package that is not ours."""
    env = install_jobs(tmp_path, JOB.replace("FAILS", r"import logging; logging.warning('two\n lines')"), fleet="Fleet")
    outcome = run("owm-outbox", "run", "fleet", cwd=tmp_path, env=env)
    (logged, last) = outcome.err.splitlines()
    assert logged.endswith(" WARNING two lines")
    assert last == "owm-outbox: complete, but 1 task became a dead letter: see owm-outbox dead list"
