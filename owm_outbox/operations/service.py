"""Operations: what a relay that works for months shows of itself, by HTTP and to systemd."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from owm_outbox.errors import OutboxUnavailable, OwmOutboxError
from owm_outbox.observer import Observer
from owm_outbox.operations.extra import metrics
from owm_outbox.operations.health import Health
from owm_outbox.operations.http import Answer, Server
from owm_outbox.operations.notify import Watchdog
from owm_outbox.operations.page import page
from owm_outbox.operations.throughput import Throughput
from owm_outbox.operations.view import view_of
from owm_outbox.outbox import Outbox, OutboxStats
from owm_outbox.plugins import look_at_outbox

if TYPE_CHECKING:
    from owm_outbox.operations.metrics import Metrics

__all__ = ["Operations"]

log = logging.getLogger("owm_outbox.http")

_HANGS_AFTER = 180.0  # seconds: more than any single wait of a relay or of an outbox


class Operations:
    """Shows what the relays of a process do, as long as it is open.

    :param outbox: the URL of the outbox, which is looked at whenever somebody asks.
    :param sink: the URL of the sink, for the page.
    :param http: the address to serve, such as ``127.0.0.1:9108``; ``None`` for none.
    :param token: see `Server`.
    :param systemd: what ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC`` say, if systemd started the process.
    :raises ConfigurationError: the address cannot be used, or the extra ``metrics`` is not installed.
    """

    def __init__(
        self,
        outbox: str,
        sink: str,
        *,
        http: str | None = None,
        token: str | None = None,
        systemd: tuple[str, str | None] | None = None,
    ) -> None:
        self.health = Health()
        self._outbox, self._sink = outbox, sink
        self._throughput = Throughput()
        self._metrics: Metrics | None = None
        self._server: Server | None = None
        self._watchdog: Watchdog | None = None
        self._stack = ExitStack()
        if http is not None:
            self._metrics = metrics(self._stats, relays=True)
            paths = {
                "/": self._page,
                "/metrics": self._show_metrics,
                "/healthz": self._healthy,
                "/readyz": self._ready,
            }
            self._server = Server(http, paths, token)
        if systemd is not None:
            self._watchdog = Watchdog(self.health, *systemd)

    def observers(self, name: str) -> Sequence[Observer]:
        """Return the observers for a relay.

        :param name: of its lane.
        """
        pulse = self.health.pulse(name)
        return [pulse] if self._metrics is None else [pulse, self._metrics, self._throughput]

    def opened(self) -> None:
        """Note that the outbox was opened: from now on it may be looked at."""
        self.health.is_open = True
        if self._watchdog is not None:
            self._watchdog.ready()

    def __enter__(self) -> Self:
        if self._server is not None:
            self._stack.enter_context(self._server)
            log.info("serving %s", self._server.url)
        if self._watchdog is not None:
            self._watchdog.start()
            self._stack.callback(self._watchdog.stop)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @contextmanager
    def _looking(self) -> Iterator[Outbox]:
        # Not beside the thread that opens it: a look at a file that this process is about to use could drop its locks.
        if not self.health.is_open:
            raise OutboxUnavailable(self.health.line())
        with look_at_outbox(self._outbox) as outbox:
            yield outbox

    def _stats(self) -> OutboxStats:
        with self._looking() as outbox:
            return outbox.stats()

    def _page(self) -> Answer:
        try:
            with self._looking() as outbox:
                view = view_of(
                    outbox,
                    url=self._outbox,
                    sink_url=self._sink,
                    throughput=self._throughput.last_hour(),
                    problem="; ".join(map(str, self.health.sink_errors[:1])),
                    now=datetime.now(UTC),
                    holders={int(name.rpartition(" ")[2]): "this relay" for name in self.health.held("lane ")},
                )
        except OwmOutboxError as error:
            return _text(503, str(error))
        return Answer(200, "text/html", page(view).encode())

    def _healthy(self) -> Answer:
        hanging = self.health.hanging(_HANGS_AFTER)
        if hanging:
            return _text(503, f"hangs for over {_HANGS_AFTER:.0f} s: {', '.join(hanging)}")
        return _text(200, "ok")

    def _ready(self) -> Answer:
        if not self.health.ready:
            return _text(503, self.health.line())
        try:
            with self._looking() as outbox:
                outbox.runs(1)  # it answers; what it holds does not matter, and takes long to count
        except OwmOutboxError as error:
            return _text(503, f"waiting for the outbox: {error}")
        return _text(200, self.health.line())

    def _show_metrics(self) -> Answer:
        from prometheus_client import generate_latest

        assert self._metrics is not None  # noqa: S101 - it is shown only if there is one
        return Answer(200, "text/plain; version=0.0.4", generate_latest(self._metrics.registry))


def _text(status: int, line: str) -> Answer:
    return Answer(status, "text/plain", f"{line}\n".encode())
