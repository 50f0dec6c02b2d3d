"""Which page comes next, what is complete, and when to look again: decided here, without any I/O.

A pass reads the pages in order; those that fail are set aside and tried once more. The source's total is a claim: it
says how far to read ahead, not where the list ends. The page after the last one is asked for as well, and only one
that is empty, does not exist or repeats the one before is the end. Where the total is more than was found, or changed
on the way, another pass looks for what may have moved to a page that was read before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from owm_outbox.errors import ConfigurationError, SourceUnavailable
from owm_outbox.paging.options import ApiPage
from owm_outbox.paging.step import Failure, Step

__all__ = ["Plan"]

log = logging.getLogger("owm_outbox.paging")

_EMPTY_PAGES = 3  # in a row: nothing follows them, whatever the total says
_REPEATED = 10  # times as many records in a pass as there are distinct ones: the API gives them at random
_MOST_MISSING = 100_000  # pages that are named one by one, so that an absurd total takes no memory
_MORE_PASSES = 2  # the second finds what moved; a third, if the list changed during that one as well
_IGNORED = "the API may ignore `page`, or --first-page may be wrong"


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
    overrun: bool = False  # pages beyond the total hold records, so it says nothing
    shifted: bool = False  # the total changed during this pass, so a record may have moved past the reader
    passes: int = 0  # how often all pages were read again
    received: int = 0  # records in this pass, repeated ones among them
    found_before: int = 0  # distinct records when this pass began
    total_before: int | None = None  # the total when this pass began
    came: bool = False  # at least one page was fetched
    unanswered: bool = False  # an earlier call could not fetch the page beyond the total either


class Plan:
    """Decides over one run of a paged API, in rounds: all pages, those that failed, all pages again.

    :param url: fit for messages.
    :param by_offset: whether pages are asked for by the number of records before them, so that their size matters.
    :param checkpoint: an earlier plan's. It is ignored if it is of another URL, limit or first page, whose numbers
        mean something else; to start from the first page is always safe.
    """

    def __init__(
        self,
        url: str,
        limit: int,
        first_page: int,
        *,
        second_pass: bool,
        by_offset: bool = False,
        checkpoint: bytes | None,
    ) -> None:
        self._first, self._second_pass, self._by_offset = first_page, second_pass, by_offset
        self._progress = _Progress(url, limit, first_page, first_page)
        try:
            saved = msgspec.json.decode(checkpoint or b"", type=_Progress)
        except msgspec.MsgspecError:
            saved = self._progress
        if (saved.url, saved.limit) == (url, limit) and saved.first_page in (None, first_page):
            saved.first_page = first_page
            self._progress = saved
        self._forward: bool | None = None  # whether this round reads the pages in order; None: before the first
        self._distinct: int | None = None  # how many records there are, where the total counts some of them twice
        self._refused: int | None = 0  # pages that the API refused, all that were asked for; None: not all were
        self._start()

    def _start(self) -> None:
        self._under_way = 0
        self._answered = False  # until one is, a page at a time: it may show that nothing follows, or be a trial
        self._earlier: list[ApiPage[Any]] = []  # the first page and the last one of those fetched in a row
        self._empty = self._repeated = 0  # pages in a row
        self._absent: set[int] = set()  # pages set aside that the API says do not exist

    def checkpoint(self) -> bytes:
        """Return what another plan continues from."""
        return msgspec.json.encode(self._progress)

    @property
    def expected(self) -> int | None:
        """How many distinct records the source has, as far as is known."""
        progress = self._progress
        known = (self._distinct, progress.total, progress.total_before)
        return next((count for count in known if count is not None), None)

    @property
    def missing(self) -> Sequence[int]:
        """Numbers of the pages still to be fetched, as far as they are known."""
        progress = self._progress
        to_come = range(progress.next_page, min(self._end, progress.next_page + _MOST_MISSING))
        if progress.total is None or progress.end_found or progress.passes:
            to_come = range(0)
        return sorted({*progress.failed, *to_come}) if progress.failed else to_come

    @property
    def read_all(self) -> bool:
        """Whether pages were fetched and none failed."""
        return self._progress.came and not self._progress.failed

    # -- rounds

    def next_round(self, accounted: int) -> bool:
        """Begin the next round; return whether there is one."""
        progress = self._progress
        self._under_way = 0
        if not progress.end_found:
            self._forward = True
        elif progress.failed and self._forward is not False:
            self._forward = False
        elif self._needs_pass(accounted):
            self._begin_pass(accounted)
        else:
            return False
        return True

    def steps(self) -> Iterator[Step | None]:
        """Yield this round's pages, ``None`` where the next one depends on those under way."""
        progress = self._progress
        pages = iter(sorted(progress.failed))
        number = progress.next_page if self._forward else next(pages, None)
        while number is not None and self.going:
            far = self._forward and self._beyond(number - 1) and not progress.overrun
            if self._under_way and (far or not self._answered):
                yield None
                continue
            self._under_way += 1
            yield Step(number, self._beyond(number), self._size)
            number = number + 1 if self._forward else next(pages, None)

    @property
    def going(self) -> bool:
        """Whether this round needs more outcomes."""
        return not (self._forward and self._progress.end_found)

    def _needs_pass(self, accounted: int) -> bool:
        progress = self._progress
        short = accounted < (progress.total or 0)
        if progress.failed and not short and not progress.overrun and all(map(self._beyond, progress.failed)):
            if progress.unanswered:
                log.warning("page %d, beyond the total, failed again: taken for the end", progress.failed[0])
                progress.failed = []
            progress.unanswered = True
        if progress.failed:
            gone = self._absent.issuperset(progress.failed) and max(progress.failed) == self._end - 1
            return gone and progress.passes == 0  # the list may have become shorter
        if self._second_pass and progress.passes == 0:
            log.info("reading all pages a second time, as asked for")
            return True
        if not short and not progress.shifted:
            return False
        # A pass that gave as many records as the total says, and none that an earlier one had not given.
        same = (progress.total, accounted) == (progress.total_before, progress.found_before)
        if short and same and not progress.shifted and progress.received >= (progress.total or 0):
            self._distinct = accounted
            found = "the API's total of %d counts records twice: all pages, read twice, hold %d distinct ones"
            log.warning(found, progress.total, accounted)
            return False
        if progress.passes < (_MORE_PASSES if progress.shifted else 1):
            what = f"got {accounted} of {progress.total} records" if short else f"the total is {progress.total} now"
            log.warning("%s: reading all pages again", what)
            return True
        if not short:
            log.warning("the API's total changed in each pass, to %d now: a record may be missed", progress.total)
        return False

    def _begin_pass(self, accounted: int) -> None:
        progress = self._progress
        progress.total_before, progress.found_before = progress.total, accounted
        progress.next_page, progress.failed, progress.total, progress.received = self._first, [], None, 0
        progress.end_found = progress.overrun = progress.shifted = False
        progress.passes += 1
        self._forward = True
        self._start()

    # -- outcomes, in the order of the steps

    def fetched(self, number: int, page: ApiPage[Any], accounted: int) -> bool:
        """Learn from a page; return whether its records are to be stored.

        :param accounted: distinct records stored so far.
        :raises SourceUnavailable: the API does not page.
        """
        progress = self._progress
        self._under_way -= 1
        self._answered = progress.came = True
        self._refused = None
        count = len(page.records) + len(page.invalid)
        if self._forward:
            if self._repeats(number, page, count):
                return False
            if progress.received > _REPEATED * (accounted + 1000):
                raise SourceUnavailable(f"{progress.url} gives the same records again and again: {_IGNORED}")
            self._empty = 0 if count else self._empty + 1
            progress.next_page = number + 1
        else:
            progress.failed.remove(number)
            if count and number == progress.next_page - 1:
                progress.end_found = False  # it was taken for the end
        size = page.limit or progress.limit
        if self._by_offset and number == self._first:
            size = min(size, count or size)  # fewer records than asked for, and the next offset follows them
            progress.shifted |= progress.next_page > number + 1 and size != self._size  # the pages there were not next
        if 0 < size < progress.limit:
            progress.page_size = size
        if page.total is not None:
            changed = progress.total not in (None, page.total)
            progress.total = max(progress.total or 0, page.total) if progress.overrun else page.total
            progress.overrun |= count > 0 and self._beyond(number)
            progress.shifted |= changed and not progress.overrun
        progress.received += count
        if not count and (progress.total is None or self._beyond(number) or self._empty >= _EMPTY_PAGES):
            progress.end_found = True
        return count > 0

    def failed(self, number: int, failure: Failure) -> None:
        """Set a page aside, or take it for the end.

        :raises SourceUnavailable: nothing was fetched at all.
        :raises ConfigurationError: the API refuses the first page that the run asks for, or the first two of this call.
        """
        progress = self._progress
        self._under_way -= 1
        beyond = self._beyond(number)
        self._check_refusal(failure, beyond=beyond)
        if not self._forward:
            if failure.no_such_page and beyond:
                progress.failed.remove(number)
                return
            log.error("page %d could not be fetched: %s", number, failure.reason, extra={"page": number})
            self._absent |= {number} if failure.no_such_page else set()
        elif failure.no_such_page and beyond:
            progress.next_page, progress.end_found = number + 1, True
        elif not progress.came and (failure.unreachable or progress.failed):
            # The next call starts from the first page: what failed here was perhaps all there is.
            progress.next_page, progress.failed = self._first, []
            raise SourceUnavailable(f"{failure.reason}: nothing could be read; run again later")
        else:
            log.warning("page %d is set aside: %s", number, failure.reason, extra={"page": number})
            progress.failed.append(number)
            progress.next_page = number + 1
            progress.end_found = beyond and not progress.overrun  # until it is tried once more

    def _check_refusal(self, failure: Failure, *, beyond: bool) -> None:
        if self._refused is None or failure.fix is None or beyond:
            self._refused = None
            return
        self._refused += 1
        if self._refused > 1 or not self._progress.came:  # an API that answered before may refuse this page alone
            raise ConfigurationError(f"{failure.reason}: check {failure.fix}")

    def _repeats(self, number: int, page: ApiPage[Any], count: int) -> bool:
        """Take a page that was there before for the end, if the total says so; one like the last page if two are."""
        progress = self._progress
        # Within the total, the first page may be there twice, in a list that holds everything twice.
        others = self._earlier if page.total is None or self._beyond(number) else self._earlier[-1:]
        if not count or progress.limit == 1 or not any(_same(page, other) for other in others):
            self._earlier = [*self._earlier[:1], page]
            self._repeated = 0
            return False
        if not self._beyond(number):
            raise SourceUnavailable(f"{progress.url} gives records of earlier pages for page {number}: {_IGNORED}")
        progress.next_page = number + 1
        self._repeated += 1
        progress.end_found = self._repeated > 1 or not _same(page, self._earlier[-1])
        return True

    @property
    def _end(self) -> int:
        """The number of the first page that does not exist, by the newest total."""
        return self._first + -(-(self._progress.total or 0) // self._size)

    @property
    def _size(self) -> int:
        return self._progress.page_size or self._progress.limit

    def _beyond(self, number: int) -> bool:
        return self._progress.total is not None and number >= self._end


def _same(page: ApiPage[Any], other: ApiPage[Any]) -> bool:
    """Say whether two pages hold the same records, in whatever order, under the same total."""
    if (page.total, len(page.records), len(page.invalid)) != (other.total, len(other.records), len(other.invalid)):
        return False
    if page.records and page.records[0] not in other.records:
        return False  # the usual case, quickly
    both = ((page.records, other.records), (page.invalid, other.invalid))
    return all(sorted(map(repr, one)) == sorted(map(repr, two)) for one, two in both)
