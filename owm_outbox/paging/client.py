"""One HTTP GET that ends when it should: within its deadline, within its size, at the host it was meant for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import default_headers

from owm_outbox.paging.deadlines import Watchdog
from owm_outbox.url import redacted

__all__ = ["Client", "RequestFailed"]

_MAX_REDIRECTS = 5
_HEADERS = {**default_headers(), "Accept": "application/json"}


class RequestFailed(Exception):
    """A request brought no usable answer.

    :param status: of the answer, if there was one.
    :param retry_after: seconds that the server asks to wait, if it does.
    :param unreachable: nothing answered at all.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after: float | None = None, unreachable: bool = False
    ) -> None:
        # What a server says may be anything: it must neither break the line nor tell a terminal what to do.
        super().__init__("".join(char if char.isprintable() else "?" for char in message.strip()))
        self.status = status
        self.retry_after = retry_after
        self.unreachable = unreachable


class Client:
    """Gets bodies from one host, with one `requests.Session`. Safe to use from several threads.

    :param token: sent as bearer token, to that host only.
    :param timeout: seconds for a request, from start to last byte, however slowly the bytes arrive.
    :param max_body: bytes of a body, decompressed.
    :param connections: how many idle connections are kept.
    """

    def __init__(self, *, token: str | None, timeout: float, max_body: int, connections: int) -> None:
        self._bearer = _bearer(token) if token else None
        self._timeout = timeout
        self._max_body = max_body
        self._prepared: dict[str, requests.PreparedRequest] = {}  # by URL
        self._watchdog = Watchdog()
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy or .netrc from the environment; and half the time per request
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(pool_connections=1, pool_maxsize=connections))

    def close(self) -> None:
        """Close all connections; requests under way fail."""
        self._watchdog.close()
        self._session.close()

    def get(self, url: str, params: Mapping[str, Any]) -> bytes:
        """Return the body of a 200 answer.

        :param url: with neither query nor fragment; a user and password in it are sent, unless there is a token.
        :raises RequestFailed: no usable answer; why, in one line.
        """
        query = urlencode(params)
        asked = f"{redacted(url)}?{query}"
        late = RequestFailed(f"{asked} took longer than {self._timeout:g} s")
        with self._watchdog.deadline(self._timeout) as deadline:
            _current.watch = lambda sock: self._watchdog.watch(sock, deadline)
            try:
                body = self._follow(url, query, asked)
            except RequestFailed:
                if deadline.passed:
                    raise late from None
                raise
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                if deadline.passed or isinstance(error, requests.Timeout):
                    raise late from error
                raise RequestFailed(
                    f"{asked} cannot be read ({_innermost(error)})",
                    unreachable=isinstance(error, requests.ConnectionError),
                ) from error
            if deadline.passed:  # an answer whose length the server did not announce seems complete when cut off
                raise late
            return body

    def _follow(self, url: str, query: str, asked: str) -> bytes:
        if url not in self._prepared:
            self._prepared[url] = requests.Request("GET", url, headers=_HEADERS, auth=self._bearer).prepare()
        request = self._prepared[url].copy()  # to prepare each from scratch takes a tenth of a request
        request.prepare_url(f"{url}?{query}", None)
        for _ in range(1 + _MAX_REDIRECTS):
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

    def _body(self, response: requests.Response, asked: str) -> bytes:
        if response.status_code != 200:
            hint = ": check the API token" if response.status_code in (401, 403) else ""
            raise RequestFailed(
                f"{asked} answered {response.status_code} {response.reason}{hint}",
                status=response.status_code,
                retry_after=_seconds(response.headers.get("Retry-After")),
            )
        body = bytearray()
        for chunk in response.iter_content(2**16):
            body += chunk
            if len(body) > self._max_body:
                raise RequestFailed(f"{asked} gives more than {self._max_body:,} bytes")
        return bytes(body)


def _bearer(token: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorize


_current = threading.local()  # .watch: tells the watchdog which socket sends the request that this thread is making


class _Connection(urllib3.connection.HTTPConnection):
    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        _current.watch(self.sock)
        super().send(data)


class _TLSConnection(_Connection, urllib3.connection.HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


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
