"""Operations: what a relay that works for months shows of itself, by HTTP and to systemd."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from owm_outbox.errors import ConfigurationError
from owm_outbox.observer import Observer
from owm_outbox.operations.health import Health
from owm_outbox.operations.http import Answer, Server
from owm_outbox.operations.notify import Watchdog
from owm_outbox.outbox import OutboxStats

if TYPE_CHECKING:
    from owm_outbox.operations.metrics import Metrics

__all__ = ["Operations"]

log = logging.getLogger("owm_outbox.http")

_HANGS_AFTER = 180.0  # seconds: more than any single wait of a relay or of an outbox


class Operations:
    """Shows what the relays of a process do, as long as it is open.

    :param look: looks at the outbox, on any thread.
    :param http: the address to serve, such as ``127.0.0.1:9108``; ``None`` for none.
    :param token: see `Server`.
    :param systemd: what ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC`` say, if systemd started the process.
    :raises ConfigurationError: the address cannot be used, or the extra ``metrics`` is not installed.
    """

    def __init__(
        self,
        look: Callable[[], OutboxStats],
        *,
        http: str | None = None,
        token: str | None = None,
        systemd: tuple[str, str | None] | None = None,
    ) -> None:
        self.health = Health()
        self._metrics: Metrics | None = None
        self._server: Server | None = None
        self._watchdog: Watchdog | None = None
        self._stack = ExitStack()
        if http is not None:
            self._metrics = _metrics(look)
            self._server = Server(
                http, {"/metrics": self._show_metrics, "/healthz": self._healthy, "/readyz": self._ready}, token
            )
        if systemd is not None:
            self._watchdog = Watchdog(self.health, *systemd)

    def observers(self, name: str) -> Sequence[Observer]:
        """Return the observers for a relay.

        :param name: of its lane.
        """
        pulse = self.health.pulse(name)
        return [pulse] if self._metrics is None else [pulse, self._metrics]

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

    def _healthy(self) -> Answer:
        hanging = self.health.hanging(_HANGS_AFTER)
        if hanging:
            return _text(503, f"hangs for over {_HANGS_AFTER:.0f} s: {', '.join(hanging)}")
        return _text(200, "ok")

    def _ready(self) -> Answer:
        return _text(503 if self.health.sink_errors else 200, self.health.line())

    def _show_metrics(self) -> Answer:
        from prometheus_client import generate_latest

        assert self._metrics is not None  # noqa: S101 - it is shown only if there is one
        return Answer(200, "text/plain; version=0.0.4", generate_latest(self._metrics.registry))


def _text(status: int, line: str) -> Answer:
    return Answer(status, "text/plain", f"{line}\n".encode())


def _metrics(look: Callable[[], OutboxStats]) -> Metrics:
    try:
        from owm_outbox.operations.metrics import Metrics
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"metrics need their extra: pip install 'owm_outbox[metrics]' ({error})") from error
    return Metrics(look, relays=True)
