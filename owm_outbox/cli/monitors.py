"""What else is told how a call of a job ended: a file of metrics, and a monitor of cron jobs."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click
import msgspec

from owm_outbox.cli.outcome import Outcome
from owm_outbox.errors import ExitCode, OwmOutboxError
from owm_outbox.observer import Observer
from owm_outbox.operations.extra import metrics, telemetry
from owm_outbox.outbox import OutboxStats

if TYPE_CHECKING:
    from owm_outbox.operations.metrics import Metrics
    from owm_outbox.operations.ping import Ping

__all__ = ["Monitors", "monitor_params", "traces_param"]

log = logging.getLogger("owm_outbox")


def monitor_params() -> list[click.Option]:
    """Return the options that say who else is told."""
    return [
        click.Option(
            ["--metrics-file"],
            type=click.Path(dir_okay=False, path_type=Path),
            show_envvar=True,
            help="Write metrics to this file at the end, for node_exporter (extra: metrics).",
        ),
        click.Option(
            ["--ping"],
            metavar="URL",
            show_envvar=True,
            help="Tell a monitor of cron jobs: URL/start, then URL/EXIT-CODE with the report.",
        ),
        traces_param(),
    ]


def traces_param() -> click.Option:
    """Return the option that asks for spans."""
    return click.Option(
        ["--traces"],
        is_flag=True,
        show_envvar=True,
        help="Make spans by OpenTelemetry's API (extra: otel; the SDK is yours, as by opentelemetry-instrument).",
    )


def _look_at(url: str) -> OutboxStats:
    """Return what an outbox holds, by a connection of its own."""
    from owm_outbox.plugins import look_at_outbox

    with look_at_outbox(url) as outbox:
        return outbox.stats()


class Monitors:
    """Tells them how the block ended. What they make of it is logged, and never changes the outcome.

    :param job: its name.
    :param outbox: its URL; ``None`` for one that is gone by then.
    :param sink: its URL, if spans are wanted.
    :raises ConfigurationError: an address is none, or an extra is not installed.
    """

    def __init__(
        self, job: str, outbox: str | None, *, metrics_file: Path | None, ping: str | None, sink: str | None
    ) -> None:
        self._job = job
        self._file = metrics_file
        self._metrics: Metrics | None = (
            None if metrics_file is None else metrics(None if outbox is None else lambda: _look_at(outbox))
        )
        self._ping: Ping | None = None if ping is None else _ping(ping)
        self._outcome: Outcome | None = None
        self.observers: list[Observer] = [] if self._metrics is None else [self._metrics]
        """What a relay has to tell as well."""
        if sink is not None:
            self.observers.append(telemetry(sink))

    def ended(self, outcome: Outcome) -> Outcome:
        """Note how the call ended, and return that."""
        self._outcome = outcome
        return outcome

    def __enter__(self) -> Self:
        if self._ping is not None:
            self._ping.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        outcome = self._outcome or Outcome(_code(error), str(error))
        if self._metrics is not None:
            self._write(self._metrics, outcome.code)
        if self._ping is not None:
            body = outcome.line.encode() if outcome.report is None else msgspec.json.encode(outcome.report)
            self._ping.end(outcome.code, body)

    def _write(self, metrics: Metrics, code: int) -> None:
        from owm_outbox.operations.textfile import write_textfile

        assert self._file is not None  # noqa: S101 - there are metrics only if there is a file for them
        metrics.ended(code, time.time())
        try:
            write_textfile(self._file, metrics, self._job)
        except OSError as error:
            log.warning("--metrics-file %s cannot be written: %s", self._file, error.strerror or error)


def _code(error: BaseException | None) -> int:
    if isinstance(error, OwmOutboxError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.SIGINT
    return ExitCode.COMPLETE if error is None else ExitCode.BUG


def _ping(url: str) -> Ping:
    from owm_outbox.operations.ping import Ping

    return Ping(url)
