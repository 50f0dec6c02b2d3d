"""PagedApi: all pages of an HTTP API, each retried, none silently left out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec
import tenacity

from owm_outbox.breaker import Breaker
from owm_outbox.errors import ApiUnavailable
from owm_outbox.http_client import SPARE, Client, RequestFailed
from owm_outbox.job import Page, Run
from owm_outbox.paging_types import Answer, PagedApiOptions
from owm_outbox.prefetch import Prefetch
from owm_outbox.task import Rejected
from owm_outbox.url import redacted

__all__ = ["Answer", "PagedApi"]

log = logging.getLogger("owm_outbox.paging")

R = TypeVar("R")
T = TypeVar("T")

ATTEMPTS = 5
FAIL_MAX, OPEN_FOR = 20, 600.0  # the circuit breaker: failed requests in a row, seconds
_MAX_WAIT = 30.0
_MAX_RETRY_AFTER = 60.0
_MAX_BODY = 64 * 2**20
_TASKS_A_COMMIT = 500
_PAGES_A_COMMIT = 20
_SECONDS_A_COMMIT = 0.25
_BARREN_COMMITS = 3  # in a row, of records that all came before: the API gives the same ones whatever the page
_EMPTY_PAGES = 3  # in a row: there is nothing behind them, whatever the total says
_MOST_MISSING = 100_000  # pages that are named one by one, so that an absurd total takes no memory
_MORE_PASSES = 2  # the second one finds what slipped; a third, if the data moved during that one as well


class _Progress(msgspec.Struct):
    """The checkpoint: what is done, and under which circumstances, so that another call can tell whether it fits."""

    url: str
    limit: int
    next_page: int
    failed: list[int] = []
    total: int | None = None
    page_size: int | None = None
    ended: bool = False  # all pages up to next_page were tried
    shifted: bool = False  # the total changed on the way, so a record may have slipped past
    most: int = 0  # the highest total so far: where a lower one came later, its end is not believed without a look
    passes: int = 0  # how often all pages were gone through again
    came: bool = False  # at least one page did
    blank: bool = False  # the run had nothing when this began, so what comes has to be new

    reach: int = 0  # the furthest that earlier passes got: up to there nothing new is no surprise

    def begin_pass(self, first_page: int) -> None:
        self.reach = max(self.reach, self.next_page)
        self.next_page, self.ended, self.shifted, self.passes = first_page, False, False, self.passes + 1
        self.total = None  # what the last page said may be what was wrong


@dataclass(slots=True)
class _Group(Generic[T]):
    """Tasks on their way into one commit."""

    tasks: list[T] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    pages: int = 0
    since: float = field(default_factory=time.monotonic)

    def add(self, tasks: Iterable[T], rejected: Iterable[Rejected]) -> bool:
        """Take a page in; return whether it is time to commit."""
        self.tasks += tasks
        self.rejected += rejected
        self.pages += 1
        if self.pages >= _PAGES_A_COMMIT:
            return True
        return len(self.tasks) >= _TASKS_A_COMMIT or time.monotonic() - self.since >= _SECONDS_A_COMMIT


class PagedApi(Generic[R, T]):
    """Gets ``{api_url}{path}?page={page}&limit={limit}`` for page after page, several at once where that helps.

    A request is tried 5 times, with exponential waits and jitter, on connection errors, timeouts, HTTP 4xx and 5xx,
    and on answers that ``parse`` does not accept; a ``Retry-After`` is honoured up to 60 s, and after a 429 or 503
    there are fewer requests at once for a while. A page that fails all attempts is set aside and tried once more at
    the end. After 20 failed requests in a row a circuit breaker keeps all requests back for 600 s, across processes.

    :param options: address, limit, token (sent as bearer, never printed), concurrency, waits and timeouts.
    :param path: what follows the address, such as ``/cities/``.
    :param parse: turns a body into an `Answer`, on any thread; raises `ValueError` (as msgspec's errors are) for a
        body that is not what it should be.
    :param task: turns a record into a task, on the caller's thread.
    """

    def __init__(
        self,
        options: PagedApiOptions,
        path: str,
        *,
        parse: Callable[[bytes], Answer[R]],
        task: Callable[[R], T],
    ) -> None:
        self._options = options
        self._url = options.api_url.rstrip("/") + path
        self._parse = parse
        self._task = task
        self._closing = threading.Event()
        self._breaker: Breaker | None = None
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=self._wait,
            retry=tenacity.retry_if_exception_type(RequestFailed),
            sleep=tenacity.sleep_using_event(self._closing),
            before_sleep=_log_failure,
            reraise=True,
        )
        self._client = Client(
            token=options.api_token,
            timeout=options.request_timeout,
            max_body=_MAX_BODY,
            at_once=options.concurrency,
        )
        self._ahead = Prefetch(self._fetch, concurrency=options.concurrency, spare=SPARE)

    def __enter__(self) -> PagedApi[R, T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ahead.close()
        if self._breaker is not None:
            self._breaker.close()
        self._client.close()
        self._closing.set()  # last: who waits for the next attempt would make it now, and all that follow

    def pages(self, run: Run) -> Iterator[Page[T]]:
        """Yield what is still to come of this run, several of the API's pages in one `Page` where they come fast.

        :raises ApiUnavailable: the API is gone or the breaker is open; what it had given was yielded before.
        """
        self._breaker = Breaker(run.notes, redacted(self._url), fail_max=FAIL_MAX, open_for=OPEN_FOR)
        progress = self._resumed(run)
        try:
            while True:
                yield from self._forward(progress, run)
                yield from self._again(progress)
                self._look_for_the_end(progress)
                if not self._needs_another_pass(progress, run):
                    break
                progress.begin_pass(self._options.first_page)
        except ApiUnavailable:
            yield self._page(progress)
            raise
        if not progress.failed and progress.total is not None and run.accounted < progress.total:
            progress.begin_pass(self._options.first_page)  # for the next call: it looks through all pages again
            progress.passes = 0
        if progress.came and not run.accounted and not progress.failed:
            log.warning("%s says that it has nothing at all", redacted(self._url))
        yield self._page(progress, missing=progress.failed)

    # -- which pages

    def _resumed(self, run: Run) -> _Progress:
        fresh = _Progress(redacted(self._url), self._options.api_limit, self._options.first_page)
        fresh.blank = run.accounted == 0
        if run.checkpoint is None:
            return fresh
        try:
            saved = msgspec.json.decode(run.checkpoint, type=_Progress)
        except msgspec.MsgspecError:
            return fresh
        # Page numbers mean nothing under another limit or address. Starting over is safe: the keys tell.
        return saved if (saved.url, saved.limit) == (fresh.url, fresh.limit) else fresh

    def _needs_another_pass(self, progress: _Progress, run: Run) -> bool:
        """Say whether a record may have slipped from one page to another while they were read."""
        if progress.failed:
            return False
        if self._options.look_twice and progress.passes == 0:
            log.info("going through the API's pages once more, as asked for")
            return True
        if progress.total is None:
            return False
        short = run.accounted < progress.total
        if not short and not progress.shifted:
            return False
        if progress.passes >= (_MORE_PASSES if progress.shifted else 1):
            if not short:
                log.warning(
                    "the API's total changes each time we look, to %d now: a record may be missed", progress.total
                )
            return False
        log.warning(
            "%s: going through the API's pages again",
            f"{run.accounted} of {progress.total} came" if short else f"the API's total changed to {progress.total}",
        )
        return True

    def _forward(self, progress: _Progress, run: Run) -> Iterator[Page[T]]:
        """Go through the pages in order up to the end; those that fail are set aside."""
        group: _Group[T] = _Group()
        empty, barren, again, last = 0, 0, 0, None
        for number, outcome in self._ahead.outcomes(self._numbers(progress)):
            if self._at_end(progress):  # it came nearer on the way
                nothing = isinstance(outcome, RequestFailed) or not (isinstance(outcome, Exception) or _holds(outcome))
                if nothing or number >= self._end(progress, progress.most):
                    break
            if isinstance(outcome, RequestFailed):
                if not progress.came and (outcome.unreachable or progress.failed):
                    # The next call begins anew: what failed here was maybe all there is.
                    progress.next_page, progress.failed = self._options.first_page, []
                    raise ApiUnavailable(f"{outcome}: nothing could be read; call again later") from outcome
                log.warning("page %d is set aside: %s", number, outcome)
                progress.failed.append(number)
                progress.next_page = number + 1
                continue
            if isinstance(outcome, Exception):
                yield self._page(progress, group)
                raise outcome
            if outcome.total is None and outcome.records and outcome.records == last:
                yield self._page(progress, group)
                raise ApiUnavailable(
                    f"{redacted(self._url)} gives the same records for page {number - 1} and page {number}: "
                    "it does not page, or not from where --first-page says"
                )
            last = outcome.records
            self._learn(progress, outcome)
            progress.next_page = number + 1
            empty = 0 if _holds(outcome) else empty + 1
            if empty >= (1 if outcome.total is None else _EMPTY_PAGES):
                break
            # Made at once, not all together before a commit: that long the fetching threads would wait for this one.
            if group.add(map(self._task, outcome.records), outcome.rejected):
                before = run.accounted
                yield self._page(progress, group)
                repeated = run.accounted == before > 0 and bool(group.tasks or group.rejected)
                if repeated and progress.blank and number >= progress.reach:
                    barren, again = barren + 1, again + len(group.tasks) + len(group.rejected)
                else:
                    barren, again = 0, 0
                # Rows that were put in front repeat what was read before, but no more than that.
                if barren >= _BARREN_COMMITS and again > run.accounted:
                    raise ApiUnavailable(
                        f"{redacted(self._url)} gives nothing new for page after page, up to {number}: "
                        "it does not page, or not as we ask it to"
                    )
                group = _Group()
        progress.ended = True
        yield self._page(progress, group)

    def _numbers(self, progress: _Progress) -> Iterator[int | None]:
        """Yield page numbers up to the end as it is known when the next one is needed.

        Where it is not known whether there is such a page, because none came yet or because it is beyond an end that
        came nearer on the way, one at a time: some APIs answer 404, and that counts as a failure.
        """
        number = progress.next_page
        while not progress.ended:
            beyond = progress.total is not None and number >= self._end(progress)
            if beyond and number >= self._end(progress, progress.most):
                return
            if number > progress.next_page and (beyond or not progress.came):
                yield None
            else:
                yield number
                number += 1

    def _again(self, progress: _Progress) -> Iterator[Page[T]]:
        """Try once more what was set aside."""
        for number, outcome in self._ahead.outcomes(sorted(progress.failed)):
            if isinstance(outcome, RequestFailed):
                log.error("page %d never came: %s", number, outcome)
                continue
            if isinstance(outcome, Exception):
                raise outcome
            self._learn(progress, outcome)
            progress.failed.remove(number)
            group: _Group[T] = _Group()
            group.add(map(self._task, outcome.records), outcome.rejected)
            yield self._page(progress, group)

    def _look_for_the_end(self, progress: _Progress) -> None:
        """Forget pages that never came if there are no such pages any more, because the list became shorter.

        What said that there are was the total of an earlier page; the first page is asked for the newest.
        """
        first = self._options.first_page
        if progress.total is None or not progress.failed or max(progress.failed) < self._end(progress) - 1:
            return
        for _, outcome in self._ahead.outcomes([first] if first not in progress.failed else []):
            if isinstance(outcome, RequestFailed):
                return
            if isinstance(outcome, Exception):
                raise outcome
            self._learn(progress, outcome)
            progress.failed = [number for number in progress.failed if number < self._end(progress)]

    def _at_end(self, progress: _Progress) -> bool:
        return progress.ended or (progress.total is not None and progress.next_page >= self._end(progress))

    def _end(self, progress: _Progress, total: int | None = None) -> int:
        """Return the number of the first page that there is not, with the newest total or another one."""
        size = progress.page_size or self._options.api_limit
        return self._options.first_page + -(-((progress.total if total is None else total) or 0) // size)

    def _learn(self, progress: _Progress, answer: Answer[R]) -> None:
        progress.came = True
        if answer.total is not None:
            progress.shifted |= progress.total not in (None, answer.total)
            progress.most = max(progress.most, answer.total)
            progress.total = answer.total
        if answer.limit is not None and 0 < answer.limit < self._options.api_limit:
            progress.page_size = answer.limit  # the API caps it: there are more pages than we thought

    def _page(
        self, progress: _Progress, group: _Group[T] | None = None, missing: Sequence[int] | None = None
    ) -> Page[T]:
        if missing is None:
            came_before = progress.ended or progress.passes > 0
            end = progress.next_page if progress.total is None or came_before else self._end(progress)
            end = min(end, progress.next_page + _MOST_MISSING)
            to_come = range(progress.next_page, end)
            missing = sorted({*progress.failed, *to_come}) if progress.failed else to_come
        return Page(
            tasks=group.tasks if group else (),
            checkpoint=msgspec.json.encode(progress),
            rejected=group.rejected if group else (),
            expected=progress.total,
            missing=missing,
            pages=group.pages if group else 0,
        )

    # -- one page, on any thread

    def _fetch(self, number: int) -> Answer[R]:
        """Get one page, with all attempts."""
        return self._retrying(self._attempt, number)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RequestFailed) and error.retry_after:
            return min(error.retry_after, _MAX_RETRY_AFTER)
        first = self._options.retry_wait
        return tenacity.wait_exponential_jitter(multiplier=first, max=_MAX_WAIT, jitter=first)(state)

    def _attempt(self, number: int) -> Answer[R]:
        """Make one request, unless the breaker is open, and let the breaker count what came of it."""
        assert self._breaker is not None  # noqa: S101 - for the type checker
        breaker = self._breaker
        body = self._client.get(
            self._url,
            {"page": number, "limit": self._options.api_limit},
            allow=breaker.check,
            on_failure=lambda error: breaker.count(failed=True, reason=str(error)),
        )
        try:
            answer = self._parse(body)
            if answer.total is not None and answer.total < len(answer.records) + len(answer.rejected):
                raise ValueError(f"it holds more records than the total of {answer.total} that it gives")
        except (ValueError, RecursionError) as error:
            failure = RequestFailed(
                f"{redacted(self._url)}?page={number}&limit={self._options.api_limit} "
                f"gave no valid page ({error}): {body[:60]!r}"
            )
            breaker.count(failed=True, reason=str(failure))
            raise failure from error
        breaker.count(failed=False)
        return answer


def _holds(answer: Answer[R]) -> bool:
    return bool(answer.records or answer.rejected)


def _log_failure(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.info("%s; attempt %d of %d follows", error, state.attempt_number + 1, ATTEMPTS)
