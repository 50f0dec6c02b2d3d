"""All pages of an API come, each tried again; what is bad is set apart, and what is missing is named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from owm_outbox import DeadLetterStore, Outbox
from owm_outbox import paging as paging_module
from owm_outbox.jobs.owm import OwmJob
from owm_outbox.paging import Answer, PagedApi
from owm_outbox.paging_types import PagedApiOptions
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import SCRIPTS, environment, run
from support.misbehaving import (
    Exchange,
    Misbehaving,
    Reply,
    Request,
    body,
    cut_chunked,
    delivered,
    envelope,
    good,
    gzip_bomb,
    hang,
    huge,
    ids_in,
    misbehaving,
    produce,
    raw,
    record,
    reset,
    slow,
    status,
    together,
    trickling_body,
    trickling_header,
    truncated,
)
from support.weather import made_up

ALL = list(range(1, 251))


@pytest.fixture(params=["memory", "sqlite"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    """Give an outbox of each kind."""
    with MemoryOutbox() if request.param == "memory" else SqliteOutbox(tmp_path / "tasks.db") as outbox:
        yield outbox


@pytest.fixture
def service() -> Iterator[Misbehaving]:
    """Serve 250 cities."""
    with misbehaving(made_up(250)) as service:
        yield service


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Name the file that the tasks go to."""
    return tmp_path / "out"


# -- pages that fail


def test_two_bad_pages_of_341_keep_nothing_else_back(tmp_path: Path, out: Path) -> None:
    """Two pages that always fail are named, all else is delivered; once healthy the next call fetches just those."""
    args = ("--outbox", f"sqlite:///{tmp_path}/tasks.db", "--sink", f"jsonl:{out}", "--retry-wait", "0.001", "--json")
    with misbehaving(made_up(34_006)) as service:
        service.misbehave(status(500), 100)
        service.misbehave(truncated, 340)
        first = run("owm-producer", "--api-url", service.url, *args)
        assert first.code == 75
        assert (first.report["missing"], first.report["complete"]) == ([100, 340], False)
        assert (first.report["expected"], first.report["extracted"]) == (34_006, 33_900)
        assert (first.report["delivered"], first.report["pending"]) == (33_900, 0)
        last = first.err.splitlines()[-1]
        assert last.startswith("owm-producer: 2 pages of owm never came (100, 340)")
        asked = Counter(service.pages)
        # Page 0 a second time: what the newest total is, for the list may have become shorter than its last page.
        assert {page: count for page, count in asked.items() if count > 1} == {0: 2, 100: 10, 340: 10}
        assert set(asked) == set(range(341))
        service.heal()
        service.requests.clear()
        second = run("owm-producer", "--api-url", service.url, *args)
        assert sorted(filter(None, service.pages)) == [100, 340]
    assert (second.code, second.err) == (0, "")
    assert second.report["run_id"] == first.report["run_id"]
    assert (second.report["resumed"], second.report["complete"], second.report["missing"]) == (True, True, [])
    assert (second.report["extracted"], second.report["delivered"]) == (34_006, 106)
    assert ids_in(out) == list(range(1, 34_007))


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_page_gets_five_attempts_and_five_more(
    concurrency: int, outbox: Outbox, service: Misbehaving, out: Path
) -> None:
    """A page is tried five times in its turn and five times at the end, no more; the other pages once."""
    service.misbehave(slow(0.03), 0, times=1)
    service.misbehave(status(500), 1)
    ending = produce(service, outbox, out, concurrency=concurrency)
    assert (ending.code, ending.report.missing) == (75, [1])
    assert Counter(service.pages) == {0: 1, 1: 10, 2: 1}


@pytest.mark.parametrize("good_at", [2, 5, 6, 10])
def test_a_page_that_comes_in_the_end_is_no_failure(
    good_at: int, outbox: Outbox, service: Misbehaving, out: Path
) -> None:
    """A page that comes at any of its ten attempts makes the run complete."""
    service.misbehave(status(502), 1, times=good_at - 1)
    ending = produce(service, outbox, out)
    assert (ending.code, ending.report.missing) == (0, [])
    assert service.pages.count(1) == good_at
    assert ids_in(out) == ALL


def test_the_first_page_may_be_the_bad_one(outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """The first page is no exception: the others come, and it is named."""
    service.misbehave(status(500), 0)
    ending = produce(service, outbox, out)
    assert (ending.code, ending.report.missing, ending.report.expected) == (75, [0], 250)
    assert ids_in(out) == ALL[100:]
    service.heal()
    assert produce(service, outbox, out).code == 0
    assert ids_in(out) == ALL


def test_pages_may_count_from_1(service: Misbehaving, out: Path) -> None:
    """With --first-page 1 the pages from 1 on are asked for, as many as the total says, and no other."""
    service.first_page = 1
    service.misbehave(status(500), 3)
    ending = produce(service, MemoryOutbox(), out, first_page=1)
    assert (ending.code, ending.report.missing) == (75, [3])
    assert set(service.pages) == {1, 2, 3}
    assert ids_in(out) == ALL[:200]


def test_an_api_that_gives_less_a_page_has_more_of_them(outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """If the API says that it gives 40 a page, the pages are as many; this holds for the next call, too."""
    service.most = 40
    service.misbehave(status(500), 5)
    ending = produce(service, outbox, out)
    assert (ending.code, ending.report.missing) == (75, [5])
    assert set(service.pages) == set(range(7))
    service.heal()
    service.requests.clear()
    assert produce(service, outbox, out).code == 0
    assert service.pages == [5]
    assert ids_in(out) == ALL


# -- bad answers

DEEP = b"[" * 100_000
NO_TOTAL = re.compile(rb',"total_count":\d+')


def _total(value: bytes) -> Reply:
    """Answer with another total, as raw JSON."""
    return body(lambda content: NO_TOTAL.sub(b',"total_count":' + value, content))


KINDS: dict[str, tuple[Reply, str]] = {
    "no answer": (hang, "took longer than"),
    "a header that trickles": (trickling_header, "took longer than"),
    "a body that trickles": (trickling_body, "took longer than"),
    "a connection reset": (reset, "cannot be read"),
    "a connection closed": (raw(b""), "cannot be read"),
    "a body cut against its length": (truncated, "cannot be read"),
    "a chunked body cut": (cut_chunked, "cannot be read"),
    "no HTTP": (raw(b"220 mail.example ESMTP\r\n"), "cannot be read"),
    "no gzip": (body(b"{}", Content_Encoding="gzip"), "cannot be read"),
    "a header that is none": (raw(b"HTTP/1.1 200 OK\r\nwhat is this\r\nContent-Length: 2\r\n\r\n[]"), ""),
    "204": (status(204), "answered 204"),
    "301 nowhere": (status(301), "answered 301"),
    "a redirect in a circle": (
        lambda exchange: exchange.send(302, Location=exchange.request.path),
        "redirects more than",
    ),
    "a redirect to another host": (status(302, Location="http://127.0.0.2/"), "another host"),
    "401": (status(401), "check the API token"),
    "404": (status(404), "answered 404"),
    "429": (status(429), "answered 429"),
    "500": (status(500, b"Traceback (most recent call last)"), "answered 500"),
    "503": (status(503, Retry_After="0"), "answered 503"),
    "503 with an absurd date": (
        status(503, Retry_After="Wed, 99999999999999999999 Oct 2099 07:28:00 GMT"),
        "answered 503",
    ),
    "an empty body": (body(b""), "no valid page"),
    "a page of HTML": (body(b"<!doctype html><title>Sign in</title>", Content_Type="text/html"), "no valid page"),
    "half of a JSON text": (body(lambda content: content[: len(content) // 2]), "no valid page"),
    "two JSON texts": (body(lambda content: content * 2), "no valid page"),
    "bytes that are no text": (body(b"\xff\xfe\x00" * 100), "no valid page"),
    "null": (body(b"null"), "no valid page"),
    "a string": (body(b'"cities"'), "no valid page"),
    "an error in an object": (body(b'{"error":"try later"}'), "no valid page"),
    "cities null": (body(b'{"cities":null,"total_count":250}'), "no valid page"),
    "cities in an object": (body(b'{"cities":{"1":{}},"total_count":250}'), "no valid page"),
    "no total": (body(lambda content: NO_TOTAL.sub(b"", content)), "no valid page"),
    "a total below zero": (_total(b"-1"), "no valid page"),
    "a total that is a boolean": (_total(b"true"), "no valid page"),
    "a total that is a string": (_total(b'"250"'), "no valid page"),
    "a total of half a city": (_total(b"250.5"), "no valid page"),
    "a total below what the page holds": (_total(b"10"), "no valid page"),
    "a limit that is a boolean": (
        body(lambda content: content.replace(b'"limit":100', b'"limit":true')),
        "no valid page",
    ),
    "arrays in arrays": (body(DEEP), "no valid page"),
    "a record with arrays in arrays": (
        body(lambda _: envelope(b'[{"city_id":1,"x":' + DEEP + b"]" * len(DEEP) + b"}]", total="250")),
        "no valid page",
    ),
    "a body too large": (huge(2**21), "more than 1,048,576 bytes"),
    "a gzip bomb": (gzip_bomb(2**24), "more than 1,048,576 bytes"),
}
"""Bad answers by name: how to give it, and what is said about it."""

_LATE = {"no answer", "a header that trickles", "a body that trickles", "a header that is none"}


def _options(kind: str) -> dict[str, Any]:
    return {"request_timeout": 0.1} if kind in _LATE else {}


@pytest.fixture
def small_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow bodies of a mebibyte only."""
    monkeypatch.setattr(paging_module, "_MAX_BODY", 2**20)


@pytest.mark.usefixtures("small_bodies")
@pytest.mark.parametrize("page", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(60)
def test_a_bad_answer_is_tried_again(kind: str, page: int, service: Misbehaving, out: Path) -> None:
    """A page that is answered badly once, in whatever way, is fetched again, and nothing is missing or wrong."""
    service.misbehave(KINDS[kind][0], page, times=1)
    ending = produce(service, MemoryOutbox(), out, **_options(kind))
    assert (ending.code, ending.line) == (0, "")
    assert (ending.report.complete, ending.report.expected, ending.report.rejected) == (True, 250, 0)
    assert ids_in(out) == ALL


@pytest.mark.usefixtures("small_bodies")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(60)
def test_a_page_that_is_always_bad_is_named(
    kind: str, service: Misbehaving, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A page that is never answered well, in whatever way, is named with the reason, and the other pages come."""
    reply, words = KINDS[kind]
    service.misbehave(reply, 1)
    ending = produce(service, MemoryOutbox(), out, **_options(kind))
    assert (ending.code, ending.report.missing, ending.report.expected) == (75, [1], 250)
    assert ending.line.startswith("1 page of owm never came (1)")
    assert ids_in(out) == [*ALL[:100], *ALL[200:]]
    said = [record.getMessage() for record in caplog.records if record.name.startswith("owm_outbox")]
    assert any("page 1 is set aside" in line and words in line for line in said)
    assert all(line.isprintable() for line in said)
    service.heal()
    assert produce(service, MemoryOutbox(), out).code == 0


@pytest.mark.usefixtures("small_bodies")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(60)
def test_an_api_that_is_always_bad_is_a_clear_error(kind: str, service: Misbehaving, out: Path) -> None:
    """An API that answers nothing but that ends with 75 and one line that says what it answers; no task comes of it."""
    reply, words = KINDS[kind]
    service.misbehave(reply)
    ending = produce(service, MemoryOutbox(), out, **_options(kind))
    assert ending.code == 75
    assert not ending.report.complete
    assert words in ending.line
    assert ending.line.isprintable()
    assert service.url in ending.line
    assert delivered(out) == []


@pytest.mark.parametrize("kind", ["a header that trickles", "a header that is none", "no HTTP", "arrays in arrays"])
def test_the_command_shows_no_traceback(kind: str, service: Misbehaving, tmp_path: Path, out: Path) -> None:
    """What the command says about a bad answer is a line of its own log or its last line, never a traceback."""
    service.misbehave(KINDS[kind][0], 1)
    outcome = run(
        "owm-producer",
        *("--api-url", service.url, "--outbox", f"sqlite:///{tmp_path}/tasks.db", "--sink", f"jsonl:{out}"),
        *("--retry-wait", "0.001", "--request-timeout", "0.15"),
    )
    assert outcome.code == 75
    assert ids_in(out) == [*ALL[:100], *ALL[200:]]
    *logged, last = outcome.err.splitlines()
    assert last.startswith("owm-producer: 1 page of owm never came (1)")
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (WARNING|ERROR) page 1 ", line) for line in logged)


@pytest.mark.parametrize("total", [10**6, 10**12, 2**63 - 1, 10**20])
def test_an_absurd_total_neither_hangs_nor_eats_the_memory(
    total: int, service: Misbehaving, tmp_path: Path, out: Path
) -> None:
    """An API that promises far more cities than it has is read as far as it has any; the run ends with 75."""
    service.total = total

    def give_in(_: Request) -> None:
        if len(service.requests) > 300:
            service.total = None  # a reader that goes on for ever comes to an end here

    service.changing = give_in
    within = 2**31  # bytes of address space
    limited = f"import os, resource; resource.setrlimit(resource.RLIMIT_AS, ({within}, {within})); "
    outcome = subprocess.run(
        [
            *(sys.executable, "-c", limited + "import sys; os.execv(sys.argv[1], sys.argv[1:])"),
            *(str(SCRIPTS / "owm-producer"), "--api-url", service.url, "--retry-wait", "0.001"),
            *("--outbox", f"sqlite:///{tmp_path}/tasks.db", "--sink", f"jsonl:{out}"),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert outcome.returncode == 75, outcome.stderr
    assert len(service.requests) < 100
    assert ids_in(out) == (ALL if total < 2**63 else [])


# -- records that are none

GOOD = [record(city_id) for city_id in (1, 2, 3)]

BAD_RECORDS = {
    "latitude 91": record(7, latitude=91),
    "latitude -90.0001": record(7, latitude=-90.0001),
    "longitude 180.5": record(7, longitude=180.5),
    "longitude -181": record(7, longitude=-181),
    "latitude 1e999": record(7, latitude="1e999"),
    "longitude -1e999": record(7, longitude="-1e999"),
    "latitude of 400 digits": record(7, latitude="1" + "0" * 400),
    "latitude as string": record(7, latitude='"12.5"'),
    "latitude NaN as string": record(7, latitude='"NaN"'),
    "latitude null": record(7, latitude="null"),
    "latitude true": record(7, latitude="true"),
    "latitude in an array": record(7, latitude="[12.5]"),
    "city_id true": record("true"),
    "city_id as string": record('"7"'),
    "city_id 7.0": record("7.0"),
    "city_id null": record("null"),
    "city_id 2**63": record(2**63),
    "city_id -2**63 - 1": record(-(2**63) - 1),
    "city_id 2**64": record(2**64),
    "city_id of 30 digits": record(10**30),
    "city_id of 5,000 digits": record("9" * 5000),
    "city_id 0, latitude 91": record(0, latitude=91),
    "no latitude": b'{"city_id":7,"longitude_deg":1}',
    "no city_id": b'{"latitude_deg":1,"longitude_deg":1}',
    "an empty object": b"{}",
    "null": b"null",
    "a number": b"7",
    "a string": '"市"'.encode(),
    "an array": b"[7,1.5,1.5]",
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_record_that_is_no_city_becomes_a_dead_letter(
    name: str, outbox: Outbox, service: Misbehaving, out: Path
) -> None:
    """A bad record is kept with its raw JSON and a reason, its page goes on, and the run is complete with 65."""
    bad = BAD_RECORDS[name]
    service.records = [GOOD[0], bad, *GOOD[1:]]
    ending = produce(service, outbox, out)
    report = ending.report
    assert (ending.code, report.complete, report.missing) == (65, True, [])
    assert (report.expected, report.extracted, report.rejected, report.delivered) == (4, 3, 1, 3)
    assert ids_in(out) == [1, 2, 3]
    assert isinstance(outbox, DeadLetterStore)
    [letter] = outbox.dead_letters()
    assert (letter.payload, letter.task_id) == (bad, None)
    assert letter.reason
    assert letter.reason.isprintable()


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [(90, 180), (-90, -180), (0, 0), ("-0.0", "1e-300"), ("90.0", "1.80e2"), ("12.345678901234567", "-0.1")],
)
def test_a_record_at_the_edge_is_a_city(latitude: object, longitude: object, service: Misbehaving, out: Path) -> None:
    """The bounds themselves are allowed, whole numbers too, and every digit arrives."""
    service.records = [record(2**63 - 1, latitude, longitude), record(-(2**63), latitude, longitude)]
    assert produce(service, MemoryOutbox(), out).code == 0
    for task in delivered(out):
        assert (task["latitude_deg"], task["longitude_deg"]) == (float(str(latitude)), float(str(longitude)))
    assert ids_in(out) == [-(2**63), 2**63 - 1]


def test_all_bad_records_at_once_keep_no_good_one_back(outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """However many bad records are spread over the pages, each is a dead letter and each good one is delivered."""
    bad = list(BAD_RECORDS.values())
    service.records = [record(1000 + n) if n % 5 else bad[n // 5 % len(bad)] for n in range(5 * len(bad))]
    ending = produce(service, outbox, out)
    report = ending.report
    assert ids_in(out) == [1000 + n for n in range(5 * len(bad)) if n % 5]
    with_city_7 = sum(payload.startswith(b'{"city_id":7,') for payload in bad)  # all of these are one
    assert report.rejected == len(bad) - with_city_7 + 1
    assert report.complete or report.expected == 5 * len(bad)


def test_a_page_with_nan_is_set_aside(outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """NaN is no JSON, so nobody knows what else the page holds: it is named, and the other pages come."""
    service.records[150] = record(151, latitude="NaN")
    ending = produce(service, outbox, out)
    assert (ending.code, ending.report.missing) == (75, [1])
    assert ids_in(out) == [*ALL[:100], *ALL[200:]]


@pytest.mark.parametrize("city_id", [0, 777, 10**30, "null"])
def test_a_bad_record_is_counted_once(city_id: object, outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """A bad record that comes again, on another page or in another pass, is the same dead letter."""
    service.records[10] = service.records[130] = record(city_id, latitude=91)
    service.total = 260  # more than there are, so that all pages are gone through again
    ending = produce(service, outbox, out)
    assert service.pages.count(0) > 1
    report = ending.report
    assert (ending.code, report.extracted, report.rejected) == (75, 248, 1)
    assert f"{report.expected} distinct tasks, 249 came" in ending.line
    service.total = 249
    assert produce(service, outbox, out).report.rejected == 1
    assert outbox.stats().dead == 1


@pytest.mark.parametrize("city_id", [0, 777])
def test_a_bad_record_is_known_by_its_city(city_id: int, outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """A bad record that comes again with other contents is the same one as long as its city is."""
    service.records[10] = record(city_id, latitude=91)
    service.records[130] = record(city_id, latitude=92, name="another")
    service.total = 249
    ending = produce(service, outbox, out)
    assert (ending.code, ending.report.extracted, ending.report.rejected) == (65, 248, 1)


def test_the_command_ends_with_65(service: Misbehaving, tmp_path: Path, out: Path) -> None:
    """The command says how many became dead letters and how to look at them, and there they are, as they came."""
    store = ("--outbox", f"sqlite:///{tmp_path}/tasks.db")
    service.records[120] = bad = record(121, latitude=91)
    outcome = run("owm-producer", "--api-url", service.url, *store, "--sink", f"jsonl:{out}", "--json")
    assert outcome.code == 65
    assert "1 tasks became dead letters: see owm-outbox dead list" in outcome.line
    assert (outcome.report["complete"], outcome.report["extracted"], outcome.report["rejected"]) == (True, 249, 1)
    letter = json.loads(run("owm-outbox", "dead", "list", *store, "--json").out)
    assert (letter["payload"], letter["task_id"]) == (bad.decode(), None)
    assert "latitude_deg" in letter["reason"]


# -- a list that changes while it is read


class Changes:
    """Changes a service's list right after it answered a request, as other people's writes do.

    :param plan: what to do after which good answer, counted from 1: insert so many (or delete, if negative) at an
        index.
    :param passes: in how many passes over all pages.
    """

    def __init__(self, service: Misbehaving, plan: dict[int, tuple[int, int]], *, passes: int = 99) -> None:
        self._service, self._plan, self._passes = service, plan, passes
        self._next_id = 10_000
        self.stayed = set(range(1, len(service.records) + 1))
        self.made = 0
        self._answers = 0
        service.changing = self._change

    def _change(self, _: Request) -> None:
        service = self._service
        self._answers += 1
        if self._answers not in self._plan or service.pages.count(0) > self._passes:
            return
        count, index = self._plan[self._answers]
        self.made += 1
        for _new in range(count):
            service.records.insert(index, record(self._next_id))
            self._next_id += 1
        for _old in range(min(-count, len(service.records[index:]))):
            self.stayed.discard(json.loads(service.records.pop(index))["city_id"])


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(
    ("count", "index"),
    [(-1, 0), (-150, 0), (1, 0), (150, 0), (-5, 450), (5, 450), (-5, 995), (5, 1000), (-800, 100), (300, 250)],
)
def test_a_list_that_changes_under_the_reader_loses_nothing(
    count: int, index: int, concurrency: int, out: Path
) -> None:
    """Cities that come or go before, behind or under the reader: none comes twice, none that stayed is lost."""
    with misbehaving(made_up(1000)) as service:
        service.misbehave(slow(0.03), 0, times=1)
        changes = Changes(service, {4: (count, index)})
        ending = produce(service, MemoryOutbox(), out, concurrency=concurrency)
        current = {json.loads(city)["city_id"] for city in service.records}
    assert changes.made == 1
    assert (ending.code, ending.report.complete) == (0, True)
    ids = ids_in(out)
    assert len(ids) == len(set(ids))
    assert changes.stayed <= set(ids)
    assert current <= set(ids)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("concurrency", [1, 8])
def test_who_looks_twice_finds_what_the_total_hides(concurrency: int, bare: bool, out: Path) -> None:
    """A city that moved to a page that came, while one that came left and a new one joined, is found when asked for."""
    with misbehaving(made_up(1000), bare=bare) as service:

        def swap(request: Request) -> None:
            if request.page == 4 and service.pages.count(4) == 1:
                del service.records[0]
                service.records.append(record(10_000))

        service.misbehave(slow(0.03), 0, times=1)
        service.changing = swap
        ending = produce(service, MemoryOutbox(), out, concurrency=concurrency, look_twice=True)
        current = {json.loads(city)["city_id"] for city in service.records}
    assert (ending.code, ending.report.expected, ending.report.extracted) == (0, None if bare else 1000, 1001)
    ids = ids_in(out)
    assert len(ids) == len(set(ids))
    assert current <= set(ids)
    assert {page: count for page, count in Counter(service.pages).items() if (page or 0) < 10} == dict.fromkeys(
        range(10), 2
    )


@pytest.mark.parametrize("beyond", [good, status(404)], ids=["empty", "404"])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_total_that_dips_for_a_moment_hides_nothing(concurrency: int, beyond: Reply, out: Path) -> None:
    """An answer with too small a total, as a replica that lags gives, does not end the list there."""
    with misbehaving(made_up(950)) as service:
        totals = iter([950])

        def dips(exchange: Exchange) -> None:
            cities = json.loads(exchange.good())["cities"]
            exchange.send(200, json.dumps({"cities": cities, "total_count": next(totals, 400)}).encode())

        service.misbehave(beyond, *range(10, 100))
        service.misbehave(dips)
        ending = produce(service, MemoryOutbox(), out, concurrency=concurrency)
    assert (ending.code, ending.report.expected, ending.report.missing) == (0, 400, [])
    assert ids_in(out) == list(range(1, 951))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_last_page_that_is_gone_is_not_missing(concurrency: int, out: Path) -> None:
    """A page that only an older total promised, and that the API has no more, keeps no run from completing."""
    with misbehaving(made_up(201)) as service:

        def shrink(request: Request) -> None:
            if request.page == 1 and service.pages.count(1) == 1:
                del service.records[0]

        service.misbehave(slow(0.03), 0, times=1)
        service.misbehave(status(404), *range(2, 100))
        service.changing = shrink
        ending = produce(service, MemoryOutbox(), out, concurrency=concurrency)
    assert (ending.code, ending.report.expected, ending.report.missing) == (0, 200, [])
    assert ids_in(out) == list(range(1, 202))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_bad_first_page_does_not_lead_beyond_the_end(concurrency: int, outbox: Outbox, out: Path) -> None:
    """If the only page fails, what may follow is asked for one by one, and the next call begins with the first."""
    with misbehaving(made_up(50)) as service:
        service.misbehave(status(500), 0, times=5)
        service.misbehave(status(404), *range(1, 100))
        first = produce(service, outbox, out, concurrency=concurrency)
        assert (first.code, service.pages) == (75, [0] * 5 + [1] * 5)
        service.requests.clear()
        second = produce(service, outbox, out, concurrency=concurrency)
        assert (second.code, service.pages) == (0, [0])
    assert second.report.run_id == first.report.run_id
    assert ids_in(out) == list(range(1, 51))


def test_an_api_that_has_nothing_is_pointed_out(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No city at all is what the API may say, and hardly what it means: the run is complete, with a warning."""
    with misbehaving([]) as service:
        ending = produce(service, MemoryOutbox(), out)
    assert (ending.code, ending.report.expected) == (0, 0)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{service.url}/cities/ says that it has nothing at all"
    ]


def test_many_new_cities_in_front_are_not_taken_for_a_repetition(out: Path) -> None:
    """If so many cities come in front that page after page holds known ones, the reader goes on to the end."""
    with misbehaving(made_up(6000)) as service:
        changes = Changes(service, {40: (2500, 0)})
        ending = produce(service, MemoryOutbox(), out)
    assert changes.made == 1
    assert (ending.code, ending.line) == (0, "")
    ids = ids_in(out)
    assert len(ids) == len(set(ids)) == 8500


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(0, 14),
    plan=st.dictionaries(
        st.integers(1, 12), st.tuples(st.integers(-4, 4).filter(bool), st.integers(0, 14)), max_size=6
    ),
)
@example(start=6, plan={1: (-1, 0)})
@example(start=9, plan={1: (1, 0), 2: (-1, 0), 4: (-3, 0)})
def test_any_changes_lose_nothing(start: int, plan: dict[int, tuple[int, int]], tmp_path: Path) -> None:
    """Whatever comes and goes between any requests of two passes: nothing twice, nothing that stayed is lost."""
    out = tmp_path / "out"
    out.unlink(missing_ok=True)
    outbox = MemoryOutbox()
    with misbehaving(made_up(start)) as service:
        changes = Changes(service, plan, passes=2)
        ending = produce(service, outbox, out, concurrency=1, api_limit=3)
        for _ in range(3):
            if ending.code == 0:
                break
            assert ending.code == 75
            assert ending.line
            ending = produce(service, outbox, out, concurrency=1, api_limit=3)
    assert ending.code == 0
    ids = ids_in(out)
    assert len(ids) == len(set(ids))
    assert changes.stayed <= set(ids)


@pytest.mark.parametrize("seed", range(3))
def test_a_lively_list_read_by_many_threads_loses_nothing(seed: int, out: Path) -> None:
    """A list that changes forty times while eight threads read it: nothing twice, nothing that stayed is lost."""
    random = Random(seed)  # noqa: S311 - no secret
    with misbehaving(made_up(3000)) as service:
        service.misbehave(slow(0.03), 0, times=1)
        numbers = sorted(random.sample(range(1, 60), 40))
        plan = {number: (random.choice([-7, -2, -1, 1, 2, 7]), random.randrange(2900)) for number in numbers}
        changes = Changes(service, plan)
        outbox = MemoryOutbox()
        ending = produce(service, outbox, out, concurrency=8, api_limit=50)
        assert service.most_at_once <= 8
    assert changes.made == 40
    assert ending.code == 0
    ids = ids_in(out)
    assert len(ids) == len(set(ids))
    assert changes.stayed <= set(ids)


def test_a_city_hidden_in_every_pass_is_not_lost_without_a_word(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the list changes each time it is read, the run is incomplete, or says that a city may be missed."""
    with misbehaving(made_up(6)) as service:
        hide = {1: (-1, 0), 2: (1, 0)}  # city 4 slips from page 1 to page 0 behind the reader, and back
        changes = Changes(service, {2 * n + number: change for n in range(10) for number, change in hide.items()})
        ending = produce(service, MemoryOutbox(), out, concurrency=1, api_limit=3)
    lost = changes.stayed - set(ids_in(out))
    assert lost == {4}
    assert ending.code == 75 or "a record may be missed" in caplog.text


def test_a_total_that_is_never_reached_is_said_with_both_figures(
    outbox: Outbox, service: Misbehaving, out: Path
) -> None:
    """If fewer cities come than promised, all pages are read again; then 75, and the next call reads them anew."""
    service.total = 251
    ending = produce(service, outbox, out)
    assert ending.code == 75
    assert "promised 251 distinct tasks, 250 came" in ending.line
    assert Counter(service.pages) == {0: 2, 1: 2, 2: 2}
    assert (ending.report.expected, ending.report.extracted, ending.report.missing) == (251, 250, [])
    service.total = None
    service.records.append(record(251))
    again = produce(service, outbox, out)
    assert (again.code, again.report.run_id) == (0, ending.report.run_id)
    assert ids_in(out) == [*ALL, 251]


@pytest.mark.parametrize(
    "content",
    [b"[]", envelope(b"[]", total="250"), envelope(b"[]", total="0"), envelope(b"[" + record(1) + b"]", total="250")],
    ids=["bare", "with total", "total 0", "one city"],
)
def test_a_page_that_is_short_once_is_found_out(content: bytes, service: Misbehaving, out: Path) -> None:
    """A page in the middle that comes once with too few cities, though valid, does not make the run too short."""
    service.misbehave(body(content), 1, times=1)
    ending = produce(service, MemoryOutbox(), out)
    assert (ending.code, ending.report.expected) == (0, 250)
    assert ids_in(out) == ALL


# -- how many at once


@pytest.mark.parametrize("concurrency", [1, 4, 8, 16])
def test_never_more_requests_at_once_than_allowed(concurrency: int, out: Path) -> None:
    """Seen from a slow server, there are as many requests at once as allowed and never one more; all cities come."""
    with misbehaving(made_up(6000)) as service:
        service.misbehave(slow(0.03), 0)
        service.misbehave(together(concurrency), *range(1, 1 + concurrency))
        service.misbehave(slow(0.005))
        ending = produce(service, MemoryOutbox(), out, concurrency=concurrency)
        assert service.most_at_once == concurrency
        assert len(service.requests) == 60
    assert ending.code == 0
    assert ids_in(out) == list(range(1, 6001))


def test_pages_are_stored_in_their_order(out: Path) -> None:
    """However the answers overtake each other, tasks are stored and delivered in the order of the pages."""
    with misbehaving(made_up(3000)) as service:
        service.misbehave(slow(0.03), 0)
        service.misbehave(together(8), *range(1, 9))
        service.misbehave(slow(0.02), *range(9, 30, 3))
        assert produce(service, MemoryOutbox(), out, concurrency=8).code == 0
    assert [task["city_id"] for task in delivered(out)] == list(range(1, 3001))


# -- how long it waits


class Impatient(threading.Event):
    """An event that nobody sets: notes how long it would have been waited for, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Return at once."""
        assert timeout is not None
        self.waits.append(timeout)
        return False


def _read(content: bytes) -> Answer[int]:
    page = json.loads(content)
    return Answer([city["city_id"] for city in page["cities"]], total=page["total_count"])


def _waits(service: Misbehaving, retry_wait: float = 1.0) -> list[float]:
    """Return the waits between the first five attempts for page 1, which always fails."""
    outbox, event = MemoryOutbox(), Impatient()
    options = PagedApiOptions(api_url=service.url, retry_wait=retry_wait, concurrency=1)
    with PagedApi(options, "/cities/", parse=_read, task=lambda record: record) as api:
        api._retrying = api._retrying.copy(sleep=event.wait)
        *_, last = api.pages(outbox.start_run(OwmJob()))
        assert last.missing == [1]
    assert service.pages.count(1) == 10
    assert len(event.waits) == 8
    return event.waits[:4]


@pytest.mark.parametrize(
    ("header", "wait"), [("7", 7.0), ("0.5", 0.5), ("60", 60.0), ("61", 60.0), ("86400", 60.0), ("1e300", 60.0)]
)
@pytest.mark.parametrize("code", [429, 503, 403])
def test_retry_after_is_waited_up_to_a_minute(code: int, header: str, wait: float, service: Misbehaving) -> None:
    """The API gets the time that it asks for, and no more than a minute."""
    service.misbehave(status(code, Retry_After=header), 1)
    assert _waits(service) == [wait] * 4


@pytest.mark.parametrize(("seconds", "most"), [(20, 20), (3600, 60)])
def test_retry_after_may_name_a_moment(seconds: int, most: int, service: Misbehaving) -> None:
    """A date is waited for, up to a minute from now."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    service.misbehave(status(503, Retry_After=format_datetime(moment, usegmt=True)), 1)
    assert all(0 < wait <= most for wait in _waits(service))


@pytest.mark.parametrize("header", [None, "0", "-1", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_otherwise_the_wait_grows(header: str | None, service: Misbehaving) -> None:
    """Without a Retry-After that makes sense, each wait is twice the one before, with jitter."""
    service.misbehave(status(503) if header is None else status(503, Retry_After=header), 1)
    for wait, least in zip(_waits(service), (1, 2, 4, 8), strict=True):
        assert least <= wait <= least + 1


def test_no_wait_is_longer_than_half_a_minute(service: Misbehaving) -> None:
    """However long the first wait, none is longer than 30 s, and none is missing."""
    service.misbehave(status(500), 1)
    waits = _waits(service, retry_wait=10.0)
    assert 10 <= waits[0] <= 20
    assert waits[2:] == [30.0, 30.0]


def test_the_waits_of_two_clients_differ(service: Misbehaving) -> None:
    """There is jitter: clients that failed together do not come back together."""
    service.misbehave(status(500), 1)
    first = _waits(service)
    service.requests.clear()
    assert _waits(service) != first


# -- bare arrays


@pytest.fixture
def bare() -> Iterator[Misbehaving]:
    """Serve 450 cities as arrays without a total."""
    with misbehaving(made_up(450), bare=True) as service:
        yield service


@pytest.mark.parametrize("concurrency", [1, 8])
def test_bare_arrays_are_read_to_the_empty_page(concurrency: int, bare: Misbehaving, out: Path) -> None:
    """Without a total, pages are read until one is empty, and at most what was under way beyond it."""
    bare.misbehave(slow(0.03), 0)
    ending = produce(bare, MemoryOutbox(), out, concurrency=concurrency)
    assert (ending.code, ending.report.expected) == (0, None)
    assert ids_in(out) == list(range(1, 451))
    assert 6 <= len(bare.requests) <= 6 + 2 * concurrency


@pytest.mark.parametrize("reply", [status(500), reset], ids=["500", "reset"])
@pytest.mark.parametrize("page", [0, 1, 4])
def test_a_bad_page_of_bare_arrays_keeps_nothing_back(
    page: int, reply: Reply, bare: Misbehaving, outbox: Outbox, out: Path
) -> None:
    """Without a total, too, a page that fails is named; what the others hold is stored; healthy again, it completes."""
    bare.misbehave(reply, page)
    ending = produce(bare, outbox, out)
    assert ending.code == 75
    cities = list(range(1, 451))
    if page > 0:
        assert ending.report.missing == [page]
        assert ids_in(out) == [*cities[: page * 100], *cities[(page + 1) * 100 :]]
    bare.heal()
    again = produce(bare, outbox, out)
    assert (again.code, again.report.run_id) == (0, ending.report.run_id)
    assert ids_in(out) == cities


@pytest.mark.parametrize("reply", [status(500), reset], ids=["500", "reset"])
def test_what_bare_arrays_gave_is_kept_when_the_api_goes_away(
    reply: Reply, bare: Misbehaving, outbox: Outbox, out: Path
) -> None:
    """If all pages fail from one on, what came before is stored, and the next call goes on without a gap."""
    bare.misbehave(reply, *range(3, 50))
    ending = produce(bare, outbox, out, concurrency=1)
    assert ending.code == 75
    assert ids_in(out) == list(range(1, 301))
    assert "nothing could be read" not in ending.line
    bare.heal()
    name = f"breaker:{bare.url}/cities/"
    if outbox.notes.get(name):
        outbox.notes.set(name, b"{}")  # as if 600 s had passed
    again = produce(bare, outbox, out)
    assert (again.code, again.report.run_id) == (0, ending.report.run_id)
    assert ids_in(out) == list(range(1, 451))


@pytest.mark.parametrize("shuffled", [False, True], ids=["same order", "any order"])
@pytest.mark.parametrize("count", [100, 250])
def test_an_api_that_ignores_the_page_number_is_not_read_for_ever(count: int, shuffled: bool, out: Path) -> None:
    """An API that gives the same cities whatever the page is seen through before long; each city comes once."""
    random = Random(7)  # noqa: S311 - no secret
    with misbehaving(made_up(count), bare=True) as service:

        def everything(exchange: Exchange) -> None:
            records = random.sample(service.records, count) if shuffled else service.records
            enough = len(service.requests) > 300  # a reader that goes on for ever comes to an end here
            exchange.send(200, b"[" + b",".join([] if enough else records) + b"]")

        service.misbehave(everything)
        ending = produce(service, MemoryOutbox(), out)
        assert len(service.requests) < 100
    assert ending.code in (0, 75)
    assert ids_in(out) == list(range(1, count + 1))


@pytest.mark.parametrize("content", [b'[{"detail":"maintenance"}]', b"[null]", b"[[]]"])
def test_an_api_that_gives_no_city_is_not_read_for_ever(content: bytes, outbox: Outbox, out: Path) -> None:
    """An API that answers each page with an array of something else is seen through, and that is one dead letter."""
    with misbehaving([], bare=True) as service:
        service.misbehave(
            lambda exchange: exchange.send(200, content if len(service.requests) < 300 else b"[]")  # as above
        )
        ending = produce(service, outbox, out)
        assert len(service.requests) < 100
    assert ending.code in (65, 75)
    assert (ending.report.rejected, ending.report.extracted) == (1, 0)


def test_a_total_that_runs_away_is_not_followed_for_ever(out: Path) -> None:
    """An API that ignores the page number and promises more with each page is seen through; the code is 75."""
    with misbehaving(made_up(100)) as service:

        def more(exchange: Exchange) -> None:
            asked = len(service.requests)
            total = 100 * asked + 150 if asked < 1000 else 100  # as above
            array = b"[" + b",".join(service.records) + b"]"
            exchange.send(200, envelope(array, total=str(total)))

        service.misbehave(more)
        ending = produce(service, MemoryOutbox(), out)
        assert len(service.requests) < 800
    assert ending.code == 75
    assert ids_in(out) == ALL[:100]


def test_an_api_with_a_total_may_ignore_the_page_number_too(out: Path) -> None:
    """An API that gives the first page again and again, with the right total, ends with 75 and both figures."""
    with misbehaving(made_up(250)) as service:
        first = service.body(Request("", 0, 100, 1, {}))
        service.misbehave(body(first))
        ending = produce(service, MemoryOutbox(), out)
        assert len(service.requests) <= 6
    assert ending.code == 75
    assert "promised 250 distinct tasks, 100 came" in ending.line
    assert ids_in(out) == ALL[:100]
