"""A source's total is a claim: it neither cuts a run short nor keeps it incomplete for ever."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from owm_outbox import Outbox
from owm_outbox_backends.memory import MemoryOutbox

from support.misbehaving import (
    Exchange,
    Misbehaving,
    Reply,
    Request,
    ids_in,
    misbehaving,
    produce,
    record,
    reset,
    slow,
    status,
)
from support.weather import made_up

ALL = list(range(1, 251))


@pytest.mark.parametrize("beyond", [None, status(404), status(400), status(422)], ids=["empty", "404", "400", "422"])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_capped_total_cuts_nothing_off(concurrency: int, beyond: Reply | None, out: Path) -> None:
    """12,000 cities and a total of 10,000, the cap of a search engine: all are fetched, however the end looks."""
    with misbehaving(made_up(12_000)) as service:
        service.total = 10_000
        service.misbehave(slow(0.01), 0)
        if beyond is not None:
            service.misbehave(beyond, *range(120, 200))
        ending = produce(service, MemoryOutbox(), out, concurrency=concurrency)
        assert len(service.requests) <= 120 + 2 * concurrency
    assert (ending.code, ending.report.complete, ending.report.extracted) == (0, True, 12_000)
    assert ids_in(out) == list(range(1, 12_001))


def _of_this_page(exchange: Exchange) -> int:
    return len(json.loads(exchange.good())["cities"])


@pytest.mark.parametrize(
    "total",
    [_of_this_page, lambda _: 0, lambda _: 3, lambda _: 100, lambda _: 249],
    ids=["page", "0", "3", "100", "249"],
)
@pytest.mark.parametrize("beyond", [None, status(404)], ids=["empty", "404"])
def test_a_total_that_is_too_small_cuts_nothing_off(
    total: Callable[[Exchange], int], beyond: Reply | None, service: Misbehaving, out: Path
) -> None:
    """A total that counts only the page, or the pages, or nothing at all: every page is fetched, each once."""

    def small(exchange: Exchange) -> None:
        content = json.loads(exchange.good())
        exchange.send(200, json.dumps({"cities": content["cities"], "total_count": total(exchange)}).encode())

    if beyond is not None:
        service.misbehave(beyond, *range(3, 100))
    service.misbehave(small)
    ending = produce(service, MemoryOutbox(), out)
    assert (ending.code, ending.report.missing, ending.report.extracted) == (0, [], 250)
    assert ids_in(out) == ALL
    assert set(Counter(service.pages).values()) == {1}


def test_an_api_that_gives_less_per_page_without_saying_so_is_read_to_its_end(out: Path) -> None:
    """If the API gives 40 per page and tells nothing of it, the pages beyond 250 : 100 are fetched all the same."""
    with misbehaving(made_up(250)) as service:
        service.most = 40

        def silent(exchange: Exchange) -> None:
            content = json.loads(exchange.good())
            del content["limit"]
            exchange.send(200, json.dumps(content).encode())

        service.misbehave(silent)
        ending = produce(service, MemoryOutbox(), out)
    assert (ending.code, ending.report.expected) == (0, 250)
    assert ids_in(out) == ALL


@pytest.mark.parametrize("status_code", [400, 404, 410, 416, 422])
@pytest.mark.parametrize("cities", [250, 300])
def test_no_page_beyond_the_end_is_no_failure(
    status_code: int, cities: int, outbox: Outbox, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A page beyond the end that does not exist is asked for once, and the breaker does not count it."""
    with misbehaving(made_up(cities)) as service:
        service.misbehave(status(status_code), *range(3, 100))
        for _ in range(2):
            ending = produce(service, outbox, out, fail_max=1)
            assert (ending.code, ending.report.missing) == (0, [])
        assert Counter(service.pages) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert caplog.text == ""


@pytest.mark.parametrize("reply", [status(500), status(401), reset], ids=["500", "401", "reset"])
def test_what_follows_the_last_page_has_to_be_known(
    reply: Reply, outbox: Outbox, service: Misbehaving, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If the page beyond the total cannot be fetched, the run is incomplete and names it; the next run tries it."""
    service.misbehave(reply, 3)
    first = produce(service, outbox, out)
    assert (first.code, first.report.missing, first.report.extracted) == (75, [3], 250)
    service.heal()
    service.requests.clear()
    again = produce(service, outbox, out)
    assert (again.code, again.report.run_id, service.pages) == (0, first.report.run_id, [3])
    assert "taken for the end" not in caplog.text


def test_records_that_such_a_page_holds_are_fetched(outbox: Outbox, out: Path) -> None:
    """If the page beyond the total holds records after all, once it can be fetched, so do those that follow it."""
    with misbehaving(made_up(550)) as service:
        service.total = 250
        service.misbehave(status(500), 3)
        first = produce(service, outbox, out)
        assert (first.code, first.report.missing) == (75, [3])
        service.heal()
        assert produce(service, outbox, out).code == 0
    assert ids_in(out) == list(range(1, 551))


def test_an_api_that_always_fails_beyond_its_end_is_incomplete_once(
    outbox: Outbox, service: Misbehaving, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An API that answers 500 for each page it does not have keeps one run incomplete; the second one warns."""
    service.misbehave(status(500), *range(3, 100))
    assert produce(service, outbox, out).code == 75
    ending = produce(service, outbox, out)
    assert (ending.code, ending.report.complete, ending.report.missing) == (0, True, [])
    assert "page 3, beyond the total, failed again: taken for the end" in caplog.text
    assert set(service.pages) == {0, 1, 2, 3}


@pytest.mark.parametrize("cities", [250, 100, 50])
def test_an_api_that_repeats_its_last_page_has_an_end(cities: int, out: Path) -> None:
    """An API that answers with its last page for each one beyond it has no more records than its total."""
    with misbehaving(made_up(cities)) as service:
        last = (cities - 1) // 100

        def clamped(exchange: Exchange) -> None:
            page = exchange.request.page or 0
            records = service.records[100 * min(page, last) :][:100]
            exchange.send(200, b'{"cities":[%s],"total_count":%d}' % (b",".join(records), cities))

        service.misbehave(clamped)
        ending = produce(service, MemoryOutbox(), out)
    assert (ending.code, ending.report.expected, ending.report.duplicates) == (0, cities, 0)
    assert sorted(service.pages, key=str) == list(range(last + 3))


# -- totals that are too large


@pytest.mark.parametrize("apart", [1, 120], ids=["side by side", "on two pages"])
def test_a_total_that_counts_a_city_twice_is_seen_through(
    apart: int, outbox: Outbox, service: Misbehaving, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One city that is listed twice: after a second pass the run is complete, with a warning that has both figures."""
    service.records.insert(10 + apart, service.records[10])
    ending = produce(service, outbox, out)
    report = ending.report
    assert (ending.code, report.complete, report.missing) == (0, True, [])
    assert (report.expected, report.extracted) == (250, 250)
    assert Counter(service.pages) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert "the API's total of 251 counts records twice: all pages, read twice, hold 250 distinct ones" in caplog.text
    assert ids_in(out) == ALL


def test_such_a_run_needs_no_more_requests_once_it_is_read(service: Misbehaving, tmp_path: Path, out: Path) -> None:
    """If only the delivery fails, the next run delivers, and takes the total for what it turned out to be."""
    service.records.insert(11, service.records[10])
    outbox = MemoryOutbox()
    folder = tmp_path / "away"
    folder.mkdir()

    def remove(_: object) -> None:
        if folder.exists() and service.pages.count(3) == 2:
            folder.rmdir()

    service.changing = remove
    first = produce(service, outbox, folder / "out", concurrency=1)
    assert (first.code, first.report.complete, first.report.extracted) == (75, False, 250)
    service.requests.clear()
    again = produce(service, outbox, out)
    assert (again.code, again.report.run_id, service.requests) == (0, first.report.run_id, [])


def test_a_city_that_joins_in_the_second_pass_is_looked_for_again(out: Path) -> None:
    """A second pass that brings something new proves nothing: only one that does not says what the total counts."""
    with misbehaving(made_up(250)) as service:
        service.records.insert(11, service.records[10])

        def join(request: Request) -> None:
            if request.page == 3 and service.pages.count(3) == 1:
                service.records.append(record(251))

        service.changing = join
        outbox = MemoryOutbox()
        first = produce(service, outbox, out, concurrency=1)
        assert (first.code, first.report.extracted) == (75, 251)
        second = produce(service, outbox, out, concurrency=1)
    assert (second.code, second.report.expected) == (0, 251)
    assert ids_in(out) == [*ALL, 251]


@pytest.mark.parametrize("missing", [1, 100], ids=["one city", "a page of them"])
def test_a_source_that_withholds_records_is_not_complete(missing: int, service: Misbehaving, out: Path) -> None:
    """If the pages hold fewer records than the total, repeated ones among them, some are missing: 75, in each run."""
    service.total = 250 + missing
    outbox = MemoryOutbox()
    for _ in range(3):
        ending = produce(service, outbox, out)
        assert (ending.code, ending.report.complete) == (75, False)
        assert f"expected {250 + missing} distinct tasks, got 250" in ending.line
