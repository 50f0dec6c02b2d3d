"""PagedApi: all pages of an HTTP API, each retried, none silently left out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, TypeVar

import tenacity

from owm_outbox.job import Page
from owm_outbox.paging.breaker import Breaker
from owm_outbox.paging.client import Client, RequestFailed
from owm_outbox.paging.limiter import Limiter
from owm_outbox.paging.options import ApiPage, PagedApiOptions
from owm_outbox.paging.plan import Plan, Step
from owm_outbox.paging.prefetch import Prefetch
from owm_outbox.run import Run
from owm_outbox.task import InvalidRecord
from owm_outbox.url import redacted

__all__ = ["PagedApi"]

log = logging.getLogger("owm_outbox.paging")

R = TypeVar("R")
T = TypeVar("T")

_MAX_WAIT = 30.0
_MAX_RETRY_AFTER = 60.0
_MAX_TASKS_PER_COMMIT = 500
_MAX_PAGES_PER_COMMIT = 20
_MAX_SECONDS_PER_COMMIT = 0.25
_NO_SUCH_PAGE = (400, 404, 410, 416, 422)  # what APIs answer beyond their last page


class _Group(Generic[T]):
    """Pages on their way into one commit."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._tasks: list[T] = []
        self._invalid: list[InvalidRecord] = []
        self._pages = 0
        self._since = time.monotonic()

    def add(self, tasks: list[T], invalid: Sequence[InvalidRecord]) -> None:
        self._tasks += tasks
        self._invalid += invalid
        self._pages += 1

    @property
    def full(self) -> bool:
        if self._pages >= _MAX_PAGES_PER_COMMIT or len(self._tasks) >= _MAX_TASKS_PER_COMMIT:
            return True
        return self._pages > 0 and time.monotonic() - self._since >= _MAX_SECONDS_PER_COMMIT

    def take(self, plan: Plan) -> Page[T]:
        """Return all of them as one page, and begin the next group."""
        page = Page(self._tasks, plan.checkpoint(), self._invalid, plan.expected, plan.missing, self._pages)
        self._clear()
        return page


class PagedApi(Generic[R, T]):
    """Gets ``{api_url}{path}?page={page}&limit={limit}`` for page after page, several at once.

    A request is tried again, with exponential waits and jitter, on connection errors, timeouts, HTTP 4xx and 5xx, and
    on answers that ``parse`` does not accept; a ``Retry-After`` is honoured up to 60 s, and after a 429 or 503 there
    are fewer requests at once for a while. A page that fails all attempts is set aside and tried once more at the end.

    :param options: address, limit, token (sent as bearer, never printed), concurrency, waits and timeouts.
    :param path: what follows the address, such as ``/cities/``.
    :param parse: turns a body into an `ApiPage`, on any thread; raises `ValueError` (as msgspec's errors are) for a
        body that is not what it should be.
    :param task: turns a record into a task, on the caller's thread.
    :param attempts: how often a request is made, at most.
    :param fail_max: failed requests in a row after which a circuit breaker keeps all requests back, across processes.
    :param open_for: seconds for which it does.
    :param max_body: bytes of an answer, decompressed.
    :param sleep: waits this many seconds before another attempt; by default until ``close`` at most.
    """

    def __init__(
        self,
        options: PagedApiOptions,
        path: str,
        *,
        parse: Callable[[bytes], ApiPage[R]],
        task: Callable[[R], T],
        attempts: int = 5,
        fail_max: int = 20,
        open_for: float = 600.0,
        max_body: int = 64 * 2**20,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._options = options
        self._url = options.api_url.rstrip("/") + path
        self._parse = parse
        self._task = task
        self._breaker: Breaker | None = None
        self._make_breaker = partial(Breaker, fail_max=fail_max, open_for=open_for)
        self._closing = threading.Event()
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(attempts),
            wait=self._wait,
            retry=self._worth_another,
            sleep=sleep or tenacity.sleep_using_event(self._closing),
            before_sleep=_log_failure,
            reraise=True,
        )
        self._client = Client(
            token=options.api_token,
            timeout=options.request_timeout,
            max_body=max_body,
            connections=options.concurrency,
        )
        self._limiter = Limiter(options.concurrency)
        self._ahead = Prefetch(self._fetch, concurrency=options.concurrency)

    def __enter__(self) -> PagedApi[R, T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._breaker is not None:
            self._breaker.close()
        self._ahead.close()
        self._limiter.close()
        self._closing.set()  # after it: a thread that waits for its next attempt makes it now, and finds that closed
        self._client.close()

    def pages(self, run: Run) -> Iterator[Page[T]]:
        """Yield what is still to come of this run, several of the API's pages in one `Page` where they come fast.

        :raises SourceUnavailable: the API is unavailable or the breaker is open; what it gave was yielded before.
        :raises Stopped: a stop was asked for.
        """
        options, url = self._options, redacted(self._url)
        self._breaker = self._make_breaker(run.state, self._url, options.api_token)
        plan = Plan(
            *(url, options.api_limit, options.first_page),
            second_pass=options.second_pass,
            checkpoint=run.checkpoint,
        )
        group: _Group[T] = _Group()
        try:
            while plan.next_round(run.accounted):
                for step, call in self._ahead.outcomes(plan.steps(), run.stop):
                    try:
                        page = call.result()
                    except RequestFailed as error:
                        absent = error.status in _NO_SUCH_PAGE
                        plan.failed(step.number, str(error), no_such_page=absent, unreachable=error.unreachable)
                    else:
                        # Made at once, not all together before a commit: the threads would wait that long.
                        tasks = list(map(self._task, page.records))
                        if plan.fetched(step.number, page, run.accounted):
                            group.add(tasks, page.invalid)
                    if group.full:
                        yield group.take(plan)
                    if not plan.going:
                        break
                yield group.take(plan)
        except Exception:
            yield group.take(plan)
            raise
        if plan.read_all and not run.accounted:
            log.warning("%s says that it has nothing at all", url)
        yield group.take(plan)

    # -- one page, on any thread

    def _params(self, number: int) -> dict[str, int]:
        """Return the query that asks for a page: the one place that knows how this API pages."""
        return {"page": number, "limit": self._options.api_limit}

    def _fetch(self, step: Step) -> ApiPage[R]:
        """Get one page, with all attempts."""
        return self._retrying(self._attempt, step)

    def _attempt(self, step: Step) -> ApiPage[R]:
        """Make one request, unless the breaker is open, and let the breaker count what became of it."""
        assert self._breaker is not None  # noqa: S101 - for the type checker
        params = self._params(step.number)
        with self._limiter.slot():
            self._breaker.check()
            try:
                body = self._client.get(self._url, params)
                try:
                    page = self._parse(body)
                except (ValueError, RecursionError) as error:
                    asked = f"{redacted(self._url)}?page={step.number}&limit={self._options.api_limit}"
                    raise RequestFailed(f"{asked} gave no valid page ({error}): {body[:60]!r}") from error
            except RequestFailed as error:
                if error.status in (429, 503):
                    self._limiter.halve()
                if not (step.beyond and error.status in _NO_SUCH_PAGE):
                    self._breaker.count(failed=True, reason=str(error))
                raise
            self._breaker.count(failed=False)
            self._limiter.count_good()
        return page

    def _worth_another(self, state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if not isinstance(error, RequestFailed) or self._closing.is_set():
            return False
        return not (state.args[0].beyond and error.status in _NO_SUCH_PAGE)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RequestFailed) and error.retry_after:
            return min(error.retry_after, _MAX_RETRY_AFTER)
        first = self._options.retry_wait
        return tenacity.wait_exponential_jitter(multiplier=first, max=_MAX_WAIT, jitter=first)(state)


def _log_failure(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.info("%s; attempt %d follows", error, state.attempt_number + 1)
