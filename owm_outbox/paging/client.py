"""One HTTP GET that ends when it should: within its deadline, within its size, at the host it was meant for."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from owm_outbox.deadlines import Deadline, Deadlines
from owm_outbox.turns import Turn, Turns
from owm_outbox.url import redacted

__all__ = ["SPARE", "Client", "RequestFailed"]

SPARE = 2
"""How many more threads than requests at once it takes to have the next request ready when one is over."""

_MAX_REDIRECTS = 5
_MAY_BE_DROPPED_AFTER = 1.0  # seconds without a request; of the common servers gunicorn waits least, 2 s


class RequestFailed(Exception):
    """A request brought no usable answer.

    :param retry_after: seconds that the server asks to wait, if it does.
    :param unreachable: nobody answered at all.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, unreachable: bool = False) -> None:
        # What a server says may be anything: it shall neither break the line nor tell a terminal what to do.
        super().__init__("".join(char if char.isprintable() else "?" for char in message.strip()))
        self.retry_after = retry_after
        self.unreachable = unreachable


class Client:
    """Gets bodies from one host, with one `requests.Session`. Safe to use from several threads.

    :param token: sent as bearer token, to that host only.
    :param timeout: seconds for a request, from start to last byte, however slowly the bytes come.
    :param max_body: bytes of a body, decompressed.
    :param at_once: requests at once, at most; half as many for a while after each answer 429 or 503.
    """

    def __init__(self, *, token: str | None, timeout: float, max_body: int, at_once: int) -> None:
        self._timeout = timeout
        self._max_body = max_body
        self._turns = Turns(at_once)
        self._deadlines = Deadlines()
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy or .netrc from the environment; and half the time a request
        self._session.headers["Accept"] = "application/json"
        self._bearer = {"Authorization": f"Bearer {token}"} if token else {}
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(pool_connections=1, pool_maxsize=at_once + SPARE + 1))
        self._prepared: dict[str, requests.PreparedRequest] = {}

    def close(self) -> None:
        """Close idle connections, and let nobody wait for a turn any more."""
        self._turns.close()
        self._session.close()
        self._deadlines.close()

    def get(
        self,
        url: str,
        params: Mapping[str, Any],
        *,
        allow: Callable[[], None] = lambda: None,
        on_failure: Callable[[RequestFailed], None] = lambda _: None,
    ) -> bytes:
        """Return the body of a 200 answer.

        :param url: with neither query nor fragment; a user and password in it are sent, unless there is a token.
        :param allow: called when it is the request's turn, right before it is sent; what it raises goes to the caller.
        :param on_failure: told of a failure before it is anybody else's turn.
        :raises RequestFailed: no usable answer; why, in one line.
        :raises ApiUnavailable: the client was closed before the request was sent.
        """
        asked = _Asked(url, params)
        deadline = Deadline(self._timeout)

        def begin() -> None:
            allow()
            self._deadlines.start(deadline)

        with self._turns.turn(begin) as turn:
            _under_way.request = deadline, turn
            try:
                return self._timed(asked, deadline)
            except RequestFailed as error:
                on_failure(error)
                raise
            finally:
                self._deadlines.stop(deadline)
                _under_way.request = None

    def _timed(self, asked: _Asked, deadline: Deadline) -> bytes:
        try:
            body = self._follow(asked)
        except RequestFailed as error:
            raise self._late(asked) if deadline.passed else error from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if deadline.passed or isinstance(error, requests.Timeout):
                raise self._late(asked) from error
            raise RequestFailed(
                f"{asked} cannot be read ({_innermost(error)})",
                unreachable=isinstance(error, requests.ConnectionError),
            ) from error
        if deadline.passed:  # an answer whose end the server did not announce seems to be over when we cut it off
            raise self._late(asked)
        return body

    def _late(self, asked: _Asked) -> RequestFailed:
        return RequestFailed(f"{asked} took longer than {self._timeout:g} s")

    def _follow(self, asked: _Asked) -> bytes:
        request = self._request(asked)
        for _ in range(_MAX_REDIRECTS):
            with self._session.send(
                request, stream=True, timeout=self._timeout, allow_redirects=False, proxies={}
            ) as response:
                if not response.is_redirect:
                    return self._body(response, asked)
                target = urljoin(response.url, response.headers["Location"])
            if _host(target) != _host(response.url):
                raise RequestFailed(f"{asked} redirects to {redacted(target)}, which is another host")
            request.prepare_url(target, None)
        raise RequestFailed(f"{asked} redirects more than {_MAX_REDIRECTS} times")

    def _request(self, asked: _Asked) -> requests.PreparedRequest:
        """Prepare a request; all but its query once, as that is the same each time and takes a third of a request."""
        prepared = self._prepared.get(asked.url)
        if prepared is None:
            prepared = self._session.prepare_request(requests.Request("GET", asked.url))
            prepared.headers.update(self._bearer)
            self._prepared[asked.url] = prepared
        request = copy.copy(prepared)  # its own copy() also copies what only we could change, and do not
        request.url = f"{prepared.url}?{urlencode(asked.params)}"
        return request

    def _body(self, response: requests.Response, asked: _Asked) -> bytes:
        if response.status_code != 200:
            if response.status_code in (429, 503):
                self._turns.halve()
            hint = ": check the API token" if response.status_code in (401, 403) else ""
            raise RequestFailed(
                f"{asked} answered {response.status_code} {response.reason}{hint}",
                retry_after=_seconds(response.headers.get("Retry-After")),
            )
        original: Any = response.raw._original_response
        if original.msg.defects:  # urllib3 goes on with the headers before the bad one
            raise RequestFailed(f"{asked} answered with headers that make no sense")
        body = bytearray()
        for chunk in response.iter_content(2**16):
            body += chunk
            if len(body) > self._max_body:
                raise RequestFailed(f"{asked} gives more than {self._max_body:,} bytes")
        self._turns.raise_again()
        return bytes(body)


class _Asked(NamedTuple):
    """What a request asks for; as text, fit for messages."""

    url: str
    params: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{redacted(self.url)}?{urlencode(self.params)}"


_under_way = threading.local()  # .request: the deadline and the turn of the request that this thread is making


class _Dropped(Exception):
    """The server closed the connection while the request waited for its turn."""


class _HTTPConnection(urllib3.connection.HTTPConnection):
    """Connects and sends when it is the request's turn, and knows its deadline."""

    _deadline: Deadline | None = None  # of the last request that was sent

    def connect(self) -> None:
        turn: Turn = _under_way.request[1]
        turn.take()
        super().connect()

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        deadline: Deadline
        turn: Turn
        deadline, turn = _under_way.request
        if self._deadline is not None:
            self._deadline.let_go()  # that request's thread may not have stopped it yet
        self._deadline = deadline
        deadline.watch(self.sock)
        ready = time.monotonic()

        def send() -> None:
            if time.monotonic() - ready > _MAY_BE_DROPPED_AFTER and not self.is_connected:
                raise _Dropped
            super(_HTTPConnection, self).send(data)

        try:
            turn.take(send)
        except _Dropped:
            self.sock.close()
            self.connect()
            deadline.watch(self.sock)
            super().send(data)


class _HTTPSConnection(_HTTPConnection, urllib3.connection.HTTPSConnection):
    """The same over TLS."""


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        self._pools: dict[tuple[str, ...], Any] = {}

    # The next two say what the originals would say, without taking the URL apart several times a request: here it is
    # always the same host, with the same certificates, and no proxy.

    def get_connection_with_tls_context(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        host = tuple((request.url or "").split("/", 3)[:3])
        pool = self._pools.get(host)
        if pool is None:
            pool = self._pools[host] = super().get_connection_with_tls_context(request, *args, **kwargs)
        return pool

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        return request.path_url


def _host(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _seconds(retry_after: str | None) -> float | None:
    """Read a Retry-After header, seconds or a date; ``None`` for none, nonsense, zero and the past."""
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if 0 < seconds < float("inf") else None


def _innermost(error: BaseException) -> str:
    """Return the innermost reason, without the addresses of objects that urllib3 puts into its messages."""
    reason: BaseException = error
    while True:
        inner: Any = getattr(reason, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in reason.args if isinstance(arg, BaseException)), None)
        if inner is None:
            break
        reason = inner
    text = str(reason) or type(reason).__name__
    return text.partition("object at 0x")[2].partition(": ")[2] or text.rpartition("): ")[2] or text
