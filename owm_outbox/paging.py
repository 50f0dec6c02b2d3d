"""PagedApi: all pages of an HTTP API, each retried, none silently left out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec
import pybreaker
import requests
import tenacity

from owm_outbox.breaker import make_breaker
from owm_outbox.errors import ApiUnavailable
from owm_outbox.job import Page, Run
from owm_outbox.paging_options import PagedApiOptions
from owm_outbox.task import Rejected
from owm_outbox.url import without_password

__all__ = ["Answer", "PagedApi"]

log = logging.getLogger("owm_outbox.paging")

T = TypeVar("T")

ATTEMPTS = 5
FAIL_MAX, OPEN_FOR = 20, 600.0  # the circuit breaker: failed requests in a row, seconds
_MAX_WAIT = 30.0
_MAX_RETRY_AFTER = 60.0
_MAX_BODY = 64 * 2**20
_TASKS_A_COMMIT = 500
_SECONDS_A_COMMIT = 0.25


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """One page of an API, read and checked.

    :param tasks: in the order of the page.
    :param rejected: records that are no valid task.
    :param total: how many records the API says it has on all pages; ``None`` if it does not say: an empty page then
        ends it.
    :param limit: how many records a page the API really gives, if it says so.
    """

    tasks: Sequence[T]
    rejected: Sequence[Rejected] = ()
    total: int | None = None
    limit: int | None = None


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
    passes: int = 0


class _RequestFailed(Exception):
    def __init__(self, message: str, *, retry_after: float | None = None, unreachable: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.unreachable = unreachable


@dataclass(slots=True)
class _Group(Generic[T]):
    """Answers on their way into one commit."""

    tasks: list[T] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def add(self, answer: Answer[T]) -> bool:
        self.tasks += answer.tasks
        self.rejected += answer.rejected
        return len(self.tasks) >= _TASKS_A_COMMIT or time.monotonic() - self.since >= _SECONDS_A_COMMIT


class PagedApi(Generic[T]):
    """Gets ``{api_url}{path}?page={page}&limit={limit}`` for page after page.

    A request is tried 5 times, with exponential waits and jitter, on connection errors, timeouts, HTTP 4xx and 5xx,
    and on answers that ``parse`` does not accept. A page that fails all of them is set aside and tried once more at
    the end. After 20 failed requests in a row a circuit breaker keeps all requests back for 600 s, across processes.

    :param options: address, limit, token (sent as bearer, never printed), waits and timeouts.
    :param path: what follows the address, such as ``/cities/``.
    :param parse: turns a body into an `Answer`; raises `ValueError` (as msgspec's errors are) for a body that is not
        what it should be.
    """

    def __init__(self, options: PagedApiOptions, path: str, parse: Callable[[bytes], Answer[T]]) -> None:
        self._options = options
        self._url = options.api_url.rstrip("/") + path
        self._parse = parse
        self._closing = threading.Event()
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy or .netrc from the environment; and half the time a request
        self._session.headers["Accept"] = "application/json"
        if options.api_token:
            self._session.headers["Authorization"] = f"Bearer {options.api_token}"

    def __enter__(self) -> PagedApi[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.set()
        self._session.close()

    def pages(self, run: Run) -> Iterator[Page[T]]:
        """Yield what is still to come of this run, several of the API's pages in one `Page` where they come fast.

        :raises ApiUnavailable: the API is gone or the breaker is open; what it had given was yielded before.
        """
        self._breaker = make_breaker(
            run.notes, f"breaker:{without_password(self._url)}", fail_max=FAIL_MAX, reset_timeout=OPEN_FOR
        )
        progress = self._resumed(run)
        try:
            yield from self._forward(progress)
            yield from self._again(progress, run)
        except ApiUnavailable:
            yield self._page(progress, _Group())
            raise
        yield self._page(progress, _Group())

    # -- which pages

    def _resumed(self, run: Run) -> _Progress:
        fresh = _Progress(without_password(self._url), self._options.api_limit, self._options.first_page)
        if run.checkpoint is None:
            return fresh
        try:
            saved = msgspec.json.decode(run.checkpoint, type=_Progress)
        except msgspec.MsgspecError:
            return fresh
        # Page numbers mean nothing under another limit or address. Starting over is safe: the keys tell.
        return saved if (saved.url, saved.limit) == (fresh.url, fresh.limit) else fresh

    def _forward(self, progress: _Progress) -> Iterator[Page[T]]:
        """Go through the pages in order up to the end; those that fail are set aside."""
        group: _Group[T] = _Group()
        while not self._at_end(progress):
            number = progress.next_page
            try:
                answer = self._fetch(number)
            except _RequestFailed as error:
                if progress.total is None and (error.unreachable or progress.failed):
                    raise ApiUnavailable(f"{error}: nothing could be read; call again later") from error
                log.warning("page %d is set aside: %s", number, error)
                progress.failed.append(number)
                progress.next_page += 1
                continue
            self._learn(progress, answer)
            progress.next_page += 1
            if answer.total is None and not answer.tasks and not answer.rejected:
                progress.ended = True
            if group.add(answer):
                yield self._page(progress, group)
                group = _Group()
        progress.ended = True
        yield self._page(progress, group)

    def _again(self, progress: _Progress, run: Run) -> Iterator[Page[T]]:
        """Try once more what was set aside."""
        for number in sorted(progress.failed):
            try:
                answer = self._fetch(number)
            except _RequestFailed as error:
                log.error("page %d never came: %s", number, error)
                continue
            self._learn(progress, answer)
            progress.failed.remove(number)
            group: _Group[T] = _Group()
            group.add(answer)
            yield self._page(progress, group)

    def _at_end(self, progress: _Progress) -> bool:
        return progress.ended or (progress.total is not None and progress.next_page >= self._end(progress))

    def _end(self, progress: _Progress) -> int:
        size = progress.page_size or self._options.api_limit
        return self._options.first_page + -(-(progress.total or 0) // size)

    def _learn(self, progress: _Progress, answer: Answer[T]) -> None:
        if answer.total is not None:
            progress.shifted |= progress.total not in (None, answer.total)
            progress.total = answer.total
        if answer.limit is not None and 0 < answer.limit < self._options.api_limit:
            progress.page_size = answer.limit  # the API caps it: there are more pages than we thought

    def _missing(self, progress: _Progress) -> list[int]:
        beyond = range(0) if progress.total is None else range(progress.next_page, self._end(progress))
        return sorted({*progress.failed, *beyond})

    def _page(self, progress: _Progress, group: _Group[T]) -> Page[T]:
        return Page(
            tasks=group.tasks,
            checkpoint=msgspec.json.encode(progress),
            rejected=group.rejected,
            expected=progress.total,
            missing=self._missing(progress),
        )

    # -- one page

    def _fetch(self, number: int) -> Answer[T]:
        """Get one page, with all attempts."""
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=self._wait,
            retry=tenacity.retry_if_exception_type(_RequestFailed),
            sleep=tenacity.sleep_using_event(self._closing),
            before_sleep=lambda state: log.info(
                "%s; attempt %d of %d",
                state.outcome and state.outcome.exception(),
                state.attempt_number + 1,
                ATTEMPTS,
            ),
            reraise=True,
        )
        return retrying(self._attempt, number)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _RequestFailed) and error.retry_after:
            return min(error.retry_after, _MAX_RETRY_AFTER)
        jitter = tenacity.wait_exponential_jitter(
            multiplier=self._options.retry_wait, max=_MAX_WAIT, jitter=self._options.retry_wait
        )
        return jitter(state)

    def _attempt(self, number: int) -> Answer[T]:
        """Make one request, unless the breaker is open, and let the breaker count what came of it."""
        if self._breaker.current_state == pybreaker.STATE_OPEN:
            opened = self._breaker._state_storage.opened_at
            closes = (opened or datetime.now(UTC)) + timedelta(seconds=OPEN_FOR)
            if datetime.now(UTC) < closes:
                raise ApiUnavailable(
                    f"{without_password(self._url)} failed {FAIL_MAX} requests in a row: the circuit breaker is open, "
                    f"nothing is sent until {closes:%Y-%m-%d %H:%M:%S} UTC"
                )
        outcome: Answer[T] | _RequestFailed
        try:
            outcome = self._request(number)
        except _RequestFailed as error:
            outcome = error

        def settle() -> Answer[T]:
            if isinstance(outcome, _RequestFailed):
                raise outcome
            return outcome

        return self._breaker.call(settle)

    def _request(self, number: int) -> Answer[T]:
        where = f"{without_password(self._url)}?page={number}&limit={self._options.api_limit}"
        try:
            body = self._body(self._url, {"page": number, "limit": self._options.api_limit}, where)
        except (requests.RequestException, OSError) as error:
            unreachable = isinstance(error, requests.ConnectionError)
            raise _RequestFailed(f"{where} cannot be read ({_short(error)})", unreachable=unreachable) from error
        try:
            return self._parse(body)
        except ValueError as error:
            raise _RequestFailed(f"{where} gave no valid page ({error}): {body[:60]!r}") from error

    def _body(self, url: str, params: dict[str, Any] | None, where: str) -> bytes:
        deadline = time.monotonic() + self._options.request_timeout
        for _ in range(5):
            with self._session.get(
                url, params=params, stream=True, timeout=self._options.request_timeout, allow_redirects=False
            ) as response:
                if response.is_redirect:
                    target = urljoin(response.url, response.headers["Location"])
                    if urlsplit(target)[:2] != urlsplit(url)[:2]:
                        raise _RequestFailed(f"{where} redirects to another host, {without_password(target)}")
                    url, params = target, None
                    continue
                if response.status_code != 200:
                    hint = ": check the API token" if response.status_code in (401, 403) else ""
                    raise _RequestFailed(
                        f"{where} answered {response.status_code} {response.reason}{hint}",
                        retry_after=_seconds(response.headers.get("Retry-After")),
                    )
                body = bytearray()
                for chunk in response.iter_content(2**16):
                    body += chunk
                    if len(body) > _MAX_BODY:
                        raise _RequestFailed(f"{where} gave more than {_MAX_BODY // 2**20} MiB")
                    if time.monotonic() > deadline:
                        raise _RequestFailed(f"{where} took longer than {self._options.request_timeout:g} s")
                return bytes(body)
        raise _RequestFailed(f"{where} redirects in a circle")


def _seconds(retry_after: str | None) -> float | None:
    """Read a Retry-After header, seconds or a date; ``None`` for none, nonsense, zero and the past."""
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return seconds if seconds > 0 else None


def _short(error: BaseException) -> str:
    """Return the innermost reason, without the addresses of objects that urllib3 puts into its messages."""
    reason: Any = error
    while True:
        inner = getattr(reason, "reason", None) or next(
            (arg for arg in getattr(reason, "args", ()) if isinstance(arg, BaseException)), None
        )
        if not isinstance(inner, BaseException) or inner is reason:
            break
        reason = inner
    return str(reason).partition("object at 0x")[2].partition(": ")[2] or str(reason) or type(reason).__name__
