"""A list that changes while it is read: nothing is stored twice, and nothing that stayed is lost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from owm_outbox import Outbox
from owm_outbox_backends.memory import MemoryOutbox

from support.misbehaving import (
    Exchange,
    Misbehaving,
    Reply,
    Request,
    body,
    envelope,
    good,
    ids_in,
    misbehaving,
    produce,
    record,
    slow,
    status,
)
from support.weather import made_up

ALL = list(range(1, 251))


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
def test_a_second_pass_finds_what_the_total_hides(concurrency: int, bare: bool, out: Path) -> None:
    """A city that moved to a page already read, while another one left and a new one joined, is found if asked for."""
    with misbehaving(made_up(1000), bare=bare) as service:

        def swap(request: Request) -> None:
            if request.page == 4 and service.pages.count(4) == 1:
                del service.records[0]
                service.records.append(record(10_000))

        service.misbehave(slow(0.03), 0, times=1)
        service.changing = swap
        ending = produce(service, MemoryOutbox(), out, concurrency=concurrency, second_pass=True)
        current = {json.loads(city)["city_id"] for city in service.records}
    assert (ending.code, ending.report.expected, ending.report.extracted) == (0, None if bare else 1000, 1001)
    ids = ids_in(out)
    assert len(ids) == len(set(ids))
    assert current <= set(ids)
    assert {page: count for page, count in Counter(service.pages).items() if (page or 0) < 10} == dict.fromkeys(
        range(10), 2
    )


@pytest.mark.parametrize(("beyond", "newest"), [(good, 950), (status(404), 400)], ids=["empty", "404"])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_total_that_dips_for_a_moment_hides_nothing(concurrency: int, beyond: Reply, newest: int, out: Path) -> None:
    """An answer with too small a total, as a replica that lags gives, does not end the list there."""
    with misbehaving(made_up(950)) as service:
        totals = iter([950])

        def dips(exchange: Exchange) -> None:
            cities = json.loads(exchange.good())["cities"]
            exchange.send(200, json.dumps({"cities": cities, "total_count": next(totals, 400)}).encode())

        service.misbehave(beyond, *range(10, 100))
        service.misbehave(dips)
        ending = produce(service, MemoryOutbox(), out, concurrency=concurrency)
    assert (ending.code, ending.report.expected, ending.report.missing) == (0, newest, [])
    assert ids_in(out) == list(range(1, 951))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_last_page_that_no_longer_exists_is_not_missing(concurrency: int, out: Path) -> None:
    """A page that only an older total named, and that the API no longer has, keeps no run from completing."""
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
    """If the only page fails, what may follow is asked for one by one, and the next run starts with the first."""
    with misbehaving(made_up(50)) as service:
        service.misbehave(status(500), 0, times=5)
        service.misbehave(status(404), *range(1, 100))
        first = produce(service, outbox, out, concurrency=concurrency)
        assert (first.code, service.pages) == (75, [0] * 5 + [1] * 5)
        service.requests.clear()
        second = produce(service, outbox, out, concurrency=concurrency)
        assert (second.code, service.pages) == (0, [0, 1])
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


@pytest.mark.slow
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


def test_a_city_hidden_in_every_pass_is_warned_of(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the list changes each time it is read, the run completes and says that a city may be missed."""
    with misbehaving(made_up(6)) as service:

        def hide(request: Request) -> None:  # city 4 slips from page 1 to page 0 behind the reader, and back
            if request.page == 0:
                del service.records[0]
            elif request.page == 1:
                service.records.insert(0, record(10_000 + len(service.requests)))

        service.changing = hide
        ending = produce(service, MemoryOutbox(), out, concurrency=1, api_limit=3)
    assert {*range(1, 7)} - set(ids_in(out)) == {4}
    assert (ending.code, ending.report.expected) == (0, 6)
    assert "the API's total changed in each pass, to 6 now: a record may be missed" in caplog.text


def test_a_total_that_is_never_reached_is_said_with_both_figures(
    outbox: Outbox, service: Misbehaving, out: Path
) -> None:
    """If there are fewer cities than the total says, all pages are read again; then 75, and the next run reads them."""
    service.total = 251
    ending = produce(service, outbox, out)
    assert ending.code == 75
    assert "expected 251 distinct tasks, got 250" in ending.line
    assert Counter(service.pages) == {0: 2, 1: 2, 2: 2, 3: 2}
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
