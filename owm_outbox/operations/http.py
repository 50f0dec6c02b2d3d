"""A small HTTP server for those who look after a relay. It only tells."""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from owm_outbox import __version__
from owm_outbox.errors import ConfigurationError, printable

__all__ = ["Answer", "Server", "address_of"]

log = logging.getLogger("owm_outbox.http")

_SLOWEST = 10.0  # seconds for a client's request
_OPEN = ("/healthz", "/readyz")  # to all: a probe has no token


class Answer(NamedTuple):
    """What a path answers."""

    status: int
    kind: str
    body: bytes


def address_of(text: str) -> tuple[str, int]:
    """Return host and port of ``127.0.0.1:9108`` or ``[::1]:9108``.

    :raises ConfigurationError: it is something else.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.netloc != text or parts.username is not None:
        raise ConfigurationError(f"--http {text!r} is not an address: write HOST:PORT, such as 127.0.0.1:9108")
    return host, port


class Server:
    """Answers GET on threads of its own, as long as it is open.

    :param paths: what each path answers.
    :param token: must come as bearer token, or as the password of basic authentication, which a browser asks for.
        ``/healthz`` and ``/readyz`` tell their status without it, and nothing else.
    :raises ConfigurationError: the address cannot be used.
    """

    def __init__(self, address: str, paths: Mapping[str, Callable[[], Answer]], token: str | None = None) -> None:
        host, port = address_of(address)
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            kind = type("_FamilyServer", (_Server,), {"address_family": family})
            handler = type("_Handler", (_Handler,), {"paths": dict(paths), "token": token})
            self._server: ThreadingHTTPServer = kind((host, port), handler)
        except OSError as error:
            raise ConfigurationError(f"--http {address}: {error.strerror or error}: name another address") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    @property
    def url(self) -> str:
        """Its address, with the port also where 0 was asked for."""
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("%s went away", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    paths: Mapping[str, Callable[[], Answer]]
    token: str | None
    protocol_version = "HTTP/1.1"
    server_version = f"owm_outbox/{__version__}"
    sys_version = ""
    timeout = _SLOWEST

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        make = self.paths.get(path)
        if make is None:
            known = "".join(f"{name}\n" for name in sorted(self.paths))
            return self._write(Answer(404, "text/plain", known.encode()))
        may = self.token is None or self._may(self.token)
        if not may and path not in _OPEN:
            return self._write(Answer(401, "text/plain", b"a token is needed\n"))
        try:
            answer = make()
        except Exception:
            log.exception("%s cannot be answered", path)
            answer = Answer(500, "text/plain", b"see the log\n")
        return self._write(answer if may else answer._replace(body=b""))

    do_HEAD = do_GET  # noqa: N815 - the name that the server looks for

    def _may(self, token: str) -> bool:
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        return hmac.compare_digest(given.strip().encode(), token.encode())

    def _write(self, answer: Answer) -> None:
        self.send_response(answer.status)
        if answer.status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="owm_outbox"')
        self.send_header("Content-Type", f"{answer.kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the method it replaces
        log.debug("%s", printable(format % args))
