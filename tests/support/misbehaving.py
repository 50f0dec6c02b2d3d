"""A Weather Service that misbehaves as the test tells it to, by page and by attempt, and a run against it."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from owm_outbox import RESUME_WITHIN, Outbox, OutboxRelay, RunIncomplete, RunReport
from owm_outbox.cli.weather import City
from owm_outbox.jobs.owm import OwmJob
from owm_outbox_backends.jsonl import JsonLinesSink

CERTIFICATE = Path(__file__).with_name("localhost.pem")
"""Key and certificate, for 127.0.0.1 and for nothing but tests."""

PATIENCE = 20.0
"""Seconds that anything here waits for what should come at once, so that a test fails rather than hangs."""


def until(true: Callable[[], bool]) -> None:
    """Ask again and again, for what no event tells."""
    tick = threading.Event()
    gives_up = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < gives_up
        tick.wait(0.001)


@dataclass(frozen=True)
class Request:
    """One request, as the server got it.

    :param path: with its query; the whole URL if the server was taken for a proxy.
    :param page: ``None`` if the path has none.
    :param attempt: how often this page was asked for so far, counted from 1.
    """

    path: str
    page: int | None
    limit: int
    attempt: int
    headers: Mapping[str, str]


class Exchange:
    """A request and what is to become its answer: what a `Reply` works on."""

    def __init__(self, service: Misbehaving, handler: BaseHTTPRequestHandler, request: Request) -> None:
        self.service = service
        self.request = request
        self._handler = handler
        self._over = False

    @property
    def connection(self) -> socket.socket:
        """The connection that the request came by."""
        connection: socket.socket = self._handler.connection
        return connection

    def good(self) -> bytes:
        """Return the body that a healthy service gives."""
        return self.service.body(self.request)

    def send(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer; ``Retry_After="5"`` becomes a header."""
        lines = [f"HTTP/1.1 {status} {self._handler.responses.get(status, ('Odd',))[0]}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if status not in (204, 304):
            lines.append(f"Content-Length: {len(body)}")
        data = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        self.over()  # before the last byte is out: after it the client may already ask for more
        self.write(data)

    def write(self, data: bytes) -> None:
        """Send raw bytes at once."""
        self._handler.wfile.write(data)
        self._handler.wfile.flush()

    def hang_up(self) -> None:
        """Close the connection once the reply is over."""
        self._handler.close_connection = True

    def reset(self) -> None:
        """Drop the connection without a goodbye."""
        self.hang_up()
        connection = self._handler.connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(connection.detach())

    def hold(self) -> None:
        """Say nothing until the client goes away, or the service is healed."""
        self.hang_up()
        with self.service.holding(self._handler.connection) as connection, contextlib.suppress(OSError):
            connection.recv(1)

    def over(self) -> None:
        """Count this request as answered."""
        if not self._over:
            self._over = True
            self.service.answered()


Reply = Callable[[Exchange], None]


class Misbehaving(ThreadingHTTPServer):
    """Answers ``GET /cities/?page=0&limit=100`` as the real service does, except where it was told otherwise.

    :param cities: what it has; ``records`` are theirs as raw JSON, and may be changed.
    :param bare: whether it gives arrays without a total.
    :param tls: whether it speaks https, with a certificate for 127.0.0.1 that signed itself, `CERTIFICATE`, or with
        those of a context.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, cities: Sequence[City], *, bare: bool = False, tls: bool | ssl.SSLContext = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._scheme = "http"
        if tls:
            context = tls if isinstance(tls, ssl.SSLContext) else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            if tls is True:
                context.load_cert_chain(CERTIFICATE)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            self._scheme = "https"
        self.records = [record(city.city_id, city.latitude_deg, city.longitude_deg) for city in cities]
        self.bare = bare
        self.total: int | None = None  # instead of the true one
        self.first_page = 0
        self.most = sys.maxsize  # cities a page, whatever is asked for
        self.changing: Callable[[Request], None] | None = None  # called after each good body is made
        self.requests: list[Request] = []
        self.most_at_once = 0
        self.errors: list[BaseException | None] = []  # what went wrong in the server itself
        self._at_once = 0
        self._rules: list[tuple[Reply, Collection[int] | None, int, Counter[int | None]]] = []
        self._attempts: Counter[int | None] = Counter()
        self._held: set[socket.socket] = set()
        self._changed = threading.Condition(threading.RLock())

    @property
    def url(self) -> str:
        """Its address."""
        return f"{self._scheme}://127.0.0.1:{self.server_address[1]}"

    @property
    def pages(self) -> list[int | None]:
        """The page of each request, in the order they came."""
        return [request.page for request in self.requests]

    # -- told by the test

    def misbehave(self, reply: Reply, *pages: int, times: int = sys.maxsize) -> None:
        """Reply so to the next ``times`` requests for each of these pages, or for every page; earlier orders first."""
        with self._changed:
            self._rules.append((reply, pages or None, times, Counter()))

    def heal(self) -> None:
        """Forget all orders, and let go of the clients that are kept waiting."""
        with self._changed:
            self._rules.clear()
            for connection in self._held:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def wait_for(self, what: Callable[[Misbehaving], bool]) -> None:
        """Wait until it is so; asked anew at each request that comes or is answered."""
        with self._changed:
            assert self._changed.wait_for(lambda: what(self), PATIENCE), f"only {len(self.requests)} requests came"

    # -- at work

    def begin(self, path: str, headers: Mapping[str, str]) -> tuple[Request, Reply]:
        """Note a request, and choose the reply."""
        query = parse_qs(urlsplit(path).query)
        page = int(query["page"][0]) if "page" in query else None
        with self._changed:
            self._attempts[page] += 1
            limit = int(query.get("limit", ["100"])[0])
            request = Request(path, page, limit, self._attempts[page], headers)
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self._changed.notify_all()
            for reply, pages, times, used in self._rules:
                if (pages is None or page in pages) and used[page] < times:
                    used[page] += 1
                    return request, reply
        return request, good

    def answered(self) -> None:
        """Note that a request is as good as answered."""
        with self._changed:
            self._at_once -= 1
            self._changed.notify_all()

    def body(self, request: Request) -> bytes:
        """Make the good body for a request."""
        with self._changed:
            limit = min(request.limit, self.most)
            first = ((request.page or 0) - self.first_page) * limit
            array = b"[" + b",".join(self.records[first : first + limit]) + b"]"
            total = len(self.records) if self.total is None else self.total
            if self.changing is not None:
                self.changing(request)
        return array if self.bare else envelope(array, total=str(total), limit=str(limit))

    @contextlib.contextmanager
    def holding(self, connection: socket.socket) -> Iterator[socket.socket]:
        """Know this connection as one that is kept waiting."""
        with self._changed:
            self._held.add(connection)
        try:
            yield connection
        finally:
            with self._changed:
                self._held.discard(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep errors for the test; a client that went away is none."""
        if not isinstance(sys.exception(), OSError):
            self.errors.append(sys.exception())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Misbehaving

    def do_GET(self) -> None:
        request, reply = self.server.begin(self.path, dict(self.headers))
        exchange = Exchange(self.server, self, request)
        try:
            reply(exchange)
        except OSError:
            self.close_connection = True  # the client went away
        finally:
            exchange.over()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the method it replaces
        """Keep quiet."""


@contextlib.contextmanager
def misbehaving(
    cities: Sequence[City], *, bare: bool = False, tls: bool | ssl.SSLContext = False
) -> Iterator[Misbehaving]:
    """Serve these cities for the length of a block; fails if the server itself had an error."""
    service = Misbehaving(cities, bare=bare, tls=tls)
    threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()
    try:
        yield service
    finally:
        service.heal()
        service.shutdown()
        service.server_close()
    assert service.errors == []


# -- what bodies are made of


def record(city_id: object, latitude: object = 1.5, longitude: object = -2.5, *, name: str = "Ort, 市") -> bytes:
    """Return a city as raw JSON; what is a string is put in as it stands."""
    fields = {"city_id": city_id, "latitude_deg": latitude, "longitude_deg": longitude, "name": json.dumps(name)}
    return ("{" + ",".join(f'"{key}":{value}' for key, value in fields.items()) + "}").encode()


def envelope(cities: bytes, **fields: str) -> bytes:
    """Return the object around an array; fields as raw JSON."""
    rest = "".join(f',"{"total_count" if name == "total" else name}":{value}' for name, value in fields.items())
    return b'{"cities":' + cities + rest.encode() + b"}"


# -- replies


def good(exchange: Exchange) -> None:
    """Answer as a healthy service."""
    exchange.send(200, exchange.good(), Content_Type="application/json")


def status(code: int, body: bytes = b"", **headers: str) -> Reply:
    """Answer with this status; ``Retry_After="5"`` becomes a header."""
    return lambda exchange: exchange.send(code, body, **headers)


def body(content: bytes | Callable[[bytes], bytes], **headers: str) -> Reply:
    """Answer 200 with this body, or with what is made of the good one."""
    return lambda exchange: exchange.send(200, content(exchange.good()) if callable(content) else content, **headers)


def raw(answer: bytes) -> Reply:
    """Send these bytes, whatever they are, and hang up."""

    def reply(exchange: Exchange) -> None:
        exchange.write(answer)
        exchange.hang_up()

    return reply


def truncated(exchange: Exchange) -> None:
    """Promise a whole body, send half of it, and hang up."""
    content = exchange.good()
    exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content[: len(content) // 2])
    exchange.hang_up()


def cut_chunked(exchange: Exchange) -> None:
    """Send one chunk of several, and hang up."""
    content = exchange.good()
    half = content[: len(content) // 2]
    exchange.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(half) + half + b"\r\n")
    exchange.hang_up()


def chunked(exchange: Exchange) -> None:
    """Send a good body in many chunks."""
    content = exchange.good()
    pieces = [content[at : at + 1000] for at in range(0, len(content), 1000)]
    exchange.write(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n" % len(piece) + piece + b"\r\n" for piece in pieces)
        + b"0\r\n\r\n"
    )


def huge(size: int) -> Reply:
    """Send a good body after so many bytes of blanks, which JSON allows."""

    def reply(exchange: Exchange) -> None:
        content = exchange.good()
        exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (size + len(content)))
        for _ in range(size // 2**16):
            exchange.write(b" " * 2**16)
        exchange.write(b" " * (size % 2**16) + content)

    return reply


def gzip_bomb(size: int) -> Reply:
    """Send a good body after so many bytes of blanks, compressed a thousandfold."""
    blanks = gzip.compress(b" " * size)
    return body(lambda content: blanks + gzip.compress(content), Content_Encoding="gzip")


def _trickling(exchange: Exchange, data: bytes) -> None:
    never = threading.Event()
    for at in range(len(data)):
        exchange.write(data[at : at + 1])  # fails once the client is gone
        never.wait(0.02)


def trickling_header(exchange: Exchange) -> None:
    """Send a header without end, a byte at a time."""
    exchange.hang_up()
    exchange.write(b"HTTP/1.1 200 OK\r\n")
    _trickling(exchange, b"X-Patience: " + b"x" * 60_000)


def trickling_body(exchange: Exchange) -> None:
    """Send a good body, a byte at a time."""
    exchange.hang_up()
    content = exchange.good()
    exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content))
    _trickling(exchange, content)


def trickling_without_length(exchange: Exchange) -> None:
    """Send a good body, a byte at a time, whose end only the end of the connection tells."""
    exchange.hang_up()
    exchange.write(b"HTTP/1.1 200 OK\r\n\r\n")
    _trickling(exchange, exchange.good())


def hang(exchange: Exchange) -> None:
    """Say nothing at all."""
    exchange.hold()


def reset(exchange: Exchange) -> None:
    """Reset the connection."""
    exchange.reset()


def slow(seconds: float, then: Reply = good) -> Reply:
    """Reply after so many seconds."""

    def reply(exchange: Exchange) -> None:
        threading.Event().wait(seconds)
        then(exchange)

    return reply


def together(number: int, then: Reply = good) -> Reply:
    """Reply only once so many requests were being answered at once."""
    reached = threading.Event()

    def reply(exchange: Exchange) -> None:
        exchange.service.wait_for(lambda service: reached.is_set() or service.most_at_once >= number)
        reached.set()
        then(exchange)

    return reply


# -- a run against it


@dataclass(frozen=True)
class Ending:
    """How a run in this process ended.

    :param code: what the command would end with.
    :param line: what it would say.
    """

    code: int
    line: str
    report: RunReport


_LIMITS = {"attempts", "fail_max", "open_for", "max_body"}


def produce(api: str | Misbehaving, outbox: Outbox, path: Path, **options: Any) -> Ending:
    """Run the main job in this process, quick to try again, into a file; fails on any error without a report.

    :param options: the job's; its limits; and ``resume_within``.
    """
    url = api if isinstance(api, str) else api.url
    resume_within = options.pop("resume_within", RESUME_WITHIN)
    limits = {name: options.pop(name) for name in _LIMITS & set(options)}
    quick: dict[str, Any] = {"api_url": url, "retry_wait": 0.001, "request_timeout": 5.0}
    job = OwmJob(OwmJob.Options(**quick | options), **limits)
    try:
        report = OutboxRelay(outbox, JsonLinesSink(path)).run(job, resume_within=resume_within)
    except RunIncomplete as incomplete:
        return Ending(incomplete.exit_code, str(incomplete), incomplete.report)
    return Ending(65 if report.rejected else 0, "", report)


def delivered(path: Path) -> list[dict[str, Any]]:
    """Return the tasks in a file, in order; none if there is no file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def ids_in(path: Path) -> list[int]:
    """Return the city of every task in a file, sorted, so that one that is there twice shows."""
    return sorted(task["city_id"] for task in delivered(path))
