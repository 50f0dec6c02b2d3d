"""The page for a browser: what it shows in every state, that nothing in it is foreign, and that the file is whole."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from owm_outbox import Attendance, InvalidRecord, LanedOutbox
from owm_outbox.operations.page import View, page, view_of
from owm_outbox.operations.plot import plot, summary
from owm_outbox.operations.view import findings
from owm_outbox.testing import Parcel
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import run
from support.views import HOSTILE, NOW, VIEWS

VOID = {"meta", "br", "hr", "img", "input", "link"}
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section", "div", "span", "bdi"),
    *("h1", "h2", "p", "ol", "li", "dl", "dt", "dd", "time", "pre", "code"),
    *("table", "thead", "tbody", "tr", "th", "td"),
    *("svg", "desc", "defs", "pattern", "line", "rect", "text"),
}


class _Reader(HTMLParser):
    """Reads a document; it must be well-formed, and have nothing in it that loads, runs or leads anywhere."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.feed(document)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Check an element."""
        found = dict(attrs)
        assert tag in ALLOWED, tag
        assert len(found) == len(attrs), f"an attribute of {tag} twice"
        for name, value in attrs:
            assert not name.startswith("on"), name
            assert name not in ("src", "href", "xlink:href", "style", "action", "data", "http-equiv"), name
            self.ids += [value or ""] if name == "id" else []
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Check an element without content, of an SVG."""
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Check the nesting."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep what is shown."""
        if self.open and self.open[-1] == "style":
            assert not re.search(r"@import|url\((?!#)|expression|@font-face", data)
        elif self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All that is shown."""
        return "".join(self.texts)


# -- the document


@pytest.mark.parametrize("state", VIEWS)
def test_the_document_is_well_formed_and_loads_nothing(state: str) -> None:
    """One document of known elements: no script, no address of anything else, each id once."""
    document = page(VIEWS[state])
    assert document.startswith('<!DOCTYPE html>\n<html lang="en">')
    reader = _Reader(document)
    names = [tag for tag, _ in reader.tags]
    assert names.count("h1") == names.count("main") == 1
    known = set(reader.ids)
    for _, attributes in reader.tags:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in known
    for tag, attributes in reader.tags:
        if tag == "th":
            assert attributes["scope"] == "col"
        if tag == "svg":
            assert attributes.get("role") == "img" or attributes.get("aria-hidden") == "true"
    assert "http" not in re.sub(r"\bhttp 127\.0\.0\.1:9108", "", document.replace("--http", "http"))


@pytest.mark.parametrize("field", ["outbox", "sink", "problem", "version", "reason", "holder", "job"])
def test_whatever_it_shows_is_text(field: str) -> None:
    """Markup, control characters and marks of direction are shown as characters, wherever they come from."""
    view = VIEWS["dead letters"]
    if field == "reason":
        view = replace(view, letters=[replace(letter, reason=HOSTILE) for letter in view.letters])
    elif field == "holder":
        view = replace(view, lanes=[replace(lane, holder=HOSTILE) for lane in VIEWS["lanes"].lanes])
    elif field == "job":
        view = replace(view, runs=[replace(run_, job=HOSTILE) for run_ in view.runs])
    else:
        given: dict[str, Any] = {field: HOSTILE}
        view = replace(view, **given)
    document = page(view)
    reader = _Reader(document)
    assert "<script>alert('x')</script>" in reader.text
    assert r"\x1b[31m \u202egnp.exe" in reader.text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", document)


# -- what it says


def test_an_empty_outbox_is_well() -> None:
    """It says so in words, and what it does not know."""
    text = _Reader(page(VIEWS["empty"])).text
    for words in ("✓ All is well", "Not measured", "None yet.", "None."):
        assert words in text
    assert "What is wrong" not in text


def test_a_healthy_outbox_shows_its_figures() -> None:
    """Pending with its age, what was delivered, and each run."""
    text = _Reader(page(VIEWS["healthy"])).text
    for words in ("✓ All is well", "212", "3 s", "16,510", "in the last hour", "27 m ago", "38 s", "34,006"):
        assert words in text
    assert text.count("✓ complete") == 6


def test_a_sink_that_is_down_is_said_first() -> None:
    """What keeps it from delivering, for how long, and what to type; a password is not shown."""
    wrong = findings(VIEWS["sink down"])
    assert wrong[0].what == (
        "Nothing is delivered now: redis.internal:6379 cannot be reached (Connection refused). "
        "The oldest task has been pending for 2 h 5 m."
    )
    assert wrong[0].commands[0][:3] == ("owm-outbox", "check", "sink")
    assert [finding.what[:30] for finding in wrong[1:]] == ["The last run of owm is unfinis"]
    text = _Reader(page(VIEWS["sink down"])).text
    assert "✗ 2 things are wrong" in text
    assert "owm-outbox check sink 'redis://owm:***@redis.internal:6379/0?stream=owm-ingestion-stream'" in text
    assert "*** stands for what is secret." in text


def test_dead_letters_are_shown_with_reasons_and_a_way_out() -> None:
    """As many as fit, how many more there are, and which of them can be retried."""
    text = _Reader(page(VIEWS["dead letters"])).text
    for words in (
        "There are 57 dead letters.",
        "owm-outbox dead show 4101 --outbox sqlite:////var/lib/owm/tasks.db",
        "latitude_deg 91.0 is beyond 90",
        "never a task",
        "And 37 more",
        "✗ incomplete, 128 pages missing",
    ):
        assert words in text


def test_pending_for_too_long_without_a_problem_asks_for_a_relay() -> None:
    """Lanes are shown with who holds them, and one that nobody holds."""
    text = _Reader(page(VIEWS["lanes"])).text
    assert "The oldest task has been pending for 17 m. Look whether a relay is at work" in text
    assert "owm-outbox drain --outbox" in text
    assert "nobody" in text
    without = replace(VIEWS["lanes"], lanes=[replace(lane, holder="") for lane in VIEWS["lanes"].lanes])
    assert "Held by" not in _Reader(page(without)).text


def test_only_the_newest_run_of_a_job_counts() -> None:
    """An older one that was not complete was made good by a newer one; one in progress is not wrong."""
    newest, *_ = VIEWS["healthy"].runs
    older = replace(VIEWS["dead letters"].runs[1], job=newest.job)
    assert findings(replace(VIEWS["empty"], runs=[newest, older])) == []
    (wrong,) = findings(replace(VIEWS["empty"], runs=[older, newest]))
    assert wrong.what == "The last run of owm was closed before it was complete. Run the job again."
    begun = replace(newest, state="open", delivered=None, started_at=NOW - timedelta(seconds=60), seconds=55.0)
    assert findings(replace(VIEWS["empty"], runs=[begun])) == []


# -- the plot


@pytest.mark.parametrize(
    ("counts", "top", "words"),
    [
        ([0] * 60, "2", "Tasks delivered in 60 minutes: 0; at most 0 in one of them."),
        ([1] * 60, "2", "Tasks delivered in 60 minutes: 60; at most 1 in one of them."),
        ([None] * 59 + [34_006], "40,000", "Tasks delivered in 1 minute: 34,006; at most 34,006 in one of them."),
        ([10**9] * 60, "1,000,000,000", "at most 1,000,000,000 in one of them."),
        ([None] * 60, "2", "Nobody measured in the last 60 minutes."),
    ],
)
def test_the_plot_ends_with_a_round_number(counts: list[int | None], top: str, words: str) -> None:
    """It has a title, a description in words and labels on both axes; what nobody measured is hatched, not zero."""
    reader = _Reader(f"<html>{plot(counts)}</html>")
    assert top in reader.texts
    assert {"60", "45", "30", "15", "now", "minutes ago", "tasks per minute"} <= set(reader.texts)
    assert words in summary(counts)
    assert summary(counts) in reader.texts
    hatched = [attributes for _, attributes in reader.tags if attributes.get("class") == "unknown"]
    bars = [attributes for _, attributes in reader.tags if attributes.get("class") == "bar"]
    assert len(hatched) == counts.count(None)
    assert len(bars) == sum(1 for count in counts if count)
    assert all(0 < float(bar["height"] or 0) <= 120 for bar in bars)


# -- from an outbox


def test_a_view_is_filled_from_an_outbox() -> None:
    """Figures, runs and letters of an open outbox, with URLs that show no password."""
    now = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
    clock = [now - timedelta(minutes=30)]
    outbox = MemoryOutbox(now=lambda: clock[0])
    record = outbox.start_run("parcels")
    bad = InvalidRecord(b"x", "not\na parcel", key="x")
    outbox.append([Parcel(uuid4(), 1)], key=lambda parcel: parcel.number, run=record.id, invalid=[bad])
    view = view_of(
        outbox,
        url="memory:?password=s3cret",
        sink_url="redis://owm:s3cret@redis:6379/0",
        throughput=[None] * 59 + [7],
        problem="it rains",
        now=now,
    )
    assert (view.pending, view.oldest, view.dead, view.now) == (1, 1800.0, 1, now)
    assert [(letter.position, letter.is_task, letter.rejected) for letter in view.letters] == [(2, False, 1800.0)]
    assert [run_.job for run_ in view.runs] == ["parcels"]
    assert view.throughput[-1] == 7
    document = page(view)
    assert "s3cret" not in document
    for words in ("it rains", r"not a parcel", "30 m", "unfinished"):
        assert words in document


class _Laned(MemoryOutbox, LanedOutbox):
    """Three lanes, each an outbox in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.found = [MemoryOutbox() for _ in range(3)]

    @property
    def lanes(self) -> int:
        return len(self.found)

    def lane(self, number: int) -> MemoryOutbox:
        return self.found[number]

    def attend(self) -> AbstractContextManager[Callable[[], Attendance]]:
        raise AssertionError("a look must not be counted among the relays")


def test_a_view_of_lanes_has_each() -> None:
    """With who holds it, where the caller knows; a look takes no part in sharing lanes out."""
    outbox = _Laned()
    outbox.lane(2).append([Parcel(uuid4(), 1), Parcel(uuid4(), 2)])
    view = view_of(outbox, url="memory:", now=datetime.now(UTC), holders={1: "relay-a"})
    assert [(lane.number, lane.pending) for lane in view.lanes] == [(0, 0), (1, 0), (2, 2)]
    assert [lane.holder for lane in view.lanes] == ["", "relay-a", ""]


# -- the file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with an outbox in which a parcel waits, and one is dead."""
    with SqliteOutbox(tmp_path / "tasks.db") as outbox:
        outbox.append([Parcel(uuid4(), 1), Parcel(uuid4(), 2)])
        outbox.reject({2: HOSTILE})
    return tmp_path


@pytest.mark.slow
def test_status_writes_the_page(folder: Path) -> None:
    """To a file, which is replaced and readable by others, or to stdout; the password of the sink is hidden."""
    outbox = ("--outbox", "sqlite:///tasks.db", "--sink", "redis://owm:s3cret@redis:6379/0?stream=s")
    (folder / "status.html").write_text("old")
    (folder / "link.html").symlink_to("status.html")
    for name in ("status.html", "link.html"):
        outcome = run("owm-outbox", "status", "--html", name, *outbox, cwd=folder)
        assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert (folder / "link.html").is_symlink()
    found = (folder / "status.html").stat()
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(found.st_mode) == 0o644 & ~umask
    text = _Reader((folder / "status.html").read_text()).text
    for words in ("redis://owm:***@redis:6379/0?stream=s", "There is 1 dead letter.", "<script>alert('x')</script>"):
        assert words in text
    printed = run("owm-outbox", "status", "--html", "-", *outbox, cwd=folder)
    assert (printed.code, printed.err) == (0, "")
    assert "There is 1 dead letter." in _Reader(printed.out).text
    assert {path.name for path in folder.iterdir()} == {"tasks.db", "status.html", "link.html"}


@pytest.mark.slow
def test_a_page_that_cannot_be_written_leaves_the_old_one(folder: Path) -> None:
    """One line; what is in the file stays, and nothing is left next to it. A device is not replaced."""
    (folder / "status.html").write_text("old")
    (folder / "pipe").unlink(missing_ok=True)
    os.mkfifo(folder / "pipe")
    names = {path.name for path in folder.iterdir()}
    for args, code, words in (
        (("--html", "none/status.html"), 78, "cannot be written (No such file or directory)"),
        (("--html", "pipe"), 78, "pipe is not a regular file"),
        (("--html", "."), 64, "is a directory"),
        (("--html", "x.html", "--json"), 64, "exclude each other"),
        (("--html", "x.html", "--max-age", "1m"), 64, "exclude each other"),
        (("--html", "status.html", "--outbox", "sqlite:///none.db"), 73, "none.db"),
    ):
        outcome = run("owm-outbox", "status", "--outbox", "sqlite:///tasks.db", *args, cwd=folder)
        assert (outcome.code, outcome.out) == (code, ""), args
        assert words in outcome.line
    assert (folder / "status.html").read_text() == "old"
    assert {path.name for path in folder.iterdir()} == names


def test_a_view_has_a_version() -> None:
    """That of the package, which wrote it."""
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", View(outbox="memory:", now=NOW, pending=0, dead=0).version)
