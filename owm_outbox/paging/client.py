"""One HTTP GET that ends when it should: within its deadline, within its size, at the host it was meant for."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any, NamedTuple
from urllib.parse import urlencode, urljoin, urlsplit

import requests
import urllib3
from requests.utils import default_headers

from owm_outbox.errors import ConfigurationError, one_line, printable
from owm_outbox.paging.deadlines import DeadlineAdapter, begin, time_left
from owm_outbox.url import redacted

__all__ = ["Answer", "Client", "RequestFailed"]

_MAX_REDIRECTS = 5
_TOKEN = "the API token"  # noqa: S105 - words of a message
_ADDRESS = "the API's address"
_CERTIFICATES = "the API's address, its certificate, and the files of --ca-file and --client-cert"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # RFC 8259: a reader of JSON may ignore it
_HEADERS = {**default_headers(), "Accept": "application/json"}


class RequestFailed(Exception):
    """A request brought no usable answer.

    :param status: of the answer, if there was one.
    :param retry_after: seconds that the server asks to wait, if it does.
    :param unreachable: nothing answered at all.
    :param fix: what to check, if it is a matter of configuration unless another request fares better.
    :param temporary: another attempt may bring one.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        unreachable: bool = False,
        fix: str | None = None,
        temporary: bool = True,
    ) -> None:
        super().__init__(printable(one_line(message)))  # what a server says may be anything
        self.status = status
        self.retry_after = retry_after
        self.unreachable = unreachable
        self.fix = fix
        self.temporary = temporary


class Answer(NamedTuple):
    """A 200 answer.

    :param asked: the URL, fit for messages.
    :param next: the link of its ``Link`` header to the next page, if there is one.
    """

    asked: str
    body: bytes
    next: str | None


class Client:
    """Gets bodies from one host, with one `requests.Session`. Safe to use from several threads.

    :param token: sent as bearer token, to that host only.
    :param timeout: seconds for a request, from start to last byte, however slowly the bytes arrive.
    :param max_body: bytes of a body, decompressed.
    :param connections: how many idle connections are kept.
    :param ca_file: PEM file of the authorities to trust, instead of those that certifi knows.
    :param client_cert: PEM file of the certificate to show, with its key unless ``client_key`` names another file.
    :raises ConfigurationError: one of these files cannot be used.
    """

    def __init__(
        self,
        *,
        token: str | None,
        timeout: float,
        max_body: int,
        connections: int,
        ca_file: str | None = None,
        client_cert: str | None = None,
        client_key: str | None = None,
    ) -> None:
        _check_files(ca_file, client_cert, client_key)
        self._bearer = _bearer(token) if token else None
        self._timeout = timeout
        self._max_body = max_body
        self._closed = threading.Event()
        self._prepared: dict[str, requests.PreparedRequest] = {}  # by URL
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy or .netrc from the environment; and half the time per request
        self._session.verify = ca_file or True
        self._session.cert = (client_cert, client_key or client_cert) if client_cert else None
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))  # each request stands alone
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, DeadlineAdapter(pool_connections=1, pool_maxsize=connections))

    def close(self) -> None:
        """Close all connections; requests under way fail within a second."""
        self._closed.set()
        self._session.close()

    def get(self, url: str, params: Mapping[str, Any] | None = None) -> Answer:
        """Return a 200 answer.

        :param url: a user and password in it are sent, unless there is a token.
        :param params: the query, if the URL has none.
        :raises RequestFailed: no usable answer; why, in one line.
        """
        request = self._prepared.get(url) or requests.Request("GET", url, headers=_HEADERS, auth=self._bearer).prepare()
        asked = redacted(url)
        if params:
            self._prepared[url] = request  # to prepare each from scratch takes a tenth of a request
            request = request.copy()
            request.url, asked = f"{request.url}?{urlencode(params)}", f"{asked}?{urlencode(params)}"
        begin(self._timeout, self._closed)
        try:
            return self._follow(request, asked)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if isinstance(error, requests.Timeout) or time_left() <= 0:
                raise RequestFailed(f"{asked} took longer than {self._timeout:g} s") from error
            tls = isinstance(error, requests.exceptions.SSLError)
            raise RequestFailed(
                f"{asked} cannot be read ({_innermost(error)})",
                unreachable=isinstance(error, requests.ConnectionError),
                fix=_CERTIFICATES if tls else None,
                temporary=not tls,
            ) from error

    def _follow(self, request: requests.PreparedRequest, asked: str) -> Answer:
        for _ in range(1 + _MAX_REDIRECTS):
            with self._session.send(
                request, stream=True, timeout=max(time_left(), 0.001), allow_redirects=False, proxies={}
            ) as response:
                if not response.is_redirect:
                    return Answer(asked, self._body(response, asked), response.links.get("next", {}).get("url"))
                target = urljoin(response.url, response.headers["Location"])
            if not _may_follow(str(response.url), target):
                raise RequestFailed(f"{asked} redirects to {redacted(target)}, which is another host", fix=_ADDRESS)
            request.prepare_url(target, None)
        raise RequestFailed(f"{asked} redirects more than {_MAX_REDIRECTS} times")

    def _body(self, response: requests.Response, asked: str) -> bytes:
        if response.status_code != 200:
            raise RequestFailed(
                f"{asked} answered {response.status_code} {response.reason}",
                status=response.status_code,
                retry_after=_seconds(response.headers.get("Retry-After")),
                fix={401: _TOKEN, 403: _TOKEN, 404: _ADDRESS}.get(response.status_code),
            )
        body = bytearray()
        for chunk in response.iter_content(2**16):
            body += chunk
            if len(body) > self._max_body:
                raise RequestFailed(f"{asked} gives more than {self._max_body:,} bytes; a lower --api-limit may help")
        return bytes(body.removeprefix(_BYTE_ORDER_MARK))


def _check_files(ca_file: str | None, client_cert: str | None, client_key: str | None) -> None:
    """Read the files once now: requests finds out only at the first request, and asks the terminal for a password."""
    context = ssl.create_default_context()
    named = f"client_cert {client_cert!r}" + (f" with client_key {client_key!r}" if client_key else "")
    try:
        named, what = f"ca_file {ca_file!r}", named
        if ca_file is not None:
            context.load_verify_locations(ca_file)
        named = what
        if client_cert is not None:
            context.load_cert_chain(client_cert, client_key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else error
        raise ConfigurationError(f"{named} cannot be used: {reason}") from error
    if client_key and not client_cert:
        raise ConfigurationError(f"client_key {client_key!r} needs the certificate that it belongs to: client_cert")


def _bearer(token: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorize


def _may_follow(url: str, target: str) -> bool:
    """Say whether what is sent to a URL may be sent to another one: the same host, and no less safe."""
    here, there = urlsplit(url), urlsplit(target)
    if (here.scheme, there.scheme) == ("http", "https"):
        return here.hostname == there.hostname
    ports = [parts.port or {"http": 80, "https": 443}.get(parts.scheme) for parts in (here, there)]
    return (here.scheme, here.hostname, ports[0]) == (there.scheme, there.hostname, ports[1])


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
