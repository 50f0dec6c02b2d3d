"""A monitor of cron jobs: takes pings over HTTP, and remembers them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["Monitor", "monitoring"]


@dataclass
class Monitor:
    """What arrived, and what is answered.

    :param pings: paths with their bodies.
    :param statuses: of the next answers; then 200.
    :param hang: answers nothing until it is set.
    """

    port: int
    pings: list[tuple[str, bytes]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    release: threading.Event | None = None

    @property
    def url(self) -> str:
        """The URL of a check; its path is a secret."""
        return f"http://127.0.0.1:{self.port}/s3cret"


@contextlib.contextmanager
def monitoring() -> Iterator[Monitor]:
    """Run one for the length of a block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            monitor.pings.append((self.path, body))
            if monitor.release is not None:
                monitor.release.wait(60)
            with contextlib.suppress(OSError):
                self.send_response(monitor.statuses.pop(0) if monitor.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    monitor = Monitor(server.server_address[1])
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield monitor
    finally:
        if monitor.release is not None:
            monitor.release.set()
        server.shutdown()
        server.server_close()
