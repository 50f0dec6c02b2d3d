"""PagedApi: all pages of an HTTP API, each retried, none silently left out."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec
import tenacity

from owm_outbox.errors import ConfigurationError, SourceUnavailable
from owm_outbox.job import Page
from owm_outbox.paging.breaker import Breaker
from owm_outbox.paging.chain import Chain
from owm_outbox.paging.client import Client, RequestFailed
from owm_outbox.paging.limiter import Limiter
from owm_outbox.paging.options import ApiOptions, ApiPage, PagedApiOptions
from owm_outbox.paging.plan import Plan
from owm_outbox.paging.prefetch import Prefetch
from owm_outbox.paging.step import Failure, Step
from owm_outbox.paging.styles import Cursors, LinkHeader, Offsets, PageNumbers, Style
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


class PagedApi(Generic[R, T]):
    """Gets ``{api_url}{path}``, page for page; several at once where the style allows it.

    A request is tried again, with exponential waits and jitter, on connection errors, timeouts, HTTP 4xx and 5xx, and
    on answers that ``parse`` does not accept; a ``Retry-After`` is honoured up to 60 s, and after a 429 or 503 there
    are fewer requests at once for a while. A page that fails all attempts is set aside and tried once more at the end;
    where each page names the next one, it ends the call, and the next call continues there.

    :param options: address, limit, token (sent as bearer, never printed), concurrency, waits and timeouts.
    :param path: what follows the address, such as ``/cities/``.
    :param parse: turns a body into an `ApiPage`, on any thread; raises `ValueError` or an error of msgspec for a
        body that is not what it should be.
    :param task: turns a record into a task, on the caller's thread.
    :param style: how the API pages, with the names of its parameters.
    :param attempts: how often a request is made, at most.
    :param fail_max: failed requests in a row after which a circuit breaker keeps all requests back, across processes.
    :param open_for: seconds for which it does.
    :param max_body: bytes of an answer, decompressed.
    :param sleep: waits this many seconds before another attempt; by default until ``close`` at most.
    :raises ConfigurationError: a certificate file cannot be used.
    """

    def __init__(
        self,
        options: ApiOptions,
        path: str,
        *,
        parse: Callable[[bytes], ApiPage[R]],
        task: Callable[[R], T],
        style: Style = PageNumbers(),  # noqa: B008 - it is frozen
        attempts: int = 5,
        fail_max: int = 20,
        open_for: float = 600.0,
        max_body: int = 32 * 2**20,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._options = options
        self._url = options.api_url.rstrip("/") + path
        self._style = style
        self._parse = parse
        self._task = task
        self._breaker: Breaker | None = None
        self._tell: Callable[..., None] = lambda event, *args: None
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
            ca_file=options.ca_file,
            client_cert=options.client_cert,
            client_key=options.client_key,
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
        :raises ConfigurationError: it answers 401, 403 or 404 and nothing else, or its certificate is not trusted.
        :raises Stopped: a stop was asked for.
        """
        url, options = redacted(self._url), self._options
        breaker = self._breaker = self._make_breaker(run.state, self._url, options.api_token)
        self._tell = run.tell
        run.tell("breaker_changed", breaker.is_open)
        plan = self._plan(run)
        group: _Group[T] = _Group()
        try:
            while plan.next_round(run.accounted):
                for step, call in self._ahead.outcomes(plan.steps(), run.stop):
                    try:
                        page = call.result()
                    except RequestFailed as error:
                        absent = error.status in _NO_SUCH_PAGE
                        plan.failed(step.number, Failure(str(error), absent, error.unreachable, error.fix))
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
        finally:
            run.tell("breaker_changed", breaker.is_open)
        if plan.read_all and not run.accounted:
            log.warning("%s says that it has nothing at all", url)
        yield group.take(plan)

    def _plan(self, run: Run) -> Plan | Chain:
        options, url = self._options, redacted(self._url)
        second_pass, checkpoint = options.second_pass, run.checkpoint
        if isinstance(self._style, Cursors | LinkHeader):
            return Chain(url, options.api_limit, second_pass=second_pass, checkpoint=checkpoint)
        by_offset = isinstance(self._style, Offsets)
        first = options.first_page if isinstance(options, PagedApiOptions) and not by_offset else 0
        return Plan(url, options.api_limit, first, second_pass=second_pass, by_offset=by_offset, checkpoint=checkpoint)

    # -- one page, on any thread

    def _fetch(self, step: Step) -> ApiPage[R]:
        """Get one page, with all attempts."""
        return self._retrying(self._attempt, step)

    def _attempt(self, step: Step) -> ApiPage[R]:
        """Make one request, unless the breaker is open, and let the breaker count what became of it."""
        assert self._breaker is not None  # noqa: S101 - for the type checker
        url, params = self._target(step)
        with self._limiter.slot():
            self._breaker.check()
            began = time.monotonic()
            try:
                answer = self._client.get(url, params)
                try:
                    page = self._parse(answer.body)
                except (ValueError, msgspec.MsgspecError, RecursionError) as error:
                    raise RequestFailed(
                        f"{answer.asked} gave no valid page ({error}): {answer.body[:60]!r}", status=200
                    ) from error
            except RequestFailed as error:
                self._tell("request_finished", time.monotonic() - began, error.status, True)
                if error.status in (429, 503):
                    self._limiter.halve()
                if not (step.beyond and error.status in _NO_SUCH_PAGE):
                    self._breaker.count(failed=True, reason=str(error))
                raise
            self._tell("request_finished", time.monotonic() - began, 200, False)
            self._breaker.count(failed=False)
            self._limiter.count_good()
        if isinstance(self._style, LinkHeader):
            if answer.next is None and step.number == 0 and len(page.records) >= self._options.api_limit:
                log.warning("%s gave a full page, and no Link header names another one", answer.asked)
            return dataclasses.replace(page, next=answer.next)
        return page

    def _target(self, step: Step) -> tuple[str, Mapping[str, Any] | None]:
        """Return the URL and the parameters to ask for.

        A link is followed to the host of ``api_url`` only, by its scheme and port: it gets the token, and an API behind
        a proxy often does not know its own.
        """
        after = step.after
        if not isinstance(after, str) or not (isinstance(self._style, LinkHeader) or _is_link(after)):
            return self._url, self._style.query(step, self._options.api_limit)
        base = urlsplit(self._url)
        try:
            link = urlsplit(urljoin(self._url, after))
            same = link.hostname == base.hostname
        except ValueError:
            raise SourceUnavailable(f"{redacted(self._url)} gives a next page that is not a link: {after!r}") from None
        if not same:
            raise ConfigurationError(
                f"{redacted(self._url)} links to another host for its next page, {redacted(after)}: "
                "give that host as the API's address if it is the right one"
            )
        return link._replace(scheme=base.scheme, netloc=base.netloc).geturl(), None

    def _worth_another(self, state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if not isinstance(error, RequestFailed) or not error.temporary or self._closing.is_set():
            return False
        return not (state.args[0].beyond and error.status in _NO_SUCH_PAGE)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RequestFailed) and error.retry_after:
            return min(error.retry_after, _MAX_RETRY_AFTER)
        first = self._options.retry_wait
        return tenacity.wait_exponential_jitter(multiplier=first, max=_MAX_WAIT, jitter=first)(state)


def _is_link(after: str) -> bool:
    """Tell a link from a value: a value in base64 may begin with a slash, but has no question mark."""
    return after.startswith(("http://", "https://")) or "?" in after


def _log_failure(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.info("%s; attempt %d follows", error, state.attempt_number + 1)


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

    def take(self, plan: Plan | Chain) -> Page[T]:
        """Return all of them as one page, and begin the next group."""
        page = Page(self._tasks, plan.checkpoint(), self._invalid, plan.expected, plan.missing, self._pages)
        self._clear()
        return page
