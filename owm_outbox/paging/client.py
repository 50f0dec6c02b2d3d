"""One HTTP GET that ends when it should: within its deadline, within its size, at the host it was meant for."""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import default_headers

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
        self._closed = threading.Event()
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy or .netrc from the environment; and half the time per request
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(pool_connections=1, pool_maxsize=connections))

    def close(self) -> None:
        """Close all connections; requests under way fail within a second."""
        self._closed.set()
        self._session.close()

    def get(self, url: str, params: Mapping[str, Any]) -> bytes:
        """Return the body of a 200 answer.

        :param url: with neither query nor fragment; a user and password in it are sent, unless there is a token.
        :raises RequestFailed: no usable answer; why, in one line.
        """
        asked = f"{redacted(url)}?{urlencode(params)}"
        request = requests.Request("GET", url, headers=_HEADERS, params=params, auth=self._bearer).prepare()
        _current.ends_at, _current.closed = time.monotonic() + self._timeout, self._closed
        try:
            return self._follow(request, asked)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if isinstance(error, requests.Timeout) or _time_left() <= 0:
                raise RequestFailed(f"{asked} took longer than {self._timeout:g} s") from error
            unreachable = isinstance(error, requests.ConnectionError)
            raise RequestFailed(f"{asked} cannot be read ({_innermost(error)})", unreachable=unreachable) from error

    def _follow(self, request: requests.PreparedRequest, asked: str) -> bytes:
        for _ in range(1 + _MAX_REDIRECTS):
            with self._session.send(
                request, stream=True, timeout=max(_time_left(), 0.001), allow_redirects=False, proxies={}
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


# -- one deadline for the whole answer: the timeout that requests takes is for each gap between two bytes

_current = threading.local()  # of the request that this thread is making: .ends_at, .closed


def _time_left() -> float:
    return float(_current.ends_at - time.monotonic())


class _UntilDeadline(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw  # holds the socket open until the answer has been read
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while (left := _time_left()) > 0 and not _current.closed.is_set():
            self._sock.settimeout(min(left, 1.0))
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                continue  # to see whether the client was closed
        raise TimeoutError("it took too long, or was closed")

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_UntilDeadline(self.fp.detach(), sock))


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _Response


class _TLSConnection(urllib3.connection.HTTPSConnection):
    response_class = _Response


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
    try:
        seconds = urllib3.Retry().parse_retry_after(retry_after or "")
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None
    return seconds if seconds > 0 else None


def _innermost(error: BaseException) -> str:
    """Return the innermost reason, without the addresses of objects that urllib3 puts into its messages."""
    while True:
        reason: Any = getattr(error, "reason", None)
        inner = [arg for arg in (reason, *error.args) if isinstance(arg, BaseException)]
        if not inner:
            break
        error = inner[0]
    text = str(error) or type(error).__name__
    return text.partition("object at 0x")[2].partition(": ")[2] or text.rpartition("): ")[2] or text
