"""APIs without a total end at the empty page, and one that ignores the page number is not read for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from owm_outbox import Outbox
from owm_outbox_backends.memory import MemoryOutbox

from support.misbehaving import (
    Exchange,
    Misbehaving,
    Reply,
    Request,
    envelope,
    ids_in,
    misbehaving,
    produce,
    reset,
    slow,
    status,
)
from support.weather import made_up

ALL = list(range(1, 251))


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
def test_what_bare_arrays_gave_is_kept_when_the_api_fails(
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
    if outbox.state.get(name):
        outbox.state.set(name, b"{}")  # as if 600 s had passed
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
    assert ending.code == 75
    assert "the API may ignore `page`, or --first-page may be wrong" in ending.line
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
    assert ending.code == 75
    assert "the API may ignore `page`" in ending.line
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


@pytest.mark.parametrize("shuffled", [False, True], ids=["same order", "any order"])
def test_an_api_with_a_total_may_ignore_the_page_number_too(shuffled: bool, out: Path) -> None:
    """An API that gives the first page again and again, with the right total, ends with 75 and a line that says so."""
    random = Random(7)  # noqa: S311 - no secret
    with misbehaving(made_up(250)) as service:

        def first(exchange: Exchange) -> None:
            records = random.sample(service.records[:100], 100) if shuffled else service.records[:100]
            exchange.send(200, envelope(b"[" + b",".join(records) + b"]", total="250"))

        service.misbehave(first)
        for _ in range(2):
            ending = produce(service, MemoryOutbox(), out, concurrency=1)
            assert ending.code == 75
            assert "gives records of earlier pages for page 1: the API may ignore `page`" in ending.line
    assert len(service.requests) <= 2 * 3
    assert set(ids_in(out)) == set(ALL[:100])


def test_pages_that_count_from_1_are_pointed_out(service: Misbehaving, out: Path) -> None:
    """An API that takes page 0 for page 1 ends with 75 and the option that fixes it; with that it completes."""
    service.first_page = 1
    service.misbehave(lambda exchange: exchange.send(200, service.body(Request("", 1, 100, 1, {}))), 0)
    outbox = MemoryOutbox()
    ending = produce(service, outbox, out)
    assert ending.code == 75
    assert "--first-page may be wrong" in ending.line
    again = produce(service, outbox, out, first_page=1)
    assert (again.code, again.report.run_id) == (0, ending.report.run_id)
    assert ids_in(out) == ALL
