"""What a run of pages that name each other needs: as tables, without a socket."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from owm_outbox import ConfigurationError, SourceUnavailable
from owm_outbox.paging import ApiPage
from owm_outbox.paging.chain import Chain
from owm_outbox.paging.step import Failure

from support.plans import BROKEN, NOT_FOUND, REFUSED, URL


@dataclass
class Reading:
    """One run, over as many calls as it takes."""

    records: list[int]
    total: int | None = None
    second_pass: bool = False
    fails: int | None = None  # the page that does
    failure: Failure = BROKEN
    asked: list[str | int | None] = field(default_factory=list)
    found: set[int] = field(default_factory=set)
    checkpoint: bytes | None = None
    expected: int | None = None
    ended: bool = False

    def call(self, most: int = 100) -> Reading:
        """Make one call, that ends after this many pages at the latest; as a relay does, see the other `Reading`."""
        if self.short and self.ended:
            self.checkpoint = None
        chain = Chain(URL, 3, second_pass=self.second_pass, checkpoint=self.checkpoint)
        try:
            while chain.next_round(len(self.found)):
                for step in chain.steps():
                    assert step is not None, "nothing else is under way"
                    if not most:
                        return self
                    most -= 1
                    self._read(chain, step.number, step.after)
                    self.checkpoint = chain.checkpoint()
        finally:
            self.checkpoint, self.expected, self.ended = chain.checkpoint(), chain.expected, chain.read_all
        return self

    def _read(self, chain: Chain, number: int, after: str | int | None) -> None:
        self.asked.append(after)
        begins = int(after or 0)
        if begins == self.fails:
            return chain.failed(number, self.failure)
        records, ends = self.records[begins : begins + 3], begins + 3
        page = ApiPage(records, total=self.total, next=ends if ends < len(self.records) else None)
        if chain.fetched(number, page, len(self.found)):
            self.found.update(records)
        return None

    @property
    def complete(self) -> bool:
        """Whether a relay would say so."""
        return self.found == set(self.records) and not self.short

    @property
    def short(self) -> bool:
        """Whether fewer records were found than there are."""
        return len(self.found) < (self.expected or 0)


@pytest.mark.parametrize(
    ("records", "total", "asked"),
    [
        (range(8), None, [None, 3, 6]),
        (range(9), 9, [None, 3, 6]),
        (range(8), 2, [None, 3, 6]),
        (range(2), 2, [None]),
        ([], 0, [None]),
        ([], None, [None]),
    ],
    ids=["no total", "total", "too small", "one page", "none", "none, no total"],
)
def test_a_chain_is_read_to_its_end_once(records: Iterable[int], total: int | None, asked: list[int | None]) -> None:
    """The end is where no page follows; a total that is smaller changes nothing."""
    reading = Reading(list(records), total).call()
    assert (reading.asked, reading.complete) == (asked, True)


@pytest.mark.parametrize("most", range(1, 6))
def test_a_run_may_be_ended_after_any_page(most: int) -> None:
    """The next call continues with the page after it, also in a second pass."""
    reading = Reading([*range(8), 0], 9).call(most).call()
    assert (reading.complete, reading.expected) == (True, 8)
    assert reading.asked[: most + 1] == [None, 3, 6, None, 3, 6, None][: most + 1]


def test_a_page_that_fails_ends_the_call() -> None:
    """What comes after it cannot be named; the next call continues with it."""
    reading = Reading(list(range(8)), fails=3)
    for _ in range(2):
        with pytest.raises(SourceUnavailable, match="it failed; the next run continues with this page"):
            reading.call()
    reading.fails = None
    assert reading.call().complete
    assert reading.asked == [None, 3, 3, 3, 6]


def test_a_cursor_that_expired_is_one_that_was_kept() -> None:
    """One that the API has just given and does not know is a failure; after a break all pages are read again."""
    reading = Reading(list(range(8)), fails=3, failure=NOT_FOUND)
    with pytest.raises(SourceUnavailable):
        reading.call()
    with pytest.raises(SourceUnavailable):
        reading.call()
    assert reading.asked == [None, 3, 3, None, 3]
    reading.fails = None
    assert reading.call().complete


@pytest.mark.parametrize("refused", [None, 3], ids=["first page", "where it continues"])
def test_a_source_that_refuses_the_first_page_of_a_call(refused: int | None) -> None:
    """What it refuses first is a matter of configuration, also for a cursor that an earlier call was given."""
    reading = Reading(list(range(8)), failure=REFUSED)
    if refused:
        reading.call(1)
    reading.fails = refused or 0
    with pytest.raises(ConfigurationError, match="it answered 401: check the API token"):
        reading.call()


def test_a_source_that_refuses_a_later_page_failed() -> None:
    """It gave one with the same token and address just before."""
    reading = Reading(list(range(8)), fails=3, failure=REFUSED)
    with pytest.raises(SourceUnavailable, match="it answered 401; the next run continues with this page"):
        reading.call()


def test_a_total_that_is_too_large_is_looked_for_in_each_call() -> None:
    """All pages are read twice per call; the run stays incomplete."""
    reading = Reading(list(range(8)), 10)
    for call in (1, 2):
        reading.call()
        assert (reading.complete, reading.expected, len(reading.asked)) == (False, 10, 6 * call)
    reading.total = 8
    assert reading.call().complete


def test_a_second_pass_is_made_if_asked_for() -> None:
    """Once."""
    reading = Reading(list(range(8)), second_pass=True).call()
    assert reading.asked == [None, 3, 6] * 2
    assert reading.call().asked == [None, 3, 6] * 2


@pytest.mark.parametrize(
    "checkpoint",
    [b"", b"{}", b'{"url":"http://other/","limit":3,"after":6}', b'{"url":"http://api/cities/","limit":9}'],
)
def test_a_checkpoint_of_other_circumstances_is_ignored(checkpoint: bytes) -> None:
    """To start from the first page is always safe."""
    assert Reading(list(range(8)), checkpoint=checkpoint).call().asked == [None, 3, 6]
