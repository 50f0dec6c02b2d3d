"""Which pages are asked for, in which order, and what a run is then: as tables, without a socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest

from owm_outbox import ConfigurationError, InvalidRecord, SourceUnavailable
from owm_outbox.paging import ApiPage
from owm_outbox.paging.plan import Plan
from owm_outbox.paging.step import Failure

from support.plans import AWAY, BROKEN, NOT_FOUND, REFUSED, URL, Reading, Source, pages


@pytest.mark.parametrize(
    ("source", "asked", "beyond", "expected"),
    [
        (pages(range(8)), "0123", "3", 8),
        (pages(range(9)), "0123", "3", 9),
        (pages(range(1)), "01", "1", 1),
        (pages([]), "0", "", 0),
        (pages(range(8), None), "0123", "", None),
        (pages(range(8), beyond=NOT_FOUND), "0123", "3", 8),
        (pages(range(8), clamped=True), "01234", "34", 8),
        (pages(range(3), clamped=True), "012", "12", 3),
        (pages(range(8), size=2, limit=2), "01234", "4", 8),
    ],
    ids=["total", "full last page", "one", "none", "no total", "404", "clamped", "one page clamped", "limit said"],
)
def test_an_honest_source_is_read_once(source: Source, asked: str, beyond: str, expected: int | None) -> None:
    """Each page is asked for once, and what follows the last one; then the run is complete."""
    reading = Reading(source).call()
    assert "".join(map(str, reading.asked)) == asked
    assert "".join(map(str, reading.beyond)) == beyond
    assert (reading.complete, reading.expected) == (True, expected)


@pytest.mark.parametrize("end", [None, NOT_FOUND], ids=["empty", "404"])
@pytest.mark.parametrize(
    "total",
    [6, 3, 0, 1, 17, lambda count: count, lambda count: 6 if count else 0],
    ids=["capped", "page size", "zero", "one", "almost", "of the page", "zero beyond"],
)
def test_a_total_that_is_too_small_cuts_nothing_off(
    total: int | Callable[[int], int | None], end: Failure | None
) -> None:
    """Whatever small figure the source gives, all pages are read, and each is read once."""
    reading = Reading(pages(range(18), total, beyond=end)).call()
    assert (reading.asked, len(reading.found), reading.complete) == ([*range(7)], 18, True)


def test_fewer_records_per_page_than_asked_for_are_read_to_the_end() -> None:
    """A source that silently gives 2 instead of 3 has pages beyond the end that its total and our limit make."""
    reading = Reading(pages(range(18), size=2)).call()
    assert (reading.asked, len(reading.found), reading.complete) == ([*range(10)], 18, True)


def test_a_total_that_is_too_large_ends_after_three_empty_pages() -> None:
    """What the source claims and does not have is looked for twice, and again in the next call; it stays incomplete."""
    reading = Reading(pages(range(6), 10**12))
    for call in (1, 2, 3):
        reading.call()
        assert (reading.complete, reading.expected, len(reading.asked)) == (False, 10**12, call * 10)
    assert list(reading.missing) == []


@pytest.mark.parametrize(
    "listed", [[0, 1, 1, 2], [0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 0, 1, 2]], ids=["one page", "two", "a page"]
)
def test_a_total_that_counts_records_twice_is_seen_through(listed: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """A second pass that gives as many records as the total, and nothing new, says what it counts."""
    reading = Reading(pages(listed)).call()
    distinct = len(set(listed))
    once = len(reading.asked) // 2
    assert reading.asked == [*range(once), *range(once)]
    assert (reading.complete, reading.expected) == (True, distinct)
    assert (
        f"total of {len(listed)} counts records twice: all pages, read twice, hold {distinct} distinct" in caplog.text
    )
    asked = len(reading.asked)
    assert reading.call().complete, "it is still known in the next call"
    assert len(reading.asked) == asked


def test_a_second_pass_that_brings_something_new_proves_nothing() -> None:
    """Only what two passes agree on is believed; the third pass is the next call's."""
    before, after = pages([0, 1, 1, 2, 3]), pages([0, 1, 1, 2, 9])
    reading = Reading(lambda number, attempt: (before if attempt == 1 else after)(number, attempt)).call()
    assert (reading.complete, reading.expected) == (True, 5)
    assert reading.found == {0, 1, 2, 3, 9}
    reading = Reading(lambda number, attempt: (before if attempt == 1 else after)(number, attempt), second_pass=True)
    assert reading.call().asked == [0, 1, 2, 0, 1, 2]


def test_records_that_are_not_valid_count_as_received() -> None:
    """Two identical bad records are one, although the total counts two."""
    bad = InvalidRecord(b'{"city_id":7}', "no latitude", 7)

    def source(number: int, _: int) -> ApiPage[int]:
        return ApiPage([1], [bad], 4) if number == 0 else ApiPage([2] if number == 1 else [], [bad][: number == 1], 4)

    reading = Reading(source).call()
    assert (len(reading.found), reading.expected, reading.complete) == (3, 3, True)


# -- failures


@pytest.mark.parametrize(
    ("bad", "asked", "missing"),
    [
        ({1: BROKEN}, [0, 1, 2, 3, 1], [1]),
        ({1: [BROKEN]}, [0, 1, 2, 3, 1], []),
        ({0: BROKEN}, [0, 1, 2, 3, 0], [0]),
        ({1: NOT_FOUND}, [0, 1, 2, 3, 1], [1]),
        ({2: BROKEN}, [0, 1, 2, 3, 2], [2]),
        ({2: NOT_FOUND}, [0, 1, 2, 3, 2, 0, 1, 2, 3, 2], [2]),
        ({3: BROKEN}, [0, 1, 2, 3, 3], [3]),
        ({3: [BROKEN]}, [0, 1, 2, 3, 3], []),
    ],
    ids=["middle", "once", "first", "404 in the middle", "last", "404 at the end", "beyond", "beyond once"],
)
def test_a_page_that_fails_is_tried_again_at_the_end(
    bad: dict[int, Failure | Sequence[Failure]], asked: list[int], missing: list[int]
) -> None:
    """It is tried once more, and named if it failed again; the next call asks for nothing else."""
    reading = Reading(pages(range(8), bad=bad)).call()
    assert (reading.asked, list(reading.missing), reading.complete) == (asked, missing, not missing)
    reading.asked.clear()
    reading.source = pages(range(8))
    assert reading.call().complete
    assert reading.asked == missing


def test_a_page_beyond_the_total_that_always_fails_is_the_end_in_the_second_call() -> None:
    """What follows the last page has to be known; but a source that cannot say is not incomplete for ever."""
    reading = Reading(pages(range(8), beyond=BROKEN))
    calls = [(list(reading.call().missing), reading.complete) for _ in range(2)]
    assert calls == [([3], False), ([], True)]
    assert set(reading.asked) == set(range(4))


def test_a_failing_page_beyond_a_capped_total_is_missing_for_as_long_as_it_fails() -> None:
    """Where pages beyond the total hold records, one that fails there is a page as any other."""
    reading = Reading(pages(range(18), 6, bad={4: BROKEN}))
    for _ in range(3):
        assert list(reading.call().missing) == [4]
    reading.source = pages(range(18), 6)
    assert reading.call().complete
    assert len(reading.found) == 18


def test_a_page_beyond_that_holds_records_in_the_end_is_not_the_last() -> None:
    """Once it is fetched, the pages after it are, too."""
    reading = Reading(pages(range(18), 6, bad={2: [BROKEN]})).call()
    assert (reading.asked, len(reading.found)) == ([0, 1, 2, 2, 3, 4, 5, 6], 18)
    assert reading.complete


@pytest.mark.parametrize(
    ("bad", "asked"), [({0: AWAY}, [0]), ({0: BROKEN, 1: BROKEN}, [0, 1]), ({0: NOT_FOUND, 1: AWAY}, [0, 1])]
)
def test_a_source_that_gives_nothing_is_unavailable(bad: dict[int, Failure], asked: list[int]) -> None:
    """If nothing answers, or neither of the first two pages, no more are tried; the next call starts with the first."""
    reading = Reading(pages(range(8), bad=dict(bad)))
    with pytest.raises(SourceUnavailable, match="it failed: nothing could be read; run again later"):
        reading.call()
    assert reading.asked == asked
    reading.asked.clear()
    reading.source = pages(range(8))
    assert reading.call().complete
    assert reading.asked == [0, 1, 2, 3]


@pytest.mark.parametrize("total", [None, 18, 9], ids=["no total", "total", "other total"])
def test_a_source_that_ignores_the_page_is_pointed_out(total: int | None) -> None:
    """The same records for two pages that should both exist end the call; so does a second one."""
    reading = Reading(lambda number, attempt: ApiPage([1, 2, 3], (), total))
    for asked in ([0, 1], [0, 1, 1, 2]):
        with pytest.raises(SourceUnavailable, match="may ignore `page`, or --first-page may be wrong"):
            reading.call()
        assert reading.asked == asked


def test_the_same_records_in_another_order_are_the_same() -> None:
    """A source without an order of its own is found out as well."""
    with pytest.raises(SourceUnavailable, match="gives records of earlier pages for page 1"):
        Reading(lambda number, attempt: ApiPage([1, 2, 3] if number % 2 else [3, 1, 2], (), 18)).call()


def test_records_that_go_in_circles_are_not_read_for_ever() -> None:
    """Pages that start with the first one again end the call."""
    reading = Reading(lambda number, attempt: ApiPage([number % 3, 100 + number % 3]))
    with pytest.raises(SourceUnavailable, match="gives records of earlier pages for page 3: the API may ignore `page`"):
        reading.call()
    assert reading.asked == [0, 1, 2, 3]


def test_circles_beyond_the_total_are_the_end() -> None:
    """If the source has given all that it says it has, a page that repeats the first one is no failure."""
    reading = Reading(lambda number, attempt: ApiPage([number % 2, 100 + number % 2], (), 4), limit=2).call()
    assert (reading.asked, reading.complete, len(reading.found)) == ([0, 1, 2], True, 4)


def test_records_at_random_are_not_read_for_ever() -> None:
    """Pages of nothing but known records, each another choice of them, end the call after a while."""
    reading = Reading(lambda number, attempt: ApiPage([(number * n) % 997 for n in range(1, 500)]), limit=500)
    with pytest.raises(SourceUnavailable, match="gives the same records again and again: the API may ignore `page`"):
        reading.call()
    assert 20 <= len(reading.asked) < 60


def test_one_record_per_page_may_be_there_twice() -> None:
    """With one record per page, two pages that are the same are two records that are."""
    reading = Reading(pages([1, 1, 2], size=1), limit=1).call()
    assert (reading.complete, reading.found, reading.expected) == (True, {1, 2}, 2)


# -- passes


@pytest.mark.parametrize(("totals", "passes"), [([9, 9, 9], 1), ([9, 8, 9], 2), ([8, 9, 9], 2)])
def test_a_total_that_changed_is_reason_for_another_pass(totals: list[int], passes: int) -> None:
    """A record may have moved to a page that was read before; a pass without a change is the last."""

    def source(number: int, attempt: int) -> ApiPage[int]:
        total = totals[number] if number < 3 and attempt == 1 else 9
        return ApiPage(list(range(9))[number * 3 : number * 3 + 3], (), total)

    reading = Reading(source).call()
    assert reading.asked == [0, 1, 2, 3] * passes
    assert reading.complete


def test_a_total_that_changes_in_each_pass_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """After three passes it is left at that."""
    reading = Reading(lambda number, attempt: pages(range(9), 8 if number == 0 else 9)(number, attempt)).call()
    assert reading.asked == [0, 1, 2, 3] * 3
    assert "the API's total changed in each pass, to 9 now: a record may be missed" in caplog.text


def test_a_source_that_refuses_the_first_page_of_all_is_a_matter_of_configuration() -> None:
    """Nothing else is known of it: no other page is asked for."""
    reading = Reading(pages(range(8), bad={0: REFUSED}))
    with pytest.raises(ConfigurationError, match="it answered 401: check the API token"):
        reading.call()
    assert reading.asked == [0]


def test_a_page_that_is_refused_alone_is_missing() -> None:
    """The API gave others before: it may refuse this one only."""
    reading = Reading(pages(range(8), bad={1: BROKEN})).call()
    reading.asked.clear()
    reading.source = pages(range(8), bad={1: REFUSED})
    assert (list(reading.call().missing), reading.asked) == ([1], [1])


def test_a_source_that_refuses_the_first_two_pages_of_a_call_is_a_matter_of_configuration() -> None:
    """A token that expired since the last call refuses every page."""
    refusing = pages(range(18), bad=dict.fromkeys(range(7), REFUSED))
    reading = Reading(refusing, checkpoint=_version_0_1(next_page=2))
    with pytest.raises(ConfigurationError, match="it answered 401: check the API token"):
        reading.call()
    assert reading.asked == [2, 3]


def test_refusals_among_other_pages_are_failures() -> None:
    """Once the API answered in this call, it does not refuse everything."""
    reading = Reading(pages(range(18), bad={2: REFUSED, 3: REFUSED, 4: REFUSED})).call()
    assert list(reading.missing) == [2, 3, 4]


@pytest.mark.parametrize("total", [-1, None], ids=["total", "no total"])
def test_a_second_pass_is_made_if_asked_for(total: int | None) -> None:
    """Once, whatever the total says."""
    reading = Reading(pages(range(8), total), second_pass=True).call()
    assert (reading.asked, reading.complete) == ([0, 1, 2, 3] * 2, True)


# -- look-ahead


def _taken(plan: Plan, most: int = 20) -> list[int]:
    """Return the pages that may be under way at once."""
    steps = plan.steps()
    taken = [next(steps) for _ in range(most)]
    assert None not in taken or set(taken[taken.index(None) :]) == {None}
    return [step.number for step in taken if step is not None]


def _plan(checkpoint: bytes | None = None, accounted: int = 0, *, first_page: int = 0) -> Plan:
    plan = Plan(URL, 3, first_page, second_pass=False, checkpoint=checkpoint)
    assert plan.next_round(accounted)
    return plan


@pytest.mark.parametrize(
    ("page", "taken"),
    [
        (ApiPage([1, 2, 3], (), 12), [1, 2, 3, 4]),
        (ApiPage([1, 2, 3], (), 3), [1]),
        (ApiPage([1, 2, 3], (), 4, 1), [1, 2, 3, 4]),
        (ApiPage([1, 2, 3]), list(range(1, 21))),
    ],
    ids=["total", "one page", "smaller pages", "no total"],
)
def test_what_is_taken_ahead_depends_on_the_total(page: ApiPage[int], taken: list[int]) -> None:
    """The first page is alone; then all up to one beyond the total, or without end where there is none."""
    plan = _plan()
    assert _taken(plan) == [0]
    plan = _plan()
    next(plan.steps())
    plan.fetched(0, page, 0)
    assert _taken(plan) == taken


def test_pages_beyond_the_total_are_taken_ahead_once_one_holds_records() -> None:
    """A total that is known to be too small limits nothing."""
    plan = _plan()
    for number in range(2):
        next(plan.steps())
        plan.fetched(number, ApiPage([3 * number, 3 * number + 1, 3 * number + 2], (), 3), 3)
    assert _taken(plan) == list(range(2, 22))


def test_each_call_begins_with_one_page() -> None:
    """Also one that has much to do: it may be the trial of a breaker."""
    checkpoint = json.dumps({"url": URL, "limit": 3, "next_page": 4, "failed": [1, 2], "total": 300, "came": True})
    assert _taken(_plan(checkpoint.encode(), 6)) == [4]
    ended = json.dumps(json.loads(checkpoint) | {"total": 12, "end_found": True})
    assert _taken(_plan(ended.encode(), 6), 5) == [1]


# -- checkpoints


def _version_0_1(**fields: object) -> bytes:
    """Return a checkpoint as version 0.1 wrote it."""
    written = {
        "url": URL,
        "limit": 3,
        "next_page": 0,
        "failed": [],
        "total": 18,
        "page_size": None,
        "ended": False,
        "shifted": False,
        "most": 18,
        "passes": 0,
        "came": True,
        "blank": True,
        "reach": 0,
    }
    return json.dumps(written | fields).encode()


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"next_page": 2}, [2, 3, 4, 5, 6]),
        ({"next_page": 2, "failed": [1]}, [2, 3, 4, 5, 6, 1]),
        ({"next_page": 6, "failed": [1], "ended": True}, [6, 1]),
        ({"next_page": 6, "ended": True}, [6]),
        ({"next_page": 2, "ended": True, "total": 6, "most": 6}, [2, 3, 4, 5, 6]),
        ({"next_page": 1, "total": None, "most": 0}, [1, 2, 3, 4, 5, 6]),
        ({"next_page": 0, "passes": 1, "total": None, "reach": 6}, [0, 1, 2, 3, 4, 5, 6]),
    ],
    ids=["middle", "failed", "ended, failed", "ended", "ended at a cap", "no total", "second pass"],
)
def test_a_run_of_version_0_1_is_resumed(fields: dict[str, object], asked: list[int]) -> None:
    """It continues where it was, and looks beyond the total, which that version did not."""
    total = 6 if fields.get("total") == 6 else -1
    reading = Reading(pages(range(18), total), checkpoint=_version_0_1(**fields), found={*range(3), *range(6, 18)})
    if "failed" not in fields:
        reading.found |= {3, 4, 5}
    reading.call()
    assert (reading.asked, reading.found, reading.complete) == (asked, set(range(18)), True)


@pytest.mark.parametrize(
    "checkpoint",
    [
        b"",
        b"null",
        b"{}",
        _version_0_1(url="http://other/", next_page=4),
        _version_0_1(limit=50, next_page=4),
        _version_0_1(first_page=1, next_page=4),
        _version_0_1(next_page="4"),
    ],
    ids=["empty", "null", "no fields", "address", "limit", "first page", "damaged"],
)
def test_a_checkpoint_of_other_circumstances_is_ignored(checkpoint: bytes) -> None:
    """Page numbers mean nothing under another address, limit or first page: the run starts from its first one."""
    assert Reading(pages(range(8)), checkpoint=checkpoint).call().asked == [0, 1, 2, 3]


@pytest.mark.parametrize("stopped_after", range(1, 16))
def test_a_run_may_be_ended_after_any_page(stopped_after: int) -> None:
    """Wherever a call ends, the next ones find all that there is, and what the total counts."""
    listed = [*range(8), 0]

    class Ended(Exception):
        pass

    def source(number: int, attempt: int) -> ApiPage[int] | Failure:
        if len(reading.asked) == stopped_after:
            raise Ended
        return pages(listed, bad={1: [BROKEN]})(number, attempt)

    reading = Reading(source)
    for _ in range(4):
        try:
            reading.call()
        except Ended:
            continue
        if reading.complete:
            break
    assert (reading.complete, reading.found, reading.expected) == (True, set(range(8)), 8)


def test_missing_pages_are_named_up_to_a_bound() -> None:
    """Before the end is found, those still to come are missing, too; an absurd total takes no memory."""
    plan = _plan()
    next(plan.steps())
    plan.fetched(0, ApiPage([1, 2, 3], (), 2**63 - 1), 0)
    assert len(plan.missing) == 100_000
    assert (plan.missing[0], plan.missing[-1]) == (1, 100_000)
