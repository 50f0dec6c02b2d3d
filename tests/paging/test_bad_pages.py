"""A page that fails is tried again, set aside, and named if it could not be fetched; the others are stored."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import Outbox
from owm_outbox_backends.memory import MemoryOutbox

from support.commands import SCRIPTS, environment, run
from support.misbehaving import (
    Misbehaving,
    Reply,
    Request,
    body,
    cut_chunked,
    delivered,
    envelope,
    gzip_bomb,
    hang,
    huge,
    ids_in,
    misbehaving,
    produce,
    raw,
    reset,
    slow,
    status,
    trickling_body,
    trickling_header,
    truncated,
)
from support.weather import made_up

ALL = list(range(1, 251))


@pytest.mark.slow
def test_two_bad_pages_of_341_keep_nothing_else_back(tmp_path: Path, out: Path) -> None:
    """Two pages that always fail are named, all else is delivered; once healthy the next run fetches only those."""
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
        assert last == (
            "owm-producer: job 'owm': 2 pages could not be fetched (100, 340); the next run retries only those "
            "[33900 tasks extracted, 0 waiting in the outbox]"
        )
        asked = Counter(service.pages)
        assert {page: count for page, count in asked.items() if count > 1} == {100: 10, 340: 10}
        assert set(asked) == set(range(342)), "the page after the last one shows that nothing follows"
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
    assert Counter(service.pages) == {0: 1, 1: 10, 2: 1, 3: 1}


@pytest.mark.parametrize("good_at", [2, 5, 6, 10])
def test_a_page_that_is_fetched_in_the_end_is_not_missing(
    good_at: int, outbox: Outbox, service: Misbehaving, out: Path
) -> None:
    """A page that is fetched at any of its ten attempts makes the run complete."""
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
    """With --first-page 1 the pages from 1 on are asked for, as many as the total says and one more."""
    service.first_page = 1
    service.misbehave(status(500), 3)
    ending = produce(service, MemoryOutbox(), out, first_page=1)
    assert (ending.code, ending.report.missing) == (75, [3])
    assert set(service.pages) == {1, 2, 3, 4}
    assert ids_in(out) == ALL[:200]


def test_an_api_that_gives_less_per_page_has_more_pages(outbox: Outbox, service: Misbehaving, out: Path) -> None:
    """If the API says that it gives 40 per page, there are more pages; the next run knows it, too."""
    service.most = 40
    service.misbehave(status(500), 5)
    ending = produce(service, outbox, out)
    assert (ending.code, ending.report.missing) == (75, [5])
    assert set(service.pages) == set(range(8))
    service.heal()
    service.requests.clear()
    assert produce(service, outbox, out).code == 0
    assert service.pages == [5]
    assert ids_in(out) == ALL


# -- bad answers

DEEP = b"[" * 100_000
NO_TOTAL = re.compile(rb',"total_count":\d+')


def _total(value: bytes) -> Reply:
    """ApiPage with another total, as raw JSON."""
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
    "a bad header": (raw(b"HTTP/1.1 200 OK\r\nwhat is this\r\nContent-Length: 20\r\n\r\n[{"), "no valid page"),
    "204": (status(204), "answered 204"),
    "301 nowhere": (status(301), "answered 301"),
    "a redirect in a circle": (
        lambda exchange: exchange.send(302, Location=exchange.request.path),
        "redirects more than",
    ),
    "a redirect to another host": (status(302, Location="http://127.0.0.2/"), "another host"),
    "401": (status(401), "answered 401"),
    "404": (status(404), "answered 404"),
    "429": (status(429), "answered 429"),
    "500": (status(500, b"Traceback (most recent call last)"), "answered 500"),
    "503": (status(503, Retry_After="0"), "answered 503"),
    "503 with an absurd date": (
        status(503, Retry_After="Wed, 21 Oct 99999 07:28:00 GMT"),
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

_LATE = {"no answer", "a header that trickles", "a body that trickles"}


def _options(kind: str) -> dict[str, Any]:
    return {"max_body": 2**20} | ({"request_timeout": 0.1} if kind in _LATE else {})


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
    assert ending.line == "job 'owm': 1 page could not be fetched (1); the next run retries only those"
    assert ids_in(out) == [*ALL[:100], *ALL[200:]]
    said = [record.getMessage() for record in caplog.records if record.name.startswith("owm_outbox")]
    assert any("page 1 is set aside" in line and words in line for line in said)
    assert all(line.isprintable() for line in said)
    service.heal()
    assert produce(service, MemoryOutbox(), out).code == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(60)
def test_an_api_that_is_always_bad_is_a_clear_error(kind: str, service: Misbehaving, out: Path) -> None:
    """An API that answers nothing but that ends with one line that says what it answers; no task comes of it.

    With 78 where waiting cannot fix it, as soon as the first page shows it; with 75 otherwise.
    """
    reply, words = KINDS[kind]
    service.misbehave(reply)
    ending = produce(service, MemoryOutbox(), out, **_options(kind))
    refused = {
        "401": "check the API token",
        "404": "check the API's address",
        "a redirect to another host": "check the API's address",
    }
    assert ending.code == (78 if kind in refused else 75)
    assert ending.line.count(refused.get(kind, "check ")) == (kind in refused)
    if kind in refused:
        assert service.pages == [0] * 5
    assert not ending.report.complete
    assert words in ending.line
    assert ending.line.isprintable()
    assert service.url in ending.line
    assert delivered(out) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a header that trickles", "a bad header", "no HTTP", "arrays in arrays"])
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
    assert last.startswith("owm-producer: job 'owm': 1 page could not be fetched (1)")
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (WARNING|ERROR) page 1 ", line) for line in logged)


@pytest.mark.slow
@pytest.mark.parametrize("total", [10**6, 10**12, 2**63 - 1, 10**20])
def test_an_absurd_total_neither_hangs_nor_eats_the_memory(
    total: int, service: Misbehaving, tmp_path: Path, out: Path
) -> None:
    """An API that claims far more cities than it has is read as far as it has any; the run ends with 75."""
    service.total = total

    def give_in(_: Request) -> None:
        if len(service.requests) > 300:
            service.total = None  # ends a reader that would not end

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
