"""What a run of pages that each name the next one still needs: decided here, without any I/O."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from owm_outbox.errors import ConfigurationError, SourceUnavailable
from owm_outbox.paging.options import ApiPage
from owm_outbox.paging.step import Failure, Step

__all__ = ["Chain"]

log = logging.getLogger("owm_outbox.paging")


class _Progress(msgspec.Struct):
    """The checkpoint."""

    url: str
    limit: int
    after: str | int | None = None  # names the next page; None: the first one
    number: int = 0  # of the next page
    total: int | None = None
    end_found: bool = False
    passes: int = 0  # how often all pages were read again
    received: int = 0  # records in this pass, repeated ones among them
    found_before: int | None = None  # distinct records when this pass began, if it is not the first


class Chain:
    """Decides over one run of an API whose pages each name the next one.

    A page that cannot be fetched ends the call, as nothing after it can be named; the next call continues there. The
    end is a page that names none. If the source's total is more than was found by then, all pages are read once more:
    a second pass that brings nothing new says that the total counts records twice, or the run stays incomplete.

    :param url: fit for messages.
    :param checkpoint: an earlier chain's. It is ignored if it is of another URL or limit.
    """

    missing: Sequence[int] = ()

    def __init__(self, url: str, limit: int, *, second_pass: bool, checkpoint: bytes | None) -> None:
        self._second_pass = second_pass
        self._progress = _Progress(url, limit)
        try:
            saved = msgspec.json.decode(checkpoint or b"", type=_Progress)
        except msgspec.MsgspecError:
            saved = self._progress
        if (saved.url, saved.limit) == (url, limit):
            self._progress = saved
        self._resumed = self._progress.after is not None  # and nothing was fetched since
        self._answered = False  # in this call
        self._under_way = False
        self._distinct: int | None = None
        self._seen: set[str | int | None] = {self._progress.after}  # in this pass

    def checkpoint(self) -> bytes:
        """Return what another chain continues from."""
        return msgspec.json.encode(self._progress)

    @property
    def expected(self) -> int | None:
        """How many distinct records the source has, as far as is known."""
        return self._progress.total if self._distinct is None else self._distinct

    @property
    def read_all(self) -> bool:
        """Whether the last page was fetched."""
        return self._progress.end_found

    @property
    def going(self) -> bool:
        """Whether this round needs more outcomes."""
        return not self._progress.end_found

    def next_round(self, accounted: int) -> bool:
        """Begin the next pass; return whether there is one."""
        progress = self._progress
        if not progress.end_found:
            return True
        total = progress.total or 0
        if accounted >= total and not (self._second_pass and not progress.passes):
            return False
        if progress.passes and progress.found_before == accounted and progress.received >= total:
            self._distinct = accounted
            found = "the API's total of %d counts records twice: all pages, read twice, hold %d distinct ones"
            log.warning(found, total, accounted)
            return False
        if progress.passes:
            return False
        if accounted < total:
            log.warning("got %d of %d records: reading all pages again", accounted, total)
        progress.after, progress.number, progress.received, progress.end_found = None, 0, 0, False
        progress.passes, progress.found_before, self._seen = 1, accounted, {None}
        return True

    def steps(self) -> Iterator[Step | None]:
        """Yield the pages one by one, ``None`` while one is under way."""
        progress = self._progress
        while self.going:
            if self._under_way:
                yield None
                continue
            self._under_way = True
            yield Step(progress.number, size=progress.limit, after=progress.after)

    def fetched(self, number: int, page: ApiPage[Any], accounted: int) -> bool:
        """Learn from a page; return whether its records are to be stored.

        :raises ConfigurationError: it does not say what comes next.
        :raises SourceUnavailable: what comes next was there before.
        """
        progress = self._progress
        count = len(page.records) + len(page.invalid)
        following = None if page.next == "" else page.next
        if following is ...:
            raise ConfigurationError(f"`parse` gives no ApiPage.next for {progress.url}: give None for the last page")
        if not count and following == progress.after:
            following = None  # nothing came, and nothing else will
        elif following is not None and following in self._seen:
            raise SourceUnavailable(f"{progress.url} names a page as the next one that was there before: {following!r}")
        self._under_way = self._resumed = False
        self._seen.add(following)
        self._answered = True
        progress.after, progress.number, progress.end_found = following, number + 1, following is None
        progress.total = progress.total if page.total is None else page.total
        progress.received += count
        return count > 0

    def failed(self, number: int, failure: Failure) -> None:
        """Start from the first page if the one to continue with is not known any more.

        :raises ConfigurationError: the API refuses it, and gave no other page in this call.
        :raises SourceUnavailable: in all other cases.
        """
        progress = self._progress
        self._under_way = False
        if not (self._resumed and failure.no_such_page):
            if failure.fix is not None and not self._answered:
                raise ConfigurationError(f"{failure.reason}: check {failure.fix}")
            raise SourceUnavailable(f"{failure.reason}; the next run continues with this page")
        log.warning("%s: reading from the first page again", failure.reason)
        self._resumed, self._seen = False, {None}
        progress.after, progress.number, progress.received = None, 0, 0
