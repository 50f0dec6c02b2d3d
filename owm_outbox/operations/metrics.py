"""Metrics: one set of names for runs and for relays. Needs the extra ``metrics``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from owm_outbox import __version__
from owm_outbox.entry import Batch
from owm_outbox.errors import OwmOutboxError
from owm_outbox.observer import Observer
from owm_outbox.outbox import OutboxStats
from owm_outbox.report import RunReport

__all__ = ["Metrics"]

log = logging.getLogger("owm_outbox.metrics")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 10, 50, 100, 250, 500, 1000, 2500, 5000)

_GAUGES = {
    "up": "1 if the outbox could be looked at.",
    "pending_tasks": "Tasks in the outbox that the sink is not known to hold.",
    "oldest_pending_timestamp_seconds": "When the oldest pending task was stored; absent if there is none.",
    "dead_letters": "Dead letters in the outbox.",
    "lanes_held": "Lanes that this relay holds now; 1 or 0 for an outbox without lanes.",
    "breaker_open": "1 while the circuit breaker keeps requests to the source back.",
    "run_complete": "1 if the last run is complete.",
    "run_expected_tasks": "The newest total that the source gave, which is a claim; absent if it gave none.",
    "run_extracted_tasks": "Distinct tasks that the last run stored.",
    "run_duplicate_tasks": "Tasks of the last run whose key was there already.",
    "run_rejected_tasks": "Dead letters of the last run.",
    "run_missing_pages": "Pages of the last run that could not be fetched.",
    "run_duration_seconds": "What the last call took that worked on a run.",
    "last_exit_code": "What the last call ended with.",
    "last_end_timestamp_seconds": "When the last call ended.",
    "last_success_timestamp_seconds": "When a call last ended with a complete run.",
}


class Metrics(Observer):
    """Counts what relays tell. One object may observe several, on several threads.

    Names are those of Prometheus: ``_total`` for what only grows, ``_seconds``, and ``_timestamp_seconds`` since the
    epoch, of which an age is ``time() - …``. A gauge whose value is not known is absent. docs/operations.md explains
    each.

    :param look: looks at the outbox whenever the metrics are asked for; without it, they say nothing of it.
    :param relays: whether lanes held are among them.
    """

    def __init__(self, look: Callable[[], OutboxStats] | None, *, relays: bool = False) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=False)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"owm_outbox_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(f"owm_outbox_{name}", text, buckets=tuple(buckets), registry=registry)

        self._delivered = counter("delivered_tasks", "Tasks that the sink came to hold, those sent again among them.")
        self._redelivered = counter("redelivered_tasks", "Tasks sent again, because the sink had lost them.")
        self._rejected = counter("rejected_tasks", "Tasks that became dead letters because the sink refused them.")
        self._trimmed = counter("trimmed_tasks", "Tasks that the sink dropped, which nobody is known to have read.")
        self._batch = histogram("batch_tasks", "Tasks in a batch that the sink took.", _SIZES)
        self._send = histogram("send_duration_seconds", "What an attempt to send a batch took.", _SECONDS)
        self._send_failures = counter("send_failures", "Attempts to send a batch that failed, by error.", "reason")
        self._request = histogram("request_duration_seconds", "What a request to the source took.", _SECONDS)
        self._request_failures = counter("request_failures", "Requests to the source without a page.", "status")
        self._look = look
        self._lock = threading.Lock()
        self._known: dict[str, float] = {"lanes_held": 0} if relays else {}
        registry.register(_Gauges(self._gauges))

    # -- what a relay tells

    def lock_changed(self, held: bool) -> None:
        """Count the lanes held."""
        with self._lock:  # lanes have threads of their own
            self._known["lanes_held"] = self._known.get("lanes_held", 0) + (1 if held else -1)

    def batch_sent(self, batch: Batch, seconds: float, error: OwmOutboxError | None) -> None:
        """Count an attempt, and what it took."""
        self._send.observe(seconds)
        if error is not None:
            self._send_failures.labels(type(error).__name__).inc()

    def batch_delivered(self, batch: Batch) -> None:
        """Count what the sink holds."""
        self._delivered.inc(len(batch.entries))
        self._batch.observe(len(batch.entries))

    def entries_redelivered(self, entries: int) -> None:
        """Count what was sent again."""
        self._redelivered.inc(entries)

    def entries_trimmed(self, entries: int) -> None:
        """Count what was dropped unread."""
        self._trimmed.inc(entries)

    def entries_rejected(self, reasons: Mapping[int, str]) -> None:
        """Count dead letters."""
        self._rejected.inc(len(reasons))

    def request_finished(self, seconds: float, status: int | None, failed: bool) -> None:
        """Count a request, and what it took."""
        self._request.observe(seconds)
        if failed:
            self._request_failures.labels("none" if status is None else str(status)).inc()

    def breaker_changed(self, is_open: bool) -> None:
        """Note the breaker's state."""
        self._known["breaker_open"] = is_open

    def run_finished(self, report: RunReport) -> None:
        """Note how the run stands."""
        self._known |= {
            "run_complete": report.complete,
            "run_extracted_tasks": report.extracted,
            "run_duplicate_tasks": report.duplicates,
            "run_rejected_tasks": report.rejected,
            "run_missing_pages": len(report.missing),
            "run_duration_seconds": report.seconds,
        }
        if report.expected is not None:
            self._known["run_expected_tasks"] = report.expected

    # -- what a command tells

    def ended(self, code: int, now: float) -> None:
        """Note how a call of a job ended, whether it got as far as a run or not.

        :param now: seconds since the epoch.
        """
        self._known |= {"last_exit_code": code, "last_end_timestamp_seconds": now}
        if self._known.get("run_complete"):
            self._known["last_success_timestamp_seconds"] = now

    def _gauges(self) -> Mapping[str, float]:
        return {**self._known, **self._of_outbox()}

    def _of_outbox(self) -> Mapping[str, float]:
        if self._look is None:
            return {}
        try:
            stats = self._look()
        except OwmOutboxError as error:
            log.warning("the metrics say nothing of the outbox: %s", error)
            return {"up": 0}
        found = {"up": 1.0, "pending_tasks": stats.pending, "dead_letters": stats.dead}
        if stats.oldest is not None:
            found["oldest_pending_timestamp_seconds"] = stats.oldest.timestamp()
        return found


class _Gauges(Collector):
    """The gauges whose values are known when they are asked for."""

    def __init__(self, known: Callable[[], Mapping[str, float]]) -> None:
        self._known = known

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("owm_outbox_build_info", "1, with the version.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        known = self._known()
        for name, text in _GAUGES.items():
            if name in known:
                yield GaugeMetricFamily(f"owm_outbox_{name}", text, value=known[name])
