"""Which page comes next, what is complete, and when to look again: decided here, without any I/O.

A pass reads the pages in order to their end; those that fail are set aside and tried once more. The source's total is
a claim. It says how far to read ahead, but not where the list ends: the page after the last one is asked for as well,
and only one that is empty, does not exist or repeats the one before is the end. Where the total is more than was
found, or changed on the way, another pass looks for what may have moved to a page that was read before.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from owm_outbox.errors import SourceUnavailable
from owm_outbox.paging.options import ApiPage

__all__ = ["Plan", "Step"]

log = logging.getLogger("owm_outbox.paging")

_EMPTY_PAGES = 3  # in a row: nothing follows them, whatever the total says
_BARREN_COMMITS = 3  # in a row, of nothing but known records: the API gives the same ones whatever the page
_MOST_MISSING = 100_000  # pages that are named one by one, so that an absurd total takes no memory
_MORE_PASSES = 2  # the second finds what moved; a third, if the list changed during that one as well
_IGNORED = "the API may ignore `page`, or --first-page may be wrong"


class Step(NamedTuple):
    """A page to fetch.

    :param beyond: the total says that there is no such page: a 404 is the end, not a failure.
    """

    number: int
    beyond: bool = False


class _Progress(msgspec.Struct):
    """The checkpoint; also reads that of version 0.1, whose ``ended`` did not look beyond the total."""

    url: str
    limit: int
    next_page: int
    first_page: int | None = None
    failed: list[int] = []
    total: int | None = None
    page_size: int | None = None  # where the API gives fewer records per page than asked for
    end_found: bool = False  # nothing follows next_page - 1
    overrun: bool = False  # pages beyond the total hold records: it says nothing
    shifted: bool = False  # the total changed during this pass, so a record may have moved past the reader
    passes: int = 0  # how often all pages were read again
    received: int = 0  # records in this pass, repeated ones among them
    found_before: int = 0  # distinct records when this pass began
    total_before: int | None = None  # the total when this pass began
    came: bool = False  # at least one page was fetched
    blank: bool = False  # the run had nothing when this began, so what is fetched has to be new
    reach: int = 0  # how far earlier passes got: up to there nothing new is no surprise
    unanswered: bool = False  # an earlier call could not fetch the page beyond the total either


class _Round(enum.Enum):
    FORWARD = enum.auto()
    AGAIN = enum.auto()
    RECOUNT = enum.auto()  # of the first page, for the newest total


class Plan:
    """Decides over one run of a paged API. Rounds follow each other until there is none; see `next_round`.

    :param url: fit for messages.
    :param accounted: distinct records that the run has.
    :param checkpoint: an earlier plan's; ignored if it is of another URL, limit or first page, whose numbers mean
        nothing here. To start from the first page is always safe.
    """

    def __init__(
        self, url: str, limit: int, first_page: int, *, second_pass: bool, accounted: int, checkpoint: bytes | None
    ) -> None:
        self._first = first_page
        self._second_pass = second_pass
        self._progress = _Progress(url, limit, first_page, first_page, blank=accounted == 0)
        if checkpoint is not None:
            try:
                saved = msgspec.json.decode(checkpoint, type=_Progress)
            except msgspec.MsgspecError:
                saved = self._progress
            if (saved.url, saved.limit) == (url, limit) and saved.first_page in (None, first_page):
                saved.first_page = first_page
                self._progress = saved
        self._round: _Round | None = None
        self._under_way = 0
        self._agreed: int | None = None  # how many records there are, where the total counts some of them twice
        self._start()

    def _start(self) -> None:
        self._answered = False  # until a page is, one at a time: it may show that nothing follows, or be a trial
        self._last: ApiPage[Any] | None = None
        self._empty = self._repeated = self._barren = self._again = 0  # pages, pages, commits, records in a row
        self._absent: set[int] = set()  # set-aside pages that the API says do not exist
        self._doubtful = False  # a 404 was taken for the end although the total says nothing

    def checkpoint(self) -> bytes:
        """Return what another plan continues from."""
        return msgspec.json.encode(self._progress)

    @property
    def expected(self) -> int | None:
        """How many distinct records the source has, by what is known."""
        progress = self._progress
        total = progress.total_before if progress.total is None else progress.total
        return total if self._agreed is None else self._agreed

    @property
    def missing(self) -> Sequence[int]:
        """Numbers of the pages still to be fetched, as far as they are known."""
        progress = self._progress
        known = progress.total is None or progress.end_found or progress.passes > 0
        end = progress.next_page if known else min(self._end, progress.next_page + _MOST_MISSING)
        to_come = range(progress.next_page, end)
        return sorted({*progress.failed, *to_come}) if progress.failed else to_come

    @property
    def nothing_at_all(self) -> bool:
        """Whether pages were fetched, and none is missing: what the source has is what the run has."""
        return self._progress.came and not self._progress.failed

    # -- rounds

    def next_round(self, accounted: int) -> bool:
        """Begin the next round; return whether there is one. The last one leaves the checkpoint for the next call."""
        progress, before = self._progress, self._round
        self._round, self._under_way = None, 0
        if not progress.end_found:
            self._round = _Round.FORWARD
        elif progress.failed and before in (None, _Round.FORWARD):
            self._round = _Round.AGAIN
        elif before is not _Round.RECOUNT and self._needs_recount():
            self._round = _Round.RECOUNT
        elif self._needs_pass(accounted):
            self._begin_pass(accounted)
            self._round = _Round.FORWARD
        elif not progress.failed and self._agreed is None and accounted < (progress.total or 0):
            self._begin_pass(accounted)  # for the next call: it reads all pages again
            progress.passes = 0
        return self._round is not None

    def steps(self) -> Iterator[Step | None]:
        """Yield this round's pages, ``None`` where the next one depends on those under way."""
        progress = self._progress
        if self._round is _Round.FORWARD:
            number = progress.next_page
            while self.going:
                far = not progress.overrun and self._beyond(number) and number > self._end
                if self._under_way and (far or not self._answered):
                    yield None
                else:
                    yield self._step(number)
                    number += 1
            return
        for number in sorted(progress.failed) if self._round is _Round.AGAIN else [self._first]:
            while self._under_way and not self._answered:
                yield None
            yield self._step(number)

    @property
    def going(self) -> bool:
        """Whether this round needs more outcomes."""
        return self._round is not _Round.FORWARD or not self._progress.end_found

    def _step(self, number: int) -> Step:
        self._under_way += 1
        return Step(number, self._beyond(number))

    def _needs_recount(self) -> bool:
        """Say whether pages that do not exist may be of a list that became shorter, or the API is gone as a whole."""
        shorter = self._absent and max(self._absent) >= self._end - 1 and self._first not in self._progress.failed
        return self._doubtful or bool(shorter)

    def _needs_pass(self, accounted: int) -> bool:
        progress = self._progress
        short = accounted < (progress.total or 0)
        if progress.failed and not short and not progress.overrun and all(map(self._beyond, progress.failed)):
            if not progress.unanswered:
                progress.unanswered = True
                return False
            log.warning("page %d, beyond the total, fails in each run: taken for the end", progress.failed[0])
            progress.failed.clear()
        if progress.failed:
            return False
        if self._second_pass and progress.passes == 0:
            log.info("reading all pages a second time, as asked for")
            return True
        if progress.total is None or not (short or progress.shifted):
            return False
        if short and not progress.shifted and self._counts_twice(accounted):
            log.warning(
                "the API's total of %d counts records twice: two passes over all pages found the same %d",
                *(progress.total, accounted),
            )
            self._agreed = accounted
            return False
        if progress.passes >= (_MORE_PASSES if progress.shifted else 1):
            if not short:
                log.warning(
                    "the API's total changed in each pass, to %d now: a record may be missed", progress.total
                )
            return False
        log.warning(
            "%s: reading all pages again",
            f"got {accounted} of {progress.total} records" if short else f"the total changed to {progress.total}",
        )
        return True

    def _counts_twice(self, accounted: int) -> bool:
        """Say whether this pass gave as many records as the total, and none that the pass before had not given."""
        progress = self._progress
        same = (progress.total, accounted) == (progress.total_before, progress.found_before)
        return same and progress.received >= (progress.total or 0)

    def _begin_pass(self, accounted: int) -> None:
        progress = self._progress
        progress.reach = max(progress.reach, progress.next_page)
        progress.total_before, progress.found_before = progress.total, accounted
        progress.next_page, progress.total, progress.received = self._first, None, 0
        progress.end_found = progress.overrun = progress.shifted = False
        progress.passes += 1
        self._start()

    # -- outcomes, in the order of the steps

    def fetched(self, number: int, page: ApiPage[Any]) -> bool:
        """Learn from a page; return whether its records are to be stored.

        :raises SourceUnavailable: the API does not page.
        """
        progress = self._progress
        self._under_way -= 1
        self._answered = progress.came = True
        holds = bool(page.records or page.invalid)
        if self._round is _Round.RECOUNT:
            self._learn(number, page, holds=False)
            progress.failed = [n for n in progress.failed if not (n in self._absent and self._beyond(n))]
            return False
        if self._round is _Round.FORWARD:
            if holds and self._last is not None and _same(page, self._last):
                return self._repeat(number)
            self._last = page
            progress.next_page, self._repeated = number + 1, 0
            self._empty = 0 if holds else self._empty + 1
        else:
            progress.failed.remove(number)
            if holds and number == progress.next_page - 1:
                progress.end_found = False  # it was taken for the end
        self._learn(number, page, holds)
        progress.received += len(page.records) + len(page.invalid)
        if not holds and (progress.total is None or self._beyond(number) or self._empty >= _EMPTY_PAGES):
            progress.end_found = True
        return holds

    def failed(self, number: int, reason: str, *, no_such_page: bool = False, unreachable: bool = False) -> None:
        """Set a page aside, or take it for the end.

        :raises SourceUnavailable: nothing was fetched at all.
        """
        progress = self._progress
        self._under_way -= 1
        beyond = self._beyond(number)
        if self._round is _Round.RECOUNT:
            if self._doubtful:
                progress.end_found, progress.next_page = False, progress.next_page - 1
                raise SourceUnavailable(f"{reason}: it answered before; run again later")
        elif self._round is _Round.AGAIN:
            if no_such_page and beyond:
                progress.failed.remove(number)
                return
            log.error("page %d could not be fetched: %s", number, reason)
            self._absent |= {number} if no_such_page else set()
        elif no_such_page and beyond:
            progress.next_page, progress.end_found, self._doubtful = number + 1, True, progress.overrun
        elif not progress.came and (unreachable or progress.failed):
            # The next call starts from the first page: what failed here was perhaps all there is.
            progress.next_page, progress.failed = self._first, []
            raise SourceUnavailable(f"{reason}: nothing could be read; run again later")
        else:
            log.warning("page %d is set aside: %s", number, reason)
            progress.failed.append(number)
            progress.next_page = number + 1
            progress.end_found = beyond and not progress.overrun  # until it is tried again

    def stored(self, number: int, records: int, before: int, accounted: int) -> None:
        """Note that this many records, up to this page, were stored, and how many distinct ones there are now.

        :raises SourceUnavailable: the API gives the same records again and again.
        """
        progress = self._progress
        if not records or accounted > before or not before or not progress.blank or number < progress.reach:
            self._barren = self._again = 0
            return
        self._barren, self._again = self._barren + 1, self._again + records
        # Rows that were put in front repeat what was read before, but no more than that.
        if self._barren < _BARREN_COMMITS or self._again <= accounted:
            return
        if not self._beyond(number) or accounted < (progress.total or 0):
            raise SourceUnavailable(
                f"{progress.url} gives nothing new for page after page, up to page {number}: {_IGNORED}"
            )
        progress.end_found = True

    def _repeat(self, number: int) -> bool:
        """Take a page that repeats the one before for the end, where the total says so and the next one does, too."""
        progress = self._progress
        if not self._beyond(number):
            raise SourceUnavailable(
                f"{progress.url} gives the same records for page {number - 1} and page {number}: {_IGNORED}"
            )
        progress.next_page = number + 1
        self._repeated += 1
        progress.end_found = self._repeated > 1
        return False

    def _learn(self, number: int, page: ApiPage[Any], holds: bool) -> None:
        progress = self._progress
        if page.limit is not None and 0 < page.limit < progress.limit:
            progress.page_size = page.limit
        changed = page.total is not None and progress.total not in (None, page.total)
        if page.total is not None:
            progress.total = max(progress.total or 0, page.total) if progress.overrun else page.total
        if holds and self._beyond(number) and not progress.overrun:
            log.info("page %d holds records, beyond the total of %s: reading to the end", number, progress.total)
            progress.overrun = True
        progress.shifted |= changed and not progress.overrun

    @property
    def _end(self) -> int:
        """The number of the first page that does not exist, by the newest total."""
        size = self._progress.page_size or self._progress.limit
        return self._first + -(-(self._progress.total or 0) // size)

    def _beyond(self, number: int) -> bool:
        return self._progress.total is not None and number >= self._end


def _same(page: ApiPage[Any], last: ApiPage[Any]) -> bool:
    """Say whether a page holds what the one before did, in whatever order, under the same total."""
    if (page.total, len(page.records), len(page.invalid)) != (last.total, len(last.records), len(last.invalid)):
        return False
    if page.records and page.records[0] not in last.records:
        return False  # the usual case, quickly
    return sorted(map(repr, page.records)) == sorted(map(repr, last.records)) and sorted(
        map(repr, page.invalid)
    ) == sorted(map(repr, last.invalid))
