"""Whatever the style of an API, all its records become tasks once each, and what fails is resumed where it failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import OutboxRelay, RunIncomplete, RunReport
from owm_outbox.paging import ApiPage
from owm_outbox_backends.jsonl import JsonLinesSink
from owm_outbox_backends.memory import MemoryOutbox

from support.misbehaving import Misbehaving, ids_in, status, together, trickling_body, truncated
from support.styles import CHAINED, NUMBERED, STYLES, Place, Styled, StyledJob

ALL = list(range(1, 251))
every_style = pytest.mark.parametrize("kind", STYLES)


@dataclass
class Reading:
    """Runs of one job against one service, into one file."""

    service: Misbehaving
    api: Styled
    out: Path

    def __post_init__(self) -> None:
        self.outbox = MemoryOutbox()

    def run(self, limits: dict[str, Any] | None = None, **options: Any) -> tuple[int, str, RunReport]:
        """Return the exit code, the line and the report of one run."""
        quick: dict[str, Any] = {"api_url": self.service.url, "retry_wait": 0.001, "request_timeout": 5.0}
        job = StyledJob(StyledJob.Options(**quick | options), STYLES[self.api.kind], **(limits or {}))
        self.api.asked.clear()
        try:
            report = OutboxRelay(self.outbox, JsonLinesSink(self.out)).run(job)
        except RunIncomplete as incomplete:
            return incomplete.exit_code, str(incomplete), incomplete.report
        return 0, "", report

    @property
    def found(self) -> list[int]:
        """The cities that were delivered, sorted, so that one that is there twice shows."""
        return ids_in(self.out)


@pytest.fixture
def reading(service: Misbehaving, kind: str, out: Path) -> Reading:
    """Give a healthy API."""
    return Reading(service, Styled(service, kind), out)


@every_style
def test_every_record_is_read_once(reading: Reading, kind: str) -> None:
    """Each page is asked for once; where the total is but a claim, what follows the last one as well."""
    code, _, report = reading.run()
    assert (code, reading.found, report.expected) == (0, ALL, 250)
    assert sorted(reading.api.asked) == ([0, 100, 200, 300] if kind in NUMBERED else [0, 100, 200])


@every_style
def test_several_pages_at_once_where_their_addresses_are_known(reading: Reading, kind: str) -> None:
    """Numbers and offsets are fetched ahead; a cursor is known only once its page is there."""
    meet = together(4, reading.api.give)
    for begins in (10, 20, 30, 40) if kind in NUMBERED else ():
        reading.api.fail(begins, meet, times=1)
    assert reading.run(api_limit=10, concurrency=4)[0] == 0
    assert reading.service.most_at_once == (4 if kind in NUMBERED else 1)
    assert reading.found == ALL


@every_style
@pytest.mark.parametrize("total", [None, 7, 0, 100, -1], ids=["none", "too small", "zero", "page size", "true"])
@pytest.mark.parametrize("cap", [1000, 30], ids=["", "capped"])
def test_neither_a_total_nor_a_cap_cuts_anything_off(reading: Reading, total: int | None, cap: int) -> None:
    """Whatever total is given, and if there are fewer records per page than asked for, all are read."""
    reading.api.total, reading.api.cap = total, cap
    assert (reading.run()[0], reading.found) == (0, ALL)


@every_style
def test_a_total_that_is_too_large_is_incomplete(reading: Reading, kind: str) -> None:
    """What the source claims and does not give is looked for twice; the run says what is missing."""
    reading.api.total = 260
    code, line, _ = reading.run()
    assert (code, line) == (
        75,
        "job 'styled': expected 260 distinct tasks, got 250; the next run reads all of it once more",
    )
    assert reading.api.asked.count(0) == 2
    reading.api.total = 250
    assert (reading.run()[0], reading.found) == (0, ALL)


@every_style
def test_a_total_that_counts_records_twice_is_seen_through(reading: Reading, caplog: pytest.LogCaptureFixture) -> None:
    """A second pass that gives as many records, and none that is new, shows what the total counts."""
    reading.service.records.append(reading.service.records[3])
    code, _, report = reading.run()
    assert (code, report.expected, reading.found) == (0, 250, ALL)
    assert "total of 251 counts records twice" in caplog.text


@every_style
@pytest.mark.parametrize("reply", [status(500), status(429), truncated, trickling_body], ids=lambda r: r.__name__)
@pytest.mark.parametrize("begins", [0, 100, 200])
def test_a_page_that_fails_is_resumed(reading: Reading, kind: str, reply: Any, begins: int) -> None:
    """After five failed attempts a run is incomplete; the next one asks for what is missing, and for nothing else."""
    reading.api.fail(begins, reply, times=10)
    code, _, _ = reading.run(request_timeout=0.3)
    before = [city for city in ALL if not begins < city <= begins + 100]
    if kind in CHAINED:
        before = ALL[:begins]
    assert (code, reading.found) == (75, before)
    reading.api.replies.clear()
    assert (reading.run()[0], reading.found) == (0, ALL)
    if kind in NUMBERED:
        assert reading.api.asked == [begins]
    else:
        assert reading.api.asked == list(range(begins, 300, 100))


@every_style
def test_a_failure_that_passes_is_not_noticed(reading: Reading) -> None:
    """Four failures of each page are made good by the fifth attempt."""
    for begins in (0, 100, 200):
        reading.api.fail(begins, status(500), times=4)
    assert (reading.run()[0], reading.found) == (0, ALL)


@every_style
def test_the_breaker_opens_in_every_style(reading: Reading) -> None:
    """After so many failures in a row nothing is sent any more."""
    reading.api.fail(0, status(500))
    reading.api.fail(100, status(500))
    assert reading.run({"fail_max": 5})[0] == 75
    code, line, _ = reading.run({"fail_max": 5})
    assert (code, reading.api.asked) == (75, [])
    assert "the circuit breaker is open" in line


# -- offsets


@pytest.mark.parametrize("kind", ["offsets"])
def test_a_capped_first_page_that_comes_late_is_a_reason_to_read_again(reading: Reading) -> None:
    """If the first page shows only at the end that the others were not next to each other, all are read again."""
    reading.api.cap, reading.api.total = 30, None
    reading.api.fail(0, status(500), times=5)
    assert (reading.run()[0], reading.found) == (0, ALL)


# -- cursors and links


@pytest.mark.parametrize("kind", CHAINED)
@pytest.mark.parametrize("code", [400, 404, 410, 422])
def test_a_cursor_that_expired_starts_from_the_first_page(reading: Reading, kind: str, code: int) -> None:
    """If the API does not know the page to resume at any more, all pages are read again; nothing is there twice."""
    reading.api.fail(200, status(500), times=5)
    assert reading.run()[0] == 75
    reading.api.fail(200, status(code), times=5)
    assert (reading.run()[0], reading.found) == (0, ALL)
    assert reading.api.asked == [200] * 5 + [0, 100, 200]


@pytest.mark.parametrize("kind", ["cursors", "cursor links", "link header"])
def test_cursors_that_go_in_circles_are_not_read_for_ever(reading: Reading, kind: str) -> None:
    """A page that names one that was there before ends the call; what was read is delivered."""
    first = ""

    def circle(following: str | None) -> str | None:
        nonlocal first
        first = first or following or ""
        return following or first

    reading.api.following = circle
    code, line, _ = reading.run()
    assert (code, reading.found) == (75, ALL[:200])
    assert "names a page as the next one that was there before" in line


@pytest.mark.parametrize("kind", ["cursors"])
def test_an_empty_page_that_names_itself_is_the_end(reading: Reading) -> None:
    """Some APIs never say that there is nothing more; they give the same cursor with nothing."""
    last = "MjUw"
    reading.api.following = lambda following: following or last
    assert (reading.run()[0], reading.found) == (0, ALL)


@pytest.mark.parametrize("kind", ["cursors"])
def test_a_parser_that_forgets_the_cursor_is_told(reading: Reading) -> None:
    """A page that does not say what follows is not taken for the last one."""
    code, line, _ = reading.run({"parse": lambda body: ApiPage([Place(1, 1.0)])})
    assert (code, reading.found) == (78, [])
    assert line == f"`parse` gives no ApiPage.next for {reading.service.url}/cities/: give None for the last page"


@pytest.mark.parametrize("kind", ["cursor links", "link header"])
@pytest.mark.parametrize("links", ["", "https://127.0.0.1", "http://127.0.0.1:1"], ids=["relative", "scheme", "port"])
def test_links_are_followed_where_the_api_is(reading: Reading, links: str) -> None:
    """A link is relative, or as an API behind a proxy sees itself; it is followed by the address that was given."""
    reading.api.links = links
    assert (reading.run(api_token="hush")[0], reading.found) == (0, ALL)  # noqa: S106 - of no server
    assert {request.headers["Authorization"] for request in reading.service.requests} == {"Bearer hush"}


@pytest.mark.parametrize("kind", ["cursor links", "link header"])
def test_a_user_in_the_address_is_sent_along_links(reading: Reading) -> None:
    """What is in the address counts for each page."""
    url = reading.service.url.replace("//", "//ada:love@")
    assert (reading.run(api_url=url)[0], reading.found) == (0, ALL)
    assert {request.headers["Authorization"] for request in reading.service.requests} == {"Basic YWRhOmxvdmU="}


@pytest.mark.parametrize("kind", ["cursor links", "link header"])
def test_a_link_to_another_host_is_refused(reading: Reading, kind: str) -> None:
    """Nobody else gets the token; waiting does not change it."""
    reading.api.links = "http://localhost:1"
    code, line, _ = reading.run(api_token="hush")  # noqa: S106 - of no server
    assert (code, reading.found) == (78, ALL[:100])
    assert "links to another host for its next page, http://localhost:1/cities/?after=" in line


@pytest.mark.parametrize("kind", ["cursor links", "link header"])
def test_a_link_that_is_none_is_one_line(reading: Reading, kind: str) -> None:
    """What cannot be taken apart is shown."""
    reading.api.links = "http://[::1"
    code, line, _ = reading.run()
    assert (code, reading.found) == (75, ALL[:100])
    assert "http://[::1" in line


@pytest.mark.parametrize("kind", ["link header"])
def test_a_full_page_without_a_link_is_warned_of(reading: Reading, caplog: pytest.LogCaptureFixture) -> None:
    """A proxy may have taken the header away; that there is one page and no more is rare."""
    reading.api.following = lambda _: None
    reading.api.total = None
    assert (reading.run()[0], reading.found) == (0, ALL[:100])
    assert "gave a full page, and no Link header names another one" in caplog.text


def test_a_value_is_not_taken_for_a_link() -> None:
    """A cursor in base64 may begin with a slash."""
    from owm_outbox.paging.api import _is_link

    assert [_is_link(after) for after in ("/w8=", "abc", "//8=", "?after=3", "/x?a=1", "http://x/")] == [
        False,
        False,
        False,
        True,
        True,
        True,
    ]
