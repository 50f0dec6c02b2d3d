"""Traces and metrics by OpenTelemetry's API; the application brings the SDK. Needs the extra ``otel``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry import metrics, propagate, trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from owm_outbox import __version__
from owm_outbox.entry import Batch, Entry
from owm_outbox.errors import OwmOutboxError
from owm_outbox.observer import Observer
from owm_outbox.report import RunReport
from owm_outbox.run import Run
from owm_outbox.url import URL

__all__ = ["Telemetry", "destination_of"]

_NAMES = ("stream", "table", "subject")  # options of a sink's URL that say where in the server it delivers to
_MOST_LINKS = 128  # what an SDK keeps of one span, unless it is told otherwise


def destination_of(sink: str) -> tuple[str, str]:
    """Return what kind of system a sink's URL names, and what the place in it is called."""
    url = URL(sink)
    given = url.query
    name = next((given[name] for name in _NAMES if name in given), url.path.strip("/"))
    return url.scheme, name or url.scheme


class Telemetry(Observer):
    """Makes a span of a run, of each request to its source and of each attempt to send a batch, and counts.

    Names and attributes are those of OpenTelemetry's conventions for messaging and HTTP. A batch's span is linked to
    the contexts that its entries carry in their headers: what an application stored with
    ``outbox.append(tasks, headers=headers)`` after ``opentelemetry.propagate.inject(headers)``.

    :param system: what kind of system the sink is, such as ``redis``.
    :param destination: the name of the stream, table or subject.
    """

    def __init__(self, system: str, destination: str) -> None:
        self._attributes: dict[str, Any] = {
            "messaging.system": system,
            "messaging.destination.name": destination,
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
        }
        self._name = f"send {destination}"
        self._tracer = trace.get_tracer("owm_outbox", __version__)
        meter = metrics.get_meter("owm_outbox", __version__)
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Tasks sent, or tried to.")
        self._took = meter.create_histogram("messaging.client.operation.duration", "s", "What an attempt to send took.")
        self._run: trace.Span | None = None

    def run_started(self, run: Run) -> None:
        """Begin the run's span."""
        attributes: dict[str, Any] = {
            "owm_outbox.job": run.job,
            "owm_outbox.run_id": run.id,
            "owm_outbox.resumed": run.resumed,
        }
        self._run = self._tracer.start_span(f"run {run.job}", attributes=attributes)

    def request_finished(self, seconds: float, status: int | None, failed: bool) -> None:
        """Make a span of a request."""
        span = self._span("GET", SpanKind.CLIENT, seconds, {"http.request.method": "GET"})
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        if failed:
            span.set_attribute("error.type", "no page" if status is None else str(status))
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def batch_sent(self, batch: Batch, seconds: float, error: OwmOutboxError | None) -> None:
        """Make a span of an attempt, with links to what its entries are part of."""
        attributes = self._attributes | {"messaging.batch.message_count": len(batch.entries)}
        failure = {} if error is None else {"error.type": type(error).__name__}
        span = self._span(self._name, SpanKind.PRODUCER, seconds, attributes | failure, _links(batch.entries))
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, str(error)))
        span.end()
        self._sent.add(len(batch.entries), self._attributes | failure)
        self._took.record(seconds, self._attributes | failure)

    def run_finished(self, report: RunReport) -> None:
        """End the run's span."""
        if self._run is None:
            return
        for name in ("extracted", "delivered", "redelivered", "rejected", "pending"):
            self._run.set_attribute(f"owm_outbox.{name}", getattr(report, name))
        if not report.complete:
            self._run.set_status(Status(StatusCode.ERROR, "incomplete"))
        self._run.end()
        self._run = None

    def _span(
        self, name: str, kind: SpanKind, seconds: float, attributes: Mapping[str, Any], links: Iterable[Link] = ()
    ) -> trace.Span:
        """Begin the span of what has just ended."""
        run = self._run
        return self._tracer.start_span(
            name,
            context=None if run is None else trace.set_span_in_context(run),
            kind=kind,
            attributes=dict(attributes),
            links=list(links),
            start_time=time.time_ns() - int(seconds * 1e9),
        )


def _links(entries: Iterable[Entry]) -> Iterable[Link]:
    """Return a link to each context that entries carry, once."""
    seen: set[tuple[int, int]] = set()
    for entry in entries:
        if not entry.headers:
            continue
        context = trace.get_current_span(propagate.extract(entry.headers)).get_span_context()
        if context.is_valid and (context.trace_id, context.span_id) not in seen and len(seen) < _MOST_LINKS:
            seen.add((context.trace_id, context.span_id))
            yield Link(context)
